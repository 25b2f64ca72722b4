use std::{fs, path::Path, sync::Arc};

use egress_common::outcome::Outcome;
use futures_util::StreamExt as _;
use kube::{api::DynamicObject, runtime::watcher::Event};
use serde_json::json;

use super::*;
use crate::{
    identity::Workload,
    policy::{Host, InForce, PolicyKind, PolicyMemory, Target},
};

const FILE: &str = "\
apiVersion: egress-enforcer.io/v1alpha1
kind: EgressPolicy
metadata: {name: file, namespace: a}
spec: {egress: [{to: [{domain: file.test}]}]}
";

fn object(name: &str, domain: &str) -> DynamicObject {
    serde_json::from_value(json!({
        "metadata": {"name": name, "namespace": "a", "uid": format!("uid-{name}"), "generation": 1},
        "spec": {"egress": [{"to": [{"domain": domain}]}]},
    }))
    .unwrap()
}

/// The API server's lists, and what comes after them.
fn published(
    objects: Vec<DynamicObject>,
    later: Vec<DynamicObject>,
    memory: Option<PolicyMemory>,
) -> PublishedPolicies {
    let kind = PolicyKind::EgressPolicy;
    let mut events = vec![
        (PolicyKind::ClusterEgressPolicy, Event::Init),
        (kind, Event::Init),
    ];
    events.extend(objects.into_iter().map(|object| (kind, Event::InitApply(object))));
    events.extend([
        (kind, Event::InitDone),
        (PolicyKind::ClusterEgressPolicy, Event::InitDone),
    ]);
    let first = futures_util::stream::iter(events);
    let later = later.into_iter().map(move |object| (kind, Event::Apply(object)));
    // Later, so that it is no part of the first set.
    let later = futures_util::stream::once(tokio::time::sleep(Duration::from_secs(1)))
        .flat_map(move |()| futures_util::stream::iter(later.clone().collect::<Vec<_>>()));
    PublishedPolicies::of_test(Box::pin(first.chain(later)), memory)
}

fn silent(memory: Option<PolicyMemory>) -> PublishedPolicies {
    PublishedPolicies::of_test(Box::pin(futures_util::stream::pending()), memory)
}

fn sources(directory: &Path, published: PublishedPolicies) -> Sources {
    let source = PolicySource::new(Settings::default()).with_paths([directory.to_path_buf()]);
    Sources::start(&source, Some(published)).unwrap()
}

fn outcome(set: PolicySet, host: &str) -> Outcome {
    let workload = Workload {
        namespace: "a".to_owned(),
        ..Workload::default()
    };
    let target = Target {
        host: &Host::parse(host).unwrap(),
        port: 443,
        address: [192, 0, 2, 1].into(),
        request: None,
    };
    Arc::new(set).view(&workload).judge(&target).outcome
}

#[tokio::test(start_paused = true)]
async fn policies_of_files_and_of_the_server_add_up() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("a.yaml"), FILE).unwrap();
    let mut sources = sources(
        directory.path(),
        published(vec![object("p", "object.test")], vec![], None),
    );
    let set = sources.first().await;
    assert_eq!(
        (
            set.counts().policies,
            set.origin().files,
            set.origin().objects.len()
        ),
        (2, 1, 1)
    );
    assert_eq!(set.origin().knowledge, Knowledge::Followed);
    let set = Arc::new(set);
    for host in ["file.test", "object.test"] {
        assert_eq!(outcome(sources.set(), host), Outcome::AllowedByRule);
    }
    assert_eq!(set.origin().objects[0].in_force, InForce::Newest);
}

#[tokio::test(start_paused = true)]
async fn a_file_stands_in_for_an_object_of_its_name() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("a.yaml"), FILE).unwrap();
    let mut sources = sources(
        directory.path(),
        published(vec![object("file", "object.test")], vec![], None),
    );
    let set = sources.first().await;
    assert_eq!(set.origin().objects[0].in_force, InForce::FileInstead);
    assert_eq!(outcome(set, "object.test"), Outcome::NoRule);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_is_silent_leaves_everything_denied_whatever_files_allow() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("a.yaml"), FILE).unwrap();
    let mut sources = sources(directory.path(), silent(None));
    let set = sources.first().await;
    assert_eq!(set.origin().knowledge, Knowledge::Unknown);
    assert_eq!(outcome(set, "file.test"), Outcome::UnselectedDenied);
}

#[tokio::test(start_paused = true)]
async fn what_is_remembered_is_in_force_while_the_server_is_silent() {
    let (directory, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let memory = PolicyMemory::in_directory(state.path());
    let mut objects = crate::policy::PolicyObjects::default();
    objects
        .apply(crate::policy::policy_object(PolicyKind::EgressPolicy, object("p", "object.test")).unwrap());
    memory.save(&objects).unwrap();
    let mut sources = sources(directory.path(), silent(Some(memory)));
    let set = sources.first().await;
    assert!(matches!(set.origin().knowledge, Knowledge::Recalled(_)));
    assert_eq!(outcome(set, "object.test"), Outcome::AllowedByRule);
}

#[tokio::test]
async fn broken_files_do_not_keep_the_servers_changes_out() {
    // Without a subscriber of its own this thread would tell tracing that nobody wants these events, while another test
    // waits for them.
    let quiet = tracing_subscriber::fmt().with_writer(std::io::sink).finish();
    let _guard = tracing::subscriber::set_default(quiet);
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("a.yaml");
    fs::write(&file, FILE).unwrap();
    let later = vec![object("q", "later.test")];
    let mut sources = sources(directory.path(), published(vec![], later, None));
    drop(sources.first().await);
    fs::write(&file, FILE.replace("domain", "domian")).unwrap();
    // The two come in either order.
    let (mut was_told, mut is_there) = (false, false);
    while !(was_told && is_there) {
        match sources.next().await {
            Err(errors) => was_told |= errors.to_string().contains("domian"),
            Ok(set) => is_there |= !set.origin().objects.is_empty(),
        }
    }
    let set = sources.set();
    assert!(set.origin().file_errors.as_ref().unwrap().contains("domian"));
    assert_eq!(
        outcome(sources.set(), "file.test"),
        Outcome::AllowedByRule,
        "the last good file"
    );
    assert_eq!(outcome(set, "later.test"), Outcome::AllowedByRule);
}
