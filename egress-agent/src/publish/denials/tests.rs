use std::sync::Arc;

use egress_common::outcome::Outcome;

use super::*;
use crate::policy::{PolicyKind, RuleId, Verdict};

fn denial(host: &str, port: Option<u16>, outcome: Outcome) -> Denial {
    Denial {
        namespace: "horizons".to_owned(),
        pod: "web-0".to_owned(),
        uid: "0ac9f8a1-6d51-4a3f-9a8b-2f3c1d9e7b55".to_owned(),
        host: host.to_owned(),
        port,
        is_udp: false,
        verdict: Verdict::without_rule(outcome),
        enforced: true,
    }
}

fn told(denial: Denial) -> Json {
    let mut aggregate = Aggregate::default();
    aggregate.add(denial, Instant::now(), Timestamp::UNIX_EPOCH);
    event(&aggregate.next_due(Instant::now()).unwrap(), "n1")
}

fn message(denial: Denial) -> String {
    told(denial)["message"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn an_event_says_what_would_allow_it() {
    assert_eq!(
        message(denial("example.org", Some(8443), Outcome::NoRule)),
        "Egress to example.org:8443 denied: no rule of the policies that select the pod allows it. To allow it, add to an \
         EgressPolicy in namespace horizons under `egress`: - {to: [{domain: example.org}], ports: [{port: 8443}]}"
    );
    assert!(
        message(denial("example.org", None, Outcome::NoRule)).starts_with("Looking up example.org denied: ")
    );
    let address = message(denial("2001:db8::1", Some(22), Outcome::NoRule));
    assert!(
        address.starts_with("Egress to [2001:db8::1]:22 denied")
            && address.contains("{cidr: 2001:db8::1/128}"),
        "{address}"
    );
    let audited = Denial {
        enforced: false,
        ..denial("example.org", Some(443), Outcome::NoRule)
    };
    assert!(message(audited.clone()).starts_with("Egress to example.org:443 passed, but would be denied: "));
    assert_eq!(
        (&told(audited.clone())["type"], &told(audited)["reason"]),
        (&json!("Normal"), &json!("EgressAudited"))
    );
}

#[tokio::test]
async fn the_rule_that_an_event_suggests_allows_it() {
    for (host, port) in [("example.org", 8443), ("192.0.2.7", 5432), ("2001:db8::1", 22)] {
        let message = message(denial(host, Some(port), Outcome::NoRule));
        let (_, rule) = message.split_once("`egress`: ").unwrap();
        let policy = format!(
            "apiVersion: egress-enforcer.io/v1alpha1\nkind: EgressPolicy\nmetadata: {{name: p, namespace: horizons}}\nspec:\n  egress:\n  {rule}\n"
        );
        let policies = crate::policy::read_text(std::path::Path::new("p.yaml"), &policy).unwrap();
        let set = crate::policy::PolicySet::build(policies, crate::policy::Settings::default()).unwrap();
        let workload = crate::identity::Workload {
            namespace: "horizons".to_owned(),
            ..Default::default()
        };
        let text = if host.contains(':') {
            format!("[{host}]")
        } else {
            host.to_owned()
        };
        let target = crate::policy::Target {
            host: &crate::policy::Host::parse(&text).unwrap(),
            port,
            address: host.parse().unwrap_or_else(|_| [192, 0, 2, 1].into()),
            request: None,
        };
        assert!(
            Arc::new(set).view(&workload).judge(&target).is_allow(),
            "{policy}"
        );
    }
}

#[tokio::test]
async fn what_no_namespace_can_allow_names_the_policy_that_forbids_it() {
    let mut denied = denial("example.org", Some(443), Outcome::ClusterDeny);
    denied.verdict.rule = Some(Arc::new(RuleId {
        kind: PolicyKind::ClusterEgressPolicy,
        namespace: String::new(),
        policy: "base".to_owned(),
        list: "deny",
        index: Some(2),
    }));
    assert_eq!(
        message(denied),
        "Egress to example.org:443 denied: by ClusterEgressPolicy base deny[2], which no EgressPolicy can overrule; ask \
         whoever keeps that policy"
    );
}

#[tokio::test]
async fn an_event_is_the_pods_and_the_same_denial_is_the_same_event() {
    let event = told(denial("example.org", Some(443), Outcome::NoRule));
    assert_eq!(event["involvedObject"]["name"], "web-0");
    assert_eq!(
        event["involvedObject"]["uid"],
        "0ac9f8a1-6d51-4a3f-9a8b-2f3c1d9e7b55"
    );
    assert_eq!(
        (&event["reason"], &event["type"]),
        (&json!("EgressDenied"), &json!("Warning"))
    );
    assert!(serde_json::from_value::<Event>(event.clone()).is_ok(), "{event}");
    let name = |denial| told(denial)["metadata"]["name"].clone();
    assert_eq!(
        event["metadata"]["name"],
        name(denial("example.org", Some(443), Outcome::NoRule))
    );
    assert_ne!(
        event["metadata"]["name"],
        name(denial("example.com", Some(443), Outcome::NoRule))
    );
    let long = Denial {
        pod: format!("{}.b", "a".repeat(251)),
        ..denial("example.org", Some(443), Outcome::NoRule)
    };
    assert!(name(long).as_str().unwrap().len() <= 253);
}

#[tokio::test]
async fn a_long_name_does_not_make_a_message_that_the_server_refuses() {
    let host = format!("{}.test", "ü".repeat(2000));
    assert!(message(denial(&host, Some(443), Outcome::NoRule)).len() <= 1024);
}
