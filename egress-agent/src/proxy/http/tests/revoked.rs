//! New policies reach what is open: an answer under way, a WebSocket; and leave the rest alone.

use egress_common::outcome::Outcome;

use super::lab::{Lab, UPGRADE, Wire, run};
use crate::access_log::Ending;

/// A client and its origin in the middle of an answer.
async fn begun(lab: &mut Lab, host: &str) -> (Wire, Wire) {
    let (mut client, mut origin) = asked(lab, host).await;
    origin
        .send("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nbegin")
        .await;
    client.head().await;
    assert_eq!(client.exactly(5).await, b"begin");
    (client, origin)
}

/// A client and its origin behind an answer, with their connections kept.
async fn answered(lab: &mut Lab, host: &str) -> (Wire, Wire) {
    let (mut client, mut origin) = asked(lab, host).await;
    origin.send("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx").await;
    assert_eq!(client.message().await.text(), "x");
    (client, origin)
}

async fn asked(lab: &mut Lab, host: &str) -> (Wire, Wire) {
    let mut client = lab.client().await;
    client
        .send(&format!("GET /1 HTTP/1.1\r\nHost: {host}\r\n\r\n"))
        .await;
    let mut origin = lab.accept(host).await;
    origin.head().await;
    (client, origin)
}

#[test]
fn a_websocket_that_new_policies_refuse_is_reset_on_both_sides() {
    run(async |lab: &mut Lab| {
        let (mut client, mut origin) = lab.websocket().await;
        client.send("frame").await;
        origin.exactly(5).await;
        lab.allow_only("also.test");
        client.until_reset().await;
        origin.until_reset().await;
        let records = lab.records().await;
        assert_eq!(records.len(), 1);
        assert_eq!(records[0].ending, Ending::PolicyChanged);
        assert_eq!(records[0].bytes_to_origin, (UPGRADE.len() + 5) as u64);
    });
}

#[test]
fn a_websocket_that_new_policies_allow_too_lives_on() {
    run(async |lab: &mut Lab| {
        let (mut client, mut origin) = lab.websocket().await;
        lab.allow_only("good.test");
        client.send("frame").await;
        assert_eq!(origin.exactly(5).await, b"frame");
        drop(client);
        assert_eq!(origin.rest().await, b"");
        drop(origin);
        assert_eq!(lab.records().await[0].ending, Ending::Complete);
    });
}

#[test]
fn an_answer_that_new_policies_refuse_is_broken_off() {
    run(async |lab: &mut Lab| {
        let (mut client, _origin) = begun(lab, "good.test").await;
        lab.allow_only("also.test");
        client.until_reset().await;
        assert_eq!(lab.records().await[0].ending, Ending::PolicyChanged);
    });
}

#[test]
fn a_connection_that_is_kept_alive_meets_the_new_policies_with_its_next_request() {
    run(async |lab: &mut Lab| {
        let (mut client, _origin) = answered(lab, "good.test").await;
        lab.allow_only("also.test");
        client.send("GET /2 HTTP/1.1\r\nHost: good.test\r\n\r\n").await;
        assert_eq!(client.message().await.status(), Some(403));
        drop(client);
        let endings: Vec<_> = lab.records().await.iter().map(|record| record.ending).collect();
        assert_eq!(endings, [Ending::Complete, Ending::Refused]);
    });
}

#[test]
fn an_origins_connection_that_is_kept_is_not_used_again_once_its_address_is_denied() {
    run(async |lab: &mut Lab| {
        let (mut client, mut origin) = answered(lab, "also.test").await;
        lab.deny_address_of("also.test");
        client.send("GET /2 HTTP/1.1\r\nHost: also.test\r\n\r\n").await;
        assert_eq!(client.message().await.status(), Some(403));
        assert_eq!(origin.rest().await, b"", "nothing more has reached it");
        drop(client);
        let outcomes: Vec<_> = lab
            .records()
            .await
            .iter()
            .map(|record| record.verdict.outcome)
            .collect();
        assert_eq!(outcomes, [Outcome::AllowedByRule, Outcome::ClusterDeny]);
    });
}

#[test]
fn an_answer_from_an_address_that_is_denied_now_is_broken_off() {
    run(async |lab: &mut Lab| {
        let (mut client, mut origin) = begun(lab, "also.test").await;
        lab.deny_address_of("api.test");
        origin.send("go").await;
        assert_eq!(client.exactly(2).await, b"go", "another address");
        lab.deny_address_of("also.test");
        client.until_reset().await;
        assert_eq!(lab.records().await[0].ending, Ending::PolicyChanged);
    });
}
