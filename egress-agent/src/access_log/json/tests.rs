use egress_common::outcome::Outcome;
use http::HeaderValue;
use serde_json::{Value, json};

use super::*;
use crate::access_log::{
    AddressRelation,
    samples::{get, header, name, nothing, socket, tunnel},
};

fn rendered(record: &Record) -> String {
    let mut out = Vec::new();
    render(&Facts::of(record), false, &mut Vec::new(), &mut out);
    let line = String::from_utf8(out).unwrap();
    assert_eq!(line.find('\n'), Some(line.len() - 1), "one line");
    line
}

fn value(record: &Record) -> Value {
    serde_json::from_str(&rendered(record)).unwrap()
}

#[test]
fn a_tunnel_has_all_that_is_documented() {
    let mut record = tunnel(name("good.test"), 443, Outcome::AllowedByRule);
    record.tls = Some(TlsFacts {
        alpn: vec!["h2".to_owned(), "http/1.1".to_owned()],
        ech: true,
    });
    record.relation = Some(AddressRelation::Mismatch);
    record.bytes_to_client = 49;
    record.bytes_to_origin = 517;
    let expected = json!({
        "time": "2026-11-23T05:52:37.409Z", "duration_ms": 4,
        "client": "10.42.0.7:39870", "original": "192.0.2.7:443",
        "namespace": "shop", "workload": "cart-7d4b9c-x2x", "cgroup": "/kubepods/pod1",
        "pid": 4711, "uid": 1000, "command": "curl",
        "transport": "tcp",
            "protocol": "tls", "method": "CONNECT", "host": "good.test", "port": 443, "url": "good.test:443",
        "http_version": "1.1", "status": 200, "bytes_to_client": 49, "bytes_to_origin": 517,
        "upstream": "127.0.0.1:443", "address": "mismatch",
        "outcome": "allowed_by_rule", "rule": "EgressPolicy shop/cart egress[1]", "enforced": true,
        "ending": "complete", "tls": {"alpn": ["h2", "http/1.1"], "ech": true},
        "squid_result": "TCP_TUNNEL", "squid_hierarchy": "HIER_DIRECT",
    });
    assert_eq!(value(&record), expected);
}

#[test]
fn the_fields_stand_in_the_documented_order() {
    let line = rendered(&tunnel(name("good.test"), 443, Outcome::AllowedByRule));
    let at = [
        "time",
        "client",
        "namespace",
        "protocol",
        "status",
        "outcome",
        "squid_result",
    ]
    .map(|field| line.find(&format!("\"{field}\":")).unwrap());
    assert!(at.is_sorted(), "{line}");
}

#[test]
fn audit_says_what_would_have_been_denied() {
    let mut record = tunnel(name("evil.test"), 443, Outcome::NoRule);
    assert_eq!(value(&record).get("would_deny"), None);
    record.enforced = false;
    assert_eq!(value(&record)["would_deny"], json!(true));
    record.verdict.outcome = Outcome::Unselected;
    assert_eq!(value(&record)["would_deny"], json!(false));
}

#[test]
fn bytes_of_a_peer_cannot_break_the_line_or_the_encoding() {
    let mut record = get(b"http://good.test/\"x", Outcome::AllowedByRule);
    record.user_agent = Some(header(b"a\"b\\c\td\xff"));
    record.referer = Some(HeaderValue::from_static("\u{7d}\u{5d}"));
    let value = value(&record);
    assert_eq!(value["user_agent"], json!("a\"b\\c\td\u{fffd}"));
    assert_eq!(value["referer"], json!("}]"));
    assert_eq!(value["url"], json!("http://good.test/\"x"));
}

#[test]
fn an_ipv6_host_is_written_as_in_a_url() {
    let mut record = get(b"http://[2001:db8::1]:8080/x", Outcome::AllowedByRule);
    record.upstream = Some(socket("[2001:db8::1]:8080"));
    let value = value(&record);
    assert_eq!(value["host"], json!("[2001:db8::1]"));
    assert_eq!(value["upstream"], json!("[2001:db8::1]:8080"));
}

#[test]
fn a_gap_is_an_object_of_its_own() {
    let mut out = Vec::new();
    let at = "2026-11-23T05:52:37.4056Z".parse().unwrap();
    render(&Facts::lost(17, at), false, &mut Vec::new(), &mut out);
    assert_eq!(
        String::from_utf8(out).unwrap(),
        "{\"time\":\"2026-11-23T05:52:37.405Z\",\"records_lost\":17}\n"
    );
}

#[test]
fn a_connection_without_a_name_has_the_dialled_address() {
    let value = value(&nothing(Outcome::ClientGone));
    assert_eq!(value["original"], json!("192.0.2.7:443"));
    assert_eq!(value.get("host"), None);
    assert_eq!(value["status"], json!(0));
}

#[test]
fn the_query_is_left_out_on_demand() {
    let record = get(b"http://good.test/x?token=secret", Outcome::AllowedByRule);
    let mut out = Vec::new();
    render(&Facts::of(&record), true, &mut Vec::new(), &mut out);
    let line = String::from_utf8(out).unwrap();
    assert!(
        line.contains("\"url\":\"http://good.test/x?\"") && !line.contains("secret"),
        "{line}"
    );
}
