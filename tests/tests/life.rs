//! The life of an agent: killed, followed by another, interfered with, cleaned up after. Whatever happens to it, nothing
//! passes unjudged.

use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    time::{Duration, Instant},
};

use egress_tests::{
    agent::{Running, verb},
    clients::{curl, python, raw, shell},
    daemon::{Daemon, policy},
    hello::Hello,
    lab::{
        Place, World,
        traces::{Traces, attached, listeners},
    },
    looping::Looping,
    origins::RawConnection,
    patience::seconds,
    promises,
    raw_client::{Outcome, Script, Step},
    require::tool,
};
use nix::sys::signal::Signal;
use serde_json::Value;
use tokio::time::sleep;

promises![
    after_a_kill_the_next_agent_takes_over_without_a_gap,
    after_a_kill_the_next_agent_serves_the_ports_of_the_one_before,
    maps_of_another_layout_are_replaced_without_a_gap,
    an_agent_for_another_cgroup_does_not_take_over,
    a_start_that_fails_leaves_a_killed_agents_programs_in_force,
    a_detached_link_is_attached_again_within_a_second,
    a_replaced_program_is_put_back,
    removed_pins_are_made_again,
    a_hand_over_refuses_no_connect_and_cuts_no_tunnel,
    who_has_handed_over_drains_in_its_own_time_until_it_is_stopped_twice,
    a_hand_over_that_fails_leaves_the_old_agent_serving,
    a_successor_must_ask_for_it_and_for_the_same_cgroup,
    a_successor_serves_on_when_its_predecessor_is_killed,
    a_tunnel_that_new_policies_refuse_is_reset_and_the_others_live_on,
    a_tunnel_that_was_only_audited_is_judged_when_the_policies_enforce,
    cleanup_after_a_takeover_leaves_nothing,
];

/// A world, a second client, and a daemon.
async fn world() -> (World, Place) {
    let world = World::new().await;
    let second = world.another_client("second", 3).await;
    (world, second)
}

/// A denied connect while there is an agent, and while there is none; and if it has read the request when it is killed.
const REFUSALS: [&str; 4] = ["403", "ECONNREFUSED", "ECONNRESET", "nothing"];

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
    let (before, after) = (before.of_kind("link"), after.of_kind("link"));
    assert_eq!(
        before.difference(&after).count(),
        1,
        "the links are the same ones, but for the announcement of programs, which no killed agent needs"
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
    let before = listeners(&second).await;
    // Somebody of the workload is there all the time: the namespace is in use.
    let sleeper = world.start_in(&second, &daemon.tree.join("a"), &shell("echo there; sleep 600"));
    sleeper.says("there").await;

    let daemon = daemon.kill_and_succeed().await;

    let after = listeners(&second).await;
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
    // One that goes to the agent, and one that the kernel refuses by itself.
    let closed = world
        .raw("evil.test", 5432, async |connection| connection.stall().await)
        .await;
    let denied = world.sockets("other.test", 80)[0];
    let looping = Looping::start(&world, &daemon, "a", &second, denied, "other.test").await;
    let denied = world.sockets("evil.test", 5432)[0];
    let refused = Looping::start(&world, &daemon, "a", &second, denied, "evil.test").await;

    // Another version of the whole, as its note says.
    daemon.kill();
    daemon.note_layout(4711);
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
    refused.end().await.were_only(&["EPERM"]);
    closed.was_never_reached().await;
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
        assert!(begun.elapsed() < seconds(1), "{:?}", begun.elapsed());
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

/// Puts the program of one link into another: bpf(2) with BPF_OBJ_GET, BPF_OBJ_GET_INFO_BY_FD, BPF_PROG_GET_FD_BY_ID,
/// BPF_LINK_UPDATE, on x86-64 and on arm64.
const REPLACE: &str = r#"
import ctypes, os, platform, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
number = {"x86_64": 321, "aarch64": 280}[platform.machine()]
def bpf(command, attributes):
    buffer = ctypes.create_string_buffer(attributes)
    result = libc.syscall(number, command, buffer, len(attributes))
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
def link(path):
    name = ctypes.create_string_buffer(path.encode())
    return bpf(7, struct.pack("=QII", ctypes.addressof(name), 0, 0)), name
ours, _a = link(sys.argv[1])
theirs, _b = link(sys.argv[2])
info = ctypes.create_string_buffer(32)
bpf(15, struct.pack("=IIQ", theirs, 32, ctypes.addressof(info)))
program = bpf(13, struct.pack("=III", struct.unpack_from("=I", info.raw, 8)[0], 0, 0))
bpf(29, struct.pack("=IIII", ours, program, 0, 0))
"#;

async fn a_replaced_program_is_put_back() {
    let (world, second) = world().await;
    let _good = world.http("good.test").await;
    let other = world.http("other.test").await;
    let daemon = Daemon::start(&world, "").await;
    let before = attached(&daemon.tree).await;
    let exec = world
        .exec()
        .allow("other.test")
        .start(&shell("echo there; sleep 600"));
    exec.says("there").await;
    let stranger = format!("/sys/fs/bpf/egress/exec-{}/egress_connect4", exec.pid());

    let ours = daemon.pins().join("egress_connect4");
    let replace = python(&world, "replace", REPLACE).arg(ours).arg(stranger);
    world
        .start_in(&world.client, world.cgroup.path(), &replace)
        .finish()
        .await
        .succeeded();

    daemon
        .running
        .complains("repaired name=\"egress_connect4\" found=\"its program was replaced\"")
        .await;
    assert_eq!(before, attached(&daemon.tree).await);
    assert_eq!(daemon.codes("a", &second).await, "200,403,");
    other.was_never_reached().await;
    exec.signal(Signal::SIGTERM);
    exec.finish().await;
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

async fn a_hand_over_refuses_no_connect_and_cuts_no_tunnel() {
    let (world, second) = world().await;
    let good = world.http("good.test").await;
    let other = world.http("other.test").await;
    let echo = world.raw("good.test", 443, echoing).await;
    let mut daemon = Daemon::start(&world, "drainSeconds: 60").await;
    let tunnel = open_tunnel(&world, &daemon, &second).await;
    let allowed = world.sockets("good.test", 80)[0];
    let denied = world.sockets("other.test", 80)[0];
    let passing = Looping::start(&world, &daemon, "a", &second, allowed, "good.test").await;
    let refused = Looping::start(&world, &daemon, "a", &second, denied, "other.test").await;

    let mut retired = Vec::new();
    for _ in 0..3 {
        let (successor, old) = daemon.succeed(&["--take-over"]).await;
        passing.goes_on(60).await;
        refused.goes_on(60).await;
        retired.push(old);
        daemon = successor;
    }
    let status = daemon.status().await.unwrap_or_default();
    assert_eq!(status["generation"], 4, "{status}");
    // Only the first one has something left to do: it holds the tunnel.
    let first = retired.remove(0);
    for old in retired {
        old.finish().await.succeeded();
    }

    let (passing, refused) = (passing.end().await, refused.end().await);
    passing.were_only(&["200"]);
    refused.were_only(&["403"]);
    assert!(
        passing.outcomes["200"] >= 200 && refused.outcomes["403"] >= 200,
        "{passing:?} {refused:?}"
    );
    other.was_never_reached().await;
    world.file("go", "");
    let outcome = Outcome::single(&tunnel.finish().await.text().replace("open\n", ""));
    assert_eq!(
        (outcome.failure.clone(), outcome.text()),
        (None, "readylate".to_owned())
    );
    first.finish().await.succeeded();
    assert_eq!(echo.seen().await.len(), 1);

    // All of them have written to the same file, and every line is whole and there once.
    daemon.stop().await.succeeded();
    let log = fs::read_to_string(world.path("log.json")).unwrap_or_default();
    let records: Vec<Value> = log
        .lines()
        .map(|line| serde_json::from_str(line).expect("a whole line"))
        .collect();
    assert_eq!(
        records.len() as u64,
        passing.outcomes["200"] + refused.outcomes["403"] + 1
    );
    assert_eq!(good.requests().await.len() as u64, passing.outcomes["200"]);
}

/// As a rolling update does it: the old pod is asked to stop as soon as the new one is ready.
async fn who_has_handed_over_drains_in_its_own_time_until_it_is_stopped_twice() {
    let (world, second) = world().await;
    let _echo = world.raw("good.test", 443, echoing).await;
    let daemon = Daemon::start(&world, "onStop: hold\ndrainSeconds: 1\nhandoverDrainSeconds: 60").await;
    let script = Script::to(world.sockets("good.test", 443)[0])
        .send(&Hello::new(Some("good.test")).bytes())
        .read_until(b"ready")
        .step(Step::Say("open".to_owned()))
        .step(Step::AwaitFile(world.path("go")))
        .send(b"late")
        .read_until(b"late")
        .step(Step::Say("echoed".to_owned()))
        .read_to_end();
    let tunnel = world.start_in(&second, &daemon.tree.join("a"), &raw(&world, &script));
    tunnel.says("open").await;

    let (daemon, old) = daemon.succeed(&["--take-over"]).await;
    old.signal(Signal::SIGTERM);
    sleep(Duration::from_millis(2500)).await;
    world.file("go", "");
    tunnel.says("echoed").await;

    old.signal(Signal::SIGTERM);
    old.finish().await.succeeded();
    let told = tunnel.finish().await.text();
    let outcome = Outcome::single(&told.replace("open\n", "").replace("echoed\n", ""));
    assert_eq!(outcome.error(), Some("ConnectionReset"), "{outcome:?}");
    let instance = daemon.instance.clone();
    daemon.stop().await.succeeded();
    clean_up(&world, &instance).await;
}

/// Says what a successor says, up to a point, and ends there.
const FALSE_SUCCESSOR: &str = r#"
import json, socket, sys
channel = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
channel.settimeout(20)
channel.connect(sys.argv[1])
def hear():
    return socket.recv_fds(channel, 65536, 16)[0].decode()
for word in sys.argv[2:]:
    channel.send(word.encode())
    answer = hear()
    assert answer, "it hung up"
    print(answer)
    if "Welcome" in answer:
        for _ in range(json.loads(answer)["Welcome"]["sites"]):
            assert "Site" in hear()
"#;

async fn a_hand_over_that_fails_leaves_the_old_agent_serving() {
    let (world, second) = world().await;
    let _good = world.http("good.test").await;
    let other = world.http("other.test").await;
    let daemon = Daemon::start(&world, "").await;
    let allowed = world.sockets("good.test", 80)[0];
    let passing = Looping::start(&world, &daemon, "a", &second, allowed, "good.test").await;
    let cgroup = daemon.tree.display();
    let hello =
        |version: u32| format!(r#"{{"Hello":{{"version":{version},"agent":"0","cgroup":"{cgroup}"}}}}"#);
    let socket = daemon.state().join("handover.sock");
    let pretend = async |words: &[&str]| {
        let client = python(&world, "successor", FALSE_SUCCESSOR)
            .arg(&socket)
            .args(words);
        world
            .start_in(&world.client, world.cgroup.path(), &client)
            .finish()
            .await
    };

    for words in [&["nonsense"][..], &["\"Ready\""], &[&hello(2), "\"Done\""]] {
        pretend(words).await.failed();
        passing.goes_on(40).await;
    }
    let other_version = pretend(&[&hello(3)]).await;
    assert!(
        other_version.succeeded().text().contains("Refused"),
        "{}",
        other_version.story()
    );
    // After this word the old one accepts nothing, until it sees that the other has gone.
    let late = pretend(&[&hello(2), "\"Ready\""]).await;
    assert!(late.succeeded().text().contains("Yours"), "{}", late.story());
    passing.goes_on(40).await;
    daemon.running.complains("this agent goes on").await;

    let attempts = passing.end().await;
    attempts.were_only(&["200"]);
    let pid = daemon.running.pid().as_raw();
    assert!(
        daemon
            .status()
            .await
            .is_some_and(|status| status["pid"] == pid && status["generation"] == 1)
    );
    assert_eq!(daemon.codes("a", &second).await, "200,403,");
    // It can hand over still.
    let (daemon, old) = daemon.succeed(&["--take-over"]).await;
    old.finish().await.succeeded();
    assert_eq!(daemon.codes("a", &second).await, "200,403,");
    other.was_never_reached().await;
    daemon.stop().await.succeeded();
}

async fn a_successor_must_ask_for_it_and_for_the_same_cgroup() {
    let (world, second) = world().await;
    let _good = world.http("good.test").await;
    let daemon = Daemon::start(&world, "").await;

    let silent = daemon.rival(&daemon.tree, &[]).finish().await;
    let elsewhere = world.cgroup.child("elsewhere");
    let stranger = daemon.rival(&elsewhere, &["--take-over"]).finish().await;

    assert!(
        silent.failed().stderr.contains("--take-over"),
        "{}",
        silent.story()
    );
    assert!(
        stranger.failed().stderr.contains("it enforces"),
        "{}",
        stranger.story()
    );
    assert_eq!(attached(&elsewhere).await, "");
    assert_eq!(daemon.codes("a", &second).await, "200,403,");
    // Where nobody runs it is an ordinary start.
    daemon.stop().await.succeeded();
    let daemon = Daemon::start_with(&world, "", &["--take-over"]).await;
    assert_eq!(daemon.codes("a", &second).await, "200,403,");
    daemon.stop().await.succeeded();
}

async fn a_successor_serves_on_when_its_predecessor_is_killed() {
    let (world, second) = world().await;
    let _good = world.http("good.test").await;
    let _echo = world.raw("good.test", 443, echoing).await;
    let daemon = Daemon::start(&world, "drainSeconds: 60").await;
    let tunnel = open_tunnel(&world, &daemon, &second).await;
    let (daemon, old) = daemon.succeed(&["--take-over"]).await;
    let draining = daemon.status().await.unwrap_or_default();
    assert_eq!(draining["predecessor"], old.pid().as_raw(), "{draining}");

    old.signal(Signal::SIGKILL);
    old.finish().await;
    world.file("go", "");
    tunnel.finish().await;

    daemon
        .eventually("it knows", async || {
            daemon
                .status()
                .await
                .is_some_and(|status| status["predecessor"].is_null())
        })
        .await;
    assert_eq!(daemon.codes("a", &second).await, "200,403,");
    // The lock is its own: the name is taken as long as it lives, and free after.
    let rival = daemon.rival(&daemon.tree, &[]).finish().await;
    rival.failed();
    let daemon = daemon.kill_and_succeed().await;
    assert_eq!(daemon.codes("a", &second).await, "200,403,");
    daemon.stop().await.succeeded();
}

async fn a_tunnel_that_new_policies_refuse_is_reset_and_the_others_live_on() {
    let (world, second) = world().await;
    let _echo = world.raw("good.test", 443, echoing).await;
    let _other = world.raw("other.test", 443, echoing).await;
    let daemon = Daemon::start(&world, "").await;
    let refused = open_tunnel(&world, &daemon, &second).await;
    let script = script(&world, "other.test");
    let unaffected = world.start_in(&second, &daemon.tree.join("b"), &raw(&world, &script));
    unaffected.says("open").await;

    // The workload `a` may reach something else now; of `b` nothing has changed.
    world.file("policies/a.yaml", &policy("a", "team-a", "third.test"));
    let ended = |log: &[Value]| log.iter().any(|record| record["ending"] == "policy_changed");
    daemon
        .eventually("it is logged", async || ended(&daemon.log()))
        .await;
    world.file("go", "");

    let outcome = Outcome::single(&refused.finish().await.text().replace("open\n", ""));
    assert_eq!(outcome.error(), Some("ConnectionReset"), "{outcome:?}");
    let outcome = Outcome::single(&unaffected.finish().await.text().replace("open\n", ""));
    assert_eq!(
        (outcome.failure.clone(), outcome.text()),
        (None, "readylate".to_owned())
    );
    daemon
        .eventually("both are logged", async || daemon.log().len() == 2)
        .await;
    let endings: Vec<_> = daemon
        .log()
        .iter()
        .map(|record| (record["namespace"].clone(), record["ending"].clone()))
        .collect();
    assert_eq!(
        endings,
        [("team-a", "policy_changed"), ("team-b", "complete")].map(|(who, how)| (who.into(), how.into()))
    );
    daemon.stop().await.succeeded();
}

async fn a_tunnel_that_was_only_audited_is_judged_when_the_policies_enforce() {
    let (world, second) = world().await;
    let _echo = world.raw("good.test", 443, echoing).await;
    let _other = world.raw("other.test", 443, echoing).await;
    let _web = world
        .raw("other.test", 80, async |mut connection| {
            connection.read_some().await?;
            connection.send(b"ready").await?;
            connection.stall().await
        })
        .await;
    let apply = |mode: &str| {
        for (name, host) in [("a", "third.test"), ("b", "other.test")] {
            let text = policy(name, &format!("team-{name}"), host)
                .replace("spec:\n", &format!("spec:\n  mode: {mode}\n"));
            world.file(&format!("policies/{name}.yaml"), &text);
        }
    };
    let daemon = Daemon::start(&world, "").await;
    apply("Audit");
    world.file("policies/c.yaml", &policy("c", "team-c", "third.test"));
    daemon
        .eventually("they are in force", async || {
            let status = daemon.status().await.unwrap_or_default();
            status["policies"] == 3
        })
        .await;
    // Not what `a` may reach, but that is only noted.
    let refused = open_tunnel(&world, &daemon, &second).await;
    let allowed = world.start_in(
        &second,
        &daemon.tree.join("b"),
        &raw(&world, &script(&world, "other.test")),
    );
    allowed.says("open").await;
    let request = Script::to(world.sockets("other.test", 80)[0])
        .send(b"GET / HTTP/1.1\r\nHost: other.test\r\n\r\n")
        .read_until(b"ready")
        .step(Step::Say("open".to_owned()))
        .read_to_end();
    let request = world.start_in(&second, &daemon.tree.join("b"), &raw(&world, &request));
    request.says("open").await;

    apply("Enforce");
    daemon
        .eventually("two are ended", async || {
            let ended = |record: &&Value| record["ending"] == "policy_changed";
            daemon.log().iter().filter(ended).count() == 2
        })
        .await;
    world.file("go", "");
    for reset in [refused, request] {
        let outcome = Outcome::single(&reset.finish().await.text().replace("open\n", ""));
        assert_eq!(outcome.error(), Some("ConnectionReset"), "{outcome:?}");
    }
    let outcome = Outcome::single(&allowed.finish().await.text().replace("open\n", ""));
    assert_eq!(
        (outcome.failure.clone(), outcome.text()),
        (None, "readylate".to_owned())
    );

    daemon
        .eventually("all are logged", async || daemon.log().len() == 3)
        .await;
    let mut endings: Vec<_> = daemon
        .log()
        .iter()
        .map(|record| format!("{} {}", record["original"], record["ending"]))
        .collect();
    endings.sort();
    let [good, other] = ["good.test", "other.test"].map(|name| world.sockets(name, 443)[0].ip());
    let mut expected = [
        format!("\"{good}:443\" \"policy_changed\""),
        format!("\"{other}:443\" \"complete\""),
        format!("\"{other}:80\" \"policy_changed\""),
    ];
    expected.sort();
    assert_eq!(endings, expected);
    daemon.stop().await.succeeded();
}

async fn echoing(mut connection: RawConnection) -> std::io::Result<()> {
    connection.read_record().await?;
    connection.send(b"ready").await?;
    loop {
        let bytes = connection.read_some().await?;
        if bytes.is_empty() {
            return Ok(());
        }
        connection.send(&bytes).await?;
    }
}

/// A tunnel to `name`, whose client waits for the file `go` before it goes on.
fn script(world: &World, name: &str) -> Script {
    Script::to(world.sockets(name, 443)[0])
        .send(&Hello::new(Some(name)).bytes())
        .read_until(b"ready")
        .step(Step::Say("open".to_owned()))
        .step(Step::AwaitFile(world.path("go")))
        .send(b"late")
        .finish_sending()
        .read_to_end()
}

async fn open_tunnel<'w>(world: &'w World, daemon: &Daemon<'w>, place: &Place) -> Running<'w> {
    let script = script(world, "good.test");
    let tunnel = world.start_in(place, &daemon.tree.join("a"), &raw(world, &script));
    tunnel.says("open").await;
    tunnel
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
