//! `egress-agent exec` is a good wrapper: the command does not notice it, and it leaves nothing behind.
#![expect(
    clippy::expect_used,
    reason = "a test that cannot go on fails by panic, for the place and the stack"
)]

use std::time::Duration;

use egress_tests::{
    agent::{Format, Running, program},
    clients::{Client, curl, python, shell},
    lab::{
        AGENT_DNS, World, address,
        traces::{Traces, attached, listeners},
    },
    origins::Origin,
    promises,
};
use nix::sys::signal::Signal;

promises![
    the_exit_status_is_the_commands,
    standard_input_and_output_pass_through_unchanged,
    a_command_that_does_not_exist_is_one_clear_sentence,
    nothing_is_left_behind_after_the_command_ends,
    nothing_is_left_behind_after_the_command_is_killed,
    nothing_is_left_behind_after_the_agent_is_interrupted,
    nothing_is_left_behind_after_the_agent_is_terminated,
    ctrl_c_reaches_the_command,
    ctrl_c_on_a_terminal_reaches_the_command,
    a_command_that_outlives_its_parent_is_not_set_free,
    a_killed_agent_sets_nobody_free,
    two_instances_do_not_disturb_each_other,
    an_agent_under_an_agent_allows_what_both_allow,
    the_environment_is_the_commands,
    loopback_servers_are_not_touched,
];

async fn the_exit_status_is_the_commands() {
    let world = World::new().await;
    for (line, code) in [
        ("exit 0", 0),
        ("exit 7", 7),
        ("kill -TERM $$", 143),
        ("kill -KILL $$", 137),
    ] {
        let output = world.exec().run(&shell(line)).await;
        assert_eq!(output.code(), code, "{line}: {}", output.story());
    }
}

async fn standard_input_and_output_pass_through_unchanged() {
    let world = World::new().await;
    let bytes: Vec<u8> = (0..1_000_000_u32)
        .map(|n| n.to_le_bytes()[(n % 4) as usize])
        .collect();

    let output = world
        .exec()
        .stdin(&bytes)
        .run(&shell("echo to standard error >&2; exec cat"))
        .await;

    output.succeeded();
    assert!(output.stdout == bytes);
    assert_eq!(
        output.stderr, "to standard error\n",
        "the agent itself says nothing"
    );
}

async fn a_command_that_does_not_exist_is_one_clear_sentence() {
    let world = World::new().await;
    let mut client = shell("");
    client.program = "/does/not/exist".into();

    let output = world.exec().run(&client).await;

    assert_eq!(output.code(), 127, "as a shell tells it: {}", output.story());
    assert_eq!(output.stderr.lines().count(), 1, "{}", output.stderr);
    assert!(output.stderr.contains("/does/not/exist"), "{}", output.stderr);
    assert!(world.cgroup.children().is_empty());
}

/// Starts a command that says `ready` after a request and then waits, and tells what the agent has put into the kernel.
async fn busy(world: &World) -> (Running<'_>, Traces) {
    let request = curl(world).arg("https://good.test/").line();
    let running = world
        .exec()
        .allow("good.test")
        .start(&shell(&format!("{request} && echo ready && exec sleep 1000")));
    running.says("ready").await;
    let traces = Traces::of(running.pid());
    assert!(!listeners(&world.client).await.is_empty());
    assert!(!attached(world.cgroup.path()).await.is_empty());
    assert!(!world.cgroup.children().is_empty());
    (running, traces)
}

/// Asserts that the kernel is as it was before.
async fn is_clean(world: &World, traces: &Traces) {
    assert_eq!(world.cgroup.children(), Vec::<String>::new(), "cgroups");
    assert_eq!(listeners(&world.client).await, Vec::<String>::new(), "listeners");
    assert_eq!(attached(world.cgroup.path()).await, "", "attached programs");
    traces.are_gone().await;
}

async fn nothing_is_left_behind_after_the_command_ends() {
    let world = World::new().await;
    let _origin = world.https("good.test").await;
    let (running, traces) = busy(&world).await;
    // Killed by its own user, it ends as it would by itself; what the wrapper sees is the same.
    signal_workload(&world, Signal::SIGHUP);
    assert_eq!(running.finish().await.code(), 129);
    is_clean(&world, &traces).await;
}

async fn nothing_is_left_behind_after_the_command_is_killed() {
    let world = World::new().await;
    let _origin = world.https("good.test").await;
    let (running, traces) = busy(&world).await;
    signal_workload(&world, Signal::SIGKILL);
    assert_eq!(running.finish().await.code(), 137);
    is_clean(&world, &traces).await;
}

async fn nothing_is_left_behind_after_the_agent_is_interrupted() {
    let world = World::new().await;
    let _origin = world.https("good.test").await;
    let (running, traces) = busy(&world).await;
    running.signal(Signal::SIGINT);
    assert_eq!(running.finish().await.code(), 130);
    is_clean(&world, &traces).await;
}

async fn nothing_is_left_behind_after_the_agent_is_terminated() {
    let world = World::new().await;
    let _origin = world.https("good.test").await;
    let (running, traces) = busy(&world).await;
    running.signal(Signal::SIGTERM);
    assert_eq!(running.finish().await.code(), 143);
    is_clean(&world, &traces).await;
}

/// Sends a signal to everything that the world's agents run.
fn signal_workload(world: &World, signal: Signal) {
    let workload = world.cgroup.processes_of_children();
    assert!(!workload.is_empty(), "no process in a cgroup of its own");
    for process in workload {
        nix::sys::signal::kill(process, signal).expect("the process is there");
    }
}

const TRAPPING: &str = r#"trap 'echo interrupted; exit 3' INT; echo ready; while :; do sleep 0.1; done"#;

async fn ctrl_c_reaches_the_command() {
    let world = World::new().await;
    let running = world.exec().start(&shell(TRAPPING));
    running.says("ready").await;
    running.signal_group(Signal::SIGINT);
    let output = running.finish().await;
    assert_eq!(output.code(), 3, "{}", output.story());
    assert!(
        output.text().starts_with("ready\ninterrupted\n"),
        "{}",
        output.story()
    );
}

/// A real terminal: the kernel sends SIGINT to its foreground process group when ^C is typed.
async fn ctrl_c_on_a_terminal_reaches_the_command() {
    let world = World::new().await;
    let program = r#"
import os, pty, sys
pid, terminal = pty.fork()
if pid == 0:
    os.execv(sys.argv[1], sys.argv[1:])
seen = b""
def until(text):
    global seen
    while text not in seen:
        seen += os.read(terminal, 1024)
until(b"ready")
os.write(terminal, b"\x03")
until(b"interrupted")
_, status = os.waitpid(pid, 0)
print("times", seen.count(b"interrupted"), "status", os.waitstatus_to_exitcode(status))"#;
    let client = python(&world, "terminal", program)
        .arg(egress_tests::agent::program())
        .words("exec -- /bin/sh -c")
        .arg(TRAPPING);

    let output = world.directly(&client).await;

    output.succeeded().printed("times 1 status 3\n");
    assert!(world.cgroup.children().is_empty());
}

/// Tries `evil.test` until told to stop by the file `stop`, and writes what came of each try to `tries`.
const PERSISTENT: &str = r#"
import os, socket, sys, time
directory = sys.argv[1]
with open(directory + "/tries", "w", buffering=1) as tries:
    while not os.path.exists(directory + "/stop"):
        try:
            s = socket.create_connection(("198.51.100.66", 80), timeout=2)
            s.sendall(b"GET / HTTP/1.1\r\nHost: evil.test\r\nConnection: close\r\n\r\n")
            tries.write(s.recv(100).decode().split("\r\n")[0] + "\n")
        except OSError as error:
            tries.write(f"{error}\n")
        time.sleep(0.02)
"#;

async fn a_command_that_outlives_its_parent_is_not_set_free() {
    let world = World::new().await;
    let origin = world.http("evil.test").await;
    let persistent = python(&world, "persistent", PERSISTENT)
        .arg(world.path(""))
        .line();
    let line = format!(
        "setsid {persistent} & until grep -q 403 {}; do sleep 0.05; done 2>/dev/null",
        tries(&world)
    );

    let output = world.exec().allow("good.test").run(&shell(&line)).await;

    output.succeeded();
    // Whatever became of it, it has not reached the origin, and the agent has not left it a cgroup to live in unjudged.
    origin.was_never_reached().await;
    assert!(world.cgroup.children().is_empty());
    assert_eq!(world.cgroup.processes_of_children(), []);
}

/// The worst end of all: SIGKILL to the agent, while a child of the command that has left its session goes on trying.
async fn a_killed_agent_sets_nobody_free() {
    let world = World::new().await;
    let origin = world.http("evil.test").await;
    let persistent = python(&world, "persistent", PERSISTENT)
        .arg(world.path(""))
        .line();
    let running = world
        .exec()
        .allow("good.test")
        .start(&shell(&format!("setsid {persistent} & echo started; wait")));
    running.says("started").await;
    world.appears(&world.path("tries"), "403").await;

    let instance = format!("exec-{}", running.pid());
    running.signal(Signal::SIGKILL);
    assert_eq!(running.finish().await.code(), 137);
    // Long enough for tens of tries, if somebody is left to try.
    tokio::time::sleep(Duration::from_millis(1500)).await;

    origin.was_never_reached().await;
    let text = std::fs::read_to_string(tries(&world)).expect("the tries");
    assert!(!text.contains("200"), "{text}");
    world.file("stop", "");
    let output = egress_tests::agent::verb(&world, &world.client, &["cleanup", &instance])
        .start()
        .finish()
        .await;
    output.succeeded();
    assert!(
        world.cgroup.children().is_empty(),
        "cleanup removes what is left: {:?}",
        world.cgroup.children()
    );
}

fn tries(world: &World) -> String {
    world.path("tries").display().to_string()
}

async fn two_instances_do_not_disturb_each_other() {
    let world = World::new().await;
    let good = world.http("good.test").await;
    let other = world.http("other.test").await;
    let both = |world: &World| -> Client {
        curl(world)
            .words("--output /dev/null --write-out %{http_code}\\n")
            .arg("http://good.test/")
            .words("--output /dev/null")
            .arg("http://other.test/")
    };
    // Two that last, and two that come and go meanwhile.
    let waiting = |pattern: &str| {
        let line = format!(
            "echo ready; while [ ! -e {} ]; do sleep 0.05; done; {}",
            path(&world, "go"),
            both(&world).line()
        );
        world.exec().allow(pattern).start(&shell(&line))
    };
    let (first, second) = (waiting("good.test"), waiting("other.test"));
    first.says("ready").await;
    second.says("ready").await;

    let third = world.exec().allow("good.test").run(&both(&world)).await;
    let fourth = world.exec().allow("other.test").run(&both(&world)).await;
    world.file("go", "");
    let (first, second) = tokio::join!(first.finish(), second.finish());

    first.succeeded().printed("ready\n200\n403\n");
    second.succeeded().printed("ready\n403\n200\n");
    third.succeeded().printed("200\n403\n");
    fourth.succeeded().printed("403\n200\n");
    assert_eq!(
        (good.requests().await.len(), other.requests().await.len()),
        (2, 2)
    );
}

/// The inner agent's cgroup lies below the outer's, so what the inner one dials is a connect of the outer's workload.
async fn an_agent_under_an_agent_allows_what_both_allow() {
    let world = World::new().await;
    let good = world.http("good.test").await;
    let other = world.http("other.test").await;
    let evil = world.http("evil.test").await;
    let ask = curl(&world)
        .words("--output /dev/null --write-out %{http_code}\\n http://good.test/")
        .words("--output /dev/null http://other.test/ --output /dev/null http://evil.test/");
    let inner = Client {
        program: program(),
        arguments: Vec::new(),
        environment: Vec::new(),
    };
    let inner = inner
        .words("exec --allow good.test --allow evil.test --nameserver")
        .arg(AGENT_DNS)
        .arg("--")
        .arg(ask.program)
        .args(ask.arguments);
    let outer = world
        .exec()
        .allow("good.test")
        .allow("other.test")
        .arg("--keep-privileges");
    let output = outer.run(&inner).await;
    output.succeeded().printed("200\n403\n403\n");
    assert_eq!(good.requests().await.len(), 1);
    other.was_never_reached().await;
    evil.was_never_reached().await;
}

fn path(world: &World, name: &str) -> String {
    world.path(name).display().to_string()
}

async fn the_environment_is_the_commands() {
    let world = World::new().await;
    let client = shell("echo $COLOUR; pwd; umask").env("COLOUR", "green");
    let directly = world.directly(&client).await;
    let output = world.exec().run(&client).await;
    assert_eq!(output.succeeded().text(), directly.text());
    assert!(output.text().starts_with("green\n"));
}

async fn loopback_servers_are_not_touched() {
    let world = World::new().await;
    let inside = Origin::web(
        &world.client,
        vec![
            address("127.0.0.1:80"),
            address("127.9.9.9:443"),
            address("[::1]:80"),
        ],
        "inside",
        None,
    )
    .await;
    let client = curl(&world).args([
        "http://127.0.0.1/",
        "http://127.9.9.9:443/",
        "http://[::1]/",
        "http://0.0.0.0/",
        "http://[::ffff:127.0.0.1]/",
    ]);

    let output = world.exec().log(Format::Combined).run(&client).await;

    output.succeeded().printed(&"hello from inside\n".repeat(5));
    assert_eq!(output.log, "");
    let seen = inside.seen().await;
    assert_eq!(seen.len(), 5);
    assert!(seen.iter().all(|seen| seen.peer.ip().is_loopback()), "{seen:#?}");
    assert!(world.agent_dns.questions().is_empty());
}
