//! HTTP/2 in clear: streams judged one by one.

mod revoked;

use std::time::Duration;

use ::h2::{Reason, RecvStream, SendStream, client, server};
use bytes::Bytes;
use egress_common::outcome::Outcome;
use http::{HeaderMap, Method, Request, Response, Version};

use super::lab::{Lab, Wire, run, run_with};
use crate::{
    access_log::{Asked, Ending, Protocol, Record},
    proxy::limits::Limits,
};

/// A client that speaks HTTP/2 from the first byte on.
struct Client {
    sender: client::SendRequest<Bytes>,
    connection: tokio::task::JoinHandle<Result<(), ::h2::Error>>,
}

/// An origin's side of one connection.
struct Origin {
    connection: server::Connection<tokio::net::TcpStream, Bytes>,
}

/// An answer, read to its end.
#[derive(Debug)]
struct Answer {
    head: http::response::Parts,
    body: Vec<u8>,
    trailers: Option<HeaderMap>,
}

impl Client {
    async fn new(lab: &mut Lab) -> Self {
        Self::with(lab, &client::Builder::new()).await
    }

    async fn with(lab: &mut Lab, builder: &client::Builder) -> Self {
        let Wire { stream, .. } = lab.client_of(Protocol::Http2).await;
        let (sender, connection) = builder.handshake(stream).await.unwrap();
        Self {
            sender,
            connection: tokio::task::spawn_local(connection),
        }
    }

    async fn send(&self, request: Request<()>, is_last: bool) -> (client::ResponseFuture, SendStream<Bytes>) {
        let mut sender = self.sender.clone().ready().await.unwrap();
        sender.send_request(request, is_last).unwrap()
    }

    async fn get(&self, host: &str, path: &str) -> Answer {
        let (response, _) = self.send(get(host, path), true).await;
        read(response.await.unwrap()).await
    }

    /// Closes the connection without a goodbye.
    fn vanish(self) {
        self.connection.abort();
    }
}

impl Origin {
    async fn accept(lab: &Lab, host: &str) -> Self {
        let Wire { stream, .. } = lab.accept(host).await;
        Self {
            connection: server::handshake(stream).await.unwrap(),
        }
    }

    async fn next(&mut self) -> (Request<RecvStream>, server::SendResponse<Bytes>) {
        self.connection.accept().await.unwrap().unwrap()
    }

    /// Moves bytes, and takes further streams that nobody expects, until the connection ends.
    async fn run(mut self) {
        while let Some(Ok(_)) = self.connection.accept().await {}
    }

    /// Answers each request with its path, in the background.
    fn echo(mut self) {
        tokio::task::spawn_local(async move {
            while let Some(Ok((request, mut respond))) = self.connection.accept().await {
                let mut body = respond.send_response(Response::new(()), false).unwrap();
                let path = request.uri().path().to_owned();
                body.send_data(path.into(), true).unwrap();
            }
        });
    }
}

fn get(host: &str, path: &str) -> Request<()> {
    Request::builder()
        .uri(format!("http://{host}{path}"))
        .version(Version::HTTP_2)
        .body(())
        .unwrap()
}

fn grpc(host: &str) -> Request<()> {
    let mut request = get(host, "/pkg.Service/Call");
    *request.method_mut() = Method::POST;
    request
        .headers_mut()
        .insert("content-type", "application/grpc+proto".parse().unwrap());
    request.headers_mut().insert("te", "trailers".parse().unwrap());
    request
}

async fn read(response: Response<RecvStream>) -> Answer {
    let (head, mut stream) = response.into_parts();
    let mut body = Vec::new();
    while let Some(chunk) = stream.data().await {
        let chunk = chunk.unwrap();
        stream.flow_control().release_capacity(chunk.len()).unwrap();
        body.extend(chunk);
    }
    let trailers = stream.trailers().await.unwrap();
    Answer { head, body, trailers }
}

fn told(records: &[Record]) -> Vec<(u16, Outcome, Ending)> {
    let mut told: Vec<_> = records
        .iter()
        .map(|record| (record.status, record.verdict.outcome, record.ending))
        .collect();
    told.sort_by_key(|(status, ..)| *status);
    told
}

#[test]
fn a_denied_stream_is_refused_and_the_others_go_on() {
    run(async |lab: &mut Lab| {
        let client = Client::new(lab).await;
        let (open, mut upload) = client
            .send(
                Request::post("http://good.test/open")
                    .version(Version::HTTP_2)
                    .body(())
                    .unwrap(),
                false,
            )
            .await;
        let mut origin = Origin::accept(lab, "good.test").await;
        let (mut request, mut respond) = origin.next().await;
        let running = tokio::task::spawn_local(origin.run());

        let denied = client.get("denied.test", "/x").await;
        assert_eq!(denied.head.status, 403);
        assert_eq!(denied.head.headers["x-squid-error"], "ERR_ACCESS_DENIED 0");
        assert_eq!(denied.head.headers["x-egress-reason"], "no_rule");
        assert!(String::from_utf8(denied.body).unwrap().contains("denied.test"));

        upload.send_data("hello".into(), true).unwrap();
        assert_eq!(request.body_mut().data().await.unwrap().unwrap(), "hello");
        let mut body = respond.send_response(Response::new(()), false).unwrap();
        body.send_data("world".into(), true).unwrap();
        assert_eq!(read(open.await.unwrap()).await.body, b"world");

        lab.origin("denied.test").heard_nothing();
        drop((client, upload, body, request, respond));
        running.await.unwrap();
        let records = lab.records().await;
        assert_eq!(
            told(&records),
            [
                (200, Outcome::AllowedByRule, Ending::Complete),
                (403, Outcome::NoRule, Ending::Refused),
            ]
        );
        let Some(Asked::Request { url, version, method }) = records
            .iter()
            .find(|record| record.status == 200)
            .map(|record| &record.asked)
        else {
            panic!("{records:?}");
        };
        assert_eq!(url.to_string(), format!("http://good.test:{}/open", lab.port()));
        assert_eq!((version, method), (&Version::HTTP_2, &Method::POST));
        assert!(records.iter().all(|record| record.protocol == Protocol::Http2));
    });
}

#[test]
fn streams_to_one_host_share_a_connection_and_other_hosts_have_their_own() {
    run(async |lab: &mut Lab| {
        let client = Client::new(lab).await;
        let (first, _) = client.send(get("good.test", "/1"), true).await;
        let (second, _) = client.send(get("good.test", "/2"), true).await;
        let (third, _) = client.send(get("also.test", "/3"), true).await;
        Origin::accept(lab, "good.test").await.echo();
        Origin::accept(lab, "also.test").await.echo();
        assert_eq!(read(first.await.unwrap()).await.body, b"/1");
        assert_eq!(read(second.await.unwrap()).await.body, b"/2");
        assert_eq!(read(third.await.unwrap()).await.body, b"/3");
        assert_eq!(client.get("good.test", "/4").await.body, b"/4");
        lab.origin("good.test").heard_nothing();
    });
}

#[test]
fn a_denied_grpc_call_gets_a_grpc_status() {
    run(async |lab: &mut Lab| {
        let client = Client::new(lab).await;
        let (response, mut upload) = client.send(grpc("denied.test"), false).await;
        upload.send_data("request".into(), false).unwrap();
        let answer = read(response.await.unwrap()).await;
        assert_eq!(answer.head.status, 200);
        assert_eq!(answer.head.headers["grpc-status"], "7");
        assert_eq!(answer.head.headers["content-type"], "application/grpc+proto");
        let message = answer.head.headers["grpc-message"].to_str().unwrap();
        assert!(
            message.contains("denied.test") && message.contains("no_rule"),
            "{message}"
        );
        assert!(answer.body.is_empty());
        drop((client, upload));
        assert_eq!(lab.records().await[0].ending, Ending::Refused);
    });
}

#[test]
fn a_grpc_call_passes_with_its_trailers() {
    run(async |lab: &mut Lab| {
        let client = Client::new(lab).await;
        let (response, mut upload) = client.send(grpc("good.test"), false).await;
        let mut origin = Origin::accept(lab, "good.test").await;
        let (request, mut respond) = origin.next().await;
        assert_eq!(request.headers()["te"], "trailers");
        assert_eq!(request.uri().to_string(), "http://good.test/pkg.Service/Call");
        let running = tokio::task::spawn_local(origin.run());
        upload.send_data("ping".into(), false).unwrap();
        let mut body = request.into_body();
        assert_eq!(body.data().await.unwrap().unwrap(), "ping");
        let mut answer = respond.send_response(Response::new(()), false).unwrap();
        answer.send_data("pong".into(), false).unwrap();
        let mut trailers = HeaderMap::new();
        trailers.insert("x-client", "1".parse().unwrap());
        upload.send_trailers(trailers).unwrap();
        assert!(body.data().await.is_none());
        assert_eq!(body.trailers().await.unwrap().unwrap()["x-client"], "1");
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", "5".parse().unwrap());
        answer.send_trailers(trailers).unwrap();
        let answer = read(response.await.unwrap()).await;
        assert_eq!(answer.body, b"pong");
        assert_eq!(answer.trailers.unwrap()["grpc-status"], "5");
        drop((client, upload, body, respond));
        running.await.unwrap();
        let records = lab.records().await;
        assert_eq!(records[0].ending, Ending::Complete);
        assert!(records[0].bytes_to_client >= 9 + 9 + 4);
        assert!(records[0].bytes_to_origin >= 9 + 9 + 4);
    });
}

#[test]
fn doubtful_streams_are_refused_one_by_one() {
    run(async |lab: &mut Lab| {
        let client = Client::new(lab).await;
        let with_host = |host: &str| {
            let mut request = get("good.test", "/");
            request.headers_mut().insert("host", host.parse().unwrap());
            request
        };
        let mut twice = with_host("good.test");
        twice.headers_mut().append("host", "good.test".parse().unwrap());
        let https = Request::get("https://good.test/")
            .version(Version::HTTP_2)
            .body(())
            .unwrap();
        let user = Request::get("http://u@good.test/")
            .version(Version::HTTP_2)
            .body(())
            .unwrap();
        for (request, reason) in [
            (with_host("denied.test"), "ambiguous_host"),
            (with_host("good.test:81"), "ambiguous_host"),
            (twice, "ambiguous_host"),
            (user, "ambiguous_host"),
            (https, "malformed_http"),
        ] {
            let text = format!("{request:?}");
            let (response, _) = client.send(request, true).await;
            let answer = read(response.await.unwrap()).await;
            assert_eq!(answer.head.status, 400, "{text}");
            assert_eq!(answer.head.headers["x-egress-reason"], reason, "{text}");
        }
        lab.origin("good.test").heard_nothing();
        let (response, _) = client.send(with_host("GOOD.test:80"), true).await;
        Origin::accept(lab, "good.test").await.echo();
        assert_eq!(read(response.await.unwrap()).await.head.status, 200);
    });
}

#[test]
fn connect_is_refused_on_its_stream() {
    run(async |lab: &mut Lab| {
        let client = Client::new(lab).await;
        let connect = Request::connect("good.test:443")
            .version(Version::HTTP_2)
            .body(())
            .unwrap();
        let (response, _upload) = client.send(connect, false).await;
        let answer = response.await.unwrap();
        assert_eq!(answer.status(), 403);
        assert_eq!(answer.headers()["x-egress-reason"], "forbidden_method");
        lab.origin("good.test").heard_nothing();
        assert!(!client.sender.is_extended_connect_protocol_enabled());
    });
}

#[test]
fn a_reset_passes_in_both_directions_with_its_reason() {
    run(async |lab: &mut Lab| {
        let client = Client::new(lab).await;
        let (response, mut upload) = client.send(grpc("good.test"), false).await;
        let mut origin = Origin::accept(lab, "good.test").await;
        let (_request, mut respond) = origin.next().await;
        upload.send_reset(Reason::CANCEL);
        let reset = std::future::poll_fn(|cx| {
            // The connection moves only while it is polled.
            drop(origin.connection.poll_accept(cx));
            respond.poll_reset(cx)
        });
        assert_eq!(reset.await.unwrap(), Reason::CANCEL);
        drop(response);

        for reason in [Reason::REFUSED_STREAM, Reason::ENHANCE_YOUR_CALM] {
            let (response, _upload) = client.send(grpc("good.test"), false).await;
            let (_request, mut respond) = origin.next().await;
            respond.send_reset(reason);
            let (_, response) = tokio::join!(
                async {
                    tokio::time::timeout(Duration::from_millis(200), origin.connection.accept())
                        .await
                        .ok()
                },
                response
            );
            let error = response.unwrap_err();
            assert_eq!(error.reason(), Some(reason));
            assert!(error.is_reset());
        }
        client.vanish();
        drop(origin);
        let records = lab.records().await;
        let endings: Vec<_> = records.iter().map(|record| record.ending).collect();
        assert_eq!(
            endings,
            [
                Ending::ClientAborted,
                Ending::OriginAborted,
                Ending::OriginAborted
            ]
        );
    });
}

#[test]
fn an_origin_that_dies_in_the_middle_resets_its_streams_alone() {
    run(async |lab: &mut Lab| {
        let client = Client::new(lab).await;
        let (response, _) = client.send(get("good.test", "/1"), true).await;
        let mut origin = Origin::accept(lab, "good.test").await;
        let (_, mut respond) = origin.next().await;
        let mut body = respond.send_response(Response::new(()), false).unwrap();
        body.send_data("half".into(), false).unwrap();
        let (_, response) = tokio::join!(
            async {
                tokio::time::timeout(Duration::from_millis(100), origin.connection.accept())
                    .await
                    .ok()
            },
            response
        );
        let mut stream = response.unwrap().into_body();
        assert_eq!(stream.data().await.unwrap().unwrap(), "half");
        drop((body, respond, origin));
        stream.data().await.unwrap().unwrap_err();
        let (response, _) = client.send(get("good.test", "/2"), true).await;
        Origin::accept(lab, "good.test").await.echo();
        assert_eq!(read(response.await.unwrap()).await.body, b"/2");
        drop((client, stream));
        let records = lab.records().await;
        let endings: Vec<_> = records
            .iter()
            .map(|record| (record.status, record.ending))
            .collect();
        assert_eq!(endings, [(200, Ending::OriginAborted), (200, Ending::Complete)]);
    });
}

#[test]
fn an_origin_without_http_2_is_a_502() {
    run(async |lab: &mut Lab| {
        let client = Client::new(lab).await;
        let (response, _) = client.send(get("good.test", "/1"), true).await;
        let (call, _upload) = client.send(grpc("good.test"), false).await;
        let mut origin = lab.accept("good.test").await;
        origin
            .send("HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")
            .await;
        let answer = read(response.await.unwrap()).await;
        assert_eq!(answer.head.status, 502);
        assert_eq!(answer.head.headers["x-squid-error"], "ERR_ZERO_SIZE_OBJECT 0");
        drop(origin);
        tokio::select! {
            answer = call => assert_eq!(answer.unwrap().headers()["grpc-status"], "14"),
            mut origin = lab.accept("good.test") => {
                origin.send("HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n").await;
            }
        }
    });
}

#[test]
fn an_origin_that_cannot_be_reached_fails_its_stream_alone() {
    run(async |lab: &mut Lab| {
        let client = Client::new(lab).await;
        let answer = client.get("closed.test", "/").await;
        assert_eq!(answer.head.status, 503);
        assert_eq!(answer.head.headers["x-squid-error"], "ERR_CONNECT_FAIL 111");
        assert_eq!(client.get("denied.test", "/").await.head.status, 403);
    });
}

#[test]
fn a_client_that_vanishes_leaves_a_record_for_each_stream() {
    run(async |lab: &mut Lab| {
        let client = Client::new(lab).await;
        let (_first, _) = client.send(get("good.test", "/1"), true).await;
        let (_second, _) = client.send(get("good.test", "/2"), true).await;
        let mut origin = Origin::accept(lab, "good.test").await;
        let (_, _respond) = origin.next().await;
        let (_, _other) = origin.next().await;
        client.vanish();
        origin.run().await;
        let records = lab.records().await;
        assert_eq!(
            told(&records),
            [
                (0, Outcome::AllowedByRule, Ending::ClientAborted),
                (0, Outcome::AllowedByRule, Ending::ClientAborted),
            ]
        );
    });
}

#[test]
fn a_task_that_is_ended_from_outside_leaves_a_record_for_each_stream() {
    run(async |lab: &mut Lab| {
        let client = Client::new(lab).await;
        let (_response, _) = client.send(get("good.test", "/1"), true).await;
        let mut origin = Origin::accept(lab, "good.test").await;
        let (_, _respond) = origin.next().await;
        lab.abort();
        origin.run().await;
        let records = lab.records_now();
        assert_eq!(told(&records), [(0, Outcome::AllowedByRule, Ending::Drained)]);
    });
}

#[test]
fn a_connection_without_a_stream_leaves_a_record() {
    run(async |lab: &mut Lab| {
        Client::new(lab).await.vanish();
        let records = lab.records().await;
        assert_eq!(told(&records), [(0, Outcome::ClientGone, Ending::ClientAborted)]);
    });
}

#[test]
fn an_idle_connection_is_closed_with_a_goodbye() {
    let limits = Limits {
        keep_alive_timeout: Duration::from_millis(150),
        ..Limits::default()
    };
    run_with(limits, async |lab: &mut Lab| {
        let client = Client::new(lab).await;
        assert_eq!(client.get("denied.test", "/").await.head.status, 403);
        let Client { sender, connection } = client;
        connection.await.unwrap().unwrap();
        drop(sender);
        assert_eq!(lab.records().await.len(), 1);
    });
}

#[test]
fn a_drain_serves_the_streams_that_are_open_and_says_goodbye() {
    run(async |lab: &mut Lab| {
        let client = Client::new(lab).await;
        let (response, _) = client.send(get("good.test", "/1"), true).await;
        let mut origin = Origin::accept(lab, "good.test").await;
        let (_, mut respond) = origin.next().await;
        tokio::task::spawn_local(origin.run());
        lab.drain();
        let mut body = respond.send_response(Response::new(()), false).unwrap();
        body.send_data("x".into(), true).unwrap();
        assert_eq!(read(response.await.unwrap()).await.body, b"x");
        client.connection.await.unwrap().unwrap();
        assert_eq!(
            told(&lab.records().await),
            [(200, Outcome::AllowedByRule, Ending::Complete)]
        );
    });
}

#[test]
fn heads_over_the_limit_and_streams_over_the_limit_are_refused() {
    let limits = Limits {
        head_bytes: 16 * 1024,
        h2_streams: 2,
        ..Limits::default()
    };
    run_with(limits, async |lab: &mut Lab| {
        let client = Client::new(lab).await;
        let mut large = get("good.test", "/");
        large
            .headers_mut()
            .insert("x", "y".repeat(20_000).parse().unwrap());
        let (response, _) = client.send(large, true).await;
        match response.await {
            Ok(answer) => assert_eq!(answer.status(), 431),
            Err(error) => assert!(error.is_reset() || error.is_go_away(), "{error}"),
        }
        lab.origin("good.test").heard_nothing();
        assert_eq!(client.sender.current_max_send_streams(), 2);
    });
}

#[test]
fn a_flood_of_resets_ends_the_connection() {
    run(async |lab: &mut Lab| {
        let client = Client::new(lab).await;
        // All in one write, so that the resets are there before a stream is looked at.
        for _ in 0..90 {
            let (response, mut upload) = client.send(get("denied.test", "/"), false).await;
            upload.send_reset(Reason::CANCEL);
            drop(response);
        }
        let error = client.connection.await.unwrap().unwrap_err();
        assert_eq!(error.reason(), Some(Reason::ENHANCE_YOUR_CALM));
    });
}

#[test]
fn a_reader_that_does_not_read_stops_the_writer() {
    run(async |lab: &mut Lab| {
        let mut roomy = client::Builder::new();
        roomy.initial_connection_window_size(1024 * 1024);
        let client = Client::with(lab, &roomy).await;
        let (response, _) = client.send(get("good.test", "/"), true).await;
        let mut origin = Origin::accept(lab, "good.test").await;
        let (_, mut respond) = origin.next().await;
        let mut body = respond.send_response(Response::new(()), false).unwrap();
        let moving = tokio::task::spawn_local(origin.run());
        // Nothing is read of it, so its window stays shut.
        let stream = response.await.unwrap().into_body();
        let mut sent = 0_usize;
        loop {
            body.reserve_capacity(64 * 1024);
            let capacity = std::future::poll_fn(|cx| body.poll_capacity(cx));
            let Ok(capacity) = tokio::time::timeout(Duration::from_millis(300), capacity).await else {
                break;
            };
            let count = capacity.unwrap().unwrap();
            body.send_data(vec![b'x'; count].into(), false).unwrap();
            sent += count;
            assert!(sent < 4 * 1024 * 1024, "it never stops");
        }
        assert!(sent > 64 * 1024, "{sent} bytes fill no window");
        assert_eq!(
            client.get("denied.test", "/").await.head.status,
            403,
            "other streams go on"
        );
        body.send_data("end".into(), true).unwrap();
        let answer = read(Response::new(stream)).await;
        assert_eq!(answer.body.len(), sent + 3, "it goes on when it is read");
        drop((client, body, respond));
        moving.await.unwrap();
    });
}
