//! Which names may be looked up.

use egress_common::outcome::Outcome;
use proptest::prelude::*;

use super::{
    Arc, PolicySet, Settings, Unselected, for_cluster, in_namespace,
    naive::{self, Ask, documents, workloads},
    set_of, workload,
};
use crate::policy::{DomainName, Host};

fn lookup(set: &Arc<PolicySet>, namespace: &str, name: &str) -> Outcome {
    let name = DomainName::parse(name).unwrap();
    set.view(&workload(namespace, "x")).could_allow(&name).outcome
}

#[test]
fn a_name_can_be_looked_up_if_any_port_or_request_could_be_allowed() {
    let set = set_of(
        &in_namespace(
            "a",
            "p",
            "{egress: [{to: [{domain: db.test}], ports: [{port: 5432}]},
              {to: [{domain: '*.api.test'}], http: [{methods: [GET], path: /v1/**}], ports: [{port: 80}]}]}",
        ),
        Settings::default(),
    );
    for (name, expected) in [
        ("db.test", Outcome::AllowedByRule),
        ("x.api.test", Outcome::AllowedByRule),
        ("api.test", Outcome::NoRule),
        ("db.test.search.test", Outcome::NoRule),
        ("payload.db.test", Outcome::NoRule),
    ] {
        assert_eq!(lookup(&set, "a", name), expected, "{name}");
    }
    assert_eq!(lookup(&set, "b", "db.test"), Outcome::Unselected);
}

#[test]
fn a_denial_counts_if_it_leaves_no_port_and_a_ceiling_too() {
    let allow = in_namespace(
        "a",
        "p",
        "{egress: [{to: [{domain: .x.test}]}, {to: [{domain: y.test}], ports: [{port: 5432}]}]}",
    );
    let set = |spec: &str| {
        set_of(
            &[allow.clone(), for_cluster("c", spec)].concat(),
            Settings::default(),
        )
    };

    let denying = set(
        "{deny: [{to: [{domain: bad.x.test}]}, {to: [{domain: half.x.test}], ports: [{port: 80}]},
          {to: [{domain: both.x.test}], ports: [{port: 80}]}, {to: [{domain: both.x.test}], ports: [{port: 443}]}]}",
    );
    assert_eq!(lookup(&denying, "a", "bad.x.test"), Outcome::ClusterDeny);
    assert_eq!(lookup(&denying, "a", "both.x.test"), Outcome::ClusterDeny);
    assert_eq!(lookup(&denying, "a", "half.x.test"), Outcome::AllowedByRule);

    let below =
        set("{ceiling: [{to: [{domain: a.x.test}]}, {to: [{domain: y.test}], ports: [{port: 443}]}]}");
    assert_eq!(lookup(&below, "a", "a.x.test"), Outcome::AllowedByRule);
    assert_eq!(lookup(&below, "a", "b.x.test"), Outcome::OutsideCeiling);
    assert_eq!(
        lookup(&below, "a", "y.test"),
        Outcome::OutsideCeiling,
        "the ports have none in common"
    );
}

proptest! {
    /// Whatever may be connected to may be looked up.
    #[test]
    fn no_allowed_name_is_withheld(documents in documents(), ask in Ask::any(), enforce in any::<bool>()) {
        let unselected = if enforce { Unselected::Enforce } else { Unselected::Observe };
        let settings = Settings { unselected, audit: false };
        let set = Arc::new(PolicySet::build(naive::compile_all(&documents), settings).unwrap());
        for workload in workloads() {
            if let Host::Name(name) = ask.host() && ask.verdict(&set, &workload).is_allow() {
                let verdict = set.view(&workload).could_allow(&name);
                prop_assert!(verdict.is_allow(), "{:?}", verdict);
            }
        }
    }
}
