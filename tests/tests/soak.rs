//! What only shows in time or in great numbers. `cargo xtask soak` runs these and nothing else does; docs/soak.md has the
//! figures that they print.

use std::{
    fs, io,
    time::{Duration, Instant},
};

use egress_tests::{
    agent::Running,
    bytes::digest_of,
    clients::raw,
    daemon::Daemon,
    hello::Hello,
    lab::World,
    origins::RawConnection,
    promises,
    raw_client::{Outcome, Script, Step},
    require::Need,
};

promises![
    nine_thousand_idle_tunnels_cost_bounded_memory: [Need::Time],
    clients_of_a_byte_a_second_are_served: [Need::Time],
    clients_that_are_too_slow_to_say_whom_they_want_are_cut_off: [Need::Time],
    origins_that_never_read_hold_their_clients_back_and_not_in_memory: [Need::Time],
    fifty_thousand_connections_leave_nothing_behind: [Need::Time],
];

/// The world's workload may open as many as the test wants, and nothing else bounds them but the file limit.
const LIMITS: &str = "limits: {connectionsPerWorkload: 30000, headSeconds: 60}";

/// KiB.
fn resident(daemon: &Daemon<'_>) -> u64 {
    let path = format!("/proc/{}/status", daemon.running.pid());
    let text = fs::read_to_string(path).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok())
        .unwrap_or_default()
}

fn descriptors(daemon: &Daemon<'_>) -> usize {
    fs::read_dir(format!("/proc/{}/fd", daemon.running.pid())).map_or(0, Iterator::count)
}

async fn open(daemon: &Daemon<'_>) -> u64 {
    let status = daemon.status().await.unwrap_or_default();
    status["connections"]["open"].as_u64().unwrap_or_default()
}

fn tell(world: &World, figure: &str) {
    world.tell(figure);
    println!("figure | {figure}");
}

fn play<'w>(world: &'w World, daemon: &Daemon<'w>, script: &Script) -> Running<'w> {
    world.start_in(&world.client, &daemon.tree.join("a"), &raw(world, script))
}

fn tunnels(world: &World, count: usize) -> Script {
    Script::to(world.sockets("good.test", 443)[0])
        .times(count)
        .send(&Hello::new(Some("good.test")).bytes())
}

async fn greeting(mut connection: RawConnection) -> io::Result<()> {
    connection.read_record().await?;
    connection.send(b"ready").await?;
    while !connection.read_some().await?.is_empty() {}
    Ok(())
}

async fn hashing(mut connection: RawConnection) -> io::Result<()> {
    connection.read_record().await?;
    let digest = connection.hash_to_end().await?;
    connection.send(digest.as_bytes()).await
}

async fn never_reading(mut connection: RawConnection) -> io::Result<()> {
    connection.read_record().await?;
    connection.stall().await
}

/// As many as the file limit allows: two descriptors each, of 20,000 on the machine that the figures are from.
async fn nine_thousand_idle_tunnels_cost_bounded_memory() {
    const TUNNELS: usize = 9000;
    let world = World::new().await;
    let _good = world.raw("good.test", 443, greeting).await;
    let daemon = Daemon::start(&world, LIMITS).await;
    let _web = world.http("good.test").await;
    assert_eq!(daemon.codes("a", &world.client).await, "200,403,");
    let before = resident(&daemon);
    let script = tunnels(&world, TUNNELS)
        .read_until(b"ready")
        .step(Step::Rendezvous)
        .step(Step::Say("idle".to_owned()))
        .step(Step::AwaitFile(world.path("go")))
        .finish_sending()
        .read_to_end();

    let begun = Instant::now();
    let running = play(&world, &daemon, &script);
    // All are through, because they wait for each other.
    running.says("idle").await;
    let opened = begun.elapsed();
    let with = resident(&daemon);
    assert_eq!(open(&daemon).await, TUNNELS as u64);
    assert_eq!(
        daemon.codes("a", &world.client).await,
        "200,403,",
        "others are served"
    );
    world.file("go", "");
    let outcomes = Outcome::parse(&running.finish().await.text());

    assert_eq!(outcomes.iter().filter(|outcome| outcome.saw_end).count(), TUNNELS);
    let each = (with.saturating_sub(before)) as f64 / TUNNELS as f64;
    tell(
        &world,
        &format!(
            "{TUNNELS} idle tunnels: opened in {:.1} s, the agent's memory from {before} to {with} KiB, {each:.1} KiB a tunnel",
            opened.as_secs_f64()
        ),
    );
    assert!(each < 16.0, "{each} KiB a tunnel");
    daemon.stop().await.succeeded();
}

async fn clients_of_a_byte_a_second_are_served() {
    const CLIENTS: usize = 300;
    const BYTES: usize = 60;
    let world = World::new().await;
    let _good = world.raw("good.test", 443, hashing).await;
    let daemon = Daemon::start(&world, LIMITS).await;
    let before = resident(&daemon);
    let bytes = vec![b'x'; BYTES];
    let script = tunnels(&world, CLIENTS)
        .send_in_pieces(&bytes, 1, 1000)
        .finish_sending()
        .read_to_end();

    let running = play(&world, &daemon, &script);
    let outcomes = Outcome::parse(&running.finish().await.text());

    let whole = outcomes
        .iter()
        .filter(|outcome| outcome.failure.is_none() && outcome.text() == digest_of(&bytes))
        .count();
    assert_eq!((whole, outcomes.len()), (CLIENTS, CLIENTS));
    tell(
        &world,
        &format!(
            "{CLIENTS} clients of a byte a second for {BYTES} s: all bytes arrived, the agent's memory from {before} to {} KiB",
            resident(&daemon)
        ),
    );
    daemon.stop().await.succeeded();
}

async fn clients_that_are_too_slow_to_say_whom_they_want_are_cut_off() {
    const CLIENTS: usize = 300;
    let world = World::new().await;
    let good = world.raw("good.test", 443, hashing).await;
    let daemon = Daemon::start(&world, "").await;
    let script = Script::to(world.sockets("good.test", 443)[0])
        .times(CLIENTS)
        .send_in_pieces(&Hello::new(Some("good.test")).bytes(), 1, 1000)
        .read_to_end();

    let begun = Instant::now();
    let outcomes = Outcome::parse(&play(&world, &daemon, &script).finish().await.text());

    assert_eq!(outcomes.len(), CLIENTS);
    assert!(
        outcomes
            .iter()
            .all(|outcome| outcome.failure.is_some() || outcome.alert().is_some())
    );
    good.was_never_reached().await;
    daemon
        .eventually("each is on record", async || {
            let log = daemon.log();
            log.iter()
                .filter(|record| record["outcome"] == "head_timeout")
                .count()
                == CLIENTS
        })
        .await;
    tell(
        &world,
        &format!(
            "{CLIENTS} clients whose hello comes by a byte a second: cut off after headSeconds (5), the last one after {:.1} s",
            begun.elapsed().as_secs_f64()
        ),
    );
    daemon.stop().await.succeeded();
}

async fn origins_that_never_read_hold_their_clients_back_and_not_in_memory() {
    const CLIENTS: usize = 200;
    let world = World::new().await;
    let _good = world.raw("good.test", 443, never_reading).await;
    let _web = world.http("good.test").await;
    let daemon = Daemon::start(&world, LIMITS).await;
    let before = resident(&daemon);
    let script = tunnels(&world, CLIENTS).step(Step::SendPayload(1 << 30));
    let running = play(&world, &daemon, &script);
    daemon
        .eventually("all are there", async || open(&daemon).await == CLIENTS as u64)
        .await;

    // That nothing more happens is no event: a minute in which it would.
    let mut most = 0;
    for _ in 0..60 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        most = most.max(resident(&daemon));
    }
    assert_eq!(open(&daemon).await, CLIENTS as u64, "nobody is cut off for it");
    assert_eq!(
        daemon.codes("a", &world.client).await,
        "200,403,",
        "others are served"
    );
    tell(
        &world,
        &format!(
            "{CLIENTS} clients that send to origins that never read, for a minute: the agent's memory from {before} to {most} KiB at most"
        ),
    );
    assert!(most < before + CLIENTS as u64 * 64, "from {before} to {most} KiB");
    // Who is killed leaves bytes behind that nobody takes, and so no end that the agent could see: a stop cuts them off.
    running.signal(nix::sys::signal::Signal::SIGKILL);
    running.finish().await;
    daemon.stop().await.succeeded();
}

async fn fifty_thousand_connections_leave_nothing_behind() {
    const ROUNDS: usize = 50;
    const EACH: usize = 1000;
    let world = World::new().await;
    let _good = world.raw("good.test", 443, greeting).await;
    let daemon = Daemon::start(&world, LIMITS).await;
    let script = tunnels(&world, EACH)
        .read_until(b"ready")
        .finish_sending()
        .read_to_end();

    let begun = Instant::now();
    let mut first = (0, 0);
    for round in 0..ROUNDS {
        let outcomes = Outcome::parse(&play(&world, &daemon, &script).finish().await.text());
        let whole = outcomes
            .iter()
            .filter(|outcome| outcome.failure.is_none())
            .count();
        assert_eq!(whole, EACH, "round {round}");
        daemon
            .eventually("the round is over", async || open(&daemon).await == 0)
            .await;
        // What is kept for good (pools, buffers, the allocator's own) is there after some rounds.
        if round == 9 {
            first = (resident(&daemon), descriptors(&daemon));
        }
    }
    let last = (resident(&daemon), descriptors(&daemon));

    tell(
        &world,
        &format!(
            "{} connections, {EACH} at a time: in {:.0} s; after the first {} the agent had {} KiB and {} descriptors, at the end {} KiB and {}",
            ROUNDS * EACH,
            begun.elapsed().as_secs_f64(),
            10 * EACH,
            first.0,
            first.1,
            last.0,
            last.1
        ),
    );
    assert!(last.0 < first.0 + 8 * 1024, "from {first:?} to {last:?}");
    assert!(last.1 <= first.1 + 8, "from {first:?} to {last:?}");
    daemon.stop().await.succeeded();
}
