//! Records for tests.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use egress_common::outcome::Outcome;
use http::{HeaderValue, Method, Uri, Version};
use jiff::Timestamp;

use super::{Asked, Carrier, Ending, Protocol, Record};
use crate::{
    identity::{Process, Workload},
    policy::{DomainName, Host, PolicyKind, RuleId, Verdict},
};

pub(super) fn socket(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

pub(super) fn name(text: &str) -> Host {
    Host::Name(DomainName::parse(text).unwrap())
}

pub(super) fn header(bytes: &[u8]) -> HeaderValue {
    HeaderValue::from_bytes(bytes).unwrap()
}

/// A connection of which nothing is known.
pub(super) fn nothing(outcome: Outcome) -> Record {
    Record {
        started: "2026-11-23T05:52:37.405609Z".parse::<Timestamp>().unwrap(),
        duration: Duration::from_micros(4014),
        client: socket("10.42.0.7:39870"),
        original: socket("192.0.2.7:443"),
        workload: Arc::new(Workload {
            namespace: "shop".to_owned(),
            name: "cart-7d4b9c-x2x".to_owned(),
            cgroup: "/kubepods/pod1".to_owned(),
            ..Workload::default()
        }),
        process: Process {
            pid: 4711,
            uid: 1000,
            command: "curl".to_owned(),
        },
        carrier: Carrier::TCP,
        protocol: Protocol::Unknown,
        asked: Asked::Nothing,
        tls: None,
        status: 0,
        bytes_to_client: 0,
        bytes_to_origin: 0,
        referer: None,
        user_agent: None,
        content_type: None,
        upstream: None,
        by_parent: false,
        relation: None,
        verdict: Verdict::without_rule(outcome),
        enforced: true,
        ending: Ending::Refused,
        attempts: 1,
    }
}

/// A tunnel that a rule allows, if `outcome` is an allowed one.
pub(super) fn tunnel(host: Host, port: u16, outcome: Outcome) -> Record {
    let mut record = nothing(outcome);
    record.protocol = Protocol::Tls;
    record.asked = Asked::Tunnel { host, port };
    if outcome.is_allow() {
        record.upstream = Some(socket("127.0.0.1:443"));
        record.ending = Ending::Complete;
        record.verdict.rule = Some(Arc::new(rule()));
    }
    record
}

/// A GET that a rule allows, if `outcome` is an allowed one.
pub(super) fn get(url: &[u8], outcome: Outcome) -> Record {
    let mut record = nothing(outcome);
    record.protocol = Protocol::Http1;
    record.original = socket("192.0.2.7:80");
    record.asked = Asked::Request {
        method: Method::GET,
        url: Uri::try_from(url).unwrap(),
        version: Version::HTTP_11,
    };
    if outcome.is_allow() {
        record.upstream = Some(socket("127.0.0.1:8080"));
        record.status = 200;
        record.content_type = Some(header(b"text/html"));
        record.ending = Ending::Complete;
        record.verdict.rule = Some(Arc::new(rule()));
    }
    record
}

pub(super) fn rule() -> RuleId {
    RuleId {
        kind: PolicyKind::EgressPolicy,
        namespace: "shop".to_owned(),
        policy: "cart".to_owned(),
        list: "egress",
        index: Some(1),
    }
}
