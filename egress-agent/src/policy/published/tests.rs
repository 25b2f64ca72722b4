use serde_json::json;
use tokio::sync::mpsc;

use super::*;
use crate::policy::{InForce, ObjectFact};

/// A follower, and the server's side of its watches.
struct Followed {
    server: mpsc::Sender<(PolicyKind, Event<DynamicObject>)>,
    policies: PublishedPolicies,
}

fn followed(memory: Option<PolicyMemory>) -> Followed {
    let (server, events) = mpsc::channel(100);
    let events = stream::unfold(events, |mut events| async {
        Some((events.recv().await?, events))
    });
    Followed {
        server,
        policies: PublishedPolicies::of_events(Box::pin(events), memory),
    }
}

fn object(kind: PolicyKind, name: &str, generation: i64, domain: &str) -> DynamicObject {
    let mut metadata =
        json!({"name": name, "uid": format!("uid-{name}"), "generation": generation, "labels": {"a": "b"}});
    if kind == PolicyKind::EgressPolicy {
        metadata["namespace"] = json!("a");
    }
    serde_json::from_value(json!({
        "apiVersion": "egress-enforcer.io/v1alpha1", "kind": kind.as_str(), "metadata": metadata,
        "spec": {"egress": [{"to": [{"domain": domain}]}]}, "status": {"pods": 3},
    }))
    .unwrap()
}

const NAMESPACED: PolicyKind = PolicyKind::EgressPolicy;
const CLUSTER: PolicyKind = PolicyKind::ClusterEgressPolicy;

impl Followed {
    async fn tell(&self, kind: PolicyKind, event: Event<DynamicObject>) {
        self.server.send((kind, event)).await.unwrap();
    }

    async fn list(&self, kind: PolicyKind, objects: Vec<DynamicObject>) {
        self.tell(kind, Event::Init).await;
        for object in objects {
            self.tell(kind, Event::InitApply(object)).await;
        }
        self.tell(kind, Event::InitDone).await;
    }

    /// Whether a change comes within the time that changes are gathered, with some to spare.
    async fn changes(&mut self) -> bool {
        timeout_at(Instant::now() + TOGETHER * 4, self.policies.next())
            .await
            .is_ok()
    }

    fn facts(&self) -> Vec<ObjectFact> {
        self.policies.objects().facts(&BTreeSet::new()).collect()
    }

    fn names(&self) -> Vec<String> {
        self.facts().into_iter().map(|fact| fact.key.name).collect()
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_is_told_before_both_kinds_are_known() {
    let mut followed = followed(None);
    assert_eq!(followed.policies.knowledge(), Knowledge::Unknown);
    followed
        .list(NAMESPACED, vec![object(NAMESPACED, "p", 1, "x.test")])
        .await;
    followed
        .tell(NAMESPACED, Event::Apply(object(NAMESPACED, "q", 1, "x.test")))
        .await;
    assert!(!followed.changes().await);
    assert_eq!(followed.policies.knowledge(), Knowledge::Unknown);
    followed.list(CLUSTER, vec![]).await;
    assert!(followed.changes().await);
    assert_eq!(followed.policies.knowledge(), Knowledge::Followed);
    assert_eq!(followed.names(), ["p", "q"]);
}

#[tokio::test(start_paused = true)]
async fn an_empty_cluster_is_known_to_be_empty() {
    let mut followed = followed(None);
    followed.list(NAMESPACED, vec![]).await;
    followed.list(CLUSTER, vec![]).await;
    assert!(followed.changes().await);
    assert_eq!(followed.policies.knowledge(), Knowledge::Followed);
}

#[tokio::test(start_paused = true)]
async fn changes_that_come_together_are_told_together_and_a_status_is_none() {
    let mut followed = followed(None);
    followed.list(CLUSTER, vec![]).await;
    followed
        .list(NAMESPACED, vec![object(NAMESPACED, "p", 1, "x.test")])
        .await;
    assert!(followed.changes().await);
    for name in ["q", "r", "s"] {
        followed
            .tell(NAMESPACED, Event::Apply(object(NAMESPACED, name, 1, "x.test")))
            .await;
    }
    followed
        .tell(NAMESPACED, Event::Delete(object(NAMESPACED, "p", 1, "x.test")))
        .await;
    assert!(followed.changes().await);
    assert_eq!(followed.names(), ["q", "r", "s"]);
    assert!(!followed.changes().await);
    followed
        .tell(NAMESPACED, Event::Apply(object(NAMESPACED, "q", 1, "x.test")))
        .await;
    assert!(!followed.changes().await, "its generation is the same");
}

#[tokio::test(start_paused = true)]
async fn a_list_that_breaks_off_changes_nothing() {
    let mut followed = followed(None);
    followed.list(CLUSTER, vec![]).await;
    followed
        .list(
            NAMESPACED,
            vec![
                object(NAMESPACED, "p", 1, "x.test"),
                object(NAMESPACED, "q", 1, "x.test"),
            ],
        )
        .await;
    assert!(followed.changes().await);
    followed.tell(NAMESPACED, Event::Init).await;
    followed
        .tell(NAMESPACED, Event::InitApply(object(NAMESPACED, "p", 1, "x.test")))
        .await;
    assert!(!followed.changes().await);
    // Begun anew.
    followed
        .list(NAMESPACED, vec![object(NAMESPACED, "q", 1, "x.test")])
        .await;
    assert!(followed.changes().await);
    assert_eq!(followed.names(), ["q"]);
}

#[tokio::test(start_paused = true)]
async fn a_broken_change_keeps_the_last_good_version() {
    let mut followed = followed(None);
    followed
        .list(CLUSTER, vec![object(CLUSTER, "base", 1, "x.test")])
        .await;
    followed.list(NAMESPACED, vec![]).await;
    assert!(followed.changes().await);
    followed
        .tell(CLUSTER, Event::Apply(object(CLUSTER, "base", 2, "*.com")))
        .await;
    assert!(followed.changes().await);
    assert_eq!(followed.facts()[0].in_force, InForce::Older(1));
}

#[tokio::test]
async fn an_agent_that_starts_without_a_server_judges_by_the_last_policies_known() {
    let directory = tempfile::tempdir().unwrap();
    let memory = PolicyMemory::in_directory(directory.path());
    let mut first = followed(Some(memory.clone()));
    first
        .list(CLUSTER, vec![object(CLUSTER, "base", 1, "x.test")])
        .await;
    first
        .list(NAMESPACED, vec![object(NAMESPACED, "p", 4, "*.com")])
        .await;
    assert!(first.changes().await);
    let facts = first.facts();
    // Followed until the file is there: it is written in its time.
    while memory.recall().is_none() {
        drop(timeout_at(Instant::now() + TOGETHER, first.policies.next()).await);
    }
    let mut second = followed(Some(memory));
    assert!(matches!(second.policies.knowledge(), Knowledge::Recalled(_)));
    assert_eq!(second.facts(), facts);
    second
        .list(CLUSTER, vec![object(CLUSTER, "base", 1, "x.test")])
        .await;
    assert!(!second.changes().await);
    second
        .list(NAMESPACED, vec![object(NAMESPACED, "p", 4, "*.com")])
        .await;
    assert!(second.changes().await, "what is known is no longer from memory");
    assert_eq!(second.policies.knowledge(), Knowledge::Followed);
}
