//! WebSocket becomes a tunnel; nothing else does.

use super::lab::{Lab, SWITCH, UPGRADE, run};
use crate::access_log::Ending;

#[test]
fn a_websocket_carries_any_bytes_both_ways_and_they_are_counted() {
    run(async |lab: &mut Lab| {
        let mut client = lab.client().await;
        // The first frame comes right behind the head, before the 101.
        client.send(format!("{UPGRADE}early")).await;
        let mut origin = lab.accept("good.test").await;
        assert_eq!(origin.head().await, UPGRADE);
        origin.send(format!("{SWITCH}hello")).await;
        assert_eq!(client.head().await, SWITCH);
        assert_eq!(client.exactly(5).await, b"hello");
        assert_eq!(origin.exactly(5).await, b"early");
        for size in [1, 100, 1_000_000] {
            let frame = vec![b'f'; size];
            client.send(&frame).await;
            assert_eq!(origin.exactly(size).await, frame);
            origin.send(&frame).await;
            assert_eq!(client.exactly(size).await, frame);
        }
        drop(client);
        assert_eq!(origin.rest().await, b"");
        drop(origin);
        let records = lab.records().await;
        assert_eq!(records.len(), 1);
        assert_eq!(records[0].status, 101);
        assert_eq!(records[0].ending, Ending::Complete);
        assert_eq!(records[0].bytes_to_client, (SWITCH.len() + 5 + 1_000_101) as u64);
        assert_eq!(records[0].bytes_to_origin, (UPGRADE.len() + 5 + 1_000_101) as u64);
    });
}

#[test]
fn a_tunnel_ended_from_outside_leaves_its_counts() {
    run(async |lab: &mut Lab| {
        let (mut client, mut origin) = lab.websocket().await;
        client.send("frame").await;
        origin.exactly(5).await;
        lab.abort();
        origin.until_reset().await;
        let records = lab.records_now();
        assert_eq!(records.len(), 1);
        assert_eq!(records[0].ending, Ending::Drained);
        assert_eq!(records[0].bytes_to_origin, (UPGRADE.len() + 5) as u64);
    });
}

#[test]
fn an_upgrade_that_the_origin_declines_is_an_ordinary_request() {
    run(async |lab: &mut Lab| {
        let mut client = lab.client().await;
        client.send(UPGRADE).await;
        let mut origin = lab.accept("good.test").await;
        origin.head().await;
        origin
            .send("HTTP/1.1 400 No\r\nContent-Length: 2\r\n\r\nno")
            .await;
        assert_eq!(client.message().await.text(), "no");
        client.send("GET /2 HTTP/1.1\r\nHost: denied.test\r\n\r\n").await;
        assert_eq!(
            client.message().await.status(),
            Some(403),
            "and the next one is judged"
        );
    });
}

#[test]
fn an_h2c_upgrade_is_stripped_and_the_request_served() {
    run(async |lab: &mut Lab| {
        let mut client = lab.client().await;
        client
            .send(
                "GET / HTTP/1.1\r\nHost: good.test\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n\
                 HTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA\r\nAccept: */*\r\n\r\n",
            )
            .await;
        let mut origin = lab.accept("good.test").await;
        assert_eq!(
            origin.head().await,
            "GET / HTTP/1.1\r\nHost: good.test\r\nAccept: */*\r\n\r\n"
        );
        origin.send("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx").await;
        assert_eq!(client.message().await.text(), "x");
    });
}

#[test]
fn a_101_that_nobody_offered_is_not_passed_on() {
    for (offer, answer) in [
        ("", SWITCH),
        (
            "Connection: Upgrade\r\nUpgrade: h2c\r\n",
            "HTTP/1.1 101 S\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n",
        ),
        (
            "Connection: Upgrade\r\nUpgrade: websocket\r\n",
            "HTTP/1.1 101 S\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n",
        ),
    ] {
        run(async |lab: &mut Lab| {
            let mut client = lab.client().await;
            client
                .send(format!("GET / HTTP/1.1\r\nHost: good.test\r\n{offer}\r\n"))
                .await;
            let mut origin = lab.accept("good.test").await;
            origin.head().await;
            origin.send(answer).await;
            assert_eq!(client.message().await.status(), Some(502));
            client.send("GET /2 HTTP/1.1\r\nHost: good.test\r\n\r\n").await;
            assert_eq!(client.rest().await, b"");
        });
    }
}

#[test]
fn a_refused_websocket_reaches_nobody() {
    run(async |lab: &mut Lab| {
        let mut client = lab.client().await;
        client.send(UPGRADE.replace("good.test", "denied.test")).await;
        assert_eq!(client.message().await.status(), Some(403));
        lab.origin("denied.test").heard_nothing();
    });
}
