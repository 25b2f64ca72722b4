//! The kernel's tables say of every address what the policies say of it, where no name can make a difference.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use egress_common::member::Transport;
use ipnet::IpNet;
use proptest::{prelude::*, sample::select};
use serde_json::{Value as Json, json};

use super::*;
use crate::{
    identity::Workload,
    policy::{Host, Policy, PolicySet, Settings, Target, compile, document::Document, read_text},
};

fn policies(text: &str) -> Vec<Policy> {
    read_text(std::path::Path::new("p.yaml"), text).unwrap_or_else(|errors| panic!("{errors:?}"))
}

fn set_of(policies: Vec<Policy>) -> Arc<PolicySet> {
    Arc::new(PolicySet::build(policies, Settings::default()).unwrap())
}

fn pod() -> Workload {
    Workload {
        namespace: "a".into(),
        labels: BTreeMap::from([("app".into(), "x".into())]),
        ..Workload::default()
    }
}

fn web() -> PortSet {
    [80..=80, 443..=443].into_iter().collect()
}

fn fence(text: &str) -> Fence {
    set_of(policies(text)).view(&pod()).fence(&web())
}

/// What the kernel's look-up of the longest prefix gives.
fn opened(fence: &Fence, address: IpAddr, port: u16, transport: Transport) -> bool {
    let longest = fence
        .openings
        .iter()
        .filter(|(net, _)| net.contains(&address))
        .max_by_key(|(net, _)| net.prefix_len());
    let ports = longest.map(|(_, opening)| match transport {
        Transport::Tcp => &opening.tcp,
        Transport::Udp => &opening.udp,
    });
    ports.is_some_and(|ranges| ranges.iter().any(|range| range.contains(&port)))
}

const HEAD: &str = "apiVersion: egress-enforcer.io/v1alpha1\nkind: ";

#[test]
fn blocks_open_their_ports_and_names_only_the_way_to_the_proxy() {
    let fence = fence(&format!(
        "{HEAD}EgressPolicy\nmetadata: {{name: p, namespace: a}}\nspec:\n  egress:\n  \
         - to: [{{cidr: 203.0.113.0/24, except: [203.0.113.7/32]}}]\n    \
           ports: [{{port: 5432, endPort: 5440}}, {{port: 123, protocol: UDP}}]\n  \
         - to: [{{domain: db.example.com}}]\n    ports: [{{port: 3306}}]\n"
    ));
    assert!(fence.enforce && !fence.doubts_nat64);
    assert_eq!(*fence.redirected, [80..=80, 443..=443, 3306..=3306]);
    assert_eq!(fence.named, fence.redirected);
    let texts: Vec<(String, usize, usize)> = fence
        .openings
        .iter()
        .map(|(net, opening)| (net.to_string(), opening.tcp.len(), opening.udp.len()))
        .collect();
    let expected = [("203.0.113.0/24", 1, 1), ("203.0.113.7/32", 0, 0)];
    assert_eq!(texts, expected.map(|(net, tcp, udp)| (net.to_owned(), tcp, udp)));
}

#[test]
fn a_rule_without_ports_opens_all_of_both_kinds() {
    let fence = fence(&format!(
        "{HEAD}EgressPolicy\nmetadata: {{name: p, namespace: a}}\nspec: {{egress: [{{to: [{{cidr: 203.0.113.0/24}}]}}]}}\n"
    ));
    for transport in [Transport::Tcp, Transport::Udp] {
        assert!(opened(&fence, "203.0.113.9".parse().unwrap(), 4711, transport));
        assert!(!opened(&fence, "203.0.114.9".parse().unwrap(), 4711, transport));
    }
}

#[test]
fn a_denied_name_on_every_port_sends_what_its_address_allows_to_the_proxy() {
    let fence = fence(&format!(
        "{HEAD}EgressPolicy\nmetadata: {{name: p, namespace: a}}\nspec: {{egress: [{{to: [{{cidr: 203.0.113.0/24}}]}}]}}\n---\n\
         {HEAD}ClusterEgressPolicy\nmetadata: {{name: c}}\nspec: {{deny: [{{to: [{{domain: evil.test}}]}}]}}\n"
    ));
    assert_eq!(*fence.named, [0..=u16::MAX]);
    assert_eq!(
        *fence.redirected,
        [80..=80, 443..=443],
        "what no address allows is refused at once"
    );
}

#[test]
fn who_is_not_enforced_passes_and_names_are_read_on_the_way() {
    let text = format!(
        "{HEAD}EgressPolicy\nmetadata: {{name: p, namespace: a}}\nspec: {{mode: Audit, egress: [{{to: [{{domain: x.test}}], \
         ports: [{{port: 8443}}]}}]}}\n"
    );
    let audited = fence(&text);
    assert!(!audited.enforce);
    assert_eq!(*audited.redirected, [80..=80, 443..=443, 8443..=8443]);
    let other = Workload {
        namespace: "b".into(),
        ..Workload::default()
    };
    let observed = set_of(policies(&text)).view(&other).fence(&web());
    assert_eq!((observed.enforce, observed.openings.len()), (false, 0));
    assert_eq!(*observed.redirected, [80..=80, 443..=443]);
}

const NETS: [&str; 12] = [
    "0.0.0.0/0",
    "10.0.0.0/8",
    "10.1.0.0/16",
    "10.1.2.0/24",
    "10.1.2.3/32",
    "169.254.0.0/16",
    "169.254.169.254/32",
    "::/0",
    "2001:db8::/32",
    "2001:db8:1::/48",
    "64:ff9b::/64",
    "fd00:ec2::254/128",
];

const ADDRESSES: [&str; 10] = [
    "10.1.2.3",
    "10.1.2.4",
    "10.1.3.3",
    "10.2.0.1",
    "192.0.2.1",
    "169.254.169.254",
    "169.254.169.253",
    "2001:db8::1",
    "2001:db8:1::1",
    "fd00:ec2::254",
];

fn entry() -> impl Strategy<Value = Json> {
    (select(&NETS[..]), prop::collection::vec(select(&NETS[..]), 0..2)).prop_map(|(cidr, except)| {
        let net: IpNet = cidr.parse().unwrap();
        let inside: Vec<&str> = except
            .into_iter()
            .filter(|text| net.contains(&text.parse::<IpNet>().unwrap()) && *text != cidr)
            .collect();
        if inside.is_empty() {
            json!({"cidr": cidr})
        } else {
            json!({"cidr": cidr, "except": inside})
        }
    })
}

fn ports() -> impl Strategy<Value = Json> {
    select(vec![
        Json::Null,
        json!([{"port": 5432}]),
        json!([{"port": 123, "protocol": "UDP"}]),
        json!([{"port": 5000, "endPort": 6000}, {"port": 53, "endPort": 200, "protocol": "UDP"}]),
    ])
}

fn rules(most: usize) -> impl Strategy<Value = Json> {
    let rule = (prop::collection::vec(entry(), 1..3), ports()).prop_map(|(to, ports)| {
        if ports.is_null() {
            json!({"to": to})
        } else {
            json!({"to": to, "ports": ports})
        }
    });
    prop::collection::vec(rule, 0..=most).prop_map(Json::Array)
}

fn policy(document: Json) -> Policy {
    let document = match document["kind"].as_str() {
        Some("EgressPolicy") => Document::EgressPolicy(serde_json::from_value(document).unwrap()),
        _ => Document::ClusterEgressPolicy(serde_json::from_value(document).unwrap()),
    };
    compile(&document, &|_| None).unwrap()
}

proptest! {
    /// E24: longer prefixes carry what the shorter ones allow, and an exception takes nothing away from another rule.
    #[test]
    fn the_longest_prefix_says_what_all_rules_together_say(
        allow in prop::collection::vec(rules(3), 1..4), deny in rules(2), ceiling in prop::option::of(rules(3)),
        address in select(&ADDRESSES[..]), port in select(&[123_u16, 5432, 5500, 9000][..]), is_tcp: bool,
    ) {
        let version = "egress-enforcer.io/v1alpha1";
        let mut documents: Vec<Policy> = allow.into_iter().enumerate().map(|(number, egress)| policy(json!({
            "apiVersion": version, "kind": "EgressPolicy",
            "metadata": {"name": format!("p{number}"), "namespace": "a"}, "spec": {"egress": egress},
        }))).collect();
        let mut spec = json!({"deny": deny});
        if let Some(ceiling) = ceiling {
            spec["ceiling"] = ceiling;
        }
        documents.push(policy(json!({
            "apiVersion": version, "kind": "ClusterEgressPolicy", "metadata": {"name": "c"}, "spec": spec,
        })));
        let set = set_of(documents);
        let view = set.view(&pod());
        let address: IpAddr = address.parse().unwrap();
        let (transport, verdict) = if is_tcp {
            let target = Target { host: &Host::Address(address), port, address, request: None };
            (Transport::Tcp, view.judge(&target))
        } else {
            (Transport::Udp, view.judge_datagram(address, port))
        };
        let fence = view.fence(&web());
        prop_assert_eq!(opened(&fence, address, port, transport), verdict.is_allow(), "{:?} {:?}", verdict, fence);
    }
}
