//! The main job: a connect is judged by the name on the wire, and the name's own address is reached.

use egress_tests::{
    agent::Format,
    clients::{curl, raw, shell},
    dns::Answer,
    hello::Hello,
    lab::{AGENT_DNS, CLIENT_V4, World, address, ip},
    patience, promises,
    raw_client::{Outcome, Script},
    squid_log,
};

promises![
    allowed_tls_name_works_and_is_logged_as_a_tunnel,
    denied_tls_name_fails_at_once_and_reaches_neither_origin_nor_dns,
    allowed_http_name_works_and_is_logged_with_its_url,
    denied_http_name_gets_a_403_and_reaches_neither_origin_nor_dns,
    an_allowed_name_at_a_forbidden_address_reaches_the_names_own_address,
    the_dialled_address_is_kept_when_it_is_one_of_the_names,
    a_name_without_any_rule_is_denied_by_default,
    an_alias_is_judged_by_the_name_that_was_asked_for,
    a_wildcard_allows_one_label_and_not_the_name_itself,
    a_public_name_with_a_private_address_is_refused,
    a_private_address_declared_internal_is_reached_untouched,
    the_system_resolver_is_asked_where_no_nameserver_is_told,
    audit_lets_a_denied_name_pass_and_says_what_would_have_been,
    children_and_grandchildren_are_judged_too,
];

/// The name in a hello is the only thing that tells where it wants to go: no lookup by the client itself.
fn resolved(name: &str, port: u16, to: &str) -> [String; 2] {
    ["--resolve".to_owned(), format!("{name}:{port}:{to}")]
}

async fn allowed_tls_name_works_and_is_logged_as_a_tunnel() {
    let world = World::new().await;
    let origin = world.https("good.test").await;

    let client = curl(&world).arg("--ipv4").arg("https://good.test/bytes/100000");
    let output = world
        .exec()
        .allow("good.test")
        .log(Format::Combined)
        .run(&client)
        .await;

    assert_eq!(output.succeeded().stdout.len(), 100_000);
    let seen = origin.seen().await;
    assert_eq!(seen.len(), 1);
    assert_eq!(seen[0].server_name.as_deref(), Some("good.test"));
    assert_eq!(
        seen[0].peer.ip(),
        ip(CLIENT_V4),
        "the workload's own address is kept"
    );
    let log = squid_log::combined(&output.log);
    assert_eq!(log.len(), 1, "{}", output.log);
    assert_eq!(log[0].gist(), "CONNECT good.test:443 200 TCP_TUNNEL:HIER_DIRECT");
    assert_eq!(log[0].client, CLIENT_V4);
    assert!(log[0].bytes > 100_000, "{}", output.log);
    assert_eq!(world.agent_dns.names_asked(), ["good.test"]);
}

async fn denied_tls_name_fails_at_once_and_reaches_neither_origin_nor_dns() {
    let world = World::new().await;
    let origin = world.https("evil.test").await;

    let client = curl(&world)
        .words("--write-out %{time_total}")
        .args(resolved("evil.test", 443, "198.51.100.66"))
        .arg("https://evil.test/");
    let output = world
        .exec()
        .allow("good.test")
        .log(Format::Combined)
        .run(&client)
        .await;

    assert_eq!(
        output.code(),
        35,
        "curl's code for a failed handshake: {}",
        output.story()
    );
    assert!(
        output.stderr.contains("alert access denied"),
        "{}",
        output.story()
    );
    let seconds: f64 = output.text().parse().expect("curl tells the time");
    assert!(seconds < patience::seconds(1).as_secs_f64(), "took {seconds} s");
    let log = squid_log::combined(&output.log);
    assert_eq!(log.len(), 1, "{}", output.log);
    assert_eq!(log[0].gist(), "CONNECT evil.test:443 403 TCP_DENIED:HIER_NONE");
    assert_eq!(log[0].client, CLIENT_V4);
    origin.was_never_reached().await;
    assert!(world.agent_dns.questions().is_empty());
    assert!(world.workload_dns.questions().is_empty());
}

async fn allowed_http_name_works_and_is_logged_with_its_url() {
    let world = World::new().await;
    let origin = world.http("good.test").await;

    let client = curl(&world).arg("http://good.test/bytes/70000?q=1");
    let output = world
        .exec()
        .allow("good.test")
        .log(Format::Combined)
        .run(&client)
        .await;

    assert_eq!(output.succeeded().stdout.len(), 70_000);
    let requests = origin.requests().await;
    assert_eq!(requests.len(), 1);
    assert_eq!(
        (requests[0].host.as_str(), requests[0].target.as_str()),
        ("good.test", "/bytes/70000?q=1")
    );
    let log = squid_log::combined(&output.log);
    assert_eq!(log.len(), 1, "{}", output.log);
    assert_eq!(
        log[0].gist(),
        "GET http://good.test/bytes/70000?q=1 200 TCP_MISS:HIER_DIRECT"
    );
    assert!(log[0].user_agent.starts_with("curl/"), "{}", output.log);
    assert!(log[0].bytes > 70_000, "{}", output.log);
}

async fn denied_http_name_gets_a_403_and_reaches_neither_origin_nor_dns() {
    let world = World::new().await;
    let origin = world.http("evil.test").await;

    let client = curl(&world)
        .words("--include --write-out %{time_total}")
        .args(resolved("evil.test", 80, "198.51.100.66"))
        .arg("http://evil.test/secret");
    let output = world
        .exec()
        .allow("good.test")
        .log(Format::Combined)
        .run(&client)
        .await;

    let answer = output.succeeded().text();
    assert!(answer.starts_with("HTTP/1.1 403 "), "{answer}");
    assert!(
        answer
            .to_lowercase()
            .contains("\r\nx-squid-error: err_access_denied 0\r\n"),
        "{answer}"
    );
    assert!(
        answer.contains("evil.test"),
        "the page names what was refused: {answer}"
    );
    let log = squid_log::combined(&output.log);
    assert_eq!(log.len(), 1, "{}", output.log);
    assert_eq!(
        log[0].gist(),
        "GET http://evil.test/secret 403 TCP_DENIED:HIER_NONE"
    );
    origin.was_never_reached().await;
    assert!(world.agent_dns.questions().is_empty());
}

async fn an_allowed_name_at_a_forbidden_address_reaches_the_names_own_address() {
    let world = World::new().await;
    let good = world.https("good.test").await;
    let evil = world.https("evil.test").await;

    let client = curl(&world)
        .args(resolved("good.test", 443, "198.51.100.66"))
        .arg("https://good.test/");
    let output = world
        .exec()
        .allow("good.test")
        .log(Format::Json)
        .run(&client)
        .await;

    output.succeeded().printed("hello from good.test\n");
    assert_eq!(good.seen().await.len(), 1);
    evil.was_never_reached().await;
    let log = output.json_log();
    assert_eq!(log.len(), 1, "{}", output.log);
    assert_eq!(log[0]["address"], "mismatch", "{}", output.log);
}

async fn the_dialled_address_is_kept_when_it_is_one_of_the_names() {
    let world = World::new().await;
    let addresses = ["198.51.100.31", "198.51.100.32", "198.51.100.33"];
    world.zone.set(
        "many.test",
        Answer::Addresses(addresses.iter().map(|text| ip(text)).collect()),
    );
    let origin = world.https("many.test").await;

    for dialled in addresses {
        let client = curl(&world)
            .args(resolved("many.test", 443, dialled))
            .arg("https://many.test/");
        let output = world
            .exec()
            .allow("many.test")
            .log(Format::Json)
            .run(&client)
            .await;
        output.succeeded();
        let seen = origin.seen().await;
        assert_eq!(seen.last().map(|seen| seen.local.ip()), Some(ip(dialled)));
        assert_eq!(
            output.json_log().last().map(|record| record["address"].clone()),
            Some("match".into())
        );
    }
}

async fn a_name_without_any_rule_is_denied_by_default() {
    let world = World::new().await;
    let origin = world.https("good.test").await;

    let output = world.exec().run(&curl(&world).arg("https://good.test/")).await;

    output.failed();
    origin.was_never_reached().await;
    assert!(world.agent_dns.questions().is_empty());
}

async fn an_alias_is_judged_by_the_name_that_was_asked_for() {
    let world = World::new().await;
    world
        .zone
        .set("www.good.test", Answer::Alias("evil.test".to_owned()));
    let origin = world.http("evil.test").await;

    let client = curl(&world).arg("http://www.good.test/");
    let output = world.exec().allow("www.good.test").run(&client).await;

    // The name's owner says where it lives: the alias is not a second request.
    output.succeeded();
    assert_eq!(origin.requests().await[0].host, "www.good.test");
}

async fn a_wildcard_allows_one_label_and_not_the_name_itself() {
    let world = World::new().await;
    for name in ["a.good.test", "b.a.good.test"] {
        world
            .zone
            .set(name, Answer::Addresses(world.zone.addresses("good.test")));
    }
    let origin = world.http("good.test").await;

    let mut codes = Vec::new();
    for name in ["a.good.test", "b.a.good.test", "good.test", "agood.test"] {
        let client = curl(&world)
            .words("--output /dev/null --write-out %{http_code}")
            .args(resolved(name, 80, "198.51.100.10"))
            .arg(format!("http://{name}/"));
        codes.push(world.exec().allow("*.good.test").run(&client).await.text());
    }

    assert_eq!(codes, ["200", "403", "403", "403"]);
    assert_eq!(origin.requests().await.len(), 1);
}

async fn a_public_name_with_a_private_address_is_refused() {
    let world = World::new().await;
    world
        .zone
        .set("rebind.test", Answer::Addresses(vec![ip("10.66.0.10")]));
    let origin = world.http("rebind.test").await;

    let client = curl(&world)
        .words("--output /dev/null --write-out %{http_code}")
        .args(resolved("rebind.test", 80, "198.51.100.10"))
        .arg("http://rebind.test/");
    let output = world.exec().allow("rebind.test").run(&client).await;

    output.succeeded().printed("403");
    origin.was_never_reached().await;
}

async fn a_private_address_declared_internal_is_reached_untouched() {
    let world = World::new().await;
    world
        .zone
        .set("inside.test", Answer::Addresses(vec![ip("10.66.0.10")]));
    let origin = world.http("inside.test").await;

    let client = curl(&world).arg("http://inside.test/");
    let output = world
        .exec()
        .arg("--internal")
        .arg("10.66.0.0/16")
        .arg("--internal-name")
        .arg("inside.test")
        .log(Format::Combined)
        .run(&client)
        .await;

    output.succeeded().printed("hello from inside.test\n");
    assert_eq!(origin.seen().await.len(), 1);
    assert_eq!(output.log, "", "what is internal is neither judged nor logged");
}

async fn the_system_resolver_is_asked_where_no_nameserver_is_told() {
    let world = World::new().await;
    let origin = world.https("good.test").await;

    let client = curl(&world)
        .args(resolved("good.test", 443, "198.51.100.66"))
        .arg("https://good.test/");
    let output = world
        .exec()
        .system_resolver()
        .allow("good.test")
        .run(&client)
        .await;

    output.succeeded();
    assert_eq!(origin.seen().await.len(), 1);
    assert_eq!(world.workload_dns.names_asked(), ["good.test"]);
    assert!(world.agent_dns.questions().is_empty(), "{AGENT_DNS} was not told");
}

async fn audit_lets_a_denied_name_pass_and_says_what_would_have_been() {
    let world = World::new().await;
    let origin = world.https("evil.test").await;

    let client = curl(&world)
        .args(resolved("evil.test", 443, "198.51.100.66"))
        .arg("https://evil.test/");
    let output = world
        .exec()
        .arg("--audit")
        .allow("good.test")
        .log(Format::Json)
        .run(&client)
        .await;

    output.succeeded().printed("hello from evil.test\n");
    assert_eq!(origin.seen().await.len(), 1);
    let log = output.json_log();
    assert_eq!(log.len(), 1, "{}", output.log);
    assert_eq!(log[0]["outcome"], "no_rule", "{}", output.log);
    assert_eq!(log[0]["enforced"], false, "{}", output.log);

    // Whatever the bytes are: the connection is passed on to where it was dialled.
    let recorder = world
        .raw("good.test", 443, |mut connection| async move {
            connection.read_exact(4).await?;
            connection.send(b"pong").await
        })
        .await;
    let script = Script::to(address("198.51.100.10:443"))
        .send(b"\x00ing")
        .read_to_end();
    let output = world.exec().arg("--audit").run(&raw(&world, &script)).await;
    assert_eq!(
        Outcome::single(&output.text()).text(),
        "pong",
        "{}",
        output.story()
    );
    assert_eq!(recorder.seen().await.len(), 1);
}

async fn children_and_grandchildren_are_judged_too() {
    let world = World::new().await;
    let origin = world
        .raw("evil.test", 443, |mut connection| async move {
            connection.read_some().await.map(drop)
        })
        .await;
    let hello = Hello::new(Some("evil.test")).bytes();
    let script = Script::to(address("198.51.100.66:443"))
        .send(&hello)
        .read_to_end();
    let client = raw(&world, &script);
    let line = format!(
        "setsid sh -c '{} {} > {out} & ' ; while ! grep -q received {out} 2>/dev/null; do sleep 0.05; done",
        client.program.display(),
        client.arguments[0].display(),
        out = world.path("out").display()
    );

    let output = world.exec().allow("good.test").run(&shell(&line)).await;

    output.succeeded();
    let outcome = Outcome::single(&std::fs::read_to_string(world.path("out")).unwrap_or_default());
    assert_eq!(outcome.alert(), Some(49), "{outcome:?}");
    origin.was_never_reached().await;
}
