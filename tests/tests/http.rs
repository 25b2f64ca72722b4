//! Plain HTTP/1: every request is judged by its own Host, and what passes, passes unchanged.

use egress_tests::{
    agent::{Finished, Format},
    clients::{Client, curl, raw},
    dns::Answer,
    lab::{World, address, ip},
    promises,
    raw_client::{Outcome, Script},
    squid_log,
};

promises![
    a_second_host_on_a_kept_connection_is_judged_again,
    a_denied_request_leaves_the_connection_usable_or_closed_but_never_hanging,
    pipelined_requests_are_judged_one_by_one,
    a_denial_explains_itself,
    http_1_0_passes,
    an_absolute_target_is_judged_by_its_own_host,
    ambiguous_requests_are_refused,
    a_host_with_another_spelling_is_the_same_host,
    the_port_in_the_host_header_is_not_where_it_goes,
    an_address_as_host_is_denied,
    connect_is_refused,
    an_upgrade_to_h2c_does_not_happen,
    an_oversized_head_is_refused,
];

fn script() -> Script {
    Script::to(address("198.51.100.10:80"))
}

async fn run(world: &World, script: &Script) -> (Outcome, Finished) {
    let output = world
        .exec()
        .allow("good.test")
        .log(Format::Combined)
        .run(&raw(world, script))
        .await;
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

/// Two names at one address: curl then keeps one connection for both.
fn one_address_for_two_names(world: &World) {
    world
        .zone
        .set("evil.test", Answer::Addresses(vec![ip("198.51.100.10")]));
    world
        .zone
        .set("good.test", Answer::Addresses(vec![ip("198.51.100.10")]));
}

async fn a_second_host_on_a_kept_connection_is_judged_again() {
    let world = World::new().await;
    one_address_for_two_names(&world);
    let origin = world.http("good.test").await;
    let requests = "GET /1 HTTP/1.1\r\nHost: good.test\r\n\r\n";
    let second = "GET /2 HTTP/1.1\r\nHost: evil.test\r\nConnection: close\r\n\r\n";
    let script = script()
        .send(requests.as_bytes())
        .read_until(b"404 Not Found\n")
        .send(second.as_bytes())
        .read_to_end();

    let (outcome, output) = run(&world, &script).await;

    let text = outcome.text();
    assert!(text.contains("HTTP/1.1 403 "), "{text}");
    assert_eq!(
        gists(&output),
        [
            "GET http://good.test/1 404 TCP_MISS:HIER_DIRECT",
            "GET http://evil.test/2 403 TCP_DENIED:HIER_NONE"
        ]
    );
    let hosts: Vec<String> = origin
        .requests()
        .await
        .into_iter()
        .map(|request| request.host)
        .collect();
    assert_eq!(hosts, ["good.test"]);
    assert_eq!(world.agent_dns.names_asked(), ["good.test"]);
}

async fn a_denied_request_leaves_the_connection_usable_or_closed_but_never_hanging() {
    let world = World::new().await;
    let origin = world.http("good.test").await;
    let first = "GET /1 HTTP/1.1\r\nHost: evil.test\r\n\r\n";
    let second = "GET / HTTP/1.1\r\nHost: good.test\r\nConnection: close\r\n\r\n";

    let (outcome, _) = run(
        &world,
        &script()
            .send(first.as_bytes())
            .send(second.as_bytes())
            .read_to_end(),
    )
    .await;

    let text = outcome.text();
    assert!(text.starts_with("HTTP/1.1 403 "), "{text}");
    let is_served = text.ends_with("hello from good.test\n");
    let says_closed = text.to_lowercase().contains("connection: close");
    assert!(is_served || says_closed, "{text}");
    assert_eq!(origin.requests().await.len(), usize::from(is_served));
}

async fn pipelined_requests_are_judged_one_by_one() {
    let world = World::new().await;
    let origin = world.http("good.test").await;
    let mut requests: String = (0..5)
        .map(|n| format!("GET /bytes/{n} HTTP/1.1\r\nHost: good.test\r\n\r\n"))
        .collect();
    requests.push_str("GET /last HTTP/1.1\r\nHost: evil.test\r\nConnection: close\r\n\r\n");

    let (outcome, output) = run(&world, &script().send(requests.as_bytes()).read_to_end()).await;

    let text = outcome.text();
    assert_eq!(text.matches("HTTP/1.1 200 OK").count(), 5, "{text}");
    assert_eq!(text.matches("HTTP/1.1 403 ").count(), 1, "{text}");
    let targets: Vec<String> = origin
        .requests()
        .await
        .into_iter()
        .map(|request| request.target)
        .collect();
    assert_eq!(
        targets,
        ["/bytes/0", "/bytes/1", "/bytes/2", "/bytes/3", "/bytes/4"]
    );
    assert_eq!(gists(&output).len(), 6);
}

async fn a_denial_explains_itself() {
    let world = World::new().await;
    let client = curl(&world)
        .words("--include --resolve evil.test:80:198.51.100.66 http://evil.test/path?a=%3Cb%3E&c='d'");

    let output = run_client(&world, &client).await;

    let page = output.succeeded().text();
    let (head, body) = page.split_once("\r\n\r\n").unwrap_or_default();
    let head = head.to_lowercase();
    assert!(head.starts_with("http/1.1 403 forbidden"), "{page}");
    assert!(head.contains("x-squid-error: err_access_denied 0"), "{page}");
    assert!(head.contains("content-type: text/"), "{page}");
    assert!(body.contains("evil.test"), "{page}");
    let length = body.len();
    assert!(head.contains(&format!("content-length: {length}")), "{page}");
    assert!(length < 4096, "short: {length} bytes");
}

async fn http_1_0_passes() {
    let world = World::new().await;
    let origin = world.http("good.test").await;

    let output = run_client(&world, &curl(&world).arg("--http1.0").arg("http://good.test/")).await;

    output.succeeded().printed("hello from good.test\n");
    assert_eq!(origin.requests().await.len(), 1);
    assert!(output.log.contains(" HTTP/1.0\" 200 "), "{}", output.log);

    // Without a Host it is the dialled address that is asked for, and no rule allows that.
    let (outcome, _) = run(&world, &script().send(b"GET / HTTP/1.0\r\n\r\n").read_to_end()).await;
    assert!(outcome.text().starts_with("HTTP/1.0 403 "), "{}", outcome.text());
    assert_eq!(origin.requests().await.len(), 1);
}

async fn an_absolute_target_is_judged_by_its_own_host() {
    let world = World::new().await;
    let origin = world.http("good.test").await;
    let good = "GET http://good.test/ HTTP/1.1\r\nHost: good.test\r\nConnection: close\r\n\r\n";
    let evil = "GET http://evil.test/ HTTP/1.1\r\nHost: evil.test\r\nConnection: close\r\n\r\n";

    let (outcome, _) = run(&world, &script().send(good.as_bytes()).read_to_end()).await;
    assert!(
        outcome.text().ends_with("hello from good.test\n"),
        "{}",
        outcome.text()
    );
    let (outcome, _) = run(&world, &script().send(evil.as_bytes()).read_to_end()).await;
    assert!(outcome.text().starts_with("HTTP/1.1 403 "), "{}", outcome.text());
    assert_eq!(origin.requests().await.len(), 1);
}

async fn ambiguous_requests_are_refused() {
    let world = World::new().await;
    let origin = world.http("good.test").await;
    let requests = [
        "GET / HTTP/1.1\r\nConnection: close\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: good.test\r\nHost: evil.test\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: good.test\r\nHost: good.test\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: good.test, evil.test\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: \r\n\r\n",
        "GET / HTTP/1.1\r\nHost: user@good.test\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: good.test/evil.test\r\n\r\n",
        "GET / HTTP/1.1\r\nHost : good.test\r\n\r\n",
        "GET / HTTP/1.1\r\n Host: good.test\r\n\r\n",
        "GET http://evil.test/ HTTP/1.1\r\nHost: good.test\r\n\r\n",
        "GET http://good.test/ HTTP/1.1\r\nHost: evil.test\r\n\r\n",
        "GET http://user@good.test/ HTTP/1.1\r\nHost: good.test\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: good.test\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        "POST / HTTP/1.1\r\nHost: good.test\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        "GET / HTTP/1.1\nHost: good.test\nHost: evil.test\n\n",
    ];
    for request in requests {
        let (outcome, output) = run(&world, &script().send(request.as_bytes()).read_to_end()).await;
        let text = outcome.text();
        assert!(
            text.starts_with("HTTP/1.1 400 "),
            "{request:?} was answered by {text:?}\n{}",
            output.story()
        );
    }
    assert!(
        origin.requests().await.is_empty(),
        "{:#?}",
        origin.requests().await
    );
}

async fn a_host_with_another_spelling_is_the_same_host() {
    let world = World::new().await;
    let origin = world.http("good.test").await;
    for host in ["GOOD.test", "good.test.", "good.test:80", "Good.Test.:80"] {
        let request = format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        let (outcome, _) = run(&world, &script().send(request.as_bytes()).read_to_end()).await;
        assert!(
            outcome.text().starts_with("HTTP/1.1 200 "),
            "{host}: {}",
            outcome.text()
        );
        assert_eq!(
            origin
                .requests()
                .await
                .last()
                .map(|request| request.host.clone())
                .as_deref(),
            Some(host)
        );
    }
}

async fn the_port_in_the_host_header_is_not_where_it_goes() {
    let world = World::new().await;
    let origin = world.http("good.test").await;
    let decoy = world
        .raw("good.test", 8080, |mut connection| async move {
            connection.send(b"decoy").await
        })
        .await;
    let request = "GET / HTTP/1.1\r\nHost: good.test:8080\r\nConnection: close\r\n\r\n";

    let (outcome, output) = run(&world, &script().send(request.as_bytes()).read_to_end()).await;

    decoy.was_never_reached().await;
    let text = outcome.text();
    assert!(
        text.starts_with("HTTP/1.1 200 ") || text.starts_with("HTTP/1.1 400 "),
        "{}",
        output.story()
    );
    assert_eq!(
        origin.requests().await.len(),
        usize::from(text.starts_with("HTTP/1.1 200 "))
    );
}

async fn an_address_as_host_is_denied() {
    let world = World::new().await;
    let origin = world.http("good.test").await;
    for host in ["198.51.100.10", "198.51.100.10:80", "[2001:db8:1::10]"] {
        let request = format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        let (outcome, _) = run(&world, &script().send(request.as_bytes()).read_to_end()).await;
        assert!(
            outcome.text().starts_with("HTTP/1.1 403 "),
            "{host}: {}",
            outcome.text()
        );
    }
    origin.was_never_reached().await;
}

async fn connect_is_refused() {
    let world = World::new().await;
    let origin = world.http("good.test").await;
    let request = "CONNECT good.test:80 HTTP/1.1\r\nHost: good.test:80\r\n\r\n";

    let (outcome, _) = run(&world, &script().send(request.as_bytes()).read_to_end()).await;

    let text = outcome.text();
    assert!(text.starts_with("HTTP/1.1 4"), "{text}");
    origin.was_never_reached().await;
}

/// In HTTP/2 each stream has its own name: an upgraded connection would carry them past the judge.
async fn an_upgrade_to_h2c_does_not_happen() {
    let world = World::new().await;
    let origin = world.http("good.test").await;
    let request = "GET / HTTP/1.1\r\nHost: good.test\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n\
                   HTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n";

    let (outcome, _) = run(
        &world,
        &script()
            .send(request.as_bytes())
            .read_until(b"hello from good.test\n"),
    )
    .await;

    assert!(outcome.text().starts_with("HTTP/1.1 200 "), "{}", outcome.text());
    let requests = origin.requests().await;
    assert_eq!(requests[0].header("upgrade"), Vec::<&str>::new());
    assert_eq!(requests[0].header("http2-settings"), Vec::<&str>::new());
}

async fn an_oversized_head_is_refused() {
    let world = World::new().await;
    let origin = world.http("good.test").await;
    let request = format!(
        "GET / HTTP/1.1\r\nHost: good.test\r\nX-Long: {}\r\n\r\n",
        "x".repeat(70 * 1024)
    );

    let (outcome, _) = run(&world, &script().send(request.as_bytes()).read_to_end()).await;

    let text = outcome.text();
    assert!(
        text.starts_with("HTTP/1.1 431 ") || text.starts_with("HTTP/1.1 400 "),
        "{text}"
    );
    origin.was_never_reached().await;
}
