//! Plain HTTP/1 that is allowed passes as it was sent, in both directions, and an upload that is not gets its answer.

use egress_tests::{
    agent::{Finished, Format},
    bytes::{digest_of, digest_of_payload},
    clients::{Client, curl, raw},
    lab::{World, address},
    promises,
    raw_client::{Outcome, Script},
    squid_log,
};

promises![
    heads_pass_unchanged,
    a_chunked_upload_passes_whole,
    an_upload_that_waits_for_100_continue_passes,
    an_upload_to_a_denied_host_is_answered_before_it_is_sent,
    a_denial_during_an_upload_arrives,
    a_chunked_answer_passes_whole,
    trailers_pass,
    a_head_request_passes,
    a_websocket_is_tunnelled,
    an_origin_that_vanishes_in_the_middle_is_seen_as_such,
];

fn script() -> Script {
    Script::to(address("198.51.100.10:80"))
}

async fn run(world: &World, script: &Script) -> (Outcome, Finished) {
    let output = run_client(world, &raw(world, script)).await;
    assert_ne!(output.log, "", "nothing was judged");
    (Outcome::single(&output.succeeded().text()), output)
}

async fn run_client(world: &World, client: &Client) -> Finished {
    let output = world
        .exec()
        .allow("good.test")
        .log(Format::Combined)
        .run(client)
        .await;
    assert_ne!(output.log, "", "nothing was judged");
    output
}

#[track_caller]
fn gists(output: &Finished) -> Vec<String> {
    squid_log::combined(&output.log)
        .iter()
        .map(squid_log::Line::gist)
        .collect()
}

async fn heads_pass_unchanged() {
    let world = World::new().await;
    let origin = world
        .raw("good.test", 80, |mut connection| async move {
            while !connection.read_some().await?.ends_with(b"\r\n\r\n") {}
            let answer = "HTTP/1.1 299 Quite Fine\r\nX-MiXeD-CaSe: yes\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\n\
                          Content-Length: 2\r\nConnection: close\r\n\r\nok";
            connection.send(answer.as_bytes()).await
        })
        .await;
    let request = "GET /a//b/../c?x=%41&y= HTTP/1.1\r\nHost: good.test\r\nX-OdD-cAsE: 1\r\nCookie: s=1\r\n\
                   Accept-Encoding: gzip\r\nVia: 1.0 else.test\r\nConnection: close\r\n\r\n";

    let (outcome, output) = run(&world, &script().send(request.as_bytes()).read_to_end()).await;

    let seen = origin.seen().await;
    let arrived = String::from_utf8_lossy(&seen[0].first).into_owned();
    assert!(
        arrived.starts_with("GET /a//b/../c?x=%41&y= HTTP/1.1\r\n"),
        "{arrived}"
    );
    for line in [
        "Host: good.test",
        "X-OdD-cAsE: 1",
        "Cookie: s=1",
        "Accept-Encoding: gzip",
    ] {
        assert!(arrived.contains(&format!("\r\n{line}\r\n")), "{line}: {arrived}");
    }
    assert!(!arrived.to_lowercase().contains("x-forwarded"), "{arrived}");
    let answer = outcome.text();
    assert!(answer.starts_with("HTTP/1.1 299 Quite Fine\r\n"), "{answer}");
    for line in ["X-MiXeD-CaSe: yes", "Set-Cookie: a=1", "Set-Cookie: b=2"] {
        assert!(answer.contains(&format!("\r\n{line}\r\n")), "{line}: {answer}");
    }
    assert_eq!(
        gists(&output),
        ["GET http://good.test/a//b/../c?x=%41&y= 299 TCP_MISS:HIER_DIRECT"]
    );
}

async fn a_chunked_upload_passes_whole() {
    let world = World::new().await;
    let origin = world.http("good.test").await;
    let file = world.file("upload", &"chunk by chunk ".repeat(200_000));
    let client = curl(&world)
        .words("--header Transfer-Encoding:chunked --header Expect: --upload-file")
        .arg(&file)
        .arg("http://good.test/hash");

    let output = run_client(&world, &client).await;

    let digest = digest_of(&std::fs::read(file).unwrap_or_default());
    output.succeeded().printed(&format!("{digest}\n"));
    let requests = origin.requests().await;
    assert_eq!(requests[0].header("transfer-encoding"), ["chunked"]);
    assert_eq!(requests[0].body, Some(digest));
}

async fn an_upload_that_waits_for_100_continue_passes() {
    let world = World::new().await;
    let origin = world.http("good.test").await;
    let file = world.file("upload", &"with patience ".repeat(100_000));
    // Waits for the permission for as long as the whole test may take.
    let client = curl(&world)
        .words("--include --header Expect:100-continue --expect100-timeout 25 --upload-file")
        .arg(&file)
        .arg("http://good.test/hash");

    let output = run_client(&world, &client).await;

    assert!(
        output.succeeded().text().starts_with("HTTP/1.1 100 Continue\r\n"),
        "{}",
        output.story()
    );
    assert_eq!(
        origin.requests().await[0].body,
        Some(digest_of(&std::fs::read(file).unwrap_or_default()))
    );
    assert_eq!(
        gists(&output),
        ["PUT http://good.test/hash 200 TCP_MISS:HIER_DIRECT"]
    );
}

async fn an_upload_to_a_denied_host_is_answered_before_it_is_sent() {
    let world = World::new().await;
    let origin = world.http("evil.test").await;
    let file = world.file("upload", &"never sent ".repeat(100_000));
    let client = curl(&world)
        .words("--output /dev/null --write-out %{http_code},%{size_upload} --header Expect:100-continue")
        .words("--expect100-timeout 25 --resolve evil.test:80:198.51.100.66 --upload-file")
        .arg(&file)
        .arg("http://evil.test/hash");

    let output = run_client(&world, &client).await;

    output.succeeded().printed("403,0");
    origin.was_never_reached().await;
}

/// A reset while the client still sends would destroy the answer on its way: the connection has to linger.
async fn a_denial_during_an_upload_arrives() {
    let world = World::new().await;
    let origin = world.http("evil.test").await;
    let file = world.file("upload", &"sent in vain ".repeat(1_000_000));
    let client = curl(&world)
        .words("--output /dev/null --write-out %{http_code} --header Expect: --resolve evil.test:80:198.51.100.66")
        .arg("--upload-file")
        .arg(&file)
        .arg("http://evil.test/hash");

    for _ in 0..5 {
        let output = run_client(&world, &client).await;
        assert_eq!(output.text(), "403", "{}", output.story());
    }
    origin.was_never_reached().await;
}

async fn a_chunked_answer_passes_whole() {
    let world = World::new().await;
    let _origin = world.http("good.test").await;

    let output = run_client(&world, &curl(&world).arg("http://good.test/chunked/3000000")).await;

    assert_eq!(
        digest_of(&output.succeeded().stdout),
        digest_of_payload(3_000_000)
    );
}

async fn trailers_pass() {
    let world = World::new().await;
    let _origin = world.http("good.test").await;
    let request =
        "GET /trailers HTTP/1.1\r\nHost: good.test\r\nTE: trailers\r\nConnection: close, TE\r\n\r\n";

    let (outcome, _) = run(&world, &script().send(request.as_bytes()).read_to_end()).await;

    let text = outcome.text();
    assert!(
        text.to_lowercase().ends_with("0\r\nx-checksum: complete\r\n\r\n"),
        "{text}"
    );
}

async fn a_head_request_passes() {
    let world = World::new().await;
    let origin = world.http("good.test").await;

    let output = run_client(
        &world,
        &curl(&world).arg("--head").arg("http://good.test/bytes/5000"),
    )
    .await;

    assert!(
        output
            .succeeded()
            .text()
            .to_lowercase()
            .contains("\r\ncontent-length: 5000\r\n"),
        "{}",
        output.story()
    );
    assert_eq!(origin.requests().await[0].method, "HEAD");
    assert_eq!(
        gists(&output),
        ["HEAD http://good.test/bytes/5000 200 TCP_MISS:HIER_DIRECT"]
    );
}

async fn a_websocket_is_tunnelled() {
    let world = World::new().await;
    let origin = world.http("good.test").await;
    let request = "GET /echo HTTP/1.1\r\nHost: good.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                   Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    // A masked text frame "hello" with the mask 00000000, its echo, and a close frame.
    let script = script()
        .send(request.as_bytes())
        .read_until(b"\r\n\r\n")
        .send(b"\x81\x85\0\0\0\0hello")
        .read_until(b"\x81\x05hello")
        .send(b"\x88\x80\0\0\0\0")
        .read_to_end();

    let (outcome, output) = run(&world, &script).await;

    assert_eq!(outcome.failure, None, "{}", output.story());
    let text = outcome.text();
    assert!(text.starts_with("HTTP/1.1 101 Switching Protocols\r\n"), "{text}");
    // The value of RFC 6455's own example.
    assert!(
        text.to_lowercase()
            .contains("sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo="),
        "{text}"
    );
    assert_eq!(origin.requests().await.len(), 1);
    assert_eq!(
        gists(&output),
        ["GET http://good.test/echo 101 TCP_TUNNEL:HIER_DIRECT"]
    );
}

async fn an_origin_that_vanishes_in_the_middle_is_seen_as_such() {
    let world = World::new().await;
    let _origin = world.http("good.test").await;

    let output = run_client(&world, &curl(&world).arg("http://good.test/vanish/1000000")).await;

    // 18: transfer closed with bytes outstanding; 56: reset.
    assert!([18, 56].contains(&output.code()), "{}", output.code());
    assert!(output.stdout.len() <= 500_000);
    let log = squid_log::combined(&output.log);
    assert_eq!(log.len(), 1);
    assert!(
        log[0].result.ends_with("_ABORTED") || log[0].status == 200,
        "{}",
        output.log
    );
}
