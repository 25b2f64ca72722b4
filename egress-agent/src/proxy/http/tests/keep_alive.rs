//! Several requests on one connection: each judged by itself, each with a record of its own.

use super::lab::{Lab, Wire, run};
use crate::access_log::{Asked, Ending, Record};
use egress_common::outcome::Outcome;

async fn answer(origin: &mut Wire, body: &str) -> String {
    let head = origin.head().await;
    let length = body.len();
    origin
        .send(format!(
            "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{body}"
        ))
        .await;
    head
}

fn get(host: &str, path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n")
}

fn url_of(record: &Record) -> String {
    match &record.asked {
        Asked::Request { url, .. } => url.to_string(),
        other @ (Asked::Nothing | Asked::Tunnel { .. } | Asked::Connect { .. }) => format!("{other:?}"),
    }
}

fn told(records: &[Record]) -> Vec<(u16, Outcome, Ending)> {
    records
        .iter()
        .map(|record| (record.status, record.verdict.outcome, record.ending))
        .collect()
}

#[test]
fn a_second_host_on_a_kept_connection_is_judged_by_itself() {
    run(async |lab: &mut Lab| {
        let mut client = lab.client().await;
        client.send(get("good.test", "/1")).await;
        let mut good = lab.accept("good.test").await;
        answer(&mut good, "one").await;
        assert_eq!(client.message().await.text(), "one");

        client.send(get("denied.test", "/2")).await;
        let refused = client.message().await;
        assert_eq!(refused.status(), Some(403));
        assert_eq!(refused.field("x-squid-error"), Some("ERR_ACCESS_DENIED 0"));
        assert_eq!(refused.field("x-egress-reason"), Some("no_rule"));
        assert_eq!(refused.field("connection"), None);

        client.send(get("good.test", "/3")).await;
        let head = answer(&mut good, "three").await;
        assert!(head.starts_with("GET /3 HTTP/1.1\r\n"), "{head}");
        assert_eq!(client.message().await.text(), "three");

        lab.origin("denied.test").heard_nothing();
        drop(client);
        let records = lab.records().await;
        assert_eq!(
            told(&records),
            [
                (200, Outcome::AllowedByRule, Ending::Complete),
                (403, Outcome::NoRule, Ending::Refused),
                (200, Outcome::AllowedByRule, Ending::Complete),
            ]
        );
        let urls: Vec<_> = records.iter().map(url_of).collect();
        let port = lab.port();
        assert_eq!(
            urls,
            [
                format!("http://good.test:{port}/1"),
                format!("http://denied.test:{port}/2"),
                format!("http://good.test:{port}/3"),
            ]
        );
        assert!(records[1].upstream.is_none());
        assert_eq!(records[2].upstream, records[0].upstream);
    });
}

#[test]
fn pipelined_requests_are_answered_in_order_and_judged_one_by_one() {
    run(async |lab: &mut Lab| {
        let mut client = lab.client().await;
        let requests = [
            get("denied.test", "/1"),
            get("good.test", "/2"),
            get("denied.test", "/3"),
            get("also.test", "/4"),
        ];
        client.send(requests.concat()).await;
        assert_eq!(client.message().await.status(), Some(403));
        let mut good = lab.accept("good.test").await;
        answer(&mut good, "two").await;
        assert_eq!(client.message().await.text(), "two");
        assert_eq!(client.message().await.status(), Some(403));
        let mut also = lab.accept("also.test").await;
        answer(&mut also, "four").await;
        assert_eq!(client.message().await.text(), "four");
        lab.origin("denied.test").heard_nothing();
        drop(client);
        let statuses: Vec<_> = lab.records().await.iter().map(|record| record.status).collect();
        assert_eq!(statuses, [403, 200, 403, 200]);
    });
}

#[test]
fn each_record_counts_the_bytes_of_its_own_answer() {
    run(async |lab: &mut Lab| {
        let mut client = lab.client().await;
        let mut sizes = Vec::new();
        for (path, body) in [("/a", "x"), ("/b", "0123456789")] {
            client.send(get("good.test", path)).await;
            if sizes.is_empty() {
                let mut good = lab.accept("good.test").await;
                answer(&mut good, body).await;
                let message = client.message().await;
                sizes.push((message.head.len() + message.body.len()) as u64);
                // Kept by the next round.
                tokio::task::spawn_local(async move { answer(&mut good, "0123456789").await });
            } else {
                let message = client.message().await;
                assert_eq!(message.text(), body);
                sizes.push((message.head.len() + message.body.len()) as u64);
            }
        }
        client.send(get("denied.test", "/c")).await;
        let message = client.message().await;
        sizes.push((message.head.len() + message.body.len()) as u64);
        drop(client);
        let records = lab.records().await;
        let counted: Vec<_> = records.iter().map(|record| record.bytes_to_client).collect();
        assert_eq!(counted, sizes);
        let sent: Vec<_> = records.iter().map(|record| record.bytes_to_origin).collect();
        assert_eq!(
            sent,
            [
                get("good.test", "/a").len() as u64,
                get("good.test", "/b").len() as u64,
                0
            ]
        );
    });
}

#[test]
fn the_origin_connection_is_dialled_anew_when_the_host_changes() {
    run(async |lab: &mut Lab| {
        let mut client = lab.client().await;
        client.send(get("good.test", "/1")).await;
        let mut good = lab.accept("good.test").await;
        answer(&mut good, "1").await;
        client.message().await;
        client.send(get("also.test", "/2")).await;
        let mut also = lab.accept("also.test").await;
        answer(&mut also, "2").await;
        client.message().await;
        assert_eq!(good.rest().await, b"", "the first origin's connection is closed");
    });
}

#[test]
fn a_kept_connection_that_the_origin_closed_is_replaced_unseen() {
    run(async |lab: &mut Lab| {
        let mut client = lab.client().await;
        client.send(get("good.test", "/1")).await;
        let mut good = lab.accept("good.test").await;
        answer(&mut good, "1").await;
        client.message().await;
        drop(good);
        client.send(get("good.test", "/2")).await;
        let mut good = lab.accept("good.test").await;
        answer(&mut good, "2").await;
        assert_eq!(client.message().await.text(), "2");
    });
}

#[test]
fn a_request_that_a_closing_origin_may_have_seen_is_repeated_only_if_that_does_no_harm() {
    for (method, body, is_repeated) in [("GET", "", true), ("POST", "", false), ("PUT", "x", false)] {
        run(async |lab: &mut Lab| {
            let mut client = lab.client().await;
            client.send(get("good.test", "/1")).await;
            let mut good = lab.accept("good.test").await;
            answer(&mut good, "1").await;
            client.message().await;
            let length = body.len();
            let request =
                format!("{method} /2 HTTP/1.1\r\nHost: good.test\r\nContent-Length: {length}\r\n\r\n{body}");
            client.send(request).await;
            good.head().await;
            drop(good);
            if is_repeated {
                let mut good = lab.accept("good.test").await;
                answer(&mut good, "2").await;
                assert_eq!(client.message().await.text(), "2");
            } else {
                let failed = client.message().await;
                assert_eq!(failed.status(), Some(502));
                assert_eq!(failed.field("x-squid-error"), Some("ERR_ZERO_SIZE_OBJECT 0"));
                lab.origin("good.test").heard_nothing();
            }
        });
    }
}
