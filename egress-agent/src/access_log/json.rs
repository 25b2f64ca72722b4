//! JSON Lines: everything that a record knows, under field names that do not change. `docs/access-log.md` describes them.

use std::borrow::Cow;

use egress_common::outcome::Class;
use http::HeaderValue;
use jiff::{Timestamp, fmt::temporal::DateTimePrinter};
use serde::{Serialize, Serializer};

use super::{
    facts::Facts,
    record::{Record, TlsFacts},
};

/// Three digits: what squid's formats show, too.
const TIME: DateTimePrinter = DateTimePrinter::new().precision(Some(3));

/// One record.
#[derive(Serialize)]
struct Line<'a> {
    #[serde(serialize_with = "time")]
    time: Timestamp,
    duration_ms: u64,
    client: String,
    original: String,
    namespace: &'a str,
    workload: &'a str,
    cgroup: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pod: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    container: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    service_account: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    node: Option<&'a str>,
    pid: u32,
    uid: u32,
    command: &'a str,
    transport: &'static str,
    protocol: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    method: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    host: Option<Cow<'a, str>>,
    port: u16,
    url: Cow<'a, str>,
    http_version: &'static str,
    status: u16,
    bytes_to_client: u64,
    bytes_to_origin: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    upstream: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    address: Option<&'static str>,
    outcome: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    rule: Option<String>,
    enforced: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    would_deny: Option<bool>,
    ending: &'static str,
    #[serde(skip_serializing_if = "is_one")]
    attempts: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    tls: Option<Tls<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    user_agent: Option<Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    referer: Option<Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content_type: Option<Cow<'a, str>>,
    squid_result: String,
    squid_hierarchy: &'static str,
}

#[derive(Serialize)]
struct Tls<'a> {
    alpn: &'a [String],
    ech: bool,
}

/// Stands where records are missing.
#[derive(Serialize)]
struct Lost {
    #[serde(serialize_with = "time")]
    time: Timestamp,
    records_lost: u64,
}

/// Appends one line, with its line break.
pub(super) fn render(facts: &Facts<'_>, strip_query_terms: bool, url: &mut Vec<u8>, out: &mut Vec<u8>) {
    let start = out.len();
    let written = match facts.record {
        Some(record) => {
            url.clear();
            facts.plain_url(strip_query_terms, url);
            serde_json::to_writer(&mut *out, &line(facts, record, url))
        }
        None => serde_json::to_writer(
            &mut *out,
            &Lost {
                time: facts.ended,
                records_lost: facts.lost_records(),
            },
        ),
    };
    match written {
        Ok(()) => out.push(b'\n'),
        // Neither memory nor these types fail; half a line must not stay if they ever do.
        Err(error) => {
            out.truncate(start);
            tracing::error!(%error, "a record cannot be written as JSON");
        }
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde hands it over")]
const fn is_one(attempts: &u64) -> bool {
    *attempts == 1
}

fn line<'a>(facts: &'a Facts<'_>, record: &'a Record, url: &'a [u8]) -> Line<'a> {
    let text = |value: &'a HeaderValue| String::from_utf8_lossy(value.as_bytes());
    let pod = record.workload.pod.as_ref();
    let known = |text: &'a String| (!text.is_empty()).then_some(text.as_str());
    Line {
        time: facts.ended,
        duration_ms: u64::try_from(record.duration.as_millis()).unwrap_or(u64::MAX),
        client: record.client.to_string(),
        original: record.original.to_string(),
        namespace: &record.workload.namespace,
        workload: &record.workload.name,
        cgroup: &record.workload.cgroup,
        pod: pod.map(|_| record.workload.name.as_str()),
        container: pod.and_then(|pod| known(&pod.container)),
        service_account: pod.and_then(|pod| known(&pod.service_account)),
        node: pod.and_then(|pod| known(&pod.node)),
        pid: record.process.pid,
        uid: record.process.uid,
        command: &record.process.command,
        transport: record.carrier.as_str(),
        protocol: record.protocol.as_str(),
        method: facts.method(),
        host: facts.domain(),
        port: facts.url_port().unwrap_or_else(|| record.original.port()),
        url: String::from_utf8_lossy(url),
        http_version: facts.version(),
        status: facts.result.status,
        bytes_to_client: record.bytes_to_client,
        bytes_to_origin: record.bytes_to_origin,
        upstream: record.upstream.map(|address| address.to_string()),
        address: record.relation.map(super::AddressRelation::as_str),
        outcome: record.verdict.outcome.as_str(),
        rule: record.verdict.rule.as_ref().map(ToString::to_string),
        enforced: record.enforced,
        would_deny: (!record.enforced).then(|| record.verdict.outcome.class() == Class::Deny),
        ending: record.ending.as_str(),
        attempts: record.attempts,
        tls: record
            .tls
            .as_ref()
            .map(|TlsFacts { alpn, ech }| Tls { alpn, ech: *ech }),
        user_agent: record.user_agent.as_ref().map(text),
        referer: record.referer.as_ref().map(text),
        content_type: record.content_type.as_ref().map(text),
        squid_result: format!("{}{}", facts.result.tag.as_str(), facts.result.suffix.as_str()),
        squid_hierarchy: facts.result.hierarchy.as_str(),
    }
}

fn time<S: Serializer>(time: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&TIME.timestamp_to_string(time))
}

#[cfg(test)]
mod tests;
