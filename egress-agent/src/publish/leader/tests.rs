use k8s_openapi::api::coordination::v1::Lease;

use super::*;
use crate::publish::fingerprint::Fingerprint;

fn lease(name: &str) -> Lease {
    let report = NodeReport::for_test(Fingerprint::of([]), &[]);
    serde_json::from_value(report.lease(name, Timestamp::now())).unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_node_that_is_silent_or_gone_does_not_count() {
    let mut nodes = Nodes::default();
    let begun = Instant::now();
    for event in [
        Event::Init,
        Event::InitApply(lease("n1")),
        Event::InitApply(lease("n2")),
        Event::InitDone,
        Event::Apply(lease("n3")),
    ] {
        nodes.take(event);
    }
    assert_eq!(nodes.alive(begun).count(), 3);
    nodes.take(Event::Delete(lease("n3")));
    assert_eq!(nodes.alive(begun).count(), 2);
    tokio::time::advance(node::LIFETIME - Duration::from_secs(1)).await;
    nodes.take(Event::Apply(lease("n1")));
    assert_eq!(nodes.alive(begun + node::LIFETIME).count(), 1);
    for event in [Event::Init, Event::InitApply(lease("n2")), Event::InitDone] {
        nodes.take(event);
    }
    assert_eq!(nodes.known.keys().collect::<Vec<_>>(), ["n2"]);
    let no_agents: Lease = serde_json::from_value(json!({"metadata": {"name": "n4"}})).unwrap();
    nodes.take(Event::Apply(no_agents));
    assert_eq!(nodes.known.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_status_in_which_only_pods_have_changed_can_wait() {
    let status = |pods, generation| ObjectStatus {
        pods,
        observed_generation: generation,
        ..ObjectStatus::default()
    };
    let at = Instant::now();
    let written = Written {
        status: status(1, 1),
        at,
    };
    assert!(written.will_do(&status(1, 1), at + PODS_PERIOD * 2));
    assert!(written.will_do(&status(2, 1), at));
    assert!(!written.will_do(&status(2, 1), at + PODS_PERIOD));
    assert!(!written.will_do(&status(1, 2), at));
}
