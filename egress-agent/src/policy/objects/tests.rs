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

proptest! {
    /// Versions of several objects, each in any order among the others: the result is that of the natural order.
    #[test]
    fn the_order_of_arrival_never_matters(
        versions in prop::collection::btree_map(
            (select(&["p", "q", "r"][..]), 1_i64..6), select(&["x.test", "*.com", "y.test", "*.test"][..]), 1..12,
        ),
        seed in any::<u64>(),
    ) {
        let natural: Vec<_> = versions
            .iter()
            .map(|((name, generation), domain)| version(name, name, *generation, domain))
            .collect();
        let mut shuffled = natural.clone();
        shuffled.sort_by_key(|object| {
            let bytes = format!("{}{}", object.uid, object.generation);
            bytes.bytes().fold(seed, |hash, byte| (hash.rotate_left(7) ^ u64::from(byte)).wrapping_mul(0x9e37_79b9_7f4a_7c15))
        });
        let taken = |versions: Vec<PolicyObject>| {
            let mut objects = PolicyObjects::default();
            for version in versions {
                objects.apply(version);
            }
            objects
        };
        let (one, other) = (taken(natural), taken(shuffled));
        prop_assert_eq!(facts(&one), facts(&other));
        let good = |objects: &PolicyObjects| objects.versions().cloned().collect::<Vec<_>>();
        prop_assert_eq!(good(&one), good(&other));
        // And what is remembered makes the same again.
        prop_assert_eq!(facts(&taken(good(&other))), facts(&one));
    }
}
