//! TLS is judged by its ClientHello however that arrives, and never changed: the origin gets every byte as it was sent.

use std::time::Duration;

use egress_tests::{
    agent::{Finished, Format},
    bytes::digest_of_payload,
    clients::{Client, curl, raw},
    hello::Hello,
    lab::{World, address},
    origins::Origin,
    promises,
    raw_client::{Outcome, Script, Step},
    squid_log,
};

promises![
    openssl_s_client_speaks_through_and_is_refused,
    curl_speaks_http2_and_http1_through,
    a_hello_of_one_byte_segments_is_replayed_exactly,
    a_hello_in_many_records_is_replayed_exactly,
    a_hello_of_many_kilobytes_is_replayed_exactly,
    a_hello_with_everything_at_once_is_replayed_exactly,
    bytes_sent_with_the_hello_are_not_lost,
    a_slow_hello_within_the_limit_is_served,
    a_hello_that_never_ends_is_cut_off,
    a_client_that_says_nothing_is_cut_off,
    a_hello_larger_than_the_limit_is_refused,
    a_hello_without_a_name_is_refused,
    a_hello_with_two_names_is_refused_whichever_is_allowed,
    a_hello_with_an_address_as_its_name_is_refused,
    a_name_in_another_case_or_with_a_trailing_dot_is_the_same_name,
    a_hello_that_breaks_the_rules_is_refused,
    bytes_of_no_known_protocol_are_reset,
    tls_on_port_80_is_judged_as_tls,
    a_client_that_leaves_before_the_hello_is_logged_as_nothing_known,
    an_encrypted_hello_is_judged_by_its_outer_name,
];

/// access_denied, RFC 8446 section 6.2.
const ACCESS_DENIED: u8 = 49;
/// missing_extension: what RFC 8446 section 9.2 wants a server to say that demands a server name.
const MISSING_EXTENSION: u8 = 109;

async fn openssl_s_client_speaks_through_and_is_refused() {
    let world = World::new().await;
    let origin = world.https("good.test").await;
    let evil = world.https("evil.test").await;
    let s_client = |name: &str, to: &str| {
        Client::new("openssl")
            .words(&format!(
                "s_client -quiet -verify_return_error -servername {name} -connect {to} -CAfile"
            ))
            .arg(world.path("ca.pem"))
    };
    let request = b"GET / HTTP/1.1\r\nHost: good.test\r\nConnection: close\r\n\r\n";

    let client = s_client("good.test", "198.51.100.10:443");
    let output = world.exec().allow("good.test").stdin(request).run(&client).await;
    assert!(
        output
            .succeeded()
            .text()
            .ends_with("\r\n\r\nhello from good.test\n"),
        "{}",
        output.story()
    );
    assert_eq!(origin.seen().await[0].server_name.as_deref(), Some("good.test"));

    let client = s_client("evil.test", "198.51.100.66:443");
    let output = world.exec().allow("good.test").stdin(request).run(&client).await;
    assert!(
        output.failed().stderr.contains("alert access denied"),
        "{}",
        output.story()
    );
    evil.was_never_reached().await;
}

async fn curl_speaks_http2_and_http1_through() {
    let world = World::new().await;
    let origin = world.https("good.test").await;
    for (flag, version, alpn) in [("--http2", "2", "h2"), ("--http1.1", "1.1", "http/1.1")] {
        let client = curl(&world).words(&format!(
            "{flag} --output {} --write-out %{{http_version}}",
            world.path("body").display()
        ));
        let output = world
            .exec()
            .allow("good.test")
            .run(&client.arg("https://good.test/bytes/2000000"))
            .await;
        output.succeeded().printed(version);
        let body = std::fs::read(world.path("body")).unwrap_or_default();
        assert_eq!(
            egress_tests::bytes::digest_of(&body),
            digest_of_payload(2_000_000)
        );
        assert_eq!(
            origin
                .seen()
                .await
                .last()
                .and_then(|seen| seen.alpn.clone())
                .as_deref(),
            Some(alpn)
        );
    }
    assert_eq!(world.agent_dns.names_asked(), ["good.test"]);
}

/// An origin that reads `length` bytes and answers `served`.
async fn recorder(world: &World, length: usize) -> Origin {
    world
        .raw("good.test", 443, move |mut connection| async move {
            connection.read_exact(length).await?;
            connection.send(b"served").await?;
            connection.finish_sending().await?;
            connection.hash_to_end().await.map(drop)
        })
        .await
}

fn script() -> Script {
    Script::to(address("198.51.100.10:443"))
}

/// Runs a script with `good.test` allowed.
async fn run(world: &World, script: &Script) -> (Outcome, Finished) {
    let output = world
        .exec()
        .allow("good.test")
        .log(Format::Combined)
        .run(&raw(world, script))
        .await;
    (Outcome::single(&output.succeeded().text()), output)
}

/// Sends `hello` in pieces of `chunk` bytes and asserts that the origin gets exactly that.
async fn is_replayed(hello: &[u8], chunk: usize, pause: u64) {
    let world = World::new().await;
    let origin = recorder(&world, hello.len()).await;

    let (outcome, output) = run(
        &world,
        &script().send_in_pieces(hello, chunk, pause).read_to_end(),
    )
    .await;

    assert_eq!(outcome.text(), "served", "{}", output.story());
    let seen = origin.seen().await;
    assert_eq!(seen.len(), 1);
    assert!(
        seen[0].first == hello,
        "the origin got something else than was sent"
    );
    assert_eq!(seen[0].received, hello.len() as u64);
    assert_eq!(
        squid_log::single(&output.log).gist(),
        "CONNECT good.test:443 200 TCP_TUNNEL:HIER_DIRECT"
    );
}

/// Sends `bytes` and asserts that nobody but the agent saw them. Returns what the client got, and the log's line.
async fn is_refused(bytes: &[u8]) -> (Outcome, squid_log::Line) {
    let world = World::new().await;
    let origin = recorder(&world, 1).await;

    let (outcome, output) = run(&world, &script().send(bytes).read_to_end()).await;

    origin.was_never_reached().await;
    assert!(world.agent_dns.questions().is_empty());
    assert!(
        outcome.times.last().is_some_and(|millis| *millis < 2000),
        "at once: {outcome:?}"
    );
    (outcome, squid_log::single(&output.log))
}

async fn a_hello_of_one_byte_segments_is_replayed_exactly() {
    is_replayed(
        &Hello::new(Some("good.test")).alpn(&["h2", "http/1.1"]).bytes(),
        1,
        1,
    )
    .await;
}

async fn a_hello_in_many_records_is_replayed_exactly() {
    is_replayed(
        &Hello::new(Some("good.test")).records_of(3).bytes(),
        usize::MAX,
        0,
    )
    .await;
}

async fn a_hello_of_many_kilobytes_is_replayed_exactly() {
    for size in [1_200, 15_000, 17_000, 40_000] {
        is_replayed(
            &Hello::new(Some("good.test")).key_share(size).bytes(),
            usize::MAX,
            0,
        )
        .await;
    }
}

async fn a_hello_with_everything_at_once_is_replayed_exactly() {
    let hello = Hello::new(Some("good.test"))
        .alpn(&["h2", "http/1.1"])
        .encrypted_client_hello()
        .key_share(20_000)
        .records_of(101);
    is_replayed(&hello.bytes(), 997, 2).await;
}

async fn bytes_sent_with_the_hello_are_not_lost() {
    let mut bytes = Hello::new(Some("good.test")).bytes();
    bytes.extend(b"early data of 0-RTT comes in the same segment");
    is_replayed(&bytes, usize::MAX, 0).await;
}

async fn a_slow_hello_within_the_limit_is_served() {
    let hello = Hello::new(Some("good.test")).bytes();
    // About 4 s in all; the limit is 5.
    let chunk = hello.len().div_ceil(20);
    is_replayed(&hello, chunk, 200).await;
}

async fn a_hello_that_never_ends_is_cut_off() {
    let world = World::new().await;
    let origin = recorder(&world, 1).await;
    let hello = Hello::new(Some("good.test")).bytes();

    let (outcome, output) = run(&world, &script().send(&hello[..hello.len() - 1]).read_to_end()).await;

    assert!(took_about(&outcome, 5), "{outcome:?}");
    origin.was_never_reached().await;
    assert_eq!(squid_log::combined(&output.log).len(), 1, "{}", output.log);
}

async fn a_client_that_says_nothing_is_cut_off() {
    let world = World::new().await;
    let origin = recorder(&world, 1).await;

    let (outcome, output) = run(&world, &script().read_to_end()).await;

    assert!(took_about(&outcome, 5), "{outcome:?}");
    origin.was_never_reached().await;
    let log = squid_log::combined(&output.log);
    assert_eq!(log.len(), 1, "{}", output.log);
    assert_eq!(log[0].outcome(), "NONE_NONE:HIER_NONE", "{}", output.log);
}

fn took_about(outcome: &Outcome, seconds: u64) -> bool {
    let limit = Duration::from_secs(seconds);
    outcome.times.last().is_some_and(|millis| {
        let took = Duration::from_millis(*millis);
        took >= limit - Duration::from_millis(200) && took <= limit + Duration::from_secs(2)
    })
}

async fn a_hello_larger_than_the_limit_is_refused() {
    let world = World::new().await;
    let origin = recorder(&world, 1).await;
    // One key share is at most 64 KiB: two extensions are over the limit together.
    let hello = Hello::new(Some("good.test"))
        .key_share(40_000)
        .key_share(24_000)
        .bytes();
    assert!(hello.len() < 64 * 1024);
    let mut endless = vec![22, 3, 1, 0x40, 0, 1, 1, 0, 0];
    endless.resize(80 * 1024, 0);

    let (outcome, output) = run(&world, &script().send(&endless).read_to_end()).await;

    assert!(
        outcome.alert().is_some() || outcome.error() == Some("ConnectionReset"),
        "{outcome:?}"
    );
    origin.was_never_reached().await;
    assert_eq!(squid_log::combined(&output.log).len(), 1, "{}", output.log);
}

async fn a_hello_without_a_name_is_refused() {
    let (outcome, log) = is_refused(&Hello::new(None).bytes()).await;
    assert_eq!(outcome.alert(), Some(MISSING_EXTENSION), "{outcome:?}");
    assert_eq!(log.gist(), "CONNECT 198.51.100.10:443 403 TCP_DENIED:HIER_NONE");
}

async fn a_hello_with_two_names_is_refused_whichever_is_allowed() {
    for (first, second) in [
        ("good.test", "evil.test"),
        ("evil.test", "good.test"),
        ("good.test", "good.test"),
    ] {
        let (outcome, log) = is_refused(&Hello::new(Some(first)).name(second).bytes()).await;
        assert!(outcome.alert().is_some(), "{outcome:?}");
        assert_eq!(
            (log.status, log.outcome().as_str()),
            (403, "TCP_DENIED:HIER_NONE")
        );
    }
}

async fn a_hello_with_an_address_as_its_name_is_refused() {
    for name in ["198.51.100.10", "2001:db8:1::10", "[2001:db8:1::10]"] {
        let (outcome, log) = is_refused(&Hello::new(Some(name)).bytes()).await;
        assert!(outcome.alert().is_some(), "{name}: {outcome:?}");
        assert_eq!(
            (log.status, log.outcome().as_str()),
            (403, "TCP_DENIED:HIER_NONE")
        );
    }
}

async fn a_name_in_another_case_or_with_a_trailing_dot_is_the_same_name() {
    for name in ["GOOD.Test", "good.test."] {
        is_replayed(&Hello::new(Some(name)).bytes(), usize::MAX, 0).await;
    }
}

async fn a_hello_that_breaks_the_rules_is_refused() {
    let good = Hello::new(Some("good.test")).bytes();
    let name_at = good
        .windows(9)
        .position(|window| window == b"good.test")
        .unwrap_or(0);
    let with = |at: usize, value: u8| {
        let mut bytes = good.clone();
        bytes[at] = value;
        bytes
    };
    let broken = [
        ("a name longer than its list", with(name_at - 1, 200)),
        ("a list longer than its extension", with(name_at - 4, 99)),
        ("extensions beyond the message", with(good.len() - 8, 255)),
        ("a name with a zero byte", with(name_at + 4, 0)),
        ("a record of version 9", with(1, 9)),
        ("a ServerHello", with(5, 2)),
    ];
    for (what, bytes) in broken {
        let (outcome, log) = is_refused(&bytes).await;
        assert!(
            outcome.alert().is_some() || outcome.error() == Some("ConnectionReset"),
            "{what}: {outcome:?}"
        );
        assert!(
            log.outcome() == "TCP_DENIED:HIER_NONE" || log.outcome() == "NONE_NONE:HIER_NONE",
            "{what}: {log:?}"
        );
    }
}

async fn bytes_of_no_known_protocol_are_reset() {
    for bytes in [
        &b"SSH-2.0-OpenSSH_9.2\r\n"[..],
        b"\x00\x00\x00\x00\x00\x00\x00\x00",
        b"\xff\xfe\xfd\xfc\xfb\xfa",
    ] {
        let (outcome, log) = is_refused(bytes).await;
        assert_eq!(outcome.error(), Some("ConnectionReset"), "{outcome:?}");
        assert_eq!(log.outcome(), "TCP_DENIED:HIER_NONE", "{log:?}");
    }
}

async fn tls_on_port_80_is_judged_as_tls() {
    let world = World::new().await;
    let hello = Hello::new(Some("good.test")).bytes();
    let origin = world
        .raw("good.test", 80, |mut connection| async move {
            connection.send(b"served").await
        })
        .await;
    let to = Script::to(address("198.51.100.10:80"));

    let (outcome, output) = run(&world, &to.clone().send(&hello).step(Step::ReadExact(6))).await;
    assert_eq!(outcome.text(), "served", "{}", output.story());
    assert_eq!(
        squid_log::single(&output.log).gist(),
        "CONNECT good.test:80 200 TCP_TUNNEL:HIER_DIRECT"
    );
    assert_eq!(origin.seen().await.len(), 1);

    let (outcome, _) = run(
        &world,
        &to.send(&Hello::new(Some("evil.test")).bytes()).read_to_end(),
    )
    .await;
    assert_eq!(outcome.alert(), Some(ACCESS_DENIED));
    assert_eq!(origin.seen().await.len(), 1);
}

async fn a_client_that_leaves_before_the_hello_is_logged_as_nothing_known() {
    let world = World::new().await;
    let origin = recorder(&world, 1).await;

    let (_, output) = run(&world, &script().send(&[22, 3, 1]).step(Step::Reset)).await;

    let log = squid_log::combined(&output.log);
    assert_eq!(log.len(), 1, "{}", output.log);
    assert_eq!(log[0].outcome(), "NONE_NONE:HIER_NONE", "{}", output.log);
    origin.was_never_reached().await;
}

async fn an_encrypted_hello_is_judged_by_its_outer_name() {
    let (outcome, log) = is_refused(&Hello::new(Some("evil.test")).encrypted_client_hello().bytes()).await;
    assert_eq!(outcome.alert(), Some(ACCESS_DENIED));
    assert_eq!(log.gist(), "CONNECT evil.test:443 403 TCP_DENIED:HIER_NONE");
}
