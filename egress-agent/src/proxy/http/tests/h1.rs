//! HTTP/1 messages come through as they were sent.

use std::time::Duration;

use super::lab::{Lab, run};
use crate::access_log::{Asked, Ending};

/// Longer than anything in process takes, shorter than a test may.
const PAUSE: Duration = Duration::from_millis(100);

#[test]
fn heads_arrive_byte_for_byte() {
    run(async |lab: &mut Lab| {
        let mut client = lab.client().await;
        let request = "GET /a%2Fb/../c?x=1&y=%zz HTTP/1.1\r\nhOST: Good.Test.\r\nUser-AGENT: t\r\nX-Odd:  spaced  out \r\n\
                       Accept: */*\r\nVia: 1.0 somebody\r\n\r\n";
        client.send(request).await;
        let mut origin = lab.accept("good.test").await;
        let expected = request.replace(":  spaced  out ", ": spaced  out");
        assert_eq!(origin.head().await, expected);
        let answer = "HTTP/1.1 200 Quite Fine\r\nServer: o\r\nX-CaSe: 1\r\nContent-LENGTH: 2\r\nSet-Cookie: a\r\n\r\nok";
        origin.send(answer).await;
        let message = client.message().await;
        assert_eq!(format!("{}{}", message.head, message.text()), answer);
        drop(client);
        let records = lab.records().await;
        let Asked::Request { method, url, version } = &records[0].asked else {
            panic!("{:?}", records[0].asked);
        };
        assert_eq!(method, "GET");
        assert_eq!(
            url.to_string(),
            format!("http://good.test:{}/a%2Fb/../c?x=1&y=%zz", lab.port())
        );
        assert_eq!(*version, http::Version::HTTP_11);
        assert_eq!(records[0].user_agent.as_ref().unwrap(), "t");
        assert_eq!(records[0].bytes_to_client, answer.len() as u64);
        assert_eq!(records[0].bytes_to_origin, expected.len() as u64);
    });
}

#[test]
fn absolute_form_stays_absolute() {
    run(async |lab: &mut Lab| {
        let mut client = lab.client().await;
        client
            .send("GET http://good.test/x HTTP/1.1\r\nHost: good.test\r\n\r\n")
            .await;
        let head = lab.accept("good.test").await.head().await;
        assert_eq!(head, "GET http://good.test/x HTTP/1.1\r\nHost: good.test\r\n\r\n");
    });
}

#[test]
fn chunks_and_declared_trailers_pass_both_ways() {
    run(async |lab: &mut Lab| {
        let mut client = lab.client().await;
        client
            .send(
                "POST /up HTTP/1.1\r\nHost: good.test\r\nTE: trailers\r\nTrailer: X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n\
                 5\r\nhello\r\n",
            )
            .await;
        let mut origin = lab.accept("good.test").await;
        let head = origin.head().await;
        assert!(head.contains("Transfer-Encoding: chunked\r\n"), "{head}");
        assert_eq!(
            origin.exactly(10).await,
            b"5\r\nhello\r\n",
            "before the end is there"
        );
        client.send("6;ext=1\r\n world\r\n0\r\nX-Sum: 11\r\n\r\n").await;
        let (body, trailers) = origin.chunks().await;
        assert_eq!(
            (&*body, &*trailers.to_lowercase()),
            (&b" world"[..], "x-sum: 11\r\n")
        );

        origin
            .send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-End\r\n\r\n3\r\nabc\r\n")
            .await;
        let head = client.head().await;
        assert!(head.contains("Transfer-Encoding: chunked\r\n"), "{head}");
        assert_eq!(
            client.exactly(8).await,
            b"3\r\nabc\r\n",
            "before the end is there"
        );
        origin.send("2\r\nde\r\n0\r\nX-End: yes\r\n\r\n").await;
        let (body, trailers) = client.chunks().await;
        assert_eq!(
            (&*body, &*trailers.to_lowercase()),
            (&b"de"[..], "x-end: yes\r\n")
        );

        client.send("GET /next HTTP/1.1\r\nHost: good.test\r\n\r\n").await;
        assert!(
            origin.head().await.starts_with("GET /next "),
            "the connection is kept"
        );
    });
}

#[test]
fn a_body_is_held_back_until_the_origin_says_100() {
    run(async |lab: &mut Lab| {
        let mut client = lab.client().await;
        client
            .send("PUT /u HTTP/1.1\r\nHost: good.test\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n")
            .await;
        let mut origin = lab.accept("good.test").await;
        let head = origin.head().await;
        assert!(head.contains("Expect: 100-continue\r\n"), "{head}");
        assert!(
            client.is_silent(PAUSE).await,
            "nobody but the origin asks for the body"
        );
        origin.send("HTTP/1.1 100 Continue\r\n\r\n").await;
        assert_eq!(client.head().await, "HTTP/1.1 100 Continue\r\n\r\n");
        client.send("body").await;
        assert_eq!(origin.exactly(4).await, b"body");
        origin
            .send("HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n")
            .await;
        assert_eq!(client.message().await.status(), Some(201));
    });
}

#[test]
fn a_final_answer_instead_of_100_ends_the_connection() {
    run(async |lab: &mut Lab| {
        let mut client = lab.client().await;
        client
            .send("PUT /u HTTP/1.1\r\nHost: good.test\r\nExpect: 100-continue\r\nContent-Length: 60\r\n\r\n")
            .await;
        let mut origin = lab.accept("good.test").await;
        origin.head().await;
        origin.send("HTTP/1.1 417 No\r\nContent-Length: 0\r\n\r\n").await;
        let answer = client.message().await;
        assert_eq!(answer.status(), Some(417));
        assert_eq!(answer.field("connection"), Some("close"));
        // What would be the body is never taken for one by us and for a request by the origin.
        client
            .send("GET /smuggled HTTP/1.1\r\nHost: good.test\r\nX: 123456\r\n\r\n")
            .await;
        assert_eq!(origin.rest().await, b"");
        assert_eq!(client.rest().await, b"");
        drop(client);
        assert_eq!(lab.records().await.len(), 1);
    });
}

#[test]
fn a_body_that_nobody_asked_for_is_passed_on_after_a_second() {
    run(async |lab: &mut Lab| {
        let mut client = lab.client().await;
        client
            .send(
                "PUT /u HTTP/1.1\r\nHost: good.test\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\nbody",
            )
            .await;
        let mut origin = lab.accept("good.test").await;
        origin.head().await;
        assert_eq!(origin.exactly(4).await, b"body");
        origin.send("HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n").await;
        let mut answer = client.message().await;
        if answer.status() == Some(100) {
            answer = client.message().await;
        }
        assert_eq!(answer.status(), Some(200));
    });
}

#[test]
fn early_hints_go_ahead_of_the_answer() {
    run(async |lab: &mut Lab| {
        let mut client = lab.client().await;
        client.send("GET / HTTP/1.1\r\nHost: good.test\r\n\r\n").await;
        let mut origin = lab.accept("good.test").await;
        origin.head().await;
        origin
            .send("HTTP/1.1 103 Early Hints\r\nLink: </s.css>\r\n\r\n")
            .await;
        assert_eq!(
            client.head().await,
            "HTTP/1.1 103 Early Hints\r\nlink: </s.css>\r\n\r\n"
        );
        origin
            .send("HTTP/1.1 103 Early Hints\r\nA: 1\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx")
            .await;
        assert_eq!(client.head().await, "HTTP/1.1 103 Early Hints\r\na: 1\r\n\r\n");
        assert_eq!(client.message().await.text(), "x");
    });
}

#[test]
fn a_client_of_http_1_0_gets_no_early_hints() {
    run(async |lab: &mut Lab| {
        let mut client = lab.client().await;
        client.send("GET / HTTP/1.0\r\nHost: good.test\r\n\r\n").await;
        let mut origin = lab.accept("good.test").await;
        assert!(origin.head().await.starts_with("GET / HTTP/1.0\r\n"));
        origin
            .send("HTTP/1.1 103 Early Hints\r\nA: 1\r\n\r\nHTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\nx")
            .await;
        assert_eq!(client.message().await.text(), "x");
        assert_eq!(client.rest().await, b"");
    });
}

#[test]
fn answers_without_a_body_do_not_hold_up_the_next_request() {
    run(async |lab: &mut Lab| {
        let mut client = lab.client().await;
        let mut origin = None;
        for (method, answer) in [
            ("HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"),
            ("HEAD", "HTTP/1.1 200 OK\r\nX: no-length\r\n\r\n"),
            ("GET", "HTTP/1.1 204 No Content\r\nX: y\r\n\r\n"),
            ("GET", "HTTP/1.1 304 Not Modified\r\nETag: \"a\"\r\n\r\n"),
            ("DELETE", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
        ] {
            client
                .send(format!("{method} / HTTP/1.1\r\nHost: good.test\r\n\r\n"))
                .await;
            let origin = match &mut origin {
                Some(origin) => origin,
                none => none.insert(lab.accept("good.test").await),
            };
            assert!(origin.head().await.starts_with(method));
            origin.send(answer).await;
            assert_eq!(client.message_to(method == "HEAD").await.head, answer);
        }
    });
}

#[test]
fn a_body_that_the_connections_end_delimits_keeps_its_end() {
    for (version, keep) in [("1.0", ""), ("1.1", "Connection: close\r\n")] {
        run(async |lab: &mut Lab| {
            let mut client = lab.client().await;
            client
                .send(format!("GET / HTTP/{version}\r\nHost: good.test\r\n{keep}\r\n"))
                .await;
            let mut origin = lab.accept("good.test").await;
            origin.head().await;
            origin.send("HTTP/1.0 200 OK\r\nX: y\r\n\r\nfirst,").await;
            let head = client.head().await;
            assert!(head.starts_with("HTTP/1.0 200 OK\r\nX: y\r\n"), "{head}");
            assert_eq!(client.exactly(6).await, b"first,", "before the end is there");
            origin.send("last").await;
            drop(origin);
            assert_eq!(client.rest().await, b"last");
            drop(client);
            assert_eq!(lab.records().await[0].ending, Ending::Complete);
        });
    }
}

#[test]
fn an_answer_of_http_1_1_that_ends_with_its_connection_comes_in_chunks() {
    run(async |lab: &mut Lab| {
        let mut client = lab.client().await;
        client.send("GET / HTTP/1.1\r\nHost: good.test\r\n\r\n").await;
        let mut origin = lab.accept("good.test").await;
        origin.head().await;
        origin
            .send("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nall of it")
            .await;
        drop(origin);
        let answer = client.message().await;
        assert_eq!(answer.field("transfer-encoding"), Some("chunked"));
        assert_eq!(answer.text(), "all of it");
        assert_eq!(client.rest().await, b"");
    });
}

#[test]
fn a_304_loses_its_length_and_nothing_else() {
    run(async |lab: &mut Lab| {
        let mut client = lab.client().await;
        client.send("GET / HTTP/1.1\r\nHost: good.test\r\n\r\n").await;
        let mut origin = lab.accept("good.test").await;
        origin.head().await;
        origin
            .send("HTTP/1.1 304 Not Modified\r\nContent-Length: 1000\r\nETag: \"a\"\r\n\r\n")
            .await;
        assert_eq!(
            client.message().await.head,
            "HTTP/1.1 304 Not Modified\r\nETag: \"a\"\r\n\r\n"
        );
    });
}

#[test]
fn http_1_0_is_kept_alive_only_where_both_want_it() {
    run(async |lab: &mut Lab| {
        let mut client = lab.client().await;
        client
            .send("GET /1 HTTP/1.0\r\nHost: good.test\r\nConnection: keep-alive\r\n\r\n")
            .await;
        let mut origin = lab.accept("good.test").await;
        origin.head().await;
        origin
            .send("HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 1\r\n\r\n1")
            .await;
        assert_eq!(client.message().await.text(), "1");
        client.send("GET /2 HTTP/1.0\r\nHost: good.test\r\n\r\n").await;
        assert!(origin.head().await.starts_with("GET /2 "));
        origin.send("HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\n2").await;
        assert_eq!(client.message().await.text(), "2");
        assert_eq!(client.rest().await, b"");
    });
}

#[test]
fn a_request_that_asks_to_close_is_the_last() {
    run(async |lab: &mut Lab| {
        let mut client = lab.client().await;
        client
            .send("GET /1 HTTP/1.1\r\nHost: good.test\r\nConnection: close\r\n\r\n")
            .await;
        let mut origin = lab.accept("good.test").await;
        assert!(origin.head().await.contains("Connection: close\r\n"));
        origin
            .send("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 1\r\n\r\n1")
            .await;
        let answer = client.message().await;
        assert_eq!(answer.head.matches("lose\r\n").count(), 1, "{}", answer.head);
        assert_eq!(client.rest().await, b"");
    });
}

#[test]
fn the_port_in_the_host_field_is_passed_on_and_not_dialled() {
    run(async |lab: &mut Lab| {
        let mut client = lab.client().await;
        client.send("GET / HTTP/1.1\r\nHost: good.test:1\r\n\r\n").await;
        let mut origin = lab.accept("good.test").await;
        assert!(origin.head().await.contains("Host: good.test:1\r\n"));
    });
}

#[test]
fn a_reader_that_does_not_read_stops_the_writer() {
    const CHUNK: usize = 64 * 1024;
    run(async |lab: &mut Lab| {
        let mut client = lab.client().await;
        client.send("GET / HTTP/1.1\r\nHost: good.test\r\n\r\n").await;
        let mut origin = lab.accept("good.test").await;
        origin.head().await;
        let total = 256 * 1024 * 1024;
        origin
            .send(format!("HTTP/1.1 200 OK\r\nContent-Length: {total}\r\n\r\n"))
            .await;
        client.head().await;
        let chunk = vec![b'x'; CHUNK];
        let mut sent = 0;
        loop {
            let write = tokio::io::AsyncWriteExt::write(&mut origin.stream, &chunk);
            match tokio::time::timeout(Duration::from_millis(500), write).await {
                Ok(count) => sent += count.unwrap(),
                Err(_) => break,
            }
            assert!(sent < total, "all of it was taken");
        }
        // Four socket buffers of the loopback and two of ours.
        assert!(sent < 32 * 1024 * 1024, "{sent} bytes were taken");
        assert_eq!(
            client.exactly(sent).await.len(),
            sent,
            "it goes on when it is read"
        );
    });
}
