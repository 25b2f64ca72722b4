//! Requests that two readers could see as different requests. Either they are refused, or what goes on to the origin has
//! one meaning only: hyper writes each message anew, so the origin never sees the client's own framing.

use egress_common::outcome::Outcome;

use super::lab::{Lab, Message, run};

/// The whole of what the origin hears of `bytes`, as messages, if anything.
async fn heard(lab: &mut Lab, bytes: &str) -> (Option<Message>, Message) {
    let mut client = lab.client().await;
    client.send(bytes).await;
    tokio::select! {
        mut origin = lab.accept("good.test") => {
            let request = origin.message().await;
            origin.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
            let answer = client.message().await;
            drop(client);
            let rest = origin.rest().await;
            assert_eq!(rest.escape_ascii().to_string(), "", "a second message came out of {bytes:?}");
            (Some(request), answer)
        }
        answer = client.message() => (None, answer),
    }
}

#[test]
fn doubtful_framing_is_refused() {
    for framing in [
        // Two lengths, or none that is a number.
        "Content-Length: 5\r\nContent-Length: 6",
        "Content-Length: 5, 6",
        "Content-Length: +5",
        "Content-Length: -5",
        "Content-Length: 0x5",
        "Content-Length: 5 5",
        "Content-Length: 99999999999999999999",
        "Content-Length:",
        // A coding that is not chunked, or not chunked at the end.
        "Transfer-Encoding: identity",
        "Transfer-Encoding: chunked, gzip",
        "Transfer-Encoding: xchunked",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
        "Transfer-Encoding: \"chunked\"",
        // Names and lines that some parsers mend.
        "Transfer-Encoding : chunked",
        " Transfer-Encoding: chunked",
        "X: y\r\n Transfer-Encoding: chunked",
        "Transfer\u{b}Encoding: chunked",
        "Transfer-Encoding:\rchunked",
    ] {
        run(async |lab: &mut Lab| {
            let bytes =
                format!("POST / HTTP/1.1\r\nHost: good.test\r\n{framing}\r\n\r\n5\r\nhello\r\n0\r\n\r\n");
            let (request, answer) = heard(lab, &bytes).await;
            assert_eq!(request, None, "{framing:?}");
            assert_eq!(answer.status(), Some(400), "{framing:?}");
        });
    }
    run(async |lab: &mut Lab| {
        let bytes =
            "POST / HTTP/1.0\r\nHost: good.test\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n";
        let (request, answer) = heard(lab, bytes).await;
        assert_eq!(
            (request, answer.status()),
            (None, Some(400)),
            "chunks in HTTP/1.0"
        );
    });
}

#[test]
fn what_is_passed_on_has_one_framing_and_one_meaning() {
    // RFC 9112 section 6.3: the coding wins over the length, and a length said twice the same way is one.
    for (framing, body, expected) in [
        (
            "Content-Length: 5\r\nContent-Length: 5",
            "hello",
            "Content-Length: 5",
        ),
        (
            "Content-Length: 3\r\nTransfer-Encoding: chunked",
            "5\r\nhello\r\n0\r\n\r\n",
            "Transfer-Encoding: chunked",
        ),
        (
            "Transfer-Encoding: chunked\r\nContent-Length: 3",
            "5\r\nhello\r\n0\r\n\r\n",
            "Transfer-Encoding: chunked",
        ),
        (
            "Transfer-Encoding: Chunked",
            "5\r\nhello\r\n0\r\n\r\n",
            "Transfer-Encoding: Chunked",
        ),
        (
            "Transfer-Encoding: chunked",
            "05\r\nhello\r\n000\r\n\r\n",
            "Transfer-Encoding: chunked",
        ),
        (
            "Transfer-Encoding: chunked",
            "5;a=b;c=\"d\"\r\nhello\r\n0\r\n\r\n",
            "Transfer-Encoding: chunked",
        ),
    ] {
        run(async |lab: &mut Lab| {
            let bytes = format!("POST / HTTP/1.1\r\nHost: good.test\r\n{framing}\r\n\r\n{body}");
            let (request, _) = heard(lab, &bytes).await;
            let request = request.unwrap_or_else(|| panic!("{framing:?} was refused"));
            let head = request.head.to_lowercase();
            assert!(head.contains(&expected.to_lowercase()), "{head}");
            let framings = head.matches("content-length").count() + head.matches("transfer-encoding").count();
            assert_eq!(framings, 1, "{head}");
            assert_eq!(request.text(), "hello");
        });
    }
}

#[test]
fn broken_chunks_end_the_request_and_the_connection() {
    for chunks in [
        "5\r\nhelloworld\r\n0\r\n\r\n",
        "-5\r\nhello\r\n0\r\n\r\n",
        "+5\r\nhello\r\n0\r\n\r\n",
        "0x5\r\nhello\r\n0\r\n\r\n",
        "g\r\nhello\r\n0\r\n\r\n",
        "\r\nhello\r\n0\r\n\r\n",
        "5 hello\r\n0\r\n\r\n",
        "fffffffffffffffff\r\nhello\r\n0\r\n\r\n",
        "5\rhello\r\n0\r\n\r\n",
    ] {
        run(async |lab: &mut Lab| {
            let mut client = lab.client().await;
            let smuggled = "GET /smuggled HTTP/1.1\r\nHost: good.test\r\n\r\n";
            client
                .send(format!(
                    "POST / HTTP/1.1\r\nHost: good.test\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}{smuggled}"
                ))
                .await;
            let mut origin = lab.accept("good.test").await;
            let rest = origin.rest().await;
            assert!(
                !rest.ends_with(b"0\r\n\r\n"),
                "{chunks:?} was taken for a whole body: {}",
                rest.escape_ascii()
            );
            let text = String::from_utf8_lossy(&rest);
            assert!(!text.contains("GET /smuggled HTTP"), "{text}");
            let answer = client.message().await;
            assert_eq!(answer.status(), Some(400), "{chunks:?}");
            assert_eq!(client.rest().await, b"", "{chunks:?}");
            drop(client);
            let records = lab.records().await;
            assert_eq!(records.len(), 1, "{chunks:?}");
            assert_eq!(records[0].verdict.outcome, Outcome::MalformedHttp, "{chunks:?}");
        });
    }
}

/// httparse takes a bare LF for a line's end, as RFC 9112 section 2.2 lets a recipient do. The origin gets CRLF, so both
/// see the same lines.
#[test]
fn bare_line_feeds_are_mended_before_they_are_passed_on() {
    run(async |lab: &mut Lab| {
        let (request, _) = heard(lab, "GET / HTTP/1.1\nHost: good.test\nX: y\n\n").await;
        assert_eq!(
            request.unwrap().head,
            "GET / HTTP/1.1\r\nHost: good.test\r\nX: y\r\n\r\n"
        );
    });
}

#[test]
fn a_get_with_a_body_does_not_leave_it_to_be_read_as_a_request() {
    run(async |lab: &mut Lab| {
        let body = "GET /smuggled HTTP/1.1\r\nHost: good.test\r\n\r\n";
        let length = body.len();
        let bytes = format!("GET / HTTP/1.1\r\nHost: good.test\r\nContent-Length: {length}\r\n\r\n{body}");
        let (request, _) = heard(lab, &bytes).await;
        assert_eq!(request.unwrap().text(), body);
    });
}

#[test]
fn a_fragment_in_the_request_target_goes_no_further() {
    run(async |lab: &mut Lab| {
        let (request, _) = heard(lab, "GET /a#@denied.test/ HTTP/1.1\r\nHost: good.test\r\n\r\n").await;
        assert!(request.unwrap().head.starts_with("GET /a HTTP/1.1\r\n"));
    });
}

#[test]
fn an_answer_with_two_meanings_is_not_passed_on() {
    for framing in [
        "Content-Length: 5\r\nContent-Length: 6",
        "Content-Length: 5, 6",
        "Content-Length: +5",
        "Content-Length : 5",
        "X: y\r\n folded",
    ] {
        run(async |lab: &mut Lab| {
            let mut client = lab.client().await;
            client.send("GET / HTTP/1.1\r\nHost: good.test\r\n\r\n").await;
            let mut origin = lab.accept("good.test").await;
            origin.head().await;
            origin
                .send(format!("HTTP/1.1 200 OK\r\n{framing}\r\n\r\nhello"))
                .await;
            assert_eq!(client.message().await.status(), Some(502), "{framing:?}");
        });
    }
}

#[test]
fn an_answer_with_two_framings_is_passed_on_with_one() {
    for framing in [
        "Content-Length: 5\r\nContent-Length: 5",
        "Content-Length: 5, 5",
        "Content-Length: 3\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nContent-Length: 3",
    ] {
        run(async |lab: &mut Lab| {
            let mut client = lab.client().await;
            client.send("GET / HTTP/1.1\r\nHost: good.test\r\n\r\n").await;
            let mut origin = lab.accept("good.test").await;
            origin.head().await;
            let body = if framing.contains("chunked") {
                "5\r\nhello\r\n0\r\n\r\n"
            } else {
                "hello"
            };
            origin
                .send(format!("HTTP/1.1 200 OK\r\n{framing}\r\n\r\n{body}"))
                .await;
            let answer = client.message().await;
            assert_eq!(answer.text(), "hello", "{framing:?}");
            let head = answer.head.to_lowercase();
            let framings = head.matches("content-length").count() + head.matches("transfer-encoding").count();
            assert_eq!(framings, 1, "{head}");
        });
    }
}

#[test]
fn bytes_behind_an_answer_are_never_the_next_answer() {
    run(async |lab: &mut Lab| {
        let mut client = lab.client().await;
        client.send("GET /1 HTTP/1.1\r\nHost: good.test\r\n\r\n").await;
        let mut origin = lab.accept("good.test").await;
        origin.head().await;
        origin
            .send("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n1HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil")
            .await;
        assert_eq!(client.message().await.text(), "1");
        client.send("GET /2 HTTP/1.1\r\nHost: good.test\r\n\r\n").await;
        let mut fresh = lab.accept("good.test").await;
        fresh.head().await;
        fresh.send("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n2").await;
        assert_eq!(client.message().await.text(), "2");
    });
}

#[test]
fn characters_that_url_parsers_differ_on_go_on_as_they_are_or_not_at_all() {
    for refused in ["/<", "/>", "/`", "/?<", "/?\""] {
        run(async |lab: &mut Lab| {
            let bytes = format!("GET {refused} HTTP/1.1\r\nHost: good.test\r\n\r\n");
            let (request, answer) = heard(lab, &bytes).await;
            assert_eq!(request, None, "{refused:?}");
            assert_eq!(answer.status(), Some(400), "{refused:?}");
        });
    }
    for target in ["/\"{}", "/|^[]\\", "/~'!$%41", "/?{}|^`\\[]", "/?a?b"] {
        run(async |lab: &mut Lab| {
            let bytes = format!("GET {target} HTTP/1.1\r\nHost: good.test\r\n\r\n");
            let (request, answer) = heard(lab, &bytes).await;
            let request = request.expect(target);
            assert_eq!(
                request.head.lines().next(),
                Some(format!("GET {target} HTTP/1.1").as_str())
            );
            assert_eq!(answer.status(), Some(200), "{target:?}");
        });
    }
}
