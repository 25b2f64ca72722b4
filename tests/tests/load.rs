//! Limits: who asks for more than there is, is refused with a reason, and harms nobody else.

use std::{fs, io};

use egress_common::flow;
use egress_tests::{
    agent::Running,
    clients::{curl, raw},
    daemon::Daemon,
    hello::Hello,
    lab::{Place, World, traces::entries_of},
    origins::RawConnection,
    promises,
    raw_client::{Outcome, Script, Step},
};
use nix::sys::signal::Signal;
use serde_json::Value;

promises![
    a_workload_with_too_many_connections_is_refused_and_others_are_not,
    without_descriptors_connections_are_refused_and_the_agent_lives_on,
    without_descriptors_for_its_listeners_a_namespace_is_held_and_not_refused,
    ten_thousand_half_open_clients_cost_bounded_memory,
    who_has_too_many_connects_under_way_is_refused_more_and_others_are_not,
    nothing_passes_unlogged_if_the_configuration_says_so,
];

async fn world() -> (World, Place) {
    let world = World::new().await;
    let second = world.another_client("second", 3).await;
    (world, second)
}

/// `count` tunnels to good.test, opened by the workload `a`, that stay open until the file `go` appears.
fn tunnels<'w>(world: &'w World, daemon: &Daemon<'w>, place: &Place, count: usize) -> Running<'w> {
    let script = Script::to(world.sockets("good.test", 443)[0])
        .times(count)
        .send(&Hello::new(Some("good.test")).bytes())
        .read_until(b"ready")
        .step(Step::AwaitFile(world.path("go")))
        .finish_sending()
        .read_to_end();
    world.start_in(place, &daemon.tree.join("a"), &raw(world, &script))
}

async fn greeting(mut connection: RawConnection) -> io::Result<()> {
    connection.read_record().await?;
    connection.send(b"ready").await?;
    while !connection.read_some().await?.is_empty() {}
    Ok(())
}

async fn count(daemon: &Daemon<'_>, what: &str) -> u64 {
    let status = daemon.status().await.unwrap_or_default();
    status["connections"][what].as_u64().unwrap_or_default()
}

async fn a_workload_with_too_many_connections_is_refused_and_others_are_not() {
    let (world, second) = world().await;
    let _good = world.raw("good.test", 443, greeting).await;
    let _web = world.http("good.test").await;
    let _other = world.http("other.test").await;
    let daemon = Daemon::start(&world, "limits: {connectionsPerWorkload: 8}").await;

    let open = tunnels(&world, &daemon, &second, 100);
    daemon
        .eventually("all have been answered", async || {
            count(&daemon, "open").await + count(&daemon, "overloaded").await == 100
        })
        .await;

    assert_eq!(count(&daemon, "open").await, 8);
    assert_eq!(
        daemon.codes("b", &second).await,
        "403,200,",
        "another workload has its own"
    );
    let full = daemon
        .run("a", &second, &curl(&world).arg("http://good.test/"))
        .await;
    full.failed();
    world.file("go", "");
    let outcomes = Outcome::parse(&open.finish().await.text());
    let whole = outcomes
        .iter()
        .filter(|outcome| outcome.failure.is_none())
        .count();
    assert_eq!((outcomes.len(), whole), (100, 8));
    daemon
        .eventually("there is room again", async || {
            daemon.codes("a", &second).await == "200,403,"
        })
        .await;
    let refused = |record: &&Value| record["outcome"] == "overload";
    assert!(daemon.log().iter().filter(refused).count() >= 93);
    daemon.stop().await.succeeded();
}

async fn without_descriptors_connections_are_refused_and_the_agent_lives_on() {
    let (world, second) = world().await;
    let _good = world.raw("good.test", 443, greeting).await;
    let _web = world.http("good.test").await;
    let daemon = Daemon::start(&world, "").await;
    assert_eq!(daemon.codes("a", &second).await, "200,403,");
    daemon.running.leave_descriptors(20).await;

    let open = tunnels(&world, &daemon, &second, 100);
    daemon.running.complains("no file descriptor is left").await;
    world.file("go", "");
    let outcomes = Outcome::parse(&open.finish().await.text());
    assert_eq!(outcomes.len(), 100);
    let whole = outcomes
        .iter()
        .filter(|outcome| outcome.failure.is_none())
        .count();
    assert!((1..100).contains(&whole), "{whole} of 100");

    daemon
        .eventually("it serves again", async || {
            daemon.codes("a", &second).await == "200,403,"
        })
        .await;
    let told = daemon
        .running
        .stderr()
        .matches("no file descriptor is left")
        .count();
    assert!(told <= 8, "once a minute and worker: {told}");
    daemon.stop().await.succeeded();
}

/// Some are free, so that the agent comes more or less far: what it has told the kernel by then must not stay.
async fn without_descriptors_for_its_listeners_a_namespace_is_held_and_not_refused() {
    let (world, second) = world().await;
    let _good = world.http("good.test").await;
    let daemon = Daemon::start(&world, "").await;
    let address = world.sockets("good.test", 80)[0];
    let connect = curl(&world).words(&format!(
        "--max-time 0.7 --resolve good.test:80:{} http://good.test/",
        address.ip()
    ));
    let mut was_served = false;
    for free in (8..40).step_by(4) {
        daemon.running.leave_descriptors(free).await;
        let first = daemon.run("a", &second, &connect).await;
        was_served = first.code() == 0;
        if was_served {
            break;
        }
        let next = daemon.run("a", &second, &connect).await;
        for (which, output) in [("first", first), ("next", next)] {
            // 28: its time was up; or the agent resets what it serves and has no descriptor for. 7: nobody listens.
            assert_ne!(
                output.code(),
                7,
                "{free} free, the {which} one: {}",
                output.stderr
            );
        }
    }
    assert!(was_served, "with 36 free ones, too");
    daemon.running.leave_descriptors(4096).await;
    daemon.stop().await.succeeded();
}

async fn ten_thousand_half_open_clients_cost_bounded_memory() {
    let (world, second) = world().await;
    let good = world.http("good.test").await;
    let daemon = Daemon::start(
        &world,
        "limits: {headSeconds: 600, connectionsPerWorkload: 20000}",
    )
    .await;
    assert_eq!(daemon.codes("a", &second).await, "200,403,");
    let before = resident(daemon.running.pid().as_raw());

    let script = Script::to(world.sockets("good.test", 443)[0])
        .times(10_000)
        .send(&[22])
        .step(Step::AwaitFile(world.path("go")));
    let slow = world.start_in(&second, &daemon.tree.join("a"), &raw(&world, &script));
    for so_many in [2_500, 5_000, 7_500, 10_000] {
        daemon
            .eventually("they are there", async || {
                count(&daemon, "accepted").await >= so_many
            })
            .await;
    }
    let with_all = resident(daemon.running.pid().as_raw());
    assert_eq!(
        daemon.codes("a", &second).await,
        "200,403,",
        "others are served meanwhile"
    );
    world.file("go", "");
    slow.finish().await.succeeded();

    world.tell(&format!(
        "resident: {before} KiB, with 10,000 half-open clients {with_all} KiB"
    ));
    assert!(
        with_all < before + 10_000 * 16,
        "from {before} KiB to {with_all} KiB"
    );
    // Each is explained, also those that use one port towards several listeners, and each is logged.
    let gone = |record: &&Value| record["outcome"] == "client_gone";
    daemon
        .eventually("all are accounted for", async || {
            daemon.log().iter().filter(gone).count() == 10_000
        })
        .await;
    assert_eq!(count(&daemon, "no_flow").await, 0);
    assert_eq!(good.requests().await.len(), 2);
    daemon.stop().await.succeeded();
}

/// An agent that takes nothing, as while it is replaced: what has connected, or tries to, waits in a table that all share.
async fn who_has_too_many_connects_under_way_is_refused_more_and_others_are_not() {
    const MORE: usize = 500;
    let (world, second) = world().await;
    let third = world.another_client("third", 4).await;
    let good = world.http("good.test").await;
    let elsewhere = world.http("other.test").await;
    let daemon = Daemon::start(&world, "limits: {connectionsPerWorkload: 20000}").await;
    assert_eq!(daemon.codes("a", &second).await, "200,403,");
    assert_eq!(daemon.codes("b", &third).await, "403,200,");
    daemon.running.signal(Signal::SIGSTOP);

    let most = flow::MOST_UNDER_WAY as usize;
    let script = Script::to(world.sockets("good.test", 80)[0])
        .times(most + MORE)
        .step(Step::Hold);
    let flood = world.start_in(&second, &daemon.tree.join("a"), &raw(&world, &script));
    let under_way = async || {
        let entries = entries_of(&daemon.pins().join("UNDER_WAY")).await;
        let counts = entries
            .iter()
            .filter_map(|entry| entry["formatted"]["value"].as_u64());
        counts.max().unwrap_or_default()
    };
    daemon
        .eventually("it has its share", async || under_way().await >= most as u64)
        .await;
    let get = |host: &str| {
        let address = world.sockets(host, 80)[0].ip();
        curl(&world).words(&format!(
            "--fail --max-time 30 --resolve {host}:80:{address} http://{host}/"
        ))
    };
    // At once, while the others wait for the agent.
    let refused = daemon.run("a", &second, &get("good.test")).await;
    assert_eq!(refused.code(), 7, "{}", refused.stderr);
    let other = world.start_in(&third, &daemon.tree.join("b"), &get("other.test"));
    assert!(
        under_way().await <= (most + 16) as u64,
        "what both CPUs count at once comes on top, and no more"
    );

    // Those who try still are withdrawn with it; the agent takes the rest, and the count is put right.
    flood.signal(Signal::SIGKILL);
    flood.finish().await;
    daemon.running.signal(Signal::SIGCONT);
    other.finish().await.succeeded();
    daemon
        .eventually("there is room again", async || {
            daemon.run("a", &second, &get("good.test")).await.code() == 0
        })
        .await;
    assert_eq!(good.requests().await.len(), 2);
    assert_eq!(elsewhere.requests().await.len(), 2);
    let is_refused = |record: &&Value| record["outcome"] == "share_full";
    let refusals = async || {
        let log = daemon.log();
        let told = log.iter().filter(is_refused);
        told.map(|record| record["attempts"].as_u64().unwrap_or(1))
            .sum::<u64>()
    };
    daemon
        .eventually("each refusal is told", async || {
            refusals().await > MORE as u64 - 100
        })
        .await;
    daemon.stop().await.succeeded();
}

/// KiB.
fn resident(pid: i32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok())
        .unwrap_or_default()
}

async fn nothing_passes_unlogged_if_the_configuration_says_so() {
    let (world, second) = world().await;
    let good = world.http("good.test").await;
    let daemon = Daemon::start(&world, "onLogFailure: deny\n").await;
    assert_eq!(daemon.codes("a", &second).await, "200,403,");
    daemon.stop().await.succeeded();

    let full = Daemon::start_logging_to(&world, "/dev/full", "onLogFailure: deny").await;
    full.eventually("it is refused", async || {
        full.codes("a", &second).await == "000,000,"
    })
    .await;
    let before = good.requests().await.len();
    assert_eq!(full.codes("a", &second).await, "000,000,");
    assert_eq!(good.requests().await.len(), before, "nothing reaches it any more");
    let text = full.running.stderr();
    assert!(text.contains("the access log cannot be written"), "{text}");
    full.stop().await;
}
