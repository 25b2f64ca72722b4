//! Behind a parent proxy, which is a real squid here: allowed names are handed to it, refused ones are not.

use std::{fs, os::unix::fs::PermissionsExt};

use egress_tests::{
    agent::Format,
    clients::{curl, shell},
    daemon::Daemon,
    lab::{CLIENT_V4, World},
    promises,
    squid::{Log, Squid},
    squid_log,
};

promises![
    names_are_handed_to_a_parent_proxy,
    what_a_parent_proxy_refuses_is_told,
    a_parent_proxy_is_told_who_asks,
];

/// What squid tells of a request.
const TOLD: Log = Log::defined("told", "%>a %rm %ru %un %>Hs");

/// A script of these requests; they may fail.
fn requests(world: &World, urls: &[&str]) -> egress_tests::clients::Client {
    let curl = curl(world).words("--output /dev/null --write-out %{http_code},");
    let words: Vec<_> = curl.arguments.iter().map(|word| word.to_string_lossy()).collect();
    let lines: Vec<_> = urls
        .iter()
        .map(|url| format!("{} {} {url}", curl.program.display(), words.join(" ")))
        .collect();
    shell(&format!("{}; true", lines.join("; ")))
}

/// Asserts what squid was told next, from the workload's own address.
async fn told(squid: &Squid<'_>, request: &str) {
    let line = String::from_utf8(squid.line("told").await).expect("ASCII");
    assert_eq!(line, format!("{CLIENT_V4} {request}"));
}

async fn names_are_handed_to_a_parent_proxy() {
    let world = World::new().await;
    let good = [world.http("good.test").await, world.https("good.test").await];
    let evil = world.https("evil.test").await;
    let other = world.http("other.test").await;
    let squid = Squid::start(&world, &[TOLD]).await;
    let finished = world
        .exec()
        .allow("good.test")
        .args(["--parent-proxy", &squid.address().to_string()])
        .log(Format::Squid)
        .run(&requests(
            &world,
            &[
                "http://good.test/bytes/9000",
                "https://good.test/bytes/9000",
                "http://other.test/",
                "https://evil.test/",
            ],
        ))
        .await;
    finished.succeeded();
    assert_eq!(finished.stdout, b"200,200,403,000,", "{}", finished.story());
    told(&squid, "GET http://good.test/bytes/9000 - 200").await;
    told(&squid, "CONNECT good.test:443 - 200").await;
    let lines = squid_log::native(&finished.log);
    // One process's record may come before that of the one before it: each is logged when its last byte has been taken.
    let mut gist: Vec<_> = lines
        .iter()
        .map(|line| {
            format!(
                "{} {} {}/{}",
                line.url, line.result, line.hierarchy, line.upstream
            )
        })
        .collect();
    gist.sort_unstable();
    assert_eq!(
        gist,
        [
            "evil.test:443 TCP_DENIED HIER_NONE/-",
            "good.test:443 TCP_TUNNEL FIRSTUP_PARENT/192.0.2.2",
            "http://good.test/bytes/9000 TCP_MISS FIRSTUP_PARENT/192.0.2.2",
            "http://other.test/ TCP_DENIED HIER_NONE/-",
        ],
        "{}",
        finished.story()
    );
    for origin in &good {
        assert_eq!(origin.seen().await.len(), 1);
    }
    squid.stop().await;
    evil.was_never_reached().await;
    other.was_never_reached().await;
}

async fn what_a_parent_proxy_refuses_is_told() {
    let world = World::new().await;
    let evil = [world.http("evil.test").await, world.https("evil.test").await];
    let squid = Squid::start(&world, &[TOLD]).await;
    let address = squid.address().to_string();
    let run = async || {
        let finished = world
            .exec()
            .allow("evil.test")
            .args(["--parent-proxy", &address])
            .log(Format::Json)
            .run(&requests(&world, &["http://evil.test/", "https://evil.test/"]))
            .await;
        finished.succeeded();
        let records: Vec<serde_json::Value> = finished
            .log
            .lines()
            .map(|line| serde_json::from_str(line).expect("JSON"))
            .collect();
        // The next run would append.
        fs::remove_file(world.path("access.log")).expect("a log");
        let mut gist: Vec<_> = records
            .iter()
            .map(|record| {
                format!(
                    "{} {} {}",
                    record["status"], record["outcome"], record["squid_hierarchy"]
                )
            })
            .collect();
        gist.sort_unstable();
        (String::from_utf8_lossy(&finished.stdout).into_owned(), gist)
    };
    let (codes, records) = run().await;
    assert_eq!(codes, "403,000,");
    assert_eq!(
        records,
        [
            r#"403 "allowed_by_rule" "FIRSTUP_PARENT""#,
            r#"503 "parent_failed" "FIRSTUP_PARENT""#
        ]
    );
    told(&squid, "GET http://evil.test/ - 403").await;
    told(&squid, "CONNECT evil.test:443 - 403").await;
    squid.stop().await;
    // Nobody is there any more: as if nobody listened at the origin's own address.
    let (codes, records) = run().await;
    assert_eq!(codes, "503,000,");
    assert_eq!(
        records,
        [
            r#"503 "origin_refused" "FIRSTUP_PARENT""#,
            r#"503 "origin_refused" "FIRSTUP_PARENT""#
        ]
    );
    for origin in evil {
        origin.was_never_reached().await;
    }
}

async fn a_parent_proxy_is_told_who_asks() {
    let world = World::new().await;
    let good = world.http("good.test").await;
    let other = world.http("other.test").await;
    let helper = world.file(
        "squid-users",
        "#!/bin/sh\nwhile read -r who; do [ \"$who\" = 'agent secret' ] && echo OK || echo ERR; done\n",
    );
    fs::set_permissions(&helper, fs::Permissions::from_mode(0o755)).expect("chmod");
    let access = format!(
        "auth_param basic program {}\nauth_param basic children 1\nauth_param basic realm test\n\
         acl known proxy_auth REQUIRED\nhttp_access deny !known\nhttp_access allow all\n",
        helper.display()
    );
    let squid = Squid::start_with(&world, &[TOLD], &access).await;
    let credentials = world.file("parent-proxy", "agent:secret\n");
    let config = format!(
        "parentProxy: {{address: '{}', credentialsFile: {}, direct: [other.test]}}",
        squid.address(),
        credentials.display()
    );
    let daemon = Daemon::start(&world, &config).await;
    assert_eq!(daemon.codes("a", &world.client).await, "200,403,");
    told(&squid, "GET http://good.test/ agent 200").await;
    // A name that is left out.
    assert_eq!(daemon.codes("b", &world.client).await, "403,200,");
    daemon
        .eventually("four records", async || daemon.log().len() == 4)
        .await;
    let mut hierarchies: Vec<_> = daemon
        .log()
        .iter()
        .map(|record| {
            format!(
                "{} {} {}",
                record["namespace"], record["host"], record["squid_hierarchy"]
            )
        })
        .collect();
    hierarchies.sort_unstable();
    assert_eq!(
        hierarchies,
        [
            r#""team-a" "good.test" "FIRSTUP_PARENT""#,
            r#""team-a" "other.test" "HIER_NONE""#,
            r#""team-b" "good.test" "HIER_NONE""#,
            r#""team-b" "other.test" "HIER_DIRECT""#,
        ]
    );
    assert!(
        !fs::read_to_string(world.path("log.json"))
            .expect("a log")
            .contains("secret")
    );
    daemon.stop().await.succeeded();
    squid.stop().await;
    assert_eq!(good.seen().await.len(), 1);
    assert_eq!(other.seen().await.len(), 1);
}
