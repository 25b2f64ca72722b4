//! The access log as its readers know it: four formats, to a file or to standard error.

use std::fs;

use egress_tests::{
    agent::{Finished, Format},
    clients::curl,
    lab::{CLIENT_V4, World},
    origins::Origin,
    promises, squid_log,
};

promises![
    combined_lines_are_squids,
    native_lines_are_squids,
    common_lines_are_squids,
    json_lines_carry_identity_and_rule,
    no_log_is_written_unless_asked_for,
    a_dash_is_standard_error,
    a_file_is_appended_to,
    the_log_is_readable_by_its_owner_alone,
    what_a_client_sends_cannot_forge_a_line,
];

/// An allowed tunnel, a denied tunnel, an allowed and a denied request: what [`GISTS`] says.
async fn four(world: &World, format: Format) -> Finished {
    let client = curl(world)
        .words("--ipv4 --output /dev/null https://good.test/bytes/1000")
        .words("--output /dev/null https://evil.test/")
        .words("--output /dev/null --referer http://from.test/ http://good.test/bytes/1000?a=b")
        .words("--output /dev/null http://evil.test/x");
    world.exec().allow("good.test").log(format).run(&client).await
}

async fn world() -> (World, [Origin; 2]) {
    let world = World::new().await;
    let origins = [world.http("good.test").await, world.https("good.test").await];
    (world, origins)
}

const GISTS: [&str; 4] = [
    "CONNECT good.test:443 200 TCP_TUNNEL:HIER_DIRECT",
    "CONNECT evil.test:443 403 TCP_DENIED:HIER_NONE",
    "GET http://good.test/bytes/1000?a=b 200 TCP_MISS:HIER_DIRECT",
    "GET http://evil.test/x 403 TCP_DENIED:HIER_NONE",
];

/// Brings the lines, which are written at the end of what they tell of, into the order of [`GISTS`].
#[track_caller]
fn are_the_four(mut lines: Vec<squid_log::Line>) -> Vec<squid_log::Line> {
    lines.sort_by_key(|line| GISTS.iter().position(|gist| *gist == line.gist()));
    assert_eq!(lines.iter().map(squid_log::Line::gist).collect::<Vec<_>>(), GISTS);
    assert!(
        lines
            .iter()
            .all(|line| line.client == CLIENT_V4 && line.user == "-"),
        "{lines:#?}"
    );
    assert!(lines[0].bytes > 1000 && lines[2].bytes > 1000, "{lines:#?}");
    lines
}

async fn combined_lines_are_squids() {
    let (world, _origins) = world().await;
    let output = four(&world, Format::Combined).await;
    let lines = are_the_four(squid_log::combined(&output.log));
    let versions: Vec<&str> = lines.iter().map(|line| line.version.as_str()).collect();
    assert_eq!(versions, ["1.1"; 4]);
    assert_eq!(
        (lines[2].referer.as_str(), lines[0].referer.as_str()),
        ("http://from.test/", "-")
    );
    assert!(lines[2].user_agent.starts_with("curl/"));
    assert_eq!(lines[0].user_agent, "-", "nobody can read it in TLS");
}

async fn native_lines_are_squids() {
    let (world, _origins) = world().await;
    let output = four(&world, Format::Squid).await;
    let lines = are_the_four(squid_log::native(&output.log));
    let upstreams: Vec<&str> = lines.iter().map(|line| line.upstream.as_str()).collect();
    assert_eq!(upstreams, ["198.51.100.10", "-", "198.51.100.10", "-"]);
    let types: Vec<&str> = lines.iter().map(|line| line.content_type.as_str()).collect();
    assert_eq!(
        types[..3],
        ["-", "-", "-"],
        "this origin tells no type of its bytes"
    );
    assert!(types[3].starts_with("text/"), "{types:?}");
}

async fn common_lines_are_squids() {
    let (world, _origins) = world().await;
    let output = four(&world, Format::Common).await;
    are_the_four(squid_log::common(&output.log));
}

async fn json_lines_carry_identity_and_rule() {
    let world = World::new().await;
    let _origin = world.https("good.test").await;
    let policy = "apiVersion: egress-enforcer.io/v1alpha1\nkind: EgressPolicy\n\
                  metadata: {name: horizons, namespace: space}\nspec:\n  podSelector: {matchLabels: {app: horizons}}\n  \
                  egress:\n  - to: [{domain: good.test}]\n";
    let client = curl(&world).arg("https://good.test/").words("https://evil.test/");
    let output = world
        .exec()
        .policy(policy)
        .arg("--namespace")
        .arg("space")
        .arg("--labels")
        .arg("app=horizons,tier=web")
        .log(Format::Json)
        .run(&client)
        .await;

    let mut log = output.json_log();
    assert_eq!(log.len(), 2, "{}", output.log);
    log.sort_by_key(|record| record["status"].as_u64());
    for record in &log {
        assert_eq!(record["namespace"], "space", "{}", output.log);
        assert_eq!(
            (record["command"].as_str(), record["uid"].as_u64()),
            (Some("curl"), Some(0)),
            "{}",
            output.log
        );
    }
    assert!(log[0]["rule"].to_string().contains("horizons"), "{}", output.log);
    assert_eq!(
        (log[0]["outcome"].as_str(), log[1]["outcome"].as_str()),
        (Some("allowed_by_rule"), Some("no_rule"))
    );
    assert_eq!(log[0]["address"], "match", "{}", output.log);
    assert_eq!(log[0]["status"], 200);
    assert_eq!(log[1]["status"], 403);
}

async fn no_log_is_written_unless_asked_for() {
    let (world, _origins) = world().await;
    let output = world
        .exec()
        .allow("good.test")
        .run(&curl(&world).arg("https://good.test/"))
        .await;
    output.succeeded().printed("hello from good.test\n");
    assert_eq!(output.stderr, "");
}

async fn a_dash_is_standard_error() {
    let (world, _origins) = world().await;
    let client = curl(&world).arg("https://good.test/");
    let output = world
        .exec()
        .allow("good.test")
        .arg("--access-log")
        .arg("-")
        .run(&client)
        .await;
    output.succeeded().printed("hello from good.test\n");
    assert_eq!(
        squid_log::single(&output.stderr).gist(),
        GISTS[0],
        "combined is what one gets untold"
    );
}

async fn a_file_is_appended_to() {
    let (world, _origins) = world().await;
    world.file("access.log", "what was there before\n");
    let client = curl(&world).arg("https://good.test/");
    for _ in 0..2 {
        world
            .exec()
            .allow("good.test")
            .log(Format::Combined)
            .run(&client)
            .await
            .succeeded();
    }
    let text = fs::read_to_string(world.path("access.log")).unwrap_or_default();
    let (before, lines) = text.split_once('\n').unwrap_or_default();
    assert_eq!(before, "what was there before");
    assert_eq!(squid_log::combined(lines).len(), 2);
}

/// Whom a workload talks to is nobody else's business.
async fn the_log_is_readable_by_its_owner_alone() {
    use std::os::unix::fs::PermissionsExt;
    let (world, _origins) = world().await;
    world
        .exec()
        .allow("good.test")
        .log(Format::Combined)
        .run(&curl(&world).arg("https://good.test/"))
        .await
        .succeeded();
    let mode = fs::metadata(world.path("access.log"))
        .map(|data| data.permissions().mode())
        .unwrap_or_default();
    assert_eq!(mode & 0o007, 0, "mode {mode:o}");
}

async fn what_a_client_sends_cannot_forge_a_line() {
    let (world, _origins) = world().await;
    let client = curl(&world)
        .words("--output /dev/null --user-agent")
        .arg("quote\" \\ 200 5 TCP_MISS:HIER_DIRECT \"-\"")
        .arg("--referer")
        .arg("http://caf\u{e9}.test/\u{202e}")
        .arg("http://good.test/%0A%22?x='y'");

    let output = world
        .exec()
        .allow("good.test")
        .log(Format::Combined)
        .run(&client)
        .await;

    let line = squid_log::single(&output.log);
    assert_eq!(
        (line.status, line.outcome().as_str()),
        (404, "TCP_MISS:HIER_DIRECT")
    );
    assert_eq!(line.user_agent, r#"quote\" \\ 200 5 TCP_MISS:HIER_DIRECT \"-\""#);
    assert!(
        output
            .log
            .trim_end()
            .bytes()
            .all(|byte| byte >= b' ' && byte != 0x7f),
        "{:?}",
        output.log
    );
}
