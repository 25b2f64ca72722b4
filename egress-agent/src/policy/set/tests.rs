//! Units first, then properties against a naive reading of the documents.

mod lookups;
mod naive;

use egress_common::outcome::Outcome;
use proptest::prelude::*;

use self::naive::{Ask, documents, workloads};
use super::*;
use crate::policy::{DomainName, Host, HostPattern, Posture, RequestFacts, Target, read_text};

const HEAD: &str = "apiVersion: egress-enforcer.io/v1alpha1\nkind: ";

fn policies(text: &str) -> Vec<Policy> {
    read_text(std::path::Path::new("p.yaml"), text).unwrap_or_else(|errors| panic!("{errors:?}"))
}

fn set_of(text: &str, settings: Settings) -> Arc<PolicySet> {
    Arc::new(PolicySet::build(policies(text), settings).unwrap())
}

fn in_namespace(namespace: &str, name: &str, spec: &str) -> String {
    format!("{HEAD}EgressPolicy\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {spec}\n---\n")
}

fn for_cluster(name: &str, spec: &str) -> String {
    format!("{HEAD}ClusterEgressPolicy\nmetadata: {{name: {name}}}\nspec: {spec}\n---\n")
}

fn workload(namespace: &str, app: &str) -> Workload {
    Workload {
        namespace: namespace.into(),
        labels: BTreeMap::from([("app".into(), app.into())]),
        ..Workload::default()
    }
}

fn judge(set: &Arc<PolicySet>, workload: &Workload, host: &str, port: u16) -> (Outcome, String) {
    let host = Host::parse(host).unwrap();
    let address = match host {
        Host::Address(address) => address,
        Host::Name(_) => "198.51.100.1".parse().unwrap(),
    };
    let verdict = set.view(workload).judge(&Target {
        host: &host,
        port,
        address,
        request: None,
    });
    let rule = verdict.rule.map(|id| id.to_string()).unwrap_or_default();
    (verdict.outcome, rule)
}

fn outcome(set: &Arc<PolicySet>, workload: &Workload, host: &str, port: u16) -> Outcome {
    judge(set, workload, host, port).0
}

#[test]
fn the_default_set_denies_everything() {
    let set = Arc::new(PolicySet::default());
    let pod = workload("a", "x");
    assert_eq!(set.view(&pod).posture(), Posture::Enforce);
    assert_eq!(outcome(&set, &pod, "example.com", 443), Outcome::UnselectedDenied);
}

#[test]
fn rules_of_a_namespace_add_up_and_never_leave_it() {
    let set = set_of(
        &[
            in_namespace("a", "one", "{egress: [{to: [{domain: one.test}]}]}"),
            in_namespace("a", "two", "{egress: [{to: [{domain: two.test}]}]}"),
            in_namespace("b", "three", "{egress: [{to: [{domain: three.test}]}]}"),
        ]
        .concat(),
        Settings::default(),
    );
    let (a, b) = (workload("a", "x"), workload("b", "x"));
    assert_eq!(
        judge(&set, &a, "one.test", 443),
        (Outcome::AllowedByRule, "EgressPolicy a/one egress[0]".into())
    );
    assert_eq!(outcome(&set, &a, "two.test", 80), Outcome::AllowedByRule);
    assert_eq!(outcome(&set, &a, "three.test", 443), Outcome::NoRule);
    assert_eq!(outcome(&set, &b, "three.test", 443), Outcome::AllowedByRule);
    assert_eq!(outcome(&set, &b, "one.test", 443), Outcome::NoRule);
    assert_eq!(
        outcome(&set, &workload("c", "x"), "one.test", 443),
        Outcome::Unselected
    );
}

#[test]
fn names_are_allowed_on_80_and_443_unless_ports_are_named() {
    let set = set_of(
        &in_namespace(
            "a",
            "p",
            "{egress: [{to: [{domain: web.test}]},
              {to: [{domain: db.test}], ports: [{port: 5432}, {port: 8000, endPort: 8010}]}]}",
        ),
        Settings::default(),
    );
    let pod = workload("a", "x");
    for (host, port, allowed) in [
        ("web.test", 80, true),
        ("web.test", 443, true),
        ("web.test", 8080, false),
        ("db.test", 5432, true),
        ("db.test", 8005, true),
        ("db.test", 443, false),
    ] {
        assert_eq!(
            outcome(&set, &pod, host, port).is_allow(),
            allowed,
            "{host}:{port}"
        );
    }
}

#[test]
fn cluster_denials_and_ceilings_come_before_any_allow() {
    let set = set_of(
        &[
            in_namespace(
                "a",
                "p",
                "{egress: [{to: [{domain: .nasa.gov}, {domain: x.test}]}]}",
            ),
            for_cluster(
                "base",
                "{deny: [{to: [{domain: bad.nasa.gov}]}], ceiling: [{to: [{domain: .nasa.gov}]}],
                  egress: [{to: [{domain: bad.nasa.gov}, {domain: y.test}, {domain: z.nasa.gov}]}]}",
            ),
        ]
        .concat(),
        Settings::default(),
    );
    let pod = workload("a", "x");
    assert_eq!(
        judge(&set, &pod, "bad.nasa.gov", 443),
        (Outcome::ClusterDeny, "ClusterEgressPolicy base deny[0]".into())
    );
    // A denial without ports holds on all of them.
    assert_eq!(outcome(&set, &pod, "bad.nasa.gov", 22), Outcome::ClusterDeny);
    assert_eq!(
        judge(&set, &pod, "x.test", 443),
        (Outcome::OutsideCeiling, "ClusterEgressPolicy base ceiling".into())
    );
    assert_eq!(outcome(&set, &pod, "y.test", 443), Outcome::OutsideCeiling);
    assert_eq!(outcome(&set, &pod, "ssd.nasa.gov", 443), Outcome::AllowedByRule);
    let elsewhere = workload("b", "x");
    assert_eq!(outcome(&set, &elsewhere, "ssd.nasa.gov", 443), Outcome::NoRule);
    assert_eq!(
        outcome(&set, &elsewhere, "z.nasa.gov", 443),
        Outcome::AllowedByRule
    );
    let id = RuleId {
        kind: PolicyKind::ClusterEgressPolicy,
        namespace: String::new(),
        policy: "base".into(),
        list: "ceiling",
        index: None,
    };
    assert_eq!(set.place(&id).unwrap().to_string(), "p.yaml:9");
}

#[test]
fn an_empty_ceiling_allows_nothing() {
    let set = set_of(
        &for_cluster("c", "{ceiling: [], egress: [{to: [{domain: x.test}]}]}"),
        Settings::default(),
    );
    assert_eq!(
        outcome(&set, &workload("a", "x"), "x.test", 443),
        Outcome::OutsideCeiling
    );
}

#[test]
fn audit_policies_do_not_allow_what_enforce_policies_deny() {
    let audit = in_namespace(
        "a",
        "audit",
        "{mode: Audit, egress: [{to: [{domain: one.test}]}]}",
    );
    let enforce = in_namespace(
        "a",
        "enforce",
        "{podSelector: {matchLabels: {app: x}}, egress: [{to: [{domain: two.test}]}]}",
    );
    let set = set_of(&[audit, enforce].concat(), Settings::default());
    let (both, only_audit) = (workload("a", "x"), workload("a", "y"));
    assert_eq!(set.view(&both).posture(), Posture::Enforce);
    assert_eq!(outcome(&set, &both, "one.test", 443), Outcome::NoRule);
    assert_eq!(outcome(&set, &both, "two.test", 443), Outcome::AllowedByRule);
    assert_eq!(set.view(&only_audit).posture(), Posture::Audit);
    assert_eq!(
        outcome(&set, &only_audit, "one.test", 443),
        Outcome::AllowedByRule
    );
    assert_eq!(outcome(&set, &only_audit, "two.test", 443), Outcome::NoRule);
}

#[test]
fn settings_of_the_set_change_postures_and_not_verdicts() {
    let text = in_namespace("a", "p", "{egress: [{to: [{domain: one.test}]}]}");
    let (selected, unselected) = (workload("a", "x"), workload("b", "x"));
    for (audit, unselected_setting, postures, unselected_outcome) in [
        (
            false,
            Unselected::Observe,
            [Posture::Enforce, Posture::Observe],
            Outcome::Unselected,
        ),
        (
            false,
            Unselected::Enforce,
            [Posture::Enforce, Posture::Enforce],
            Outcome::UnselectedDenied,
        ),
        (
            true,
            Unselected::Enforce,
            [Posture::Audit, Posture::Audit],
            Outcome::UnselectedDenied,
        ),
        (
            true,
            Unselected::Observe,
            [Posture::Audit, Posture::Audit],
            Outcome::Unselected,
        ),
    ] {
        let settings = Settings {
            unselected: unselected_setting,
            audit,
        };
        let set = set_of(&text, settings);
        assert_eq!(
            [&selected, &unselected].map(|pod| set.view(pod).posture()),
            postures
        );
        assert_eq!(outcome(&set, &selected, "two.test", 443), Outcome::NoRule);
        assert_eq!(outcome(&set, &unselected, "two.test", 443), unselected_outcome);
    }
}

#[test]
fn addresses_are_allowed_by_cidr_rules_only() {
    let set = set_of(
        &in_namespace(
            "a",
            "p",
            "{egress: [{to: [{domain: x.test}, {cidr: 203.0.113.0/24, except: [203.0.113.128/25]}]},
              {to: [{cidr: 2001:db8::/32}], ports: [{port: 5432}]},
              {to: [{cidr: 0.0.0.0/0}], ports: [{port: 80}]}]}",
        ),
        Settings::default(),
    );
    let pod = workload("a", "x");
    for (host, port, allowed) in [
        ("203.0.113.1", 22, true),
        ("[::ffff:203.0.113.1]", 22, true),
        ("[64:ff9b::203.0.113.1]", 22, true),
        ("203.0.113.129", 22, false),
        ("203.0.113.129", 80, true),
        ("[2001:db8::1]", 5432, true),
        ("[2001:db8::1]", 443, false),
        ("198.51.100.1", 80, true),
        // Cloud metadata: no broad block covers it.
        ("169.254.169.254", 80, false),
        ("168.63.129.16", 80, false),
        ("[64:ff9b::169.254.169.254]", 80, false),
        ("169.254.169.253", 80, true),
    ] {
        assert_eq!(
            outcome(&set, &pod, host, port).is_allow(),
            allowed,
            "{host} {port}"
        );
    }
    // No name is allowed by the block that its dialled address (198.51.100.1) lies in: what would be dialled is the name.
    assert_eq!(outcome(&set, &pod, "y.test", 80), Outcome::NoRule);
}

#[test]
fn a_literal_that_is_not_the_dialled_address_needs_a_rule_with_both() {
    let set = set_of(
        &in_namespace(
            "a",
            "p",
            "{egress: [{to: [{cidr: 203.0.113.0/24}]}, {to: [{cidr: 198.51.100.0/24}]}]}",
        ),
        Settings::default(),
    );
    let view = set.view(&workload("a", "x"));
    let ask = |host: &str, address: &str| {
        view.judge(&Target {
            host: &Host::parse(host).unwrap(),
            port: 80,
            address: address.parse().unwrap(),
            request: None,
        })
        .outcome
    };
    assert_eq!(ask("203.0.113.1", "203.0.113.2"), Outcome::AllowedByRule);
    assert_eq!(ask("203.0.113.1", "198.51.100.1"), Outcome::NoRule);
    assert_eq!(ask("203.0.113.1", "192.0.2.1"), Outcome::NoRule);
    assert_eq!(ask("192.0.2.1", "203.0.113.1"), Outcome::NoRule);
}

#[test]
fn metadata_is_reached_by_a_rule_that_names_it() {
    let set = set_of(
        &in_namespace(
            "a",
            "p",
            "{egress: [{to: [{cidr: 169.254.169.254/32}], ports: [{port: 80}]}]}",
        ),
        Settings::default(),
    );
    let pod = workload("a", "x");
    assert_eq!(outcome(&set, &pod, "169.254.169.254", 80), Outcome::AllowedByRule);
    assert_eq!(outcome(&set, &pod, "169.254.169.254", 443), Outcome::NoRule);
}

#[test]
fn answers_are_refused_if_a_cluster_denial_or_metadata_is_reached_by_them() {
    let set = set_of(
        &[
            in_namespace(
                "a",
                "p",
                "{egress: [{to: [{domain: x.test}]}, {to: [{cidr: 100.100.100.200/32}]}]}",
            ),
            for_cluster(
                "d",
                "{deny: [{to: [{cidr: 203.0.113.0/24}]}, {to: [{cidr: ::/0}], ports: [{port: 22}]}]}",
            ),
        ]
        .concat(),
        Settings::default(),
    );
    let view = set.view(&workload("a", "x"));
    let refused = |address: &str, port| {
        view.refused_answer(address.parse().unwrap(), port)
            .map(|verdict| verdict.outcome)
    };
    assert_eq!(refused("198.51.100.1", 443), None);
    assert_eq!(refused("203.0.113.1", 443), Some(Outcome::ClusterDeny));
    assert_eq!(refused("::ffff:203.0.113.1", 443), Some(Outcome::ClusterDeny));
    assert_eq!(refused("64:ff9b::203.0.113.1", 443), Some(Outcome::ClusterDeny));
    assert_eq!(refused("64:ff9b::198.51.100.1", 443), None);
    assert_eq!(refused("64:ff9b::198.51.100.1", 22), Some(Outcome::ClusterDeny));
    assert_eq!(refused("168.63.129.16", 80), Some(Outcome::PrivateAnswer));
    assert_eq!(refused("64:ff9b::a9fe:a9fe", 80), Some(Outcome::PrivateAnswer));
    assert_eq!(refused("100.100.100.200", 80), None);
    // The dialled address of a name counts as well.
    let name = Host::parse("x.test").unwrap();
    let dialled = |address: &str| {
        let target = Target {
            host: &name,
            port: 443,
            address: address.parse().unwrap(),
            request: None,
        };
        view.judge(&target).outcome
    };
    assert_eq!(dialled("198.51.100.1"), Outcome::AllowedByRule);
    assert_eq!(dialled("203.0.113.1"), Outcome::ClusterDeny);
}

#[test]
fn http_rules_judge_requests_and_nothing_else() {
    let set = set_of(
        &[
            in_namespace(
                "a",
                "p",
                "{egress: [{to: [{domain: x.test}], http: [{methods: [GET, HEAD], path: /v1/**}, {path: /open}]}]}",
            ),
            for_cluster("d", "{deny: [{to: [{domain: x.test}], http: [{path: /v1/secret/**}]}]}"),
        ]
        .concat(),
        Settings::default(),
    );
    let view = set.view(&workload("a", "x"));
    let host = Host::parse("x.test").unwrap();
    let ask = |request: Option<(&str, &str)>| {
        view.judge(&Target {
            host: &host,
            port: 80,
            address: "198.51.100.1".parse().unwrap(),
            request: request.map(|(method, path)| RequestFacts { method, path }),
        })
        .outcome
    };
    assert_eq!(ask(None), Outcome::NoRule);
    assert_eq!(ask(Some(("GET", "/v1/a"))), Outcome::AllowedByRule);
    assert_eq!(ask(Some(("POST", "/v1/a"))), Outcome::NoRule);
    assert_eq!(ask(Some(("POST", "/open"))), Outcome::AllowedByRule);
    assert_eq!(ask(Some(("GET", "/v1/secret/a"))), Outcome::ClusterDeny);
    assert_eq!(ask(Some(("GET", "/v1/%73ecret/a"))), Outcome::ClusterDeny);
    // In doubt, the denial holds.
    assert_eq!(ask(Some(("GET", "/v1//secret/a"))), Outcome::ClusterDeny);
}

#[test]
fn private_answers_are_allowed_to_the_selected_workloads_for_the_listed_names() {
    let set = set_of(
        &[
            in_namespace(
                "a",
                "p",
                "{podSelector: {matchLabels: {app: x}}, privateAnswers: [.corp.test]}",
            ),
            for_cluster(
                "c",
                "{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: a}}, privateAnswers: ['*.lan.test']}",
            ),
        ]
        .concat(),
        Settings::default(),
    );
    let allowed = |pod: &Workload, name: &str| {
        set.view(pod)
            .private_answers_allowed(&DomainName::parse(name).unwrap())
    };
    assert!(allowed(&workload("a", "x"), "git.corp.test"));
    assert!(allowed(&workload("a", "x"), "nas.lan.test"));
    assert!(!allowed(&workload("a", "y"), "git.corp.test"));
    assert!(allowed(&workload("a", "y"), "nas.lan.test"));
    assert!(!allowed(&workload("b", "x"), "git.corp.test"));
    assert!(!allowed(&workload("a", "x"), "example.com"));
}

#[test]
fn patterns_of_the_command_line_hold_for_every_workload() {
    let patterns: Vec<HostPattern> = vec!["good.test".parse().unwrap(), "*.good.test".parse().unwrap()];
    let policy = Policy::of_command_line(patterns);
    let set = Arc::new(PolicySet::build([policy], Settings::default()).unwrap());
    let pod = workload("anything", "x");
    assert_eq!(
        judge(&set, &pod, "www.good.test", 443),
        (Outcome::AllowedByRule, "CommandLine --allow egress[1]".into())
    );
    assert_eq!(outcome(&set, &pod, "good.test", 8443), Outcome::NoRule);
    assert_eq!(outcome(&set, &pod, "evil.test", 443), Outcome::NoRule);
    assert_eq!(outcome(&set, &pod, "192.0.2.1", 443), Outcome::NoRule);
    assert_eq!(
        set.counts(),
        Counts {
            policies: 1,
            rules: 2
        }
    );
}

#[test]
fn the_narrowest_matching_rule_is_told_and_the_namespaces_before_the_clusters() {
    let set = set_of(
        &[
            in_namespace(
                "a",
                "b-wide",
                "{egress: [{to: [{domain: .x.test}]}, {to: [{domain: a.x.test}]}]}",
            ),
            in_namespace("a", "a-wide", "{egress: [{to: [{domain: '**.x.test'}]}]}"),
            for_cluster("c", "{egress: [{to: [{domain: b.x.test}]}]}"),
        ]
        .concat(),
        Settings::default(),
    );
    let pod = workload("a", "x");
    assert_eq!(
        judge(&set, &pod, "a.x.test", 443).1,
        "EgressPolicy a/b-wide egress[1]"
    );
    assert_eq!(
        judge(&set, &pod, "b.x.test", 443).1,
        "EgressPolicy a/a-wide egress[0]"
    );
    assert_eq!(
        judge(&set, &pod, "x.test", 443).1,
        "EgressPolicy a/b-wide egress[0]"
    );
}

proptest! {
    #[test]
    fn the_index_agrees_with_a_naive_reading(documents in documents(), ask in Ask::any(), enforce in any::<bool>()) {
        let settings = Settings {
            unselected: if enforce { Unselected::Enforce } else { Unselected::Observe },
            audit: false,
        };
        let set = Arc::new(PolicySet::build(naive::compile_all(&documents), settings).unwrap());
        for workload in workloads() {
            prop_assert_eq!(ask.verdict(&set, &workload).outcome, naive::judge(&documents, &workload, &ask, enforce));
        }
    }

    #[test]
    fn the_order_of_policies_never_matters(documents in documents(), ask in Ask::any(), seed in any::<u64>()) {
        let compiled = naive::compile_all(&documents);
        let mut shuffled = compiled.clone();
        // A permutation that depends on the seed and moves everything.
        shuffled.sort_by_key(|policy| {
            let name = policy.name.bytes().fold(seed, |hash, byte| hash.rotate_left(7) ^ u64::from(byte));
            name.wrapping_mul(0x9e37_79b9_7f4a_7c15)
        });
        let build = |policies| Arc::new(PolicySet::build(policies, Settings::default()).unwrap());
        let (one, other) = (build(compiled), build(shuffled));
        for workload in workloads() {
            prop_assert_eq!(ask.verdict(&one, &workload), ask.verdict(&other, &workload));
        }
    }

    #[test]
    fn a_policy_of_one_namespace_never_changes_a_verdict_in_another(
        documents in documents(), added in documents(), ask in Ask::any(),
    ) {
        let mut more = documents.clone();
        more.extend(naive::renamed(&added, "added").into_iter().filter(|document| naive::namespace(document) == Some("a")));
        let build = |documents: &[_]| {
            Arc::new(PolicySet::build(naive::compile_all(documents), Settings::default()).unwrap())
        };
        let (before, after) = (build(&documents), build(&more));
        for workload in workloads().into_iter().filter(|workload| workload.namespace != "a") {
            prop_assert_eq!(ask.verdict(&before, &workload), ask.verdict(&after, &workload));
            prop_assert_eq!(before.view(&workload).posture(), after.view(&workload).posture());
        }
    }

    #[test]
    fn a_ceiling_only_narrows(documents in documents(), added in documents(), ask in Ask::any()) {
        // Without ceilings, against the same with a ceiling that selects the workloads in the same mode.
        let ceilings: Vec<_> = naive::renamed(&added, "added").into_iter().filter_map(naive::only_ceiling).collect();
        let build = |documents: &[_]| {
            let settings = Settings { unselected: Unselected::Enforce, audit: false };
            Arc::new(PolicySet::build(naive::compile_all(documents), settings).unwrap())
        };
        let (before, after) = (build(&documents), build(&[documents, ceilings].concat()));
        for workload in workloads() {
            // An Enforce ceiling on a workload that was only audited enforces it: the audit rules are set aside.
            if before.view(&workload).posture() == after.view(&workload).posture()
                && ask.verdict(&after, &workload).is_allow()
            {
                prop_assert!(ask.verdict(&before, &workload).is_allow());
            }
        }
    }
}
