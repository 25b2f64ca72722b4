//! The laboratory itself, without any agent: what the other tests rest on.

use egress_tests::{
    bytes::digest_of_payload,
    clients::{Client, raw, shell},
    hello::Hello,
    lab::{World, address},
    origins::RawConnection,
    promises,
    raw_client::{Outcome, Script, Step},
    squid_log,
};

promises![
    an_origin_sees_what_a_direct_client_does,
    nothing_leads_out_of_a_world,
    a_raw_script_and_its_origin_agree_on_every_byte,
    a_world_leaves_no_cgroup_behind,
    the_log_reader_takes_squids_lines_and_no_others,
];

async fn an_origin_sees_what_a_direct_client_does() {
    let world = World::new().await;
    let tls = world.https("good.test").await;
    let clear = world.http("other.test").await;
    let bystander = world.https("evil.test").await;

    let client = Client::new("curl")
        .words("--silent --show-error --max-time 30 --cacert")
        .arg(world.path("ca.pem"))
        .arg("https://good.test/")
        .arg("http://other.test/bytes/5000");
    let output = world.directly(&client).await;

    output.succeeded();
    assert!(
        output.text().starts_with("hello from good.test\n"),
        "{}",
        output.story()
    );
    assert_eq!(output.stdout.len(), "hello from good.test\n".len() + 5000);
    let seen = tls.seen().await;
    assert_eq!(seen.len(), 1);
    assert_eq!(seen[0].server_name.as_deref(), Some("good.test"));
    assert_eq!(seen[0].alpn.as_deref(), Some("h2"));
    assert_eq!(seen[0].requests[0].host, "good.test");
    let requests = clear.requests().await;
    assert_eq!(
        (requests[0].version.as_str(), requests[0].target.as_str()),
        ("HTTP/1.1", "/bytes/5000")
    );
    bystander.was_never_reached().await;
    assert_eq!(world.workload_dns.names_asked(), ["good.test", "other.test"]);
    assert!(world.agent_dns.questions().is_empty());
}

async fn nothing_leads_out_of_a_world() {
    let world = World::new().await;
    for place in [&world.client, &world.origins] {
        let default = place
            .run(async {
                let output = |family| {
                    std::process::Command::new("ip")
                        .args([family, "route", "show", "default"])
                        .output()
                };
                [output("-4"), output("-6")]
                    .map(|result| result.expect("ip runs").stdout)
                    .concat()
            })
            .await;
        assert!(default.is_empty(), "{}", String::from_utf8_lossy(&default));
    }
}

async fn a_raw_script_and_its_origin_agree_on_every_byte() {
    let world = World::new().await;
    let hello = Hello::new(Some("good.test")).records_of(50).bytes();
    let length = hello.len();
    let origin = world
        .raw(
            "good.test",
            443,
            move |mut connection: RawConnection| async move {
                connection.read_exact(length).await?;
                let digest = connection.hash_to_end().await?;
                connection.send(digest.as_bytes()).await
            },
        )
        .await;

    let script = Script::to(address("198.51.100.10:443"))
        .send_in_pieces(&hello, 7, 0)
        .step(Step::SendPayload(3_000_000))
        .finish_sending()
        .read_to_end()
        .times(3);
    let output = world.directly(&raw(&world, &script)).await;

    let outcomes = Outcome::parse(&output.succeeded().text());
    assert_eq!(outcomes.len(), 3);
    for outcome in outcomes {
        assert_eq!(outcome.failure, None);
        assert_eq!(outcome.text(), digest_of_payload(3_000_000));
        assert_eq!(outcome.peer, Some(address("198.51.100.10:443")));
    }
    let seen = origin.seen().await;
    assert_eq!(seen.len(), 3);
    assert!(seen.iter().all(|seen| seen.first.starts_with(&hello)));
}

async fn a_world_leaves_no_cgroup_behind() {
    let world = World::new().await;
    let path = world.cgroup.path().to_owned();
    let child = world.cgroup.child("a");
    let running = world.start_in(&world.client, &child, &shell("echo ready; sleep 1000"));
    running.says("ready").await;
    drop(running);
    drop(world);
    assert!(!path.exists());
}

async fn the_log_reader_takes_squids_lines_and_no_others() {
    let line = r#"192.0.2.2 - - [10/Oct/2026:13:55:36 +0000] "GET http://good.test/a%20b HTTP/1.1" 200 381 "-" "a \"b\"" TCP_MISS:HIER_DIRECT"#;
    let read = squid_log::combined(line);
    assert_eq!(
        read[0].gist(),
        "GET http://good.test/a%20b 200 TCP_MISS:HIER_DIRECT"
    );
    assert_eq!((read[0].bytes, read[0].user_agent.as_str()), (381, r#"a \"b\""#));
    let line = "1700000000.123     45 192.0.2.2 TCP_TUNNEL/200 3145 CONNECT good.test:443 - HIER_DIRECT/198.51.100.10 -";
    let read = squid_log::native(line);
    assert_eq!(read[0].gist(), "CONNECT good.test:443 200 TCP_TUNNEL:HIER_DIRECT");
    assert_eq!(
        (read[0].milliseconds, read[0].upstream.as_str()),
        (45, "198.51.100.10")
    );
    for (right, wrong) in [
        ("     45", " 45"),
        ("TUNNEL/200", "TUNNEL/20"),
        (".123", ".12"),
        (" - HIER", " HIER"),
    ] {
        assert_eq!(
            squid_log::native_line(&line.replace(right, wrong)),
            None,
            "{wrong}"
        );
    }
}
