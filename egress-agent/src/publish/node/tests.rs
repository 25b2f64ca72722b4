use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use http::{Request, Response};
use kube::{Client, client::Body};
use serde_json::from_value;

use super::*;
use crate::{
    cluster::Cluster,
    policy::{Knowledge, Origin, PolicyKind, PolicyObject, PolicyObjects, Settings},
};

fn object(kind: PolicyKind, name: &str, spec: serde_json::Value) -> PolicyObject {
    PolicyObject {
        key: ObjectKey {
            kind,
            namespace: if kind == PolicyKind::EgressPolicy {
                "a".to_owned()
            } else {
                String::new()
            },
            name: name.to_owned(),
        },
        uid: format!("uid-{name}"),
        generation: 1,
        spec,
    }
}

pub(in crate::publish) fn set() -> PolicySet {
    let mut objects = PolicyObjects::default();
    let web = json!({"podSelector": {"matchLabels": {"app": "web"}}});
    objects.apply(object(PolicyKind::EgressPolicy, "web", web));
    objects.apply(object(
        PolicyKind::EgressPolicy,
        "audit",
        json!({"mode": "Audit"}),
    ));
    objects.apply(object(PolicyKind::ClusterEgressPolicy, "base", json!({})));
    let none = std::collections::BTreeSet::new();
    let origin = Origin {
        knowledge: Knowledge::Followed,
        objects: objects.facts(&none).collect(),
        ..Origin::default()
    };
    PolicySet::build(objects.policies(&none), Settings::default())
        .unwrap()
        .with_origin(origin)
}

fn pod(namespace: &str, app: &str) -> Arc<Workload> {
    Arc::new(Workload {
        namespace: namespace.to_owned(),
        labels: [("app".to_owned(), app.to_owned())].into(),
        ..Workload::default()
    })
}

#[test]
fn a_node_says_how_many_of_its_pods_each_policy_selects() {
    let pods = [
        pod("a", "web"),
        pod("a", "web"),
        pod("a", "batch"),
        pod("b", "web"),
    ];
    let report = NodeReport::of(&set(), &pods);
    let counts = ["web", "audit", "base", "other"].map(|name| report.pods(&format!("uid-{name}")));
    // The policy that only audits is set aside for all of them, and selects them still.
    assert_eq!(counts, [2, 3, 4, 0]);
}

#[test]
fn what_a_lease_says_is_read_as_it_was_meant() {
    let report = NodeReport::of(&set(), &[pod("a", "web")]);
    let lease: Lease = from_value(report.lease("n1", jiff::Timestamp::now())).unwrap();
    assert_eq!(NodeReport::read(&lease), Some(report));
    assert!(lease.spec.unwrap().renew_time.is_some());
    let foreign: Lease = from_value(json!({"metadata": {"name": "n1"}})).unwrap();
    assert_eq!(NodeReport::read(&foreign), None);
    let damaged: Lease =
        from_value(json!({"metadata": {"annotations": {POLICIES: "", SELECTED: "x"}}})).unwrap();
    assert_eq!(NodeReport::read(&damaged), None);
}

#[tokio::test(start_paused = true)]
async fn a_report_that_the_server_swallows_is_given_up_and_made_anew() {
    let asked = Arc::new(AtomicUsize::default());
    let counted = Arc::clone(&asked);
    let service = tower::service_fn(move |_report: Request<Body>| {
        counted.fetch_add(1, Ordering::Relaxed);
        std::future::pending::<Result<Response<Body>, Infallible>>()
    });
    let cluster = Cluster::with_client(Client::new(service, "default"), "n1");
    let publisher = Publisher::new(cluster, "egress", Vec::new);
    let store = PolicyStore::default();
    let reporting = publisher.report(&store);
    drop(timeout(PATIENCE + AFTER_FAILURE + LOOK * 2, reporting).await);
    assert_eq!(asked.load(Ordering::Relaxed), 2);
}
