//! An allowed name whose origin cannot be reached fails as it would without the agent: soon, and saying why.

use egress_tests::{
    agent::{Finished, Format},
    clients::{curl, raw},
    dns::Answer,
    hello::Hello,
    lab::{World, address, ip},
    promises,
    raw_client::{Outcome, Script},
    squid_log::{self, Line},
};

promises![
    an_origin_that_refuses_looks_refused_in_http,
    an_origin_that_refuses_looks_reset_in_tls,
    an_unreachable_origin_is_told_at_once,
    an_origin_that_never_answers_is_given_up,
    a_name_that_does_not_exist_is_told,
    a_resolver_that_fails_is_told,
    a_dead_address_does_not_hide_a_living_one,
    an_origin_that_speaks_no_http_is_told,
];

/// Asks for `/` of `name` at an address that is not its own, and tells the status, the error header and the log's line.
async fn ask(world: &World, name: &str) -> (String, Line) {
    let client = curl(world)
        .words("--include --output - --max-time 60 --write-out \\n%{http_code}")
        .arg("--resolve")
        .arg(format!("{name}:80:198.51.100.99"))
        .arg(format!("http://{name}/"));
    let output = world.exec().allow(name).log(Format::Combined).run(&client).await;
    (output.succeeded().text(), squid_log::single(&output.log))
}

/// The same in TLS.
async fn hello(world: &World, name: &str) -> (Outcome, Finished) {
    let script = Script::to(address("198.51.100.99:443"))
        .send(&Hello::new(Some(name)).bytes())
        .read_to_end();
    let output = world
        .exec()
        .allow(name)
        .log(Format::Combined)
        .run(&raw(world, &script))
        .await;
    (Outcome::single(&output.succeeded().text()), output)
}

#[track_caller]
fn is_told(answer: &str, status: u16, squid_error: &str) {
    assert!(answer.ends_with(&format!("\n{status}")), "{answer}");
    let header = format!("\r\nx-squid-error: {squid_error} ").to_lowercase();
    assert!(
        answer.to_lowercase().contains(&header),
        "no {squid_error} in {answer}"
    );
}

async fn an_origin_that_refuses_looks_refused_in_http() {
    let world = World::new().await;

    let (answer, line) = ask(&world, "good.test").await;

    is_told(&answer, 503, "ERR_CONNECT_FAIL");
    assert_eq!(
        (line.status, line.hierarchy.as_str()),
        (503, "HIER_DIRECT"),
        "{line:?}"
    );
}

async fn an_origin_that_refuses_looks_reset_in_tls() {
    let world = World::new().await;

    let (outcome, output) = hello(&world, "good.test").await;

    assert_eq!(outcome.error(), Some("ConnectionReset"), "{outcome:?}");
    assert!(
        outcome.times.last().is_some_and(|millis| *millis < 2000),
        "{outcome:?}"
    );
    let line = squid_log::single(&output.log);
    assert_eq!(
        (line.status, line.hierarchy.as_str()),
        (503, "HIER_DIRECT"),
        "{line:?}"
    );
}

async fn an_unreachable_origin_is_told_at_once() {
    let world = World::new().await;
    world
        .zone
        .set("far.test", Answer::Addresses(vec![ip("203.0.113.5")]));
    // A router that answers: "host unreachable".
    world.origins.sysctl("net/ipv4/ip_forward", "1").await;
    world.origins.ip("route del local 203.0.113.0/24 dev lo").await;
    world.origins.ip("route add unreachable 203.0.113.0/24").await;

    let (answer, line) = ask(&world, "far.test").await;

    is_told(&answer, 503, "ERR_CONNECT_FAIL");
    assert_eq!(line.status, 503);
    assert_eq!(hello(&world, "far.test").await.0.error(), Some("ConnectionReset"));
}

async fn an_origin_that_never_answers_is_given_up() {
    let world = World::new().await;
    world
        .zone
        .set("silent.test", Answer::Addresses(vec![ip("203.0.113.5")]));
    // A host that does not forward drops what is not for it without a word.
    world.origins.ip("route del local 203.0.113.0/24 dev lo").await;

    let (answer, line) = ask(&world, "silent.test").await;

    is_told(&answer, 504, "ERR_CONNECT_FAIL");
    assert_eq!(line.status, 504);
}

async fn a_name_that_does_not_exist_is_told() {
    let world = World::new().await;

    let (answer, line) = ask(&world, "nowhere.test").await;

    is_told(&answer, 502, "ERR_DNS_FAIL");
    assert_eq!(
        (line.status, line.hierarchy.as_str()),
        (502, "HIER_NONE"),
        "{line:?}"
    );
    assert_eq!(
        hello(&world, "nowhere.test").await.0.error(),
        Some("ConnectionReset")
    );
}

async fn a_resolver_that_fails_is_told() {
    let world = World::new().await;
    world.zone.set("broken.test", Answer::ServerFailure);

    let (answer, line) = ask(&world, "broken.test").await;

    is_told(&answer, 502, "ERR_DNS_FAIL");
    assert_eq!(line.status, 502);
}

/// Happy Eyeballs: the next address is tried long before the first one is given up.
async fn a_dead_address_does_not_hide_a_living_one() {
    let world = World::new().await;
    let origin = world.http("good.test").await;
    // No route to the first, no answer from the second.
    let dead = [ip("2001:db8:9::1"), ip("203.0.113.5")];
    world.origins.ip("route del local 203.0.113.0/24 dev lo").await;
    let addresses = dead
        .into_iter()
        .chain(world.zone.addresses("good.test"))
        .collect();
    world.zone.set("good.test", Answer::Addresses(addresses));

    let begun = std::time::Instant::now();
    let (answer, _) = ask(&world, "good.test").await;

    is_status(&answer, 200);
    assert!(begun.elapsed().as_secs() < 5, "{:?}", begun.elapsed());
    assert_eq!(origin.requests().await.len(), 1);
}

#[track_caller]
fn is_status(answer: &str, status: u16) {
    assert!(answer.ends_with(&format!("\n{status}")), "{answer}");
}

async fn an_origin_that_speaks_no_http_is_told() {
    let world = World::new().await;
    let _origin = world
        .raw("good.test", 80, |mut connection| async move {
            connection.read_some().await?;
            connection.send(b"220 mail.test ESMTP\r\n").await?;
            connection.finish_sending().await?;
            connection.hash_to_end().await.map(drop)
        })
        .await;

    let (answer, line) = ask(&world, "good.test").await;

    is_status(&answer, 502);
    assert_eq!(
        (line.status, line.hierarchy.as_str()),
        (502, "HIER_DIRECT"),
        "{line:?}"
    );
}
