//! Behind a parent proxy: what that is asked, and what becomes of its answers.

use egress_common::outcome::Outcome;

use super::lab::{Lab, SWITCH, UPGRADE, Wire, run_behind_a_parent};
use crate::access_log::{Hierarchy, Protocol, ResultCode};

const CREDENTIALS: &str = "Basic dXNlcjp3b3Jk";

/// A client that has asked for good.test, and the parent, which has heard of it.
async fn asked(lab: &mut Lab) -> (Wire, Wire) {
    let mut client = lab.client().await;
    client.send("GET / HTTP/1.1\r\nHost: good.test\r\n\r\n").await;
    let mut parent = lab.accept("api.test").await;
    parent.head().await;
    (client, parent)
}

#[test]
fn requests_are_sent_to_a_parent_in_absolute_form_and_over_one_connection() {
    run_behind_a_parent(async |lab: &mut Lab| {
        let port = lab.port();
        let mut client = lab.client().await;
        client
            .send("GET /a?b=c HTTP/1.1\r\nHost: good.test\r\nProxy-Authorization: Basic Zm9yOnNvbWVib2R5\r\n\r\n")
            .await;
        let mut parent = lab.accept("api.test").await;
        for path in ["/a?b=c", "/"] {
            let request = parent.message().await;
            assert!(
                request
                    .head
                    .starts_with(&format!("GET http://good.test:{port}{path} HTTP/1.1\r\n")),
                "{request:?}"
            );
            assert_eq!(
                request.field("proxy-authorization"),
                Some(CREDENTIALS),
                "{request:?}"
            );
            assert_eq!(
                request.head.matches("roxy-").count(),
                1,
                "the client's own is gone"
            );
            parent
                .send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")
                .await;
            let answer = client.message().await;
            assert_eq!((answer.status(), &answer.body[..]), (Some(200), &b"hi"[..]));
            if path != "/" {
                client.send("GET / HTTP/1.1\r\nHost: good.test\r\n\r\n").await;
            }
        }
        drop(client);
        let records = lab.records().await;
        assert_eq!(records.len(), 2);
        for record in records {
            assert!(record.by_parent);
            assert_eq!(record.upstream.unwrap().to_string(), format!("127.0.1.4:{port}"));
            assert_eq!(record.relation, None);
            assert_eq!(ResultCode::of(&record).hierarchy, Hierarchy::Parent);
        }
        lab.origin("good.test").heard_nothing();
    });
}

#[test]
fn a_parent_that_wants_to_know_who_asks_is_no_business_of_the_clients() {
    run_behind_a_parent(async |lab: &mut Lab| {
        let (mut client, mut parent) = asked(lab).await;
        parent
            .send("HTTP/1.1 407 No\r\nProxy-Authenticate: Basic realm=\"x\"\r\nContent-Length: 0\r\n\r\n")
            .await;
        let answer = client.message().await;
        assert_eq!(answer.status(), Some(502), "{answer:?}");
        assert_eq!(answer.field("proxy-authenticate"), None, "{answer:?}");
        drop(client);
        let records = lab.records().await;
        assert_eq!(records[0].verdict.outcome, Outcome::ParentFailed);
        assert!(records[0].by_parent);
    });
}

#[test]
fn what_a_parent_refuses_by_itself_is_passed_on() {
    run_behind_a_parent(async |lab: &mut Lab| {
        let (mut client, mut parent) = asked(lab).await;
        parent
            .send("HTTP/1.1 403 No\r\nContent-Length: 4\r\n\r\nmine")
            .await;
        let answer = client.message().await;
        assert_eq!((answer.status(), &answer.body[..]), (Some(403), &b"mine"[..]));
    });
}

#[test]
fn a_websocket_goes_through_a_tunnel() {
    run_behind_a_parent(async |lab: &mut Lab| {
        let port = lab.port();
        // The first request leaves a connection behind on which the parent reads requests: no place for a WebSocket.
        let (mut client, mut parent) = asked(lab).await;
        parent.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
        client.message().await;
        client.send(UPGRADE).await;
        let mut tunnel = lab.accept("api.test").await;
        let connect = tunnel.head().await;
        assert!(
            connect.starts_with(&format!("CONNECT good.test:{port} HTTP/1.1\r\n")),
            "{connect}"
        );
        assert!(connect.contains(CREDENTIALS), "{connect}");
        tunnel.send("HTTP/1.1 200 OK\r\n\r\n").await;
        assert_eq!(tunnel.head().await, UPGRADE);
        tunnel.send(SWITCH).await;
        assert_eq!(client.head().await, SWITCH);
        client.send("ping").await;
        assert_eq!(tunnel.exactly(4).await, b"ping");
    });
}

#[test]
fn what_is_refused_never_reaches_the_parent() {
    run_behind_a_parent(async |lab: &mut Lab| {
        let mut client = lab.client().await;
        client.send("GET / HTTP/1.1\r\nHost: denied.test\r\n\r\n").await;
        assert_eq!(client.message().await.status(), Some(403));
        drop(client);
        lab.records().await;
        lab.origin("api.test").heard_nothing();
    });
}

#[test]
fn http2_goes_through_a_tunnel() {
    run_behind_a_parent(async |lab: &mut Lab| {
        let port = lab.port();
        let client = lab.client_of(Protocol::Http2).await;
        let (mut sender, connection) = h2::client::handshake(client.stream).await.unwrap();
        let driver = tokio::task::spawn_local(async { drop(connection.await) });
        let request = http::Request::get(format!("http://good.test:{port}/"))
            .body(())
            .unwrap();
        let (response, _) = sender.send_request(request, true).unwrap();
        let mut tunnel = lab.accept("api.test").await;
        let connect = tunnel.head().await;
        assert!(
            connect.starts_with(&format!("CONNECT good.test:{port} HTTP/1.1\r\n")),
            "{connect}"
        );
        tunnel.send("HTTP/1.1 200 OK\r\n\r\n").await;
        let mut origin = h2::server::handshake(tunnel.stream).await.unwrap();
        let (asked, mut respond) = origin.accept().await.unwrap().unwrap();
        assert_eq!(asked.uri().path(), "/");
        respond.send_response(http::Response::new(()), true).unwrap();
        let serving = tokio::task::spawn_local(async move { drop(origin.accept().await) });
        assert_eq!(response.await.unwrap().status(), 200);
        driver.abort();
        serving.abort();
    });
}
