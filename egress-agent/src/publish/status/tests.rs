use super::*;
use crate::policy::{ObjectKey, PolicyKind};

fn fact(generation: i64, in_force: InForce, error: Option<&str>) -> ObjectFact {
    ObjectFact {
        key: ObjectKey {
            kind: PolicyKind::EgressPolicy,
            namespace: "a".to_owned(),
            name: "p".to_owned(),
        },
        uid: "u".to_owned(),
        generation,
        digest: 0,
        in_force,
        error: error.map(str::to_owned),
    }
}

fn node(fact: &ObjectFact) -> NodeReport {
    NodeReport::for_test(Fingerprint::of([fact]), &[("u", 2)])
}

#[test]
fn a_policy_is_in_force_where_the_same_generation_is() {
    let (old, new) = (fact(1, InForce::Newest, None), fact(2, InForce::Newest, None));
    let nodes = [node(&new), node(&old), node(&new)];
    let own = Fingerprint::of([&new]);
    let status = status_of(&new, &own, nodes.iter(), None, Timestamp::UNIX_EPOCH);
    assert_eq!(
        (status.nodes.as_str(), status.nodes_in_force, status.nodes_total),
        ("2/3", 2, 3)
    );
    assert_eq!((status.pods, status.observed_generation), (6, 2));
    let accepted = status.condition(ACCEPTED).unwrap();
    assert_eq!(
        (accepted.status.as_str(), accepted.reason.as_str()),
        ("True", "Valid")
    );
    assert_eq!(accepted.last_transition_time, "1970-01-01T00:00:00Z");
}

#[test]
fn a_broken_policy_says_what_is_wrong_and_what_holds_instead() {
    let broken = fact(3, InForce::Older(2), Some("spec.mode: unknown"));
    let own = Fingerprint::of([&broken]);
    let status = status_of(&broken, &own, [node(&broken)].iter(), None, Timestamp::UNIX_EPOCH);
    assert_eq!(status.nodes, "0/1", "of this generation");
    let accepted = status.condition(ACCEPTED).unwrap();
    assert_eq!(
        (accepted.status.as_str(), accepted.reason.as_str()),
        ("False", "Invalid")
    );
    assert_eq!(
        accepted.message,
        "spec.mode: unknown; generation 2 stays in force"
    );
    let long = fact(3, InForce::Closed, Some(&"ü".repeat(100_000)));
    let status = status_of(&long, &own, [].iter(), None, Timestamp::UNIX_EPOCH);
    assert!(status.condition(ACCEPTED).unwrap().message.len() < 2 * MOST_BYTES);
}

#[test]
fn the_time_of_a_condition_is_that_of_its_last_change() {
    let (good, broken) = (
        fact(1, InForce::Newest, None),
        fact(2, InForce::Older(1), Some("x")),
    );
    let own = Fingerprint::of([&good]);
    let at = |second| Timestamp::from_second(second).unwrap();
    let time = |status: &ObjectStatus| status.condition(ACCEPTED).unwrap().last_transition_time.clone();
    let first = status_of(&good, &own, [].iter(), None, at(10));
    let second = status_of(&good, &own, [node(&good)].iter(), Some(&first), at(20));
    assert_eq!(time(&second), "1970-01-01T00:00:10Z");
    let third = status_of(&broken, &own, [].iter(), Some(&second), at(30));
    assert_eq!(time(&third), "1970-01-01T00:00:30Z");
}
