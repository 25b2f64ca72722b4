use proptest::{prelude::*, sample::select};
use serde_json::json;

use super::*;

fn version(name: &str, uid: &str, generation: i64, domain: &str) -> PolicyObject {
    PolicyObject {
        key: ObjectKey {
            kind: PolicyKind::EgressPolicy,
            namespace: "a".to_owned(),
            name: name.to_owned(),
        },
        uid: uid.to_owned(),
        generation,
        spec: json!({"egress": [{"to": [{"domain": domain}]}]}),
    }
}

fn facts(objects: &PolicyObjects) -> Vec<ObjectFact> {
    objects.facts(&BTreeSet::new()).collect()
}

fn only(objects: &PolicyObjects) -> ObjectFact {
    let mut facts = facts(objects);
    assert_eq!(facts.len(), 1);
    facts.remove(0)
}

#[test]
fn a_broken_version_leaves_the_last_good_one_in_force() {
    let mut objects = PolicyObjects::default();
    assert!(objects.apply(version("p", "u", 1, "x.test")));
    assert!(
        !objects.apply(version("p", "u", 1, "x.test")),
        "its status has changed, and nothing else"
    );
    assert!(objects.apply(version("p", "u", 2, "*.com")));
    let fact = only(&objects);
    assert_eq!((fact.generation, fact.in_force), (2, InForce::Older(1)));
    assert!(
        fact.error
            .as_ref()
            .unwrap()
            .starts_with("spec.egress[0].to[0].domain: ")
    );
    assert!(objects.apply(version("p", "u", 3, "y.test")));
    let fact = only(&objects);
    assert_eq!(
        (fact.generation, fact.in_force, &fact.error),
        (3, InForce::Newest, &None)
    );
}

#[test]
fn an_object_that_was_made_anew_inherits_nothing() {
    let mut objects = PolicyObjects::default();
    objects.apply(version("p", "u", 7, "x.test"));
    objects.apply(version("p", "v", 1, "*.com"));
    let fact = only(&objects);
    assert_eq!((fact.uid.as_str(), fact.in_force), ("v", InForce::Closed));
}

#[test]
fn what_a_list_does_not_have_is_gone_and_the_other_kind_stays() {
    let mut objects = PolicyObjects::default();
    let mut other = version("q", "w", 1, "x.test");
    other.key = ObjectKey {
        kind: PolicyKind::ClusterEgressPolicy,
        namespace: String::new(),
        name: "q".to_owned(),
    };
    objects.apply(other.clone());
    objects.apply(version("p", "u", 1, "x.test"));
    objects.apply(version("r", "x", 1, "x.test"));
    assert!(objects.replace(PolicyKind::EgressPolicy, vec![version("r", "x", 1, "x.test")]));
    assert!(!objects.replace(PolicyKind::EgressPolicy, vec![version("r", "x", 1, "x.test")]));
    let keys: Vec<_> = facts(&objects)
        .into_iter()
        .map(|fact| fact.key.to_string())
        .collect();
    assert_eq!(keys, ["EgressPolicy a/r", "ClusterEgressPolicy q"]);
    assert!(objects.remove(&other.key) && !objects.remove(&other.key));
}

#[test]
fn a_file_comes_before_an_object_of_its_name() {
    let mut objects = PolicyObjects::default();
    objects.apply(version("p", "u", 1, "x.test"));
    let files = BTreeSet::from([version("p", "u", 1, "x.test").key]);
    assert_eq!(objects.policies(&files).count(), 0);
    assert_eq!(
        objects.facts(&files).next().unwrap().in_force,
        InForce::FileInstead
    );
}

#[test]
fn what_the_server_has_after_a_restore_is_taken_whatever_its_generation() {
    let mut objects = PolicyObjects::default();
    objects.apply(version("p", "u", 4, "x.test"));
    objects.apply(version("p", "u", 5, "y.test"));
    let before = only(&objects);
    // The backup is older than the last change.
    let restored = || vec![version("p", "u", 4, "x.test")];
    assert!(objects.replace(PolicyKind::EgressPolicy, restored()));
    let fact = only(&objects);
    assert_eq!((fact.generation, fact.in_force), (4, InForce::Newest));
    assert!(!objects.replace(PolicyKind::EgressPolicy, restored()));
    // The next change has the number that another one had.
    assert!(objects.apply(version("p", "u", 5, "z.test")));
    let fact = only(&objects);
    assert_eq!((fact.generation, fact.in_force), (5, InForce::Newest));
    assert_ne!(fact.digest, before.digest, "or the nodes could not be told apart");
    let domains: Vec<_> = objects.versions().map(|object| object.spec.to_string()).collect();
    assert_eq!(domains, [version("p", "u", 5, "z.test").spec.to_string()]);
    // As a list, without a word of the versions between.
    assert!(objects.replace(PolicyKind::EgressPolicy, vec![version("p", "u", 5, "w.test")]));
    assert_ne!(only(&objects).digest, fact.digest);
}

#[test]
fn a_restored_version_that_is_broken_leaves_the_last_good_one_in_force() {
    let mut objects = PolicyObjects::default();
    objects.apply(version("p", "u", 5, "x.test"));
    assert!(objects.apply(version("p", "u", 4, "*.com")));
    let fact = only(&objects);
    assert_eq!((fact.generation, fact.in_force), (4, InForce::Older(5)));
    assert!(fact.error.is_some());
    // Of the same generation: not taken for the good one.
    assert!(objects.apply(version("p", "u", 5, "*.com")));
    assert_eq!(only(&objects).in_force, InForce::Older(5));
}

proptest! {
    /// What is remembered makes the same again.
    #[test]
    fn the_versions_make_the_index(
        told in prop::collection::vec(
            (select(&["p", "q", "r"][..]), 1_i64..6, select(&["x.test", "*.com", "y.test", "*.test"][..])), 1..12,
        ),
    ) {
        let taken = |versions: Vec<PolicyObject>| {
            let mut objects = PolicyObjects::default();
            for version in versions {
                objects.apply(version);
            }
            objects
        };
        let versions = |objects: &PolicyObjects| objects.versions().cloned().collect::<Vec<_>>();
        let one = taken(told.iter().map(|(name, generation, domain)| version(name, name, *generation, domain)).collect());
        let other = taken(versions(&one));
        prop_assert_eq!(facts(&one), facts(&other));
        prop_assert_eq!(versions(&one), versions(&other));
        // The last word counts.
        let last: BTreeMap<_, _> = told.iter().map(|(name, generation, _)| (*name, *generation)).collect();
        let known: Vec<_> = facts(&one).iter().map(|fact| fact.generation).collect();
        prop_assert_eq!(known, last.into_values().collect::<Vec<_>>());
    }
}
