//! Clients and origins that go away, hang or are cut off: what the other side sees, and what the record says.

use std::time::Duration;

use egress_common::outcome::Outcome;
use socket2::SockRef;

use super::lab::{Lab, Wire, run, run_with};
use crate::{access_log::Ending, proxy::limits::Limits};

const HALF: &str = "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf";
const GET: &str = "GET / HTTP/1.1\r\nHost: good.test\r\n\r\n";

fn reset(wire: Wire) {
    SockRef::from(&wire.stream)
        .set_linger(Some(Duration::ZERO))
        .unwrap();
    drop(wire);
}

#[test]
fn an_origin_that_breaks_off_in_the_middle_is_not_mistaken_for_one_that_finished() {
    for (head, is_reset) in [
        ("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf", false),
        ("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf", true),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
            false,
        ),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
            true,
        ),
    ] {
        run(async |lab: &mut Lab| {
            let mut client = lab.client().await;
            client.send(GET).await;
            let mut origin = lab.accept("good.test").await;
            origin.head().await;
            origin.send(head).await;
            let before = client.until(b"half").await;
            assert!(before.starts_with(b"HTTP/1.1 200 OK\r\n"));
            let rest = if is_reset {
                reset(origin);
                client.until_reset().await
            } else {
                drop(origin);
                client.rest().await
            };
            assert!(!rest.ends_with(b"0\r\n\r\n"), "the answer looks finished");
            drop(client);
            let records = lab.records().await;
            assert_eq!(records.len(), 1);
            assert_eq!(records[0].ending, Ending::OriginAborted);
            assert_eq!(records[0].status, 200);
            assert_eq!(records[0].verdict.outcome, Outcome::AllowedByRule);
        });
    }
}

#[test]
fn what_came_before_the_break_arrives() {
    // Somewhere on the way the client's socket is full, and the break finds bytes that hyper has not written yet.
    for size in (1..=48).map(|step| step * 128 * 1024) {
        run(async |lab: &mut Lab| {
            let mut client = lab.client().await;
            client.send(GET).await;
            let mut origin = lab.accept("good.test").await;
            origin.head().await;
            origin
                .send("HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n")
                .await;
            let sending = tokio::task::spawn_local(async move { origin.send(vec![b'x'; size]).await });
            client.head().await;
            tokio::time::sleep(Duration::from_millis(20)).await;
            let arrived = client.rest().await.len();
            sending.await.unwrap();
            assert_eq!(arrived, size);
        });
    }
}

#[test]
fn a_chunked_answer_cut_off_is_reset_for_a_client_that_only_knows_the_connections_end() {
    run(async |lab: &mut Lab| {
        let mut client = lab.client().await;
        client.send("GET / HTTP/1.0\r\nHost: good.test\r\n\r\n").await;
        let mut origin = lab.accept("good.test").await;
        origin.head().await;
        origin
            .send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n")
            .await;
        client.until(b"half").await;
        drop(origin);
        client.until_reset().await;
    });
}

#[test]
fn an_origin_that_goes_without_an_answer_is_a_502() {
    for bytes in [
        "",
        "HTTP/1.1 200",
        "SSH-2.0-x\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
    ] {
        run(async |lab: &mut Lab| {
            let mut client = lab.client().await;
            client.send(GET).await;
            let mut origin = lab.accept("good.test").await;
            origin.head().await;
            origin.send(bytes).await;
            drop(origin);
            let failed = client.message().await;
            assert_eq!(failed.status(), Some(502), "{bytes:?}");
            assert_eq!(failed.field("x-egress-reason"), Some("origin_failed"));
            drop(client);
            let records = lab.records().await;
            assert_eq!(records[0].verdict.outcome, Outcome::OriginFailed);
            assert_eq!(records[0].ending, Ending::Failed);
            assert!(records[0].upstream.is_some());
        });
    }
}

#[test]
fn an_origin_that_refuses_is_a_503_and_the_connection_goes_on() {
    run(async |lab: &mut Lab| {
        let mut client = lab.client().await;
        client.send("GET / HTTP/1.1\r\nHost: closed.test\r\n\r\n").await;
        let failed = client.message().await;
        assert_eq!(failed.status(), Some(503));
        assert_eq!(failed.field("x-squid-error"), Some("ERR_CONNECT_FAIL 111"));
        client.send("GET / HTTP/1.1\r\nHost: nowhere.test\r\n\r\n").await;
        let failed = client.message().await;
        assert_eq!(failed.status(), Some(502));
        assert_eq!(failed.field("x-squid-error"), Some("ERR_DNS_FAIL 0"));
        drop(client);
        let records = lab.records().await;
        assert_eq!(records[0].verdict.outcome, Outcome::OriginRefused);
        assert!(records[0].upstream.is_some());
        assert!(matches!(
            records[1].verdict.outcome,
            Outcome::LookupFailed | Outcome::NameNotFound
        ));
        assert!(records[1].upstream.is_none());
    });
}

#[test]
fn a_client_that_vanishes_in_the_middle_of_an_answer_is_recorded_and_the_origin_let_go() {
    run(async |lab: &mut Lab| {
        let mut client = lab.client().await;
        client.send(GET).await;
        let mut origin = lab.accept("good.test").await;
        origin.head().await;
        origin.send(HALF).await;
        client.until(b"half").await;
        drop(client);
        origin.rest().await;
        let records = lab.records().await;
        assert_eq!(records.len(), 1);
        assert_eq!(records[0].ending, Ending::ClientAborted);
        assert_eq!(records[0].status, 200);
        assert_eq!(records[0].bytes_to_client, HALF.len() as u64);
    });
}

#[test]
fn a_client_that_vanishes_before_the_answer_is_recorded_and_the_origin_let_go() {
    for upload in [
        "GET / HTTP/1.1\r\nHost: good.test\r\n\r\n",
        "PUT / HTTP/1.1\r\nHost: good.test\r\nContent-Length: 9\r\n\r\nhalf",
    ] {
        run(async |lab: &mut Lab| {
            let mut client = lab.client().await;
            client.send(upload).await;
            let mut origin = lab.accept("good.test").await;
            origin.head().await;
            reset(client);
            let mut rest = Vec::new();
            // An orderly end or a reset: either way it ends.
            drop(tokio::io::AsyncReadExt::read_to_end(&mut origin.stream, &mut rest).await);
            let records = lab.records().await;
            assert_eq!(records.len(), 1);
            assert_eq!(records[0].ending, Ending::ClientAborted);
            assert_eq!(records[0].status, 0);
        });
    }
}

#[test]
fn a_client_that_vanishes_in_the_middle_of_a_head_leaves_a_record() {
    run(async |lab: &mut Lab| {
        let mut client = lab.client().await;
        client.send("GET / HTTP/1.1\r\nHost: go").await;
        drop(client);
        let records = lab.records().await;
        assert_eq!(records.len(), 1);
        assert_eq!(records[0].verdict.outcome, Outcome::ClientGone);
        assert_eq!(records[0].ending, Ending::ClientAborted);
    });
}

#[test]
fn a_connection_that_is_closed_between_requests_leaves_no_record_of_its_own() {
    run(async |lab: &mut Lab| {
        let mut client = lab.client().await;
        client.send("GET / HTTP/1.1\r\nHost: denied.test\r\n\r\n").await;
        client.message().await;
        drop(client);
        assert_eq!(lab.records().await.len(), 1);
    });
}

#[test]
fn a_task_that_is_ended_from_outside_leaves_its_record_and_a_reset() {
    run(async |lab: &mut Lab| {
        let mut client = lab.client().await;
        client.send(GET).await;
        let mut origin = lab.accept("good.test").await;
        origin.head().await;
        origin.send(HALF).await;
        client.until(b"half").await;
        lab.abort();
        client.until_reset().await;
        let records = lab.records_now();
        assert_eq!(records.len(), 1);
        assert_eq!(records[0].ending, Ending::Drained);
        assert_eq!(records[0].bytes_to_client, HALF.len() as u64);
    });
}

#[test]
fn a_connection_that_is_ended_from_outside_before_its_first_request_leaves_a_record() {
    run(async |lab: &mut Lab| {
        let mut client = lab.client().await;
        client.send("GET / HT").await;
        assert!(client.is_silent(Duration::from_millis(50)).await);
        lab.abort();
        assert_eq!(client.rest().await, b"");
        let records = lab.records_now();
        assert_eq!(records.len(), 1);
        assert_eq!(records[0].ending, Ending::Drained);
        assert_eq!(records[0].verdict.outcome, Outcome::ClientGone);
    });
}

#[test]
fn a_head_that_does_not_come_in_time_is_a_408() {
    let limits = Limits {
        head_timeout: Duration::from_millis(200),
        ..Limits::default()
    };
    run_with(limits, async |lab: &mut Lab| {
        let mut client = lab.client().await;
        client.send("GET / HTTP/1.1\r\nHost: go").await;
        let answer = client.message().await;
        assert_eq!(answer.status(), Some(408));
        assert_eq!(answer.field("x-squid-error"), Some("ERR_REQUEST_PARSE_TIMEOUT 0"));
        assert_eq!(client.rest().await, b"");
        drop(client);
        let records = lab.records().await;
        assert_eq!(records[0].verdict.outcome, Outcome::HeadTimeout);
        assert_eq!(records[0].status, 408);
        assert_eq!(records[0].ending, Ending::Refused);
        assert!(records[0].duration >= Duration::from_millis(200));
    });
}

#[test]
fn a_second_head_has_its_time_from_its_own_first_byte() {
    let limits = Limits {
        head_timeout: Duration::from_millis(300),
        ..Limits::default()
    };
    run_with(limits, async |lab: &mut Lab| {
        let mut client = lab.client().await;
        client.send("GET / HTTP/1.1\r\nHost: denied.test\r\n\r\n").await;
        client.message().await;
        // Idle for longer than a head may take.
        assert!(client.is_silent(Duration::from_millis(600)).await);
        client.send("GET / HTTP/1.1\r\nHost: den").await;
        assert_eq!(client.message().await.status(), Some(408));
    });
}

#[test]
fn an_idle_connection_is_closed_without_a_word() {
    let limits = Limits {
        keep_alive_timeout: Duration::from_millis(100),
        ..Limits::default()
    };
    run_with(limits, async |lab: &mut Lab| {
        let mut client = lab.client().await;
        client.send("GET / HTTP/1.1\r\nHost: denied.test\r\n\r\n").await;
        client.message().await;
        assert_eq!(client.rest().await, b"");
        drop(client);
        assert_eq!(lab.records().await.len(), 1);
    });
}

#[test]
fn a_drain_serves_what_is_under_way_and_closes_what_is_idle() {
    run(async |lab: &mut Lab| {
        let mut idle = lab.client().await;
        idle.send("GET / HTTP/1.1\r\nHost: denied.test\r\n\r\n").await;
        idle.message().await;
        let mut busy = lab.client().await;
        busy.send(GET).await;
        let mut origin = lab.accept("good.test").await;
        origin.head().await;
        lab.drain();
        assert_eq!(idle.rest().await, b"");
        origin.send("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx").await;
        let answer = busy.message().await;
        assert_eq!(answer.text(), "x");
        assert_eq!(answer.field("connection"), Some("close"));
        assert_eq!(busy.rest().await, b"");
        drop((idle, busy));
        let endings: Vec<_> = lab.records().await.iter().map(|record| record.ending).collect();
        assert_eq!(endings, [Ending::Refused, Ending::Complete]);
    });
}

#[test]
fn a_connection_that_was_accepted_before_a_drain_is_served_after_it() {
    run(async |lab: &mut Lab| {
        let mut client = lab.client().await;
        lab.drain();
        client.send("GET / HTTP/1.1\r\nHost: denied.test\r\n\r\n").await;
        assert_eq!(client.message().await.status(), Some(403));
        assert_eq!(client.rest().await, b"");
        drop(client);
        assert_eq!(lab.records().await.len(), 1);
    });
}

#[test]
fn an_answer_in_which_nothing_moves_is_ended() {
    let limits = Limits {
        idle_timeout: Duration::from_millis(200),
        ..Limits::default()
    };
    run_with(limits, async |lab: &mut Lab| {
        let mut client = lab.client().await;
        client.send(GET).await;
        let mut origin = lab.accept("good.test").await;
        origin.head().await;
        client.until_reset().await;
        assert_eq!(lab.records().await[0].ending, Ending::IdleTimeout);
    });
}
