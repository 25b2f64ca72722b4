//! The life of an agent: killed, followed by another, interfered with, cleaned up after. Whatever happens to it, nothing
//! passes unjudged.

use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    time::{Duration, Instant},
};

use egress_tests::{
    agent::verb,
    clients::curl,
    daemon::Daemon,
    lab::{
        Place, World,
        traces::{Traces, attached},
    },
    looping::Looping,
    promises,
    require::tool,
};
use nix::sys::signal::Signal;
use serde_json::Value;

promises![
    after_a_kill_the_next_agent_takes_over_without_a_gap,
    after_a_kill_the_next_agent_serves_the_ports_of_the_one_before,
    maps_of_another_layout_are_replaced_without_a_gap,
    an_agent_for_another_cgroup_does_not_take_over,
    a_start_that_fails_leaves_a_killed_agents_programs_in_force,
    a_detached_link_is_attached_again_within_a_second,
    removed_pins_are_made_again,
    cleanup_after_a_takeover_leaves_nothing,
];

/// A world, a second client, and a daemon.
async fn world() -> (World, Place) {
    let world = World::new().await;
    let second = world.another_client("second", 3).await;
    (world, second)
}

/// A denied connect while there is an agent, and while there is none.
const REFUSALS: [&str; 3] = ["403", "ECONNREFUSED", "ECONNRESET"];

async fn after_a_kill_the_next_agent_takes_over_without_a_gap() {
    let (world, second) = world().await;
    let _good = world.http("good.test").await;
    let other = world.http("other.test").await;
    let daemon = Daemon::start(&world, "").await;
    let denied = world.sockets("other.test", 80)[0];
    let looping = Looping::start(&world, &daemon, "a", &second, denied, "other.test").await;
    let before = Traces::of(daemon.running.pid());
    let programs = attached(&daemon.tree).await;

    let daemon = daemon.kill_and_succeed().await;
    looping.goes_on(100).await;
    let daemon = daemon.kill_and_succeed().await;
    looping.goes_on(100).await;

    let attempts = looping.end().await;
    attempts.were_only(&REFUSALS);
    assert!(
        attempts.outcomes.get("403").is_some_and(|count| *count >= 200),
        "{attempts:?}"
    );
    other.was_never_reached().await;
    assert_eq!(daemon.codes("a", &second).await, "200,403,");
    let after = Traces::of(daemon.running.pid());
    assert_eq!(
        before.of_kind("link"),
        after.of_kind("link"),
        "the links are the same ones"
    );
    assert_ne!(
        programs,
        attached(&daemon.tree).await,
        "and run the new agent's programs"
    );
    assert_eq!(
        programs.lines().count(),
        attached(&daemon.tree).await.lines().count(),
        "none is there twice"
    );
    let status = daemon.status().await.unwrap_or_default();
    assert_eq!(
        (&status["generation"], &status["repairs"]),
        (&Value::from(3), &Value::from(0)),
        "{status}"
    );
    daemon.stop().await.succeeded();
}

async fn after_a_kill_the_next_agent_serves_the_ports_of_the_one_before() {
    let (world, second) = world().await;
    let _good = world.http("good.test").await;
    let daemon = Daemon::start(&world, "").await;
    assert_eq!(daemon.codes("a", &second).await, "200,403,");
    let before = egress_tests::lab::traces::listeners(&second).await;
    // Somebody of the workload is there all the time: the namespace is in use.
    let sleeper = world.start_in(
        &second,
        &daemon.tree.join("a"),
        &egress_tests::clients::shell("echo there; sleep 600"),
    );
    sleeper.says("there").await;

    let daemon = daemon.kill_and_succeed().await;

    let after = egress_tests::lab::traces::listeners(&second).await;
    assert_eq!(before, after, "without a connect that asks for them");
    assert_eq!(daemon.codes("a", &second).await, "200,403,");
    sleeper.signal(Signal::SIGKILL);
    sleeper.finish().await;
}

async fn maps_of_another_layout_are_replaced_without_a_gap() {
    let (world, second) = world().await;
    let _good = world.http("good.test").await;
    let other = world.http("other.test").await;
    let daemon = Daemon::start(&world, "").await;
    let denied = world.sockets("other.test", 80)[0];
    let looping = Looping::start(&world, &daemon, "a", &second, denied, "other.test").await;

    // Another version of the whole, as its note says.
    daemon.kill();
    let note = daemon.state().join("traces.json");
    let mut traces: Value =
        serde_json::from_str(&fs::read_to_string(&note).unwrap_or_default()).unwrap_or_default();
    assert!(
        traces["layout"].as_u64().is_some_and(|layout| layout > 0),
        "{traces}"
    );
    traces["layout"] = Value::from(4711);
    fs::write(&note, traces.to_string()).expect("the note is ours");
    let before = pinned_map(&daemon.pins().join("FLOWS")).await;
    let (daemon, killed) = daemon.succeed(&[]).await;
    killed.finish().await;
    daemon.running.complains("of another layout").await;
    looping.goes_on(100).await;
    assert_ne!(before, pinned_map(&daemon.pins().join("FLOWS")).await);

    // One map of another size, under the same layout.
    daemon.kill();
    let pin = daemon.pins().join("PORTS");
    fs::remove_file(&pin).expect("the pin is there");
    bpftool(&[
        "map",
        "create",
        &pin.display().to_string(),
        "type",
        "hash",
        "key",
        "2",
        "value",
        "4",
        "entries",
        "7",
        "name",
        "PORTS",
    ])
    .await;
    let flows = pinned_map(&daemon.pins().join("FLOWS")).await;
    let (daemon, killed) = daemon.succeed(&[]).await;
    killed.finish().await;
    looping.goes_on(100).await;
    assert_eq!(
        flows,
        pinned_map(&daemon.pins().join("FLOWS")).await,
        "the others stay"
    );

    let attempts = looping.end().await;
    attempts.were_only(&REFUSALS);
    other.was_never_reached().await;
    assert_eq!(daemon.codes("a", &second).await, "200,403,");
    daemon.stop().await.succeeded();
}

async fn an_agent_for_another_cgroup_does_not_take_over() {
    let (world, second) = world().await;
    let good = world.http("good.test").await;
    let daemon = Daemon::start(&world, "").await;
    assert_eq!(daemon.codes("a", &second).await, "200,403,");
    daemon.kill();
    let elsewhere = world.cgroup.child("elsewhere");
    let before = attached(&daemon.tree).await;

    let rival = daemon.rival(&elsewhere, &[]).finish().await;

    rival.failed();
    assert!(
        rival.stderr.contains("in force in another cgroup"),
        "{}",
        rival.story()
    );
    assert_eq!(before, attached(&daemon.tree).await);
    assert_eq!(
        daemon
            .run("a", &second, &curl(&world).arg("http://good.test/"))
            .await
            .code(),
        7
    );
    assert_eq!(good.requests().await.len(), 1, "none but the first");
    clean_up(&world, &daemon.instance).await;
}

async fn a_start_that_fails_leaves_a_killed_agents_programs_in_force() {
    let (world, second) = world().await;
    let good = world.http("good.test").await;
    let daemon = Daemon::start(&world, "").await;
    assert_eq!(daemon.codes("a", &second).await, "200,403,");
    daemon.kill();
    // Together with other processes in the enforced cgroup it must not start.
    let inside = daemon.rival_in(&daemon.tree).finish().await;
    inside.failed();
    let closed = daemon
        .run("a", &second, &curl(&world).arg("http://good.test/"))
        .await;
    assert_eq!(closed.code(), 7, "{}", closed.story());
    assert_eq!(good.requests().await.len(), 1, "none but the first");
    let (daemon, killed) = daemon.succeed(&[]).await;
    killed.finish().await;
    assert_eq!(daemon.codes("a", &second).await, "200,403,");
}

async fn a_detached_link_is_attached_again_within_a_second() {
    let (world, second) = world().await;
    let _good = world.http("good.test").await;
    let other = world.http("other.test").await;
    let daemon = Daemon::start(&world, "").await;
    let whole = attached(&daemon.tree).await.lines().count();

    for program in ["egress_connect4", "egress_tcp", "egress_packet", "egress_create"] {
        let pin = daemon.pins().join(program).display().to_string();
        bpftool(&["link", "detach", "pinned", &pin]).await;
        let begun = Instant::now();
        daemon
            .running
            .complains(&format!("repaired name=\"{program}\""))
            .await;
        assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
        assert_eq!(attached(&daemon.tree).await.lines().count(), whole);
    }

    assert_eq!(daemon.codes("a", &second).await, "200,403,");
    other.was_never_reached().await;
    let status = daemon.status().await.unwrap_or_default();
    assert_eq!(status["repairs"], 4, "{status}");
    let text = verb(&world, &world.client, &["status"]).start().finish().await;
    assert!(text.text().contains("REPAIRED     4"), "{}", text.story());
    daemon.stop().await.succeeded();
}

async fn removed_pins_are_made_again() {
    let (world, second) = world().await;
    let good = world.http("good.test").await;
    let daemon = Daemon::start(&world, "").await;
    assert_eq!(daemon.codes("a", &second).await, "200,403,");
    let pins = names(&daemon.pins());
    assert!(
        pins.contains("egress_connect4") && pins.contains("FLOWS"),
        "{pins:?}"
    );

    for pin in &pins {
        fs::remove_file(daemon.pins().join(pin)).expect("the pin is there");
    }
    fs::remove_dir(daemon.pins()).expect("the directory is empty");

    daemon
        .eventually("all pins are there again", async || names(&daemon.pins()) == pins)
        .await;
    // And do what pins are for.
    daemon.kill();
    let closed = daemon
        .run("a", &second, &curl(&world).arg("http://good.test/"))
        .await;
    assert_eq!(closed.code(), 7, "{}", closed.story());
    assert_eq!(good.requests().await.len(), 1, "none but the first");
    let (daemon, killed) = daemon.succeed(&[]).await;
    killed.finish().await;
    assert_eq!(daemon.codes("a", &second).await, "200,403,");
    daemon.stop().await.succeeded();
}

async fn cleanup_after_a_takeover_leaves_nothing() {
    let (world, second) = world().await;
    let _good = world.http("good.test").await;
    let daemon = Daemon::start(&world, "").await;
    let daemon = daemon.kill_and_succeed().await;
    assert_eq!(daemon.codes("a", &second).await, "200,403,");
    let traces = Traces::of(daemon.running.pid());
    let (pins, state, tree) = (daemon.pins(), daemon.state(), daemon.tree.clone());
    let instance = daemon.instance.clone();
    daemon.kill();
    daemon.running.finish().await;
    // Also where the note was lost.
    fs::write(state.join("traces.json"), "{").expect("the note is ours");

    clean_up(&world, &instance).await;

    traces.are_gone().await;
    assert!(!pins.exists() && !state.exists());
    assert_eq!(attached(&tree).await, "");
}

async fn clean_up(world: &World, instance: &str) {
    verb(world, &world.client, &["cleanup", instance])
        .start()
        .finish()
        .await
        .succeeded();
}

fn names(directory: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(directory).into_iter().flatten();
    entries
        .filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned()))
        .collect()
}

/// The number of the map that is pinned at `path`.
async fn pinned_map(path: &Path) -> String {
    let text = bpftool(&["map", "show", "pinned", &path.display().to_string()]).await;
    text.split(':').next().unwrap_or_default().to_owned()
}

async fn bpftool(words: &[&str]) -> String {
    let output = tokio::process::Command::new(tool("bpftool"))
        .args(words)
        .output()
        .await
        .expect("bpftool runs");
    assert!(
        output.status.success(),
        "bpftool {words:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}
