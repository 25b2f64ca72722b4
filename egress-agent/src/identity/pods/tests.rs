use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::identity::pod::tests::object;

const A: &str = "aaaaaaaa-0000-4000-8000-000000000001";
const B: &str = "bbbbbbbb-0000-4000-8000-000000000002";
const HASH: &str = "7b4d1e0a9c8f2b3d4e5f60718293a4b5";

fn uid(text: &str) -> PodUid {
    text.parse().unwrap()
}

fn pod(uid: &str, namespace: &str, app: &str) -> Pod {
    Pod::read(&object(json!({
        "metadata": {"uid": uid, "namespace": namespace, "name": app, "labels": {"app": app}},
        "spec": {"containers": []}
    })))
    .unwrap()
}

fn mirror(uid: &str, namespace: &str, created: i64) -> Pod {
    Pod {
        hash: Some(HASH.parse().unwrap()),
        created: Some(Timestamp::from_second(created).unwrap()),
        ..pod(uid, namespace, "static")
    }
}

fn index(namespaces: &[&str]) -> PodIndex {
    let mut index = PodIndex::new(Exemptions {
        namespaces: ["kube-system".to_owned()].into(),
        pods: vec![(
            "monitoring".to_owned(),
            [("app".to_owned(), "exporter".to_owned())].into(),
        )],
        opt_out: ["trusted".to_owned()].into(),
    });
    for name in namespaces {
        index.apply_namespace(name, [("name".to_owned(), (*name).to_owned())].into());
    }
    index
}

#[test]
fn a_pod_is_a_workload_once_its_namespace_is_known() {
    let mut index = index(&[]);
    assert_eq!(index.apply_pod(pod(A, "team", "web")), Change::Known);
    assert!(
        index.workload(uid(A)).is_none(),
        "its namespace's labels could select a policy"
    );
    let front = [("tier".to_owned(), "front".to_owned())].into();
    assert_eq!(index.apply_namespace("team", front), Change::Known);
    let workload = index.workload(uid(A)).unwrap();
    assert_eq!(
        (workload.namespace.as_str(), workload.name.as_str()),
        ("team", "web")
    );
    assert_eq!(workload.namespace_labels["tier"], "front");
}

#[test]
fn new_labels_of_a_pod_and_of_its_namespace_are_seen() {
    let mut index = index(&["team"]);
    index.apply_pod(pod(A, "team", "web"));
    assert_eq!(index.apply_pod(pod(A, "team", "web")), Change::Nothing);
    let addressed = Pod {
        addresses: vec!["10.0.0.7".parse().unwrap()],
        ..pod(A, "team", "web")
    };
    assert_eq!(index.apply_pod(addressed), Change::Known);
    assert_eq!(index.apply_pod(pod(A, "team", "batch")), Change::Judged);
    assert_eq!(index.workload(uid(A)).unwrap().labels["app"], "batch");
    let back = [("tier".to_owned(), "back".to_owned())].into();
    assert_eq!(index.apply_namespace("team", back), Change::Judged);
    assert_eq!(index.workload(uid(A)).unwrap().namespace_labels["tier"], "back");
    assert_eq!(
        index.apply_namespace("empty", Labels::new()),
        Change::Nothing,
        "nobody is in it"
    );
}

/// `kubectl delete --force` removes the object while the processes run on.
#[test]
fn a_deleted_pod_is_known_as_long_as_it_has_a_cgroup() {
    let mut index = index(&["team"]);
    index.apply_pod(pod(A, "team", "web"));
    index.delete_pod(uid(A));
    index.delete_namespace("team");
    index.forget(&[uid(A)].into());
    assert_eq!(index.workload(uid(A)).unwrap().namespace_labels["name"], "team");
    assert!(index.has_gone());
    index.forget(&HashSet::new());
    assert!(index.workload(uid(A)).is_none());
    assert!(index.namespaces.is_empty() && index.pods.is_empty());
}

#[test]
fn what_a_new_list_does_not_name_is_gone_and_what_it_names_is_not() {
    let mut index = index(&["team", "old"]);
    index.apply_pod(pod(A, "team", "web"));
    index.apply_pod(pod(B, "team", "batch"));
    index.begin_pods();
    index.apply_pod(pod(A, "team", "web"));
    index.end_pods();
    index.begin_namespaces();
    index.apply_namespace("team", Labels::new());
    index.end_namespaces();
    index.forget(&HashSet::new());
    assert!(index.workload(uid(A)).is_some());
    assert!(index.workload(uid(B)).is_none());
    assert!(!index.namespaces.contains_key("old"));
}

#[test]
fn a_list_that_was_cut_off_removes_nothing() {
    let mut index = index(&["team"]);
    index.apply_pod(pod(A, "team", "web"));
    index.begin_pods();
    // The server goes away; its next answer is a list again.
    index.begin_pods();
    index.apply_pod(pod(A, "team", "web"));
    index.end_pods();
    assert!(!index.has_gone());
}

#[test]
fn a_static_pod_is_found_by_its_hash_and_by_its_uid() {
    let mut index = index(&["infra"]);
    index.apply_pod(mirror(A, "infra", 100));
    assert_eq!(index.workload(uid(HASH)).unwrap().name, "static");
    assert_eq!(index.workload(uid(A)), index.workload(uid(HASH)));
}

/// Anybody who may make pods can write the annotations of a mirror pod.
#[test]
fn a_later_claim_to_a_static_pods_hash_is_not_heard() {
    let mut index = index(&["infra", "tenant"]);
    index.apply_pod(mirror(B, "tenant", 200));
    index.apply_pod(mirror(A, "infra", 100));
    assert_eq!(index.workload(uid(HASH)).unwrap().namespace, "infra");
    assert_eq!(index.workload(uid(B)).unwrap().namespace, "tenant");
    index.delete_pod(uid(A));
    index.delete_pod(uid(B));
    assert_eq!(
        index.workload(uid(HASH)).unwrap().namespace,
        "infra",
        "the oldest, if none is left"
    );
    index.forget(&[uid(HASH)].into());
    assert!(index.workload(uid(HASH)).is_some());
}

#[test]
fn exemptions_are_by_namespace_by_labels_and_by_a_wish_where_it_is_granted() {
    let mut index = index(&["kube-system", "monitoring", "trusted", "team"]);
    let wish = |pod: Pod| Pod {
        wants_exemption: true,
        ..pod
    };
    for (pod, is_exempt) in [
        (pod(A, "kube-system", "dns"), true),
        (pod(A, "monitoring", "exporter"), true),
        (pod(A, "monitoring", "other"), false),
        (wish(pod(A, "trusted", "web")), true),
        (pod(A, "trusted", "web"), false),
        (wish(pod(A, "team", "web")), false),
        (pod(A, "team", "exporter"), false),
    ] {
        let told = format!("{pod:?}");
        index.apply_pod(pod);
        assert_eq!(index.workload(uid(A)).unwrap().is_exempt(), is_exempt, "{told}");
    }
}

#[derive(Debug, Clone)]
enum Step {
    Apply(usize, &'static str),
    Delete(usize),
    Namespace(&'static str),
    Relist(Vec<(usize, &'static str)>),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let namespace = prop::sample::select(vec!["a", "b"]);
    let one = prop_oneof![
        (0..4_usize, namespace.clone()).prop_map(|(at, name)| Step::Apply(at, name)),
        (0..4_usize).prop_map(Step::Delete),
        namespace.clone().prop_map(Step::Namespace),
        prop::collection::vec((0..4_usize, namespace), 0..4).prop_map(Step::Relist),
    ];
    prop::collection::vec(one, 0..40)
}

proptest! {
    /// Whatever was told in between: who is there at the end has the identity that was told last, and nobody else's.
    #[test]
    fn the_last_word_counts(steps in steps()) {
        let name = |at: usize| format!("aaaaaaaa-0000-4000-8000-00000000000{at}");
        let mut index = index(&[]);
        let (mut pods, mut namespaces) = (BTreeMap::new(), BTreeSet::new());
        for step in steps {
            match step {
                Step::Apply(at, namespace) => {
                    index.apply_pod(pod(&name(at), namespace, "x"));
                    pods.insert(at, namespace);
                }
                Step::Delete(at) => {
                    index.delete_pod(uid(&name(at)));
                    pods.remove(&at);
                }
                Step::Namespace(namespace) => {
                    index.apply_namespace(namespace, Labels::new());
                    namespaces.insert(namespace);
                }
                Step::Relist(list) => {
                    index.begin_pods();
                    pods.clear();
                    for (at, namespace) in list {
                        index.apply_pod(pod(&name(at), namespace, "x"));
                        pods.insert(at, namespace);
                    }
                    index.end_pods();
                }
            }
        }
        index.forget(&HashSet::new());
        prop_assert_eq!(index.len(), pods.len());
        for (at, namespace) in pods {
            let found = index.workload(uid(&name(at))).map(|workload| workload.namespace.clone());
            prop_assert_eq!(found, namespaces.contains(namespace).then(|| namespace.to_owned()));
        }
    }
}
