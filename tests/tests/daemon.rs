//! `egress-agent run`: a cgroup tree with several workloads, policies that change, a log that is rotated, and an end
//! that hurts nobody.

use std::{fs, os::unix::fs::MetadataExt, time::Duration};

use egress_tests::{
    agent::{Running, verb},
    clients::{curl, raw},
    daemon::{Daemon, both, policy},
    hello::Hello,
    lab::{
        Place, World, address,
        traces::{attached, listeners},
    },
    promises,
    raw_client::{Outcome, Script, Step},
};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

promises![
    two_workloads_are_judged_each_by_its_own_policies,
    a_workload_born_after_the_daemon_is_judged,
    a_new_policy_file_is_in_force_without_a_restart,
    a_broken_policy_file_leaves_the_last_good_set_in_force,
    sighup_reopens_the_log,
    sigterm_lets_open_tunnels_end_and_leaves_nothing,
    sigterm_ends_tunnels_at_the_deadline,
    an_open_tunnel_is_told_of_where_that_is_asked_for,
    status_tells_what_is_in_force,
    a_killed_daemon_leaves_everything_closed_until_cleanup,
    an_exec_beside_the_daemon_keeps_its_own_rules,
    unselected_workloads_are_observed,
    a_direct_connection_to_the_listener_is_closed,
    a_threaded_cgroup_is_no_obstacle,
];

/// A world with origins for both names, and a second client.
async fn world() -> (World, Place) {
    let world = World::new().await;
    let second = world.another_client("second", 3).await;
    (world, second)
}

async fn two_workloads_are_judged_each_by_its_own_policies() {
    let (world, second) = world().await;
    let third = world.another_client("third", 4).await;
    let good = world.http("good.test").await;
    let other = world.http("other.test").await;
    let daemon = Daemon::start(&world, "").await;

    assert_eq!(daemon.codes("a", &second).await, "200,403,");
    assert_eq!(daemon.codes("b", &third).await, "403,200,");

    let peers: Vec<_> = good
        .seen()
        .await
        .into_iter()
        .chain(other.seen().await)
        .map(|seen| seen.peer.ip())
        .collect();
    let expected = ["198.18.3.2", "198.18.4.2"].map(egress_tests::lab::ip);
    assert_eq!(peers, expected, "each from its own namespace");
    daemon
        .eventually("four records", async || daemon.log().len() == 4)
        .await;
    let who: Vec<_> = daemon
        .log()
        .iter()
        .map(|record| record["namespace"].clone())
        .collect();
    assert_eq!(who, ["team-a", "team-a", "team-b", "team-b"]);
    assert_eq!(world.agent_dns.names_asked(), ["good.test", "other.test"]);
    daemon.stop().await.succeeded();
}

async fn a_workload_born_after_the_daemon_is_judged() {
    let (world, second) = world().await;
    let good = world.http("good.test").await;
    let daemon = Daemon::start(&world, "").await;
    // A cgroup below the workload's own, and a namespace that did not exist when the daemon started.
    world.cgroup.child("tree/a/late/later");
    let late = world.another_client("late", 5).await;

    assert_eq!(daemon.codes("a/late/later", &late).await, "200,403,");
    assert_eq!(daemon.codes("a", &second).await, "200,403,");

    assert_eq!(good.requests().await.len(), 2);
}

async fn a_new_policy_file_is_in_force_without_a_restart() {
    let (world, second) = world().await;
    let _good = world.http("good.test").await;
    let _other = world.http("other.test").await;
    let daemon = Daemon::start(&world, "").await;
    assert_eq!(daemon.codes("a", &second).await, "200,403,");

    world.file("policies/more.yaml", &policy("more", "team-a", "other.test"));
    daemon
        .eventually("both are allowed", async || {
            daemon.codes("a", &second).await == "200,200,"
        })
        .await;

    fs::remove_file(world.path("policies/a.yaml")).expect("the file is there");
    daemon
        .eventually("one is allowed", async || {
            daemon.codes("a", &second).await == "403,200,"
        })
        .await;
}

async fn a_broken_policy_file_leaves_the_last_good_set_in_force() {
    let (world, second) = world().await;
    let _good = world.http("good.test").await;
    let _other = world.http("other.test").await;
    let daemon = Daemon::start(&world, "").await;

    world.file("policies/more.yaml", &policy("more", "team-a", "*"));
    daemon
        .eventually("it is told", async || {
            daemon
                .status()
                .await
                .is_some_and(|status| !status["policy_error"].is_null())
        })
        .await;
    let status = daemon.status().await.unwrap_or_default();
    assert!(
        status["policy_error"].to_string().contains("more.yaml:6:"),
        "{status}"
    );
    assert_eq!(daemon.codes("a", &second).await, "200,403,");

    world.file("policies/more.yaml", &policy("more", "team-a", "other.test"));
    daemon
        .eventually("it is mended", async || {
            daemon.codes("a", &second).await == "200,200,"
        })
        .await;
    assert!(
        daemon
            .status()
            .await
            .is_some_and(|status| status["policy_error"].is_null())
    );
}

async fn sighup_reopens_the_log() {
    let (world, second) = world().await;
    let _good = world.http("good.test").await;
    let daemon = Daemon::start(&world, "").await;
    daemon.codes("a", &second).await;
    daemon
        .eventually("two records", async || daemon.log().len() == 2)
        .await;

    fs::rename(world.path("log.json"), world.path("log.json.1")).expect("the log is there");
    daemon.running.signal(Signal::SIGHUP);
    daemon
        .eventually("a new file", async || world.path("log.json").exists())
        .await;
    daemon.codes("a", &second).await;
    daemon
        .eventually("two records in the new file", async || daemon.log().len() == 2)
        .await;

    let old = fs::read_to_string(world.path("log.json.1")).unwrap_or_default();
    assert_eq!(old.lines().count(), 2, "nothing more goes to the old one");
    let inodes =
        ["log.json", "log.json.1"].map(|name| fs::metadata(world.path(name)).map(|data| data.ino()).ok());
    assert_ne!(inodes[0], inodes[1]);
}

/// A tunnel that echoes, opened by a client that waits for the file `go` before it goes on.
async fn open_tunnel<'w>(world: &'w World, daemon: &Daemon<'w>, second: &Place) -> Running<'w> {
    let script = Script::to(address("198.51.100.10:443"))
        .send(&Hello::new(Some("good.test")).bytes())
        .read_until(b"ready")
        .step(Step::Say("open".to_owned()))
        .step(Step::AwaitFile(world.path("go")))
        .send(b"late")
        .finish_sending()
        .read_to_end();
    let tunnel = world.start_in(second, &daemon.tree.join("a"), &raw(world, &script));
    tunnel.says("open").await;
    tunnel
}

async fn echoing_origin(world: &World) -> egress_tests::origins::Origin {
    world
        .raw("good.test", 443, |mut connection| async move {
            connection.read_record().await?;
            connection.send(b"ready").await?;
            loop {
                let bytes = connection.read_some().await?;
                if bytes.is_empty() {
                    return Ok(());
                }
                connection.send(&bytes).await?;
            }
        })
        .await
}

async fn sigterm_lets_open_tunnels_end_and_leaves_nothing() {
    let (world, second) = world().await;
    let _origin = echoing_origin(&world).await;
    let daemon = Daemon::start(&world, "drainSeconds: 30").await;
    let tunnel = open_tunnel(&world, &daemon, &second).await;

    daemon.running.signal(Signal::SIGTERM);
    daemon
        .eventually("no listener", async || listeners(&second).await.is_empty())
        .await;
    // New ones are refused meanwhile: never let past.
    let refused = daemon
        .run("a", &second, &curl(&world).arg("http://other.test/"))
        .await;
    refused.failed();
    world.file("go", "");

    let outcome = Outcome::single(&tunnel.finish().await.text().replace("open\n", ""));
    assert_eq!(
        (outcome.failure.clone(), outcome.text()),
        (None, "readylate".to_owned())
    );
    let tree = daemon.tree.clone();
    let output = daemon.running.finish().await;
    output.succeeded();
    assert_eq!(attached(&tree).await, "");
    let text = fs::read_to_string(world.path("log.json")).unwrap_or_default();
    assert!(
        text.contains("good.test"),
        "the tunnel's record is written before the end: {text}"
    );
}

async fn sigterm_ends_tunnels_at_the_deadline() {
    let (world, second) = world().await;
    let _origin = echoing_origin(&world).await;
    let daemon = Daemon::start(&world, "drainSeconds: 1").await;
    let tunnel = open_tunnel(&world, &daemon, &second).await;

    let tree = daemon.tree.clone();
    let log = world.path("log.json");
    let output = daemon.stop().await;

    output.succeeded();
    assert!(output.took < Duration::from_secs(20), "{:?}", output.took);
    assert_eq!(attached(&tree).await, "");
    world.file("go", "");
    let outcome = Outcome::single(&tunnel.finish().await.text().replace("open\n", ""));
    assert!(outcome.failure.is_some(), "{outcome:?}");
    let text = fs::read_to_string(log).unwrap_or_default();
    assert!(text.contains("\"drained\""), "{text}");
}

async fn an_open_tunnel_is_told_of_where_that_is_asked_for() {
    let (world, second) = world().await;
    let _origin = echoing_origin(&world).await;
    let log = format!("{}, opened: true", world.path("log.json").display());
    let daemon = Daemon::start_logging_to(&world, &log, "drainSeconds: 1").await;
    let tunnel = open_tunnel(&world, &daemon, &second).await;

    daemon
        .eventually("the tunnel is told of", async || daemon.log().len() == 1)
        .await;
    let opened = daemon.log().remove(0);
    assert_eq!(opened["ending"], "open", "{opened}");
    assert_eq!(opened["outcome"], "allowed_by_rule", "{opened}");
    assert_eq!(opened["bytes_to_client"], 0, "{opened}");

    let log = world.path("log.json");
    daemon.stop().await.succeeded();
    world.file("go", "");
    tunnel.finish().await;
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    assert_eq!(lines.len(), 2, "{text}");
    assert_eq!(lines[1]["ending"], "drained", "{text}");
    // How the two are known to be about the same tunnel.
    for field in ["client", "original", "upstream"] {
        assert_eq!(lines[0][field], lines[1][field], "{text}");
    }
}

async fn status_tells_what_is_in_force() {
    let (world, second) = world().await;
    let _good = world.http("good.test").await;
    let daemon = Daemon::start(&world, "").await;
    daemon.codes("a", &second).await;

    let status = daemon.status().await.unwrap_or_default();

    assert_eq!(status["cgroup"], daemon.tree.display().to_string(), "{status}");
    assert_eq!(status["policies"], 2, "{status}");
    assert_eq!(status["connections"]["accepted"], 2, "{status}");
    assert!(
        status["pid"]
            .as_i64()
            .is_some_and(|pid| pid == i64::from(daemon.running.pid().as_raw())),
        "{status}"
    );
    // The tree, and the two workloads.
    for (table, entries, most) in [
        ("members", 3, 32768),
        ("direct", 0, 65536),
        ("flows", 0, 65536),
        ("listeners", 2, 16384),
    ] {
        let told = &status["tables"][table];
        assert_eq!(
            told,
            &json!({"entries": entries, "most": most}),
            "{table}: {status}"
        );
    }
    let text = verb(&world, &world.client, &["status"]).start().finish().await;
    let text = text.succeeded().text();
    for words in [
        daemon.instance.as_str(),
        "  policies     2\n",
        "  members      3 of 32768 cgroups, enforced in 2 ways\n",
        "  direct       0 of 65536 flows past the agent\n",
        "listeners 2 of 16384",
    ] {
        assert!(text.contains(words), "{words}: {text}");
    }
}

async fn a_killed_daemon_leaves_everything_closed_until_cleanup() {
    let (world, second) = world().await;
    let good = world.http("good.test").await;
    let daemon = Daemon::start(&world, "").await;
    assert_eq!(daemon.codes("a", &second).await, "200,403,");

    daemon.running.signal(Signal::SIGKILL);
    let (tree, running, instance) = (daemon.tree, daemon.running, daemon.instance);
    running.finish().await;
    let client = curl(&world).arg("http://good.test/");
    let begun = std::time::Instant::now();
    let closed = world.start_in(&second, &tree.join("a"), &client).finish().await;
    assert_eq!(closed.code(), 7, "refused at once: {}", closed.story());
    assert!(begun.elapsed() < Duration::from_secs(2));
    assert_eq!(good.requests().await.len(), 1);

    verb(&world, &world.client, &["cleanup", &instance])
        .start()
        .finish()
        .await
        .succeeded();
    assert_eq!(attached(&tree).await, "");
    world
        .start_in(&second, &tree.join("a"), &client)
        .finish()
        .await
        .succeeded();
}

async fn an_exec_beside_the_daemon_keeps_its_own_rules() {
    let (world, second) = world().await;
    let _good = world.http("good.test").await;
    let _other = world.http("other.test").await;
    let daemon = Daemon::start(&world, "").await;

    // Beside, not below: the exec's cgroup is no member of the daemon's tree.
    let output = world
        .exec()
        .at(&second)
        .allow("other.test")
        .run(&both(&world))
        .await;
    output.succeeded().printed("403,200,");
    assert_eq!(daemon.codes("a", &second).await, "200,403,");
}

async fn unselected_workloads_are_observed() {
    let (world, second) = world().await;
    let good = world.http("good.test").await;
    let _other = world.http("other.test").await;
    let daemon = Daemon::start(&world, "").await;
    fs::remove_file(world.path("policies/b.yaml")).expect("the file is there");

    daemon
        .eventually("everything passes", async || {
            daemon.codes("b", &second).await == "200,200,"
        })
        .await;

    let passed = || -> Vec<Value> {
        let records = daemon.log().into_iter();
        records
            .filter(|record| record["outcome"] == "unselected")
            .collect()
    };
    daemon
        .eventually("it is logged", async || !passed().is_empty())
        .await;
    let passed = passed();
    assert!(
        passed.iter().all(|record| record["namespace"] == "team-b"),
        "{passed:#?}"
    );
    assert!(!good.requests().await.is_empty());
    assert_eq!(
        daemon.codes("a", &second).await,
        "200,403,",
        "the other workload's policy stays"
    );
}

/// The listener is no open proxy: it serves what the kernel has redirected to it, and nothing else.
async fn a_direct_connection_to_the_listener_is_closed() {
    let (world, second) = world().await;
    let origin = echoing_origin(&world).await;
    let _web = world.http("good.test").await;
    let daemon = Daemon::start(&world, "").await;
    daemon.codes("a", &second).await;
    let endpoints = listeners(&second).await;
    assert!(!endpoints.is_empty());

    let hello = Hello::new(Some("good.test")).bytes();
    for endpoint in endpoints {
        let script = Script::to(address(&endpoint)).send(&hello).read_to_end();
        let client = raw(&world, &script);
        // From outside the enforced tree, and from within it.
        for cgroup in [world.cgroup.path().to_owned(), daemon.tree.join("a")] {
            let output = world.start_in(&second, &cgroup, &client).finish().await;
            let outcome = Outcome::single(&output.text());
            assert_eq!(outcome.received, "", "{endpoint}: {outcome:?}");
            assert!(
                outcome.times.last().is_some_and(|millis| *millis < 3000),
                "{endpoint}: {outcome:?}"
            );
        }
    }

    origin.was_never_reached().await;
    let counted = daemon.status().await.unwrap_or_default()["connections"]["no_flow"].as_u64();
    assert!(counted.is_some_and(|count| count > 0), "{counted:?}");
}

/// Who may write below its own cgroup can make one whose list of processes nobody can read.
async fn a_threaded_cgroup_is_no_obstacle() {
    let (world, second) = world().await;
    let _good = world.http("good.test").await;
    let threaded = world.cgroup.child("tree/a/threaded");
    fs::write(threaded.join("cgroup.type"), "threaded").expect("it becomes threaded");
    let listed = fs::read_to_string(threaded.join("cgroup.procs"));
    assert!(listed.is_err(), "{listed:?}");

    let daemon = Daemon::start(&world, "").await;

    assert_eq!(daemon.codes("a", &second).await, "200,403,");
}
