//! The time between two agents, when the first is asked to stop and leaves everything in force for the second.

use std::fs;

use egress_common::{counter::outcome_index, outcome::Outcome};
use egress_tests::{
    agent::verb,
    clients::{Client, curl},
    daemon::Daemon,
    lab::{
        World,
        traces::{attached, entries_of},
    },
    looping::Looping,
    promises,
};
use nix::sys::signal::Signal;
use serde_json::Value;

promises![
    a_successor_serves_what_waited_for_it,
    a_successor_answers_the_lookups_that_waited_for_it,
    a_machine_holds_before_there_is_an_agent,
    who_has_handed_over_stays_until_it_is_stopped,
    the_probe_tells_whether_an_agent_serves,
    a_cleanup_that_names_a_living_agent_fails,
];

async fn a_successor_serves_what_waited_for_it() {
    let world = World::new().await;
    let second = world.another_client("second", 3).await;
    let _good = world.http("good.test").await;
    let other = world.http("other.test").await;
    let mut daemon = Daemon::start(&world, "onStop: hold\ndrainSeconds: 10").await;
    let allowed = world.sockets("good.test", 80)[0];
    let denied = world.sockets("other.test", 80)[0];
    let passing = Looping::start(&world, &daemon, "a", &second, allowed, "good.test").await;
    let refused = Looping::start(&world, &daemon, "a", &second, denied, "other.test").await;
    for _ in 0..3 {
        daemon.end_by(Signal::SIGTERM);
        assert!(daemon.pins().is_dir(), "what enforces stays");
        let (successor, old) = daemon.succeed(&[]).await;
        old.finish().await.succeeded();
        passing.goes_on(60).await;
        refused.goes_on(60).await;
        daemon = successor;
    }
    let (passing, refused) = (passing.end().await, refused.end().await);
    passing.were_only(&["200"]);
    refused.were_only(&["403"]);
    other.was_never_reached().await;
    assert!(passing.slowest < 20.0, "{passing:?}");
    let status = daemon.status().await.unwrap_or_default();
    assert_eq!(status["generation"], 4, "{status}");
    let (pins, state, instance) = (daemon.pins(), daemon.state(), daemon.instance.clone());
    daemon.stop().await.succeeded();
    assert!(pins.is_dir(), "this one leaves everything, too");
    clean(&world, &instance).await;
    assert!(!pins.exists() && !state.exists());
}

/// By glibc, which gives up at once if it is told that its query was dropped; from a network namespace that the first agent
/// served, and from one that no agent has seen.
async fn a_successor_answers_the_lookups_that_waited_for_it() {
    let world = World::new().await;
    let second = world.another_client("second", 3).await;
    let _good = world.http("good.test").await;
    let daemon = Daemon::start(&world, "onStop: hold").await;
    assert_eq!(daemon.codes("a", &second).await, "200,403,");
    daemon.end_by(Signal::SIGTERM);
    let third = world.another_client("third", 4).await;
    let before = queries_held(&daemon).await;
    let lookup = Client::new("getent").words("ahostsv4 good.test");
    let lookups = [&second, &third].map(|place| world.start_in(place, &daemon.tree.join("a"), &lookup));
    daemon
        .eventually("both have asked", async || {
            queries_held(&daemon).await >= before + 2
        })
        .await;
    let (daemon, old) = daemon.succeed(&[]).await;
    old.finish().await.succeeded();
    for lookup in lookups {
        let output = lookup.finish().await;
        let text = output.succeeded().text();
        assert!(text.contains("198.51.100.10"), "{text}");
    }
    assert!(world.workload_dns.questions().is_empty());
    let instance = daemon.instance.clone();
    daemon.stop().await.succeeded();
    clean(&world, &instance).await;
}

/// By the kernel's own count, which needs no agent.
async fn queries_held(daemon: &Daemon<'_>) -> u64 {
    let of_a_processor = |value: &Value| value["value"].as_u64().unwrap_or(0);
    let number = outcome_index(Outcome::QueryHeld);
    entries_of(&daemon.pins().join("COUNTS"))
        .await
        .iter()
        .filter(|entry| entry["formatted"]["key"].as_u64() == Some(number.into()))
        .filter_map(|entry| entry["formatted"]["values"].as_array())
        .flatten()
        .map(of_a_processor)
        .sum()
}

async fn a_machine_holds_before_there_is_an_agent() {
    let world = World::new().await;
    let second = world.another_client("second", 3).await;
    let good = world.http("good.test").await;
    let other = world.http("other.test").await;
    // For its configuration, and where everything is.
    let daemon = Daemon::start(&world, "onStop: hold").await;
    daemon.end_by(Signal::SIGTERM);
    clean(&world, &daemon.instance).await;
    assert_eq!(attached(&daemon.tree).await, "", "a machine that has just booted");

    let hold = daemon.rival(&daemon.tree, &["--hold"]);
    hold.finish().await.succeeded();
    let waits = |origin: &str| {
        let client = curl(&world).words(&format!(
            "--ipv4 --max-time 60 --output /dev/null --write-out %{{http_code}} http://{origin}/"
        ));
        world.start_in(&second, &daemon.tree.join("a"), &client)
    };
    let (allowed, denied) = (waits("good.test"), waits("other.test"));
    let (daemon, old) = daemon.succeed(&[]).await;
    old.finish().await.succeeded();
    assert_eq!(allowed.finish().await.text(), "200");
    assert_eq!(denied.finish().await.text(), "403");
    assert_eq!(good.requests().await.len(), 1);
    other.was_never_reached().await;
    let instance = daemon.instance.clone();
    daemon.stop().await.succeeded();
    clean(&world, &instance).await;
}

/// A kubelet starts a container whose process has ended again.
async fn who_has_handed_over_stays_until_it_is_stopped() {
    let world = World::new().await;
    let second = world.another_client("second", 3).await;
    let _good = world.http("good.test").await;
    let daemon = Daemon::start(&world, "onStop: hold").await;
    let (daemon, old) = daemon.succeed(&["--take-over"]).await;
    old.complains("waiting to be stopped").await;
    assert_eq!(daemon.codes("a", &second).await, "200,403,");
    old.signal(Signal::SIGTERM);
    old.finish().await.succeeded();
    assert_eq!(daemon.codes("a", &second).await, "200,403,");
    let instance = daemon.instance.clone();
    daemon.stop().await.succeeded();
    clean(&world, &instance).await;
}

async fn the_probe_tells_whether_an_agent_serves() {
    let world = World::new().await;
    let daemon = Daemon::start(&world, "").await;
    let probe = async || {
        verb(&world, &world.client, &["probe", &daemon.instance])
            .start()
            .finish()
            .await
    };
    probe().await.succeeded();
    let status = daemon.status().await.unwrap_or_default();
    assert_eq!(
        status["connections"]["no_flow"], 0,
        "nobody has to wonder about them: {status}"
    );
    assert!(status["connections"]["accepted"].as_u64() > Some(0), "{status}");
    // A process that is there and does nothing.
    daemon.running.signal(Signal::SIGSTOP);
    let stopped = probe().await;
    daemon.running.signal(Signal::SIGCONT);
    assert!(stopped.stderr.contains("does not answer"), "{}", stopped.stderr);
    daemon.kill();
    let dead = probe().await;
    assert!(dead.stderr.contains("does not answer"), "{}", dead.stderr);
    assert!(fs::metadata(daemon.pins()).is_ok(), "dead, and in force");
    let instance = daemon.instance.clone();
    daemon.running.finish().await;
    clean(&world, &instance).await;
}

/// As a readiness probe it would call a node clean.
async fn a_cleanup_that_names_a_living_agent_fails() {
    let world = World::new().await;
    let daemon = Daemon::start(&world, "").await;
    let cleanup = verb(&world, &world.client, &["cleanup", &daemon.instance]);
    let cleaned = cleanup.start().finish().await;
    assert!(cleaned.failed().text().contains("is running, left alone"));
    assert!(daemon.pins().is_dir());
    let instance = daemon.instance.clone();
    daemon.stop().await.succeeded();
    clean(&world, &instance).await;
}

async fn clean(world: &World, instance: &str) {
    let words = ["cleanup", instance];
    verb(world, &world.client, &words)
        .start()
        .finish()
        .await
        .succeeded();
}
