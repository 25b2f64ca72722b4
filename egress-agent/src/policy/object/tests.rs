use std::sync::Arc;

use super::*;
use crate::{
    identity::Workload,
    policy::{Host, PolicySet, Posture, Settings, Target, Verdict},
};
use egress_common::outcome::Outcome;

fn object(kind: PolicyKind, spec: &str) -> PolicyObject {
    let namespace = match kind {
        PolicyKind::EgressPolicy => "a",
        PolicyKind::ClusterEgressPolicy | PolicyKind::CommandLine => "",
    };
    PolicyObject {
        key: ObjectKey {
            kind,
            namespace: namespace.to_owned(),
            name: "p".to_owned(),
        },
        uid: "u".to_owned(),
        generation: 1,
        spec: serde_saphyr::from_str(spec).unwrap(),
    }
}

fn problems(object: &PolicyObject) -> String {
    in_one_line(&object.compile().unwrap_err())
}

#[test]
fn an_object_is_told_what_is_wrong_by_its_path() {
    let told = problems(&object(
        PolicyKind::EgressPolicy,
        "egress: [{to: [{domain: '*.com'}, {cidr: 10.0.0.1/8}]}]",
    ));
    assert!(
        told.starts_with("spec.egress[0].to[0].domain: `*.com` would match"),
        "{told}"
    );
    assert!(
        told.contains("; spec.egress[0].to[1].cidr: `10.0.0.1/8` has address bits"),
        "{told}"
    );
    // What a schema refuses, where there was none.
    let told = problems(&object(
        PolicyKind::EgressPolicy,
        "egress: [{to: [{domian: x.test}]}]",
    ));
    assert!(
        told.starts_with("spec.egress[0].to[0].domian: unknown field `domian`, expected one of"),
        "{told}"
    );
    let told = problems(&object(PolicyKind::ClusterEgressPolicy, "mode: audit"));
    assert!(told.starts_with("spec.mode: unknown variant `audit`"), "{told}");
}

#[test]
fn what_is_wrong_is_told_in_a_line_of_bounded_length() {
    let long = "ä".repeat(300_000);
    for (spec, begin) in [
        (
            serde_json::json!({"podSelector": {"matchLabels": {&long: "x"}}}),
            "spec.podSelector.matchLabels.ää",
        ),
        (
            serde_json::json!({"podSelector": {"matchLabels": {"x": &long}}}),
            "spec.podSelector.matchLabels.x: `ää",
        ),
        (serde_json::json!({&long: 1}), "spec.ää"),
        (
            serde_json::json!({"mode": &long}),
            "spec.mode: unknown variant `ää",
        ),
        (
            serde_json::json!({"egress": vec![serde_json::json!({"to": [{"domain": &long}, {"cidr": &long}]}); 9]}),
            "spec.egress[0].to[0].domain: `ää",
        ),
    ] {
        let object = PolicyObject {
            spec,
            ..object(PolicyKind::EgressPolicy, "{}")
        };
        let told = problems(&object);
        assert!(told.starts_with(begin), "{told}");
        assert!(told.len() < 1100, "{} bytes", told.len());
        assert!(told.contains('…'), "{told}");
    }
    let many = serde_json::json!({"egress": vec![serde_json::json!({"to": [{"cidr": "x"}]}); 100]});
    let object = PolicyObject {
        spec: many,
        ..object(PolicyKind::EgressPolicy, "{}")
    };
    let told = problems(&object);
    assert!(told.ends_with(" more"), "{told}");
}

#[test]
fn verdicts_carry_the_objects_namespace_and_name_and_the_rules_index() {
    let set = set([object(
        PolicyKind::EgressPolicy,
        "egress: [{to: [{domain: y.test}]}, {to: [{domain: x.test}]}]",
    )
    .compile()
    .unwrap()]);
    let verdict = judge(&set, "a", "web", "x.test");
    let rule = verdict.rule.unwrap();
    assert_eq!(
        (rule.namespace.as_str(), rule.policy.as_str(), rule.index),
        ("a", "p", Some(1))
    );
    assert_eq!(rule.to_string(), "EgressPolicy a/p egress[1]");
}

fn set(policies: impl IntoIterator<Item = Policy>) -> Arc<PolicySet> {
    Arc::new(PolicySet::build(policies, Settings::default()).unwrap())
}

fn workload(namespace: &str, app: &str) -> Workload {
    Workload {
        namespace: namespace.to_owned(),
        labels: [("app".to_owned(), app.to_owned())].into(),
        ..Workload::default()
    }
}

fn judge(set: &Arc<PolicySet>, namespace: &str, app: &str, host: &str) -> Verdict {
    set.view(&workload(namespace, app)).judge(&Target {
        host: &Host::parse(host).unwrap(),
        port: 443,
        address: [192, 0, 2, 1].into(),
        request: None,
    })
}

#[test]
fn a_broken_object_allows_nothing_to_the_pods_that_it_selects() {
    let broken = object(
        PolicyKind::EgressPolicy,
        "{podSelector: {matchLabels: {app: web}}, egress: [{to: [{domain: x.test}]}, {to: [{domain: '*.com'}]}]}",
    );
    assert!(broken.compile().is_err());
    let set = set([broken.closed()]);
    assert_eq!(judge(&set, "a", "web", "x.test").outcome, Outcome::NoRule);
    assert_eq!(judge(&set, "a", "other", "x.test").outcome, Outcome::Unselected);
    assert_eq!(judge(&set, "b", "web", "x.test").outcome, Outcome::Unselected);
}

#[test]
fn a_broken_object_that_only_audits_denies_nothing() {
    let set = set([object(PolicyKind::EgressPolicy, "{mode: Audit, egress: [{to: []}]}").closed()]);
    assert_eq!(set.view(&workload("a", "web")).posture(), Posture::Audit);
}

#[test]
fn a_selector_that_cannot_be_read_selects_everything() {
    for selector in [
        "{matchLabels: {'a b': c}}",
        "{matchExpressions: [{key: a, operator: Like}]}",
        "web",
    ] {
        let set = set([object(PolicyKind::EgressPolicy, &format!("podSelector: {selector}")).closed()]);
        assert_eq!(
            judge(&set, "a", "web", "x.test").outcome,
            Outcome::NoRule,
            "{selector}"
        );
        assert_eq!(
            judge(&set, "b", "web", "x.test").outcome,
            Outcome::Unselected,
            "{selector}"
        );
    }
}

#[test]
fn no_policy_of_a_namespace_allows_what_a_broken_cluster_policy_may_have_forbidden() {
    let allowing = || {
        object(PolicyKind::EgressPolicy, "egress: [{to: [{domain: x.test}]}]")
            .compile()
            .unwrap()
    };
    let forbidding = object(
        PolicyKind::ClusterEgressPolicy,
        "{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: a}}, deny: [{to: [{domain: '*.com'}]}]}",
    );
    let closed = set([allowing(), forbidding.closed()]);
    assert_eq!(
        judge(&closed, "a", "web", "x.test").outcome,
        Outcome::OutsideCeiling
    );
    assert_eq!(judge(&closed, "b", "web", "x.test").outcome, Outcome::Unselected);
    let allowing_only = object(
        PolicyKind::ClusterEgressPolicy,
        "egress: [{to: [{domain: '*.com'}]}]",
    );
    let open = set([allowing(), allowing_only.closed()]);
    assert_eq!(judge(&open, "a", "web", "x.test").outcome, Outcome::AllowedByRule);
}
