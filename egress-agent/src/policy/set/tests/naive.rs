//! Documents made at random, and a reading of them that has no index and shares no code with the compiled rules but the
//! host patterns and the path's normal form.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use egress_common::outcome::Outcome;
use ipnet::IpNet;
use proptest::{prelude::*, sample::select};
use serde_json::{Value as Json, json};

use crate::{
    identity::Workload,
    policy::{
        Host, HostPattern, Policy, PolicySet, RequestFacts, Target, Verdict, compile,
        document::{Document, LabelOperator, LabelSelector, Mode, Protocol, Rule},
    },
};

/// A question, with the text of a host.
#[derive(Debug, Clone)]
pub(super) struct Ask {
    host: &'static str,
    address: &'static str,
    port: u16,
    request: Option<(&'static str, &'static str)>,
}

const NAMES: [&str; 6] = [
    "x.test",
    "a.x.test",
    "b.a.x.test",
    "c.b.a.x.test",
    "y.test",
    "ax.test",
];
const PATTERNS: [&str; 9] = [
    "x.test",
    "a.x.test",
    "*.x.test",
    "**.x.test",
    ".x.test",
    "*.a.x.test",
    ".a.x.test",
    "y.test",
    "*.y.test",
];
const ADDRESSES: [&str; 6] = [
    "10.1.2.3",
    "10.2.2.3",
    "::ffff:10.1.2.3",
    "169.254.169.254",
    "2001:db8::1",
    "64:ff9b::10.1.2.3",
];

impl Ask {
    pub(super) fn any() -> impl Strategy<Value = Self> {
        let named = (select(&NAMES[..]), select(&ADDRESSES[..]));
        let literal = select(&ADDRESSES[..]).prop_map(|address| (address, address));
        let other_literal = (select(&ADDRESSES[..]), select(&ADDRESSES[..]));
        let hosts = prop_oneof![4 => named, 2 => literal, 1 => other_literal];
        let request = prop::option::of((
            select(&["GET", "POST"][..]),
            select(&["/", "/v1/a", "/v1/../a", "/%761/a"][..]),
        ));
        (hosts, select(&[80, 443, 8080, 22][..]), request).prop_map(|((host, address), port, request)| Self {
            host,
            address,
            port,
            request,
        })
    }

    pub(super) fn host(&self) -> Host {
        match self.host.parse() {
            Ok(address) => Host::Address(address),
            Err(_) => Host::parse(self.host).unwrap(),
        }
    }

    pub(super) fn verdict(&self, set: &Arc<PolicySet>, workload: &Workload) -> Verdict {
        set.view(workload).judge(&Target {
            host: &self.host(),
            port: self.port,
            address: self.address.parse().unwrap(),
            request: self.request.map(|(method, path)| RequestFacts { method, path }),
        })
    }
}

pub(super) fn workloads() -> Vec<Workload> {
    let workload = |namespace: &str, labels: &[(&str, &str)], tier: &str| Workload {
        namespace: namespace.into(),
        labels: labels.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect(),
        namespace_labels: [("tier".into(), tier.into())].into(),
        ..Workload::default()
    };
    vec![
        workload("a", &[("app", "x")], "1"),
        workload("a", &[], "1"),
        workload("b", &[("app", "x")], "2"),
        workload("b", &[("app", "y"), ("extra", "1")], "2"),
        workload("c", &[("app", "y")], "1"),
    ]
}

fn selector() -> impl Strategy<Value = Json> {
    select(vec![
        json!({}),
        json!({"matchLabels": {"app": "x"}}),
        json!({"matchExpressions": [{"key": "app", "operator": "In", "values": ["x", "y"]}]}),
        json!({"matchExpressions": [{"key": "app", "operator": "NotIn", "values": ["x"]}]}),
        json!({"matchLabels": {"app": "y"}, "matchExpressions": [{"key": "extra", "operator": "Exists"}]}),
        json!({"matchExpressions": [{"key": "extra", "operator": "DoesNotExist"}]}),
    ])
}

fn namespace_selector() -> impl Strategy<Value = Json> {
    select(vec![
        json!({}),
        json!({"matchLabels": {"tier": "1"}}),
        json!({"matchLabels": {"kubernetes.io/metadata.name": "b"}}),
        json!({"matchExpressions": [{"key": "tier", "operator": "NotIn", "values": ["1"]}]}),
    ])
}

fn rule() -> impl Strategy<Value = Json> {
    let block = select(vec![
        json!({"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"]}),
        json!({"cidr": "10.1.0.0/16"}),
        json!({"cidr": "0.0.0.0/0"}),
        json!({"cidr": "169.254.169.254/32"}),
        json!({"cidr": "::/0"}),
        json!({"cidr": "64:ff9b::/96", "except": ["64:ff9b::10.1.0.0/112"]}),
    ]);
    let peer = prop_oneof![
        3 => select(&PATTERNS[..]).prop_map(|pattern| json!({"domain": pattern})),
        1 => block,
    ];
    let ports = select(vec![
        Json::Null,
        Json::Null,
        json!([{"port": 443}, {"port": 8000, "endPort": 8100}]),
        json!([{"port": 22}, {"port": 80}]),
    ]);
    let http = select(vec![
        Json::Null,
        Json::Null,
        Json::Null,
        json!([{"methods": ["GET"]}]),
        json!([{"path": "/v1/**"}]),
    ]);
    (prop::collection::vec(peer, 1..3), ports, http)
        .prop_map(|(to, ports, http)| json!({"to": to, "ports": ports, "http": http}))
}

fn rules() -> impl Strategy<Value = Vec<Json>> {
    prop::collection::vec(rule(), 0..3)
}

/// Up to seven documents of both kinds, with distinct names.
pub(super) fn documents() -> impl Strategy<Value = Vec<Json>> {
    let mode = || select(&["Enforce", "Enforce", "Audit"][..]);
    let namespaced = (select(&["a", "b"][..]), selector(), mode(), rules()).prop_map(
        |(namespace, selector, mode, egress)| {
            json!({
                "kind": "EgressPolicy", "metadata": {"namespace": namespace},
                "spec": {"podSelector": selector, "mode": mode, "egress": egress},
            })
        },
    );
    let cluster = (
        (namespace_selector(), selector(), mode()),
        (rules(), rules(), prop::option::of(rules())),
    )
        .prop_map(|((namespaces, pods, mode), (egress, deny, ceiling))| {
            json!({
                "kind": "ClusterEgressPolicy", "metadata": {},
                "spec": {
                    "namespaceSelector": namespaces, "podSelector": pods, "mode": mode,
                    "egress": egress, "deny": deny, "ceiling": ceiling,
                },
            })
        });
    prop::collection::vec(prop_oneof![3 => namespaced, 1 => cluster], 0..8)
        .prop_map(|documents| renamed(&documents, "p"))
}

pub(super) fn renamed(documents: &[Json], prefix: &str) -> Vec<Json> {
    let mut documents = documents.to_vec();
    for (index, document) in documents.iter_mut().enumerate() {
        document["apiVersion"] = json!("egress-enforcer.io/v1alpha1");
        document["metadata"]["name"] = json!(format!("{prefix}-{index}"));
    }
    documents
}

pub(super) fn namespace(document: &Json) -> Option<&str> {
    document["metadata"]["namespace"].as_str()
}

/// A cluster document that has a ceiling and nothing else.
pub(super) fn only_ceiling(mut document: Json) -> Option<Json> {
    document["spec"]["ceiling"].as_array()?;
    document["spec"]["egress"] = Json::Null;
    document["spec"]["deny"] = Json::Null;
    Some(document)
}

fn parse(document: &Json) -> Document {
    match document["kind"].as_str() {
        Some("EgressPolicy") => Document::EgressPolicy(serde_json::from_value(document.clone()).unwrap()),
        _ => Document::ClusterEgressPolicy(serde_json::from_value(document.clone()).unwrap()),
    }
}

pub(super) fn compile_all(documents: &[Json]) -> Vec<Policy> {
    documents
        .iter()
        .map(|document| compile(&parse(document), &|_| None).unwrap())
        .collect()
}

/// What one document says to one workload.
struct Part {
    mode: Mode,
    egress: Vec<Rule>,
    deny: Vec<Rule>,
    ceiling: Option<Vec<Rule>>,
}

pub(super) fn judge(documents: &[Json], workload: &Workload, ask: &Ask, enforce_unselected: bool) -> Outcome {
    let mut parts: Vec<Part> = documents
        .iter()
        .filter_map(|document| part(document, workload))
        .collect();
    if parts.is_empty() {
        return if enforce_unselected {
            Outcome::UnselectedDenied
        } else {
            Outcome::Unselected
        };
    }
    if parts.iter().any(|part| part.mode == Mode::Enforce) {
        parts.retain(|part| part.mode == Mode::Enforce);
    }
    if parts
        .iter()
        .flat_map(|part| &part.deny)
        .any(|rule| denies(rule, ask))
    {
        return Outcome::ClusterDeny;
    }
    let mut ceilings = parts.iter().filter_map(|part| part.ceiling.as_ref());
    if ceilings.any(|rules| !rules.iter().any(|rule| allows(rule, ask))) {
        return Outcome::OutsideCeiling;
    }
    if parts
        .iter()
        .flat_map(|part| &part.egress)
        .any(|rule| allows(rule, ask))
    {
        return Outcome::AllowedByRule;
    }
    Outcome::NoRule
}

fn part(document: &Json, workload: &Workload) -> Option<Part> {
    let mut namespace_labels = workload.namespace_labels.clone();
    namespace_labels.insert("kubernetes.io/metadata.name".into(), workload.namespace.clone());
    match parse(document) {
        Document::EgressPolicy(policy) => {
            let here = policy.metadata.namespace.as_deref() == Some(&workload.namespace);
            (here && selects(policy.spec.pod_selector.as_ref(), &workload.labels)).then(|| Part {
                mode: policy.spec.mode,
                egress: policy.spec.egress.unwrap_or_default(),
                deny: Vec::new(),
                ceiling: None,
            })
        }
        Document::ClusterEgressPolicy(policy) => {
            let spec = policy.spec;
            let here = selects(spec.namespace_selector.as_ref(), &namespace_labels);
            (here && selects(spec.pod_selector.as_ref(), &workload.labels)).then(|| Part {
                mode: spec.mode,
                egress: spec.egress.unwrap_or_default(),
                deny: spec.deny.unwrap_or_default(),
                ceiling: spec.ceiling,
            })
        }
    }
}

fn selects(selector: Option<&LabelSelector>, labels: &BTreeMap<String, String>) -> bool {
    let Some(selector) = selector else {
        return true;
    };
    let mut pairs = selector.match_labels.iter().flatten();
    let mut expressions = selector.match_expressions.iter().flatten();
    pairs.all(|(key, value)| labels.get(key) == Some(value))
        && expressions.all(|expression| {
            let value = labels.get(&expression.key);
            let mut values = expression.values.iter().flatten();
            let listed = value.is_some_and(|value| values.any(|one| one == value));
            match expression.operator {
                LabelOperator::In => listed,
                LabelOperator::NotIn => !listed,
                LabelOperator::Exists => value.is_some(),
                LabelOperator::DoesNotExist => value.is_none(),
            }
        })
}

fn port_matches(rule: &Rule, ask: &Ask, default: &[u16]) -> bool {
    match &rule.ports {
        Some(ports) => ports
            .iter()
            .filter(|port| port.protocol == Protocol::Tcp)
            .any(|port| (port.port..=port.end_port.unwrap_or(port.port)).contains(&ask.port)),
        None => default.is_empty() || default.contains(&ask.port),
    }
}

fn http_matches(rule: &Rule, ask: &Ask, if_in_doubt: bool) -> bool {
    let Some(patterns) = &rule.http else {
        return true;
    };
    let Some((method, path)) = ask.request else {
        return false;
    };
    patterns.iter().any(|pattern| {
        let method_matches = pattern
            .methods
            .as_ref()
            .is_none_or(|methods| methods.iter().any(|one| one == method));
        let path_matches = match (pattern.path.as_deref(), crate::policy::normal_path(path)) {
            (None, _) => true,
            (Some("/v1/**"), Ok(path)) => path.starts_with("/v1/"),
            (Some(other), Ok(_)) => panic!("{other} is not read by this test"),
            (Some(_), Err(_)) => if_in_doubt,
        };
        method_matches && path_matches
    })
}

/// The address, and after it the IPv4 address that NAT64 makes of it. A mapped address is an IPv4 one.
fn forms(address: IpAddr) -> Vec<IpAddr> {
    let address = match address {
        IpAddr::V6(v6) => v6.to_ipv4_mapped().map_or(address, IpAddr::V4),
        IpAddr::V4(_) => address,
    };
    let mut forms = vec![address];
    if let IpAddr::V6(v6) = address {
        let octets = v6.octets();
        if octets[..12] == [0, 0x64, 0xff, 0x9b, 0, 0, 0, 0, 0, 0, 0, 0] {
            forms.push(IpAddr::from([octets[12], octets[13], octets[14], octets[15]]));
        }
    }
    forms
}

/// The blocks of a rule and their exceptions. The NAT64 block and its exception are IPv4 ones.
fn blocks(rule: &Rule) -> Vec<(IpNet, Vec<IpNet>)> {
    let net = |text: &str| match text {
        "64:ff9b::/96" => "0.0.0.0/0".parse().unwrap(),
        "64:ff9b::10.1.0.0/112" => "10.1.0.0/16".parse().unwrap(),
        text => text.parse().unwrap(),
    };
    let entries = rule.to.iter().filter_map(|peer| {
        let except = peer.except.iter().flatten().map(|text| net(text)).collect();
        Some((net(peer.cidr.as_deref()?), except))
    });
    entries.collect()
}

fn has(block: &(IpNet, Vec<IpNet>), address: IpAddr) -> bool {
    block.0.contains(&address) && !block.1.iter().any(|except| except.contains(&address))
}

fn has_name(rule: &Rule, host: &Host) -> bool {
    let Host::Name(name) = host else {
        return false;
    };
    rule.to
        .iter()
        .filter_map(|peer| peer.domain.as_deref())
        .any(|domain| domain.parse::<HostPattern>().unwrap().matches(name))
}

fn allows(rule: &Rule, ask: &Ask) -> bool {
    let host = ask.host();
    let metadata: IpAddr = "169.254.169.254".parse().unwrap();
    let has_address = |address: IpAddr| {
        let last = forms(address).pop().unwrap();
        blocks(rule)
            .iter()
            .any(|block| has(block, last) && (last != metadata || block.0 == IpNet::from(metadata)))
    };
    let peer_matches = match host {
        Host::Name(_) => has_name(rule, &host) && port_matches(rule, ask, &[80, 443]),
        Host::Address(address) => {
            has_address(address) && has_address(ask.address.parse().unwrap()) && port_matches(rule, ask, &[])
        }
    };
    peer_matches && http_matches(rule, ask, false)
}

fn denies(rule: &Rule, ask: &Ask) -> bool {
    let host = ask.host();
    let mut addresses = forms(ask.address.parse().unwrap());
    if let Host::Address(address) = host {
        addresses.extend(forms(address));
    }
    let has_any = addresses
        .into_iter()
        .any(|address| blocks(rule).iter().any(|block| has(block, address)));
    (has_name(rule, &host) || has_any) && port_matches(rule, ask, &[]) && http_matches(rule, ask, true)
}
