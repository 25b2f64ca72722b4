use k8s_openapi::{api::coordination::v1::Lease, apimachinery::pkg::apis::meta::v1::MicroTime};

use super::*;
use crate::publish::fingerprint::Fingerprint;

fn lease(name: &str) -> Lease {
    renewed(name, Duration::ZERO)
}

/// A node's Lease that it has renewed so long ago.
fn renewed(name: &str, ago: Duration) -> Lease {
    let report = NodeReport::for_test(Fingerprint::of([]), &[]);
    let at = Timestamp::now() - ago;
    serde_json::from_value(report.lease(name, at)).unwrap()
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
async fn a_list_does_not_make_dead_nodes_alive() {
    // The test's clock has to have a past.
    tokio::time::advance(node::LIFETIME * 4).await;
    let mut nodes = Nodes::default();
    let second = Duration::from_secs(1);
    let dead = renewed("dead", node::LIFETIME + second);
    let dying = renewed("dying", node::LIFETIME - second * 5);
    let ahead = Timestamp::now() + Duration::from_secs(3600);
    let mut fast = lease("fast");
    if let Some(spec) = &mut fast.spec {
        spec.renew_time = Some(MicroTime(ahead));
    }
    let listed = [dead, dying, fast, lease("n1")];
    let list = |nodes: &mut Nodes| {
        nodes.take(Event::Init);
        for lease in listed.clone() {
            nodes.take(Event::InitApply(lease));
        }
        nodes.take(Event::InitDone);
    };
    list(&mut nodes);
    let alive = |nodes: &Nodes| nodes.alive(Instant::now()).count();
    assert_eq!(alive(&nodes), 3, "a clock that is ahead makes nobody dead");
    tokio::time::advance(second * 6).await;
    list(&mut nodes);
    assert_eq!(alive(&nodes), 2, "nothing was heard of one meanwhile");
    tokio::time::advance(node::LIFETIME - second * 6).await;
    list(&mut nodes);
    assert_eq!(alive(&nodes), 0);
    // Renewed, though long ago by a clock that is behind.
    nodes.take(Event::Apply(renewed("dead", node::LIFETIME)));
    assert_eq!(alive(&nodes), 1);
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
