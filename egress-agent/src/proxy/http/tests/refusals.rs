//! Refusals explain themselves, arrive, and reach nobody else.

use egress_common::outcome::Outcome;

use super::lab::{Lab, run, run_with, store};
use crate::{
    access_log::{Asked, Ending},
    proxy::limits::Limits,
};

#[test]
fn a_refusal_says_who_what_and_why() {
    run(async |lab: &mut Lab| {
        let mut client = lab.client().await;
        client
            .send("GET /secret HTTP/1.1\r\nHost: denied.test\r\n\r\n")
            .await;
        let answer = client.message().await;
        assert!(
            answer.head.starts_with("HTTP/1.1 403 Forbidden\r\n"),
            "{}",
            answer.head
        );
        assert_eq!(answer.field("content-type"), Some("text/plain; charset=utf-8"));
        for word in ["denied.test", "no_rule", "shop/cart-1", &lab.port().to_string()] {
            assert!(answer.text().contains(word), "{word} in {}", answer.text());
        }
        client
            .send("GET / HTTP/1.1\r\nHost: denied.test\r\nAccept: text/html,*/*\r\n\r\n")
            .await;
        let answer = client.message().await;
        assert_eq!(answer.field("content-type"), Some("text/html; charset=utf-8"));
        assert!(answer.text().starts_with("<!DOCTYPE html>"));
        lab.origin("denied.test").heard_nothing();
    });
}

#[test]
fn a_refused_head_request_has_no_body() {
    run(async |lab: &mut Lab| {
        let mut client = lab.client().await;
        client.send("HEAD / HTTP/1.1\r\nHost: denied.test\r\n\r\n").await;
        assert_eq!(client.message_to(true).await.status(), Some(403));
        client.send("GET / HTTP/1.1\r\nHost: denied.test\r\n\r\n").await;
        assert_eq!(client.message().await.status(), Some(403));
    });
}

#[test]
fn a_refusal_arrives_in_the_middle_of_an_upload() {
    run(async |lab: &mut Lab| {
        let mut client = lab.client().await;
        let total = 16 * 1024 * 1024;
        client
            .send(format!(
                "POST / HTTP/1.1\r\nHost: denied.test\r\nContent-Length: {total}\r\n\r\n"
            ))
            .await;
        // The client sends all of it before it reads: without somebody who goes on reading it would meet a reset.
        client.send(vec![b'x'; total]).await;
        let answer = client.message().await;
        assert_eq!(answer.status(), Some(403));
        assert_eq!(answer.field("connection"), Some("close"));
        assert_eq!(client.rest().await, b"");
        drop(client);
        lab.origin("denied.test").heard_nothing();
        let records = lab.records().await;
        assert_eq!((records.len(), records[0].status), (1, 403));
        assert_eq!(records[0].bytes_to_origin, 0);
    });
}

#[test]
fn a_refused_upload_is_never_asked_for() {
    run(async |lab: &mut Lab| {
        let mut client = lab.client().await;
        client
            .send("PUT / HTTP/1.1\r\nHost: denied.test\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n")
            .await;
        let answer = client.message().await;
        assert_eq!(answer.status(), Some(403));
        assert_eq!(client.rest().await, b"", "and no 100");
    });
}

#[test]
fn doubtful_hosts_are_refused_with_400_and_the_connection_ends() {
    for (request, reason) in [
        ("GET / HTTP/1.1\r\n\r\n", "ambiguous_host"),
        ("GET / HTTP/1.1\r\nHost:\r\n\r\n", "ambiguous_host"),
        (
            "GET / HTTP/1.1\r\nHost: good.test\r\nHost: good.test\r\n\r\n",
            "ambiguous_host",
        ),
        (
            "GET / HTTP/1.1\r\nHost: good.test\r\nhost: denied.test\r\n\r\n",
            "ambiguous_host",
        ),
        (
            "GET / HTTP/1.1\r\nHost: good.test, denied.test\r\n\r\n",
            "ambiguous_host",
        ),
        (
            "GET / HTTP/1.1\r\nHost: good.test@denied.test\r\n\r\n",
            "ambiguous_host",
        ),
        (
            "GET http://good.test/ HTTP/1.1\r\nHost: denied.test\r\n\r\n",
            "ambiguous_host",
        ),
        (
            "GET http://denied.test/ HTTP/1.1\r\nHost: good.test\r\n\r\n",
            "ambiguous_host",
        ),
        (
            "GET https://good.test/ HTTP/1.1\r\nHost: good.test\r\n\r\n",
            "malformed_http",
        ),
        (
            "GET / HTTP/1.1\r\nHost: good.test:99999\r\n\r\n",
            "malformed_http",
        ),
        (
            "GET good.test HTTP/1.1\r\nHost: good.test\r\n\r\n",
            "malformed_http",
        ),
    ] {
        run(async |lab: &mut Lab| {
            let mut client = lab.client().await;
            client.send(request).await;
            let answer = client.message().await;
            assert_eq!(answer.status(), Some(400), "{request}");
            assert_eq!(
                answer.field("x-squid-error"),
                Some("ERR_INVALID_REQ 0"),
                "{request}"
            );
            assert_eq!(answer.field("x-egress-reason"), Some(reason), "{request}");
            assert_eq!(client.rest().await, b"", "{request}");
            drop(client);
            lab.origin("good.test").heard_nothing();
            lab.origin("denied.test").heard_nothing();
            let records = lab.records().await;
            assert_eq!((records.len(), records[0].status), (1, 400), "{request}");
            assert_eq!(records[0].ending, Ending::Refused);
            assert!(matches!(records[0].asked, Asked::Request { .. }));
        });
    }
}

#[test]
fn connect_is_refused() {
    run(async |lab: &mut Lab| {
        let mut client = lab.client().await;
        client
            .send("CONNECT good.test:443 HTTP/1.1\r\nHost: good.test:443\r\n\r\n")
            .await;
        let answer = client.message().await;
        assert_eq!(answer.status(), Some(403));
        assert_eq!(answer.field("x-egress-reason"), Some("forbidden_method"));
        assert_eq!(client.rest().await, b"");
        drop(client);
        lab.origin("good.test").heard_nothing();
        let records = lab.records().await;
        assert_eq!(records[0].verdict.outcome, Outcome::ForbiddenMethod);
        let asked = Asked::Connect {
            host: crate::policy::Host::parse("good.test").unwrap(),
            port: 443,
            version: http::Version::HTTP_11,
        };
        assert_eq!(records[0].asked, asked);
    });
}

#[test]
fn http_1_0_without_a_host_needs_a_rule_for_the_address() {
    run(async |lab: &mut Lab| {
        let mut client = lab.client().await;
        client.send("GET /x HTTP/1.0\r\n\r\n").await;
        let answer = client.message().await;
        assert_eq!(answer.status(), Some(403));
        assert!(answer.text().contains("127.0.1.1"), "{}", answer.text());
        drop(client);
        lab.origin("good.test").heard_nothing();
    });
}

#[test]
fn a_head_over_the_limit_is_refused() {
    let limits = Limits {
        head_bytes: 16 * 1024,
        ..Limits::default()
    };
    run_with(limits, async |lab: &mut Lab| {
        for line in [
            format!("X: {}", "y".repeat(20_000)),
            "X: y\r\n".repeat(300) + "X: y",
        ] {
            let mut client = lab.client().await;
            client
                .send(format!("GET / HTTP/1.1\r\nHost: good.test\r\n{line}\r\n\r\n"))
                .await;
            let answer = client.message().await;
            assert_eq!(answer.status(), Some(431));
            assert_eq!(answer.field("x-squid-error"), Some("ERR_TOO_BIG 0"));
            assert_eq!(client.rest().await, b"");
        }
        lab.origin("good.test").heard_nothing();
        for record in lab.records().await {
            assert_eq!(record.verdict.outcome, Outcome::HeadTooLarge);
        }
    });
}

#[test]
fn a_head_that_breaks_the_rules_is_refused_with_a_page() {
    for request in [
        "GET / HTTP/1.1\r\nHost : good.test\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: good.test\r\n folded\r\n\r\n",
        "GET / HTTP/1.1\r\nHo\0st: good.test\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: good\0.test\r\n\r\n",
        "GET  / HTTP/1.1\r\nHost: good.test\r\n\r\n",
        "GET / HTTP/1.1 x\r\nHost: good.test\r\n\r\n",
        "GET / HTTP/2.0\r\nHost: good.test\r\n\r\n",
        "GET / HTTP/1.2\r\nHost: good.test\r\n\r\n",
        "GET /\r\nHost: good.test\r\n\r\n",
        "G@T / HTTP/1.1\r\nHost: good.test\r\n\r\n",
        "GET /\x7f HTTP/1.1\r\nHost: good.test\r\n\r\n",
    ] {
        run(async |lab: &mut Lab| {
            let mut client = lab.client().await;
            client.send(request).await;
            let answer = client.message().await;
            assert_eq!(answer.status(), Some(400), "{request:?}");
            assert_eq!(
                answer.field("x-squid-error"),
                Some("ERR_INVALID_REQ 0"),
                "{request:?}"
            );
            assert_eq!(client.rest().await, b"", "{request:?}");
            drop(client);
            lab.origin("good.test").heard_nothing();
            let records = lab.records().await;
            assert_eq!((records.len(), records[0].status), (1, 400), "{request:?}");
            assert_eq!(records[0].verdict.outcome, Outcome::MalformedHttp);
            assert_eq!(
                records[0].bytes_to_client,
                (answer.head.len() + answer.body.len()) as u64
            );
        });
    }
}

#[test]
fn a_broken_head_behind_a_good_request_gets_its_own_answer_and_record() {
    run(async |lab: &mut Lab| {
        let mut client = lab.client().await;
        client
            .send("GET / HTTP/1.1\r\nHost: denied.test\r\n\r\nGARBAGE\r\n\r\n")
            .await;
        assert_eq!(client.message().await.status(), Some(403));
        let answer = client.message().await;
        assert_eq!(answer.status(), Some(400));
        assert_eq!(answer.field("x-egress-reason"), Some("malformed_http"));
        drop(client);
        let statuses: Vec<_> = lab.records().await.iter().map(|record| record.status).collect();
        assert_eq!(statuses, [403, 400]);
    });
}

#[test]
fn a_path_rule_is_not_outwitted() {
    for (line, is_allowed) in [
        ("GET /v1/x", true),
        ("GET /v1/x?../admin", true),
        ("GET /%761/x", true),
        ("HEAD /v1/x", false),
        ("get /v1/x", false),
        ("GET /admin", false),
        ("GET /v1/../admin", false),
        ("GET /v1/%2e%2e/admin", false),
        ("GET /v1/%2E./admin", false),
        ("GET /v1/..%2fadmin", false),
        ("GET /v1/..;x/admin", false),
        ("GET /v1/..\\admin", false),
        ("GET /v1/%5c..%5cadmin", false),
        ("GET /v1//../admin", false),
        ("GET /v1/%252e%252e/admin", false),
        ("GET //v1/x", false),
        ("GET /V1/x", false),
        ("GET http://api.test/v1/../admin", false),
        ("OPTIONS *", false),
    ] {
        run(async |lab: &mut Lab| {
            let mut client = lab.client().await;
            client
                .send(format!(
                    "{line} HTTP/1.1\r\nHost: api.test\r\nConnection: close\r\n\r\n"
                ))
                .await;
            if is_allowed {
                let mut origin = lab.accept("api.test").await;
                assert!(
                    origin.head().await.starts_with(line),
                    "what is passed on is what was sent"
                );
                return;
            }
            let head = client.head().await;
            assert!(head.starts_with("HTTP/1.1 403 "), "{line}: {head}");
            drop(client);
            assert_eq!(lab.records().await.len(), 1);
            lab.origin("api.test").heard_nothing();
        });
    }
}

#[test]
fn a_new_policy_set_reaches_a_connection_that_is_kept_alive() {
    run(async |lab: &mut Lab| {
        let mut client = lab.client().await;
        client.send("GET / HTTP/1.1\r\nHost: denied.test\r\n\r\n").await;
        assert_eq!(client.message().await.status(), Some(403));
        let port = lab.port();
        let document = |mode: &str| {
            format!(
                "apiVersion: egress-enforcer.io/v1alpha1\nkind: EgressPolicy\nmetadata: {{name: web, namespace: shop}}\n\
                 spec:\n  mode: {mode}\n  egress:\n    - to: [{{domain: good.test}}]\n      ports: [{{port: {port}}}]\n"
            )
        };
        lab.services().policy.replace(store(&document("Audit")).load());
        client.send("GET / HTTP/1.1\r\nHost: denied.test\r\n\r\n").await;
        let mut origin = lab.accept("denied.test").await;
        origin.head().await;
        origin.send("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx").await;
        assert_eq!(client.message().await.text(), "x");
        lab.services().policy.replace(store(&document("Enforce")).load());
        client.send("GET / HTTP/1.1\r\nHost: denied.test\r\n\r\n").await;
        assert_eq!(client.message().await.status(), Some(403));
        drop(client);
        let records = lab.records().await;
        let told: Vec<_> = records
            .iter()
            .map(|record| (record.status, record.verdict.outcome, record.enforced))
            .collect();
        assert_eq!(
            told,
            [
                (403, Outcome::NoRule, true),
                (200, Outcome::NoRule, false),
                (403, Outcome::NoRule, true),
            ]
        );
    });
}
