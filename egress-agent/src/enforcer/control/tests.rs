use super::*;
use crate::{
    policy::{ObjectKey, PolicyKind},
    status::{ASK_STATUS, MOST_BYTES},
};

/// Control characters and quotation marks are what JSON makes the most of.
fn broken(number: usize) -> ObjectFact {
    ObjectFact {
        key: ObjectKey {
            kind: PolicyKind::ClusterEgressPolicy,
            namespace: String::new(),
            name: format!("{number:0253}"),
        },
        uid: number.to_string(),
        generation: i64::MAX,
        digest: 0,
        in_force: InForce::Closed,
        error: Some("\u{1}".repeat(1000)),
    }
}

#[test]
fn a_status_is_no_longer_for_what_policies_say() {
    let origin = Origin {
        objects: (0..10_000).map(broken).collect(),
        ..Origin::default()
    };
    let source = policy_source(&origin);
    let text = serde_json::to_vec(&source).unwrap();
    assert!(text.len() < MOST_BYTES / 2, "{}", text.len());
    assert!(source.list.len() > 50, "{}", source.list.len());
    assert_eq!(source.list.len() as u64 + source.not_listed, 10_000);
    let error = source.list[0].error.as_ref().unwrap();
    assert!(error.contains("…; until it is mended"), "{error}");

    let good = ObjectFact {
        in_force: InForce::Newest,
        error: None,
        ..broken(0)
    };
    let mixed = Origin {
        objects: vec![good, broken(1)],
        ..Origin::default()
    };
    let source = policy_source(&mixed);
    assert_eq!((source.list.len(), source.not_listed), (2, 0));
    assert!(source.list[0].error.is_some(), "broken ones first");
}

#[tokio::test]
async fn who_asks_for_its_health_is_not_told_the_status() {
    let asked = async |line: &str| {
        let (mut asker, own) = UnixStream::pair().unwrap();
        asker.write_all(line.as_bytes()).await.unwrap();
        let mut heard = String::new();
        let answered = answer(Ok(own), |question| serde_json::to_vec(&format!("{question:?}")));
        let (_, read) = tokio::join!(answered, asker.read_to_string(&mut heard));
        read.unwrap();
        heard
    };
    assert_eq!(asked(&format!("{ASK_HEALTH}\n")).await, "\"Health\"");
    assert_eq!(asked(&format!("{ASK_STATUS}\n")).await, "\"Status\"");
    // An earlier version's `status` says nothing, and does not hang up either.
    assert_eq!(asked("").await, "\"Status\"");
    assert_eq!(asked("anything else").await, "\"Status\"");
}
