//! Tunnels carry every byte, pass on every end, and hold no more than they must.

use std::{fs, time::Duration};

use egress_tests::{
    agent::{Finished, Format},
    bytes::digest_of_payload,
    clients::{curl, raw},
    hello::Hello,
    lab::{World, address},
    origins::Seen,
    promises,
    raw_client::{Outcome, Script, Step},
    squid_log,
};
use nix::{sys::signal::Signal, unistd::Pid};

promises![
    a_gibibyte_down_arrives_intact,
    a_gibibyte_up_arrives_intact,
    a_gibibyte_each_way_at_once_arrives_intact,
    a_download_in_tls_arrives_intact,
    two_hundred_tunnels_at_once_do_not_mix,
    a_client_that_vanishes_ends_the_origins_connection,
    an_origin_that_resets_resets_the_client,
    an_origin_that_vanishes_is_told_in_the_record,
    the_origins_half_close_is_passed_on,
    the_clients_half_close_is_passed_on,
    a_client_that_resets_resets_the_origin,
    a_slow_reader_holds_the_origin_back_and_not_in_memory,
    a_slow_origin_holds_the_client_back_and_not_in_memory,
    the_record_counts_the_bytes,
];

const GIBIBYTE: u64 = 1 << 30;

fn hello() -> Vec<u8> {
    Hello::new(Some("good.test")).bytes()
}

fn script() -> Script {
    Script::to(address("198.51.100.10:443")).send(&hello())
}

async fn run(world: &World, script: &Script) -> (Outcome, Finished) {
    let output = world
        .exec()
        .allow("good.test")
        .log(Format::Combined)
        .run(&raw(world, script))
        .await;
    assert_ne!(output.log, "", "nothing was judged");
    (Outcome::single(&output.succeeded().text()), output)
}

async fn a_gibibyte_down_arrives_intact() {
    let world = World::new().await;
    let origin = world
        .raw("good.test", 443, |mut connection| async move {
            connection.read_record().await?;
            connection.send_payload(GIBIBYTE).await
        })
        .await;

    let (outcome, output) = run(&world, &script().read_to_end()).await;

    assert_eq!(outcome.failure, None);
    assert_eq!(outcome.digest, digest_of_payload(GIBIBYTE));
    assert_eq!(origin.seen().await[0].sent, GIBIBYTE);
    assert_eq!(squid_log::single(&output.log).bytes, GIBIBYTE, "{}", output.log);
}

async fn a_gibibyte_up_arrives_intact() {
    let world = World::new().await;
    let _origin = world
        .raw("good.test", 443, |mut connection| async move {
            connection.read_record().await?;
            let digest = connection.hash_to_end().await?;
            connection.send(digest.as_bytes()).await
        })
        .await;

    let (outcome, _) = run(
        &world,
        &script()
            .step(Step::SendPayload(GIBIBYTE))
            .finish_sending()
            .read_to_end(),
    )
    .await;

    assert_eq!(outcome.failure, None);
    assert_eq!(outcome.text(), digest_of_payload(GIBIBYTE));
}

async fn a_gibibyte_each_way_at_once_arrives_intact() {
    let world = World::new().await;
    // The origin echoes: both directions are full at the same time.
    let _origin = world
        .raw("good.test", 443, |mut connection| async move {
            connection.read_record().await?;
            loop {
                let bytes = connection.read_some().await?;
                if bytes.is_empty() {
                    return Ok(());
                }
                connection.send(&bytes).await?;
            }
        })
        .await;

    let script = script()
        .step(Step::Exchange(GIBIBYTE))
        .finish_sending()
        .read_to_end();
    let (outcome, output) = run(&world, &script).await;

    assert_eq!(outcome.failure, None);
    assert_eq!(outcome.digest, digest_of_payload(GIBIBYTE));
    assert_eq!(squid_log::single(&output.log).bytes, GIBIBYTE, "{}", output.log);
}

async fn a_download_in_tls_arrives_intact() {
    let world = World::new().await;
    let _origin = world.https("good.test").await;
    const LENGTH: u64 = 256 << 20;
    let line = format!(
        "{} | sha256sum",
        curl(&world)
            .words("--http1.1")
            .arg(format!("https://good.test/bytes/{LENGTH}"))
            .line()
    );

    let output = world
        .exec()
        .allow("good.test")
        .run(&egress_tests::clients::shell(&line))
        .await;

    let digest = digest_of_payload(LENGTH);
    let expected = digest.split(' ').nth(1).unwrap_or_default();
    assert_eq!(output.succeeded().text().split(' ').next(), Some(expected));
    assert_eq!(world.agent_dns.names_asked(), ["good.test"]);
}

async fn two_hundred_tunnels_at_once_do_not_mix() {
    let world = World::new().await;
    let origin = world
        .raw("good.test", 443, |mut connection| async move {
            connection.read_record().await?;
            let digest = connection.hash_to_end().await?;
            connection.send(digest.as_bytes()).await
        })
        .await;
    // All are open, and have sent something, before the first one goes on.
    let script = script()
        .step(Step::SendPayload(10_000))
        .step(Step::Rendezvous)
        .step(Step::SendPayload(90_001))
        .finish_sending()
        .read_to_end()
        .times(200);

    let output = world
        .exec()
        .allow("good.test")
        .log(Format::Combined)
        .run(&raw(&world, &script))
        .await;

    let outcomes = Outcome::parse(&output.succeeded().text());
    assert_eq!(outcomes.len(), 200);
    let sent = [payload(10_000), payload(90_001)].concat();
    let expected = egress_tests::bytes::digest_of(&sent);
    for outcome in &outcomes {
        assert_eq!(
            (outcome.failure.clone(), outcome.text()),
            (None, expected.clone())
        );
    }
    assert_eq!(origin.seen().await.len(), 200);
    let log = squid_log::combined(&output.log);
    assert_eq!(log.len(), 200);
    assert!(
        log.iter()
            .all(|line| line.gist() == "CONNECT good.test:443 200 TCP_TUNNEL:HIER_DIRECT")
    );
}

fn payload(length: u64) -> Vec<u8> {
    let mut payload = egress_tests::bytes::Payload::new();
    let mut bytes = Vec::new();
    while (bytes.len() as u64) < length {
        let left = length - bytes.len() as u64;
        bytes.extend_from_slice(payload.next(left));
    }
    bytes
}

async fn a_client_that_vanishes_ends_the_origins_connection() {
    let world = World::new().await;
    let origin = world
        .raw("good.test", 443, |mut connection| async move {
            connection.read_record().await?;
            connection.send_payload(u64::MAX).await
        })
        .await;
    let line = raw(&world, &script().read_to_end()).line();
    // The agent stays: the client is a child of the command.
    let command = egress_tests::clients::shell(&format!(
        "{line} & echo $! > {}; wait; echo waited",
        path(&world, "pid")
    ));
    let running = world
        .exec()
        .allow("good.test")
        .log(Format::Combined)
        .start(&command);
    origin
        .wait("some megabytes sent", |seen| {
            seen.first().is_some_and(|seen| seen.sent > 4 << 20)
        })
        .await;

    kill(&fs::read_to_string(world.path("pid")).unwrap_or_default());

    origin
        .wait("the end", |seen| seen.iter().all(|seen| seen.end.is_some()))
        .await;
    let output = running.finish().await;
    output.succeeded().printed("waited\n");
    let log = squid_log::combined(&output.log);
    assert_eq!(log.len(), 1, "{}", output.log);
    assert_eq!(log[0].url, "good.test:443");
}

fn path(world: &World, name: &str) -> String {
    world.path(name).display().to_string()
}

fn kill(pid: &str) {
    let pid = pid.trim().parse().map(Pid::from_raw).expect("a process id");
    nix::sys::signal::kill(pid, Signal::SIGKILL).expect("the client is there");
}

async fn an_origin_that_resets_resets_the_client() {
    let world = World::new().await;
    let _origin = world
        .raw("good.test", 443, |mut connection| async move {
            connection.read_record().await?;
            connection.send(b"almost").await?;
            connection.read_exact(1).await?;
            connection.reset()
        })
        .await;

    let (outcome, output) = run(&world, &script().read_until(b"almost").send(b"x").read_to_end()).await;

    assert_eq!(
        outcome.error(),
        Some("ConnectionReset"),
        "an RST arrives as an RST: {outcome:?}"
    );
    assert_eq!(outcome.text(), "almost");
    assert_eq!(squid_log::combined(&output.log).len(), 1, "{}", output.log);
}

async fn an_origin_that_vanishes_is_told_in_the_record() {
    let world = World::new().await;
    let _origin = world
        .raw("good.test", 443, |mut connection| async move {
            connection.read_record().await?;
            connection.send_payload(5_000_000).await?;
            connection.reset()
        })
        .await;

    let output = world
        .exec()
        .allow("good.test")
        .log(Format::Json)
        .run(&raw(&world, &script().read_to_end()))
        .await;

    let outcome = Outcome::single(&output.succeeded().text());
    assert_eq!(outcome.error(), Some("ConnectionReset"), "{outcome:?}");
    let log = output.json_log();
    assert_eq!(log.len(), 1, "{}", output.log);
    assert_eq!(log[0]["ending"], "origin_aborted", "{}", output.log);
}

async fn the_origins_half_close_is_passed_on() {
    let world = World::new().await;
    let origin = world
        .raw("good.test", 443, |mut connection| async move {
            connection.read_record().await?;
            connection.send(b"all that I have").await?;
            connection.finish_sending().await?;
            connection.hash_to_end().await.map(drop)
        })
        .await;
    let script = script()
        .read_to_end()
        .step(Step::Pause(300))
        .step(Step::SendPayload(1_000_000))
        .finish_sending();

    let (outcome, _) = run(&world, &script).await;

    assert_eq!(
        (outcome.failure.clone(), outcome.saw_end),
        (None, true),
        "{outcome:?}"
    );
    assert_eq!(outcome.text(), "all that I have");
    let length = hello().len() as u64;
    origin
        .wait("all of the late megabyte", |seen| {
            seen[0].received == length + 1_000_000
        })
        .await;
}

async fn the_clients_half_close_is_passed_on() {
    let world = World::new().await;
    let _origin = world
        .raw("good.test", 443, |mut connection| async move {
            connection.read_record().await?;
            let digest = connection.hash_to_end().await?;
            connection.send(digest.as_bytes()).await?;
            connection.send_payload(1_000_000).await
        })
        .await;

    let (outcome, _) = run(&world, &script().send(b"question").finish_sending().read_to_end()).await;

    let digest = egress_tests::bytes::digest_of(b"question");
    assert_eq!(outcome.failure, None);
    assert!(outcome.text().starts_with(&digest), "{outcome:?}");
    assert!(
        outcome
            .digest
            .starts_with(&format!("{} ", digest.len() + 1_000_000)),
        "{}",
        outcome.digest
    );
}

async fn a_client_that_resets_resets_the_origin() {
    let world = World::new().await;
    let origin = world
        .raw("good.test", 443, |mut connection| async move {
            connection.read_record().await?;
            connection.send(b"ready").await?;
            connection.hash_to_end().await.map(drop)
        })
        .await;

    let (_, output) = run(&world, &script().read_until(b"ready").step(Step::Reset)).await;

    origin
        .wait("the end", |seen| seen.iter().all(|seen| seen.end.is_some()))
        .await;
    let end = origin.seen().await[0].end.clone().unwrap_or_default();
    assert!(end.contains("reset"), "an RST arrives as an RST: {end}");
    assert_eq!(squid_log::combined(&output.log).len(), 1, "{}", output.log);
}

/// What a tunnel that does not move may hold: the sockets' own buffers (tcp_rmem and tcp_wmem allow 6 and 4 MiB on each
/// side of the agent), a pipe, and the agent's buffer.
const MOST_HELD: u64 = 24 << 20;
/// What the agent's own memory may grow meanwhile.
const MOST_GROWTH: u64 = 4 << 20;

async fn a_slow_reader_holds_the_origin_back_and_not_in_memory() {
    let world = World::new().await;
    let origin = world
        .raw("good.test", 443, |mut connection| async move {
            connection.read_record().await?;
            connection.send_payload(u64::MAX).await
        })
        .await;
    // Reads a little, so that the tunnel has gone over to its fast path, and then no more.
    let script = script()
        .step(Step::ReadExact(2 << 20))
        .step(Step::Say("full".to_owned()))
        .step(Step::Hold);
    let running = world.exec().allow("good.test").start(&raw(&world, &script));
    running.says("full").await;
    let before = resident(running.pid());
    let held = |seen: &[Seen]| seen[0].sent - (2 << 20);
    settled(|| async { held(&origin.seen().await) }).await;

    let held = held(&origin.seen().await);
    assert!(held < MOST_HELD, "{held} bytes are under way");
    let growth = resident(running.pid()).saturating_sub(before);
    assert!(growth < MOST_GROWTH, "the agent grew by {growth} bytes");
    assert_eq!(world.agent_dns.names_asked(), ["good.test"]);
}

/// Bytes of one piece of an upload that nobody reads.
const PIECE: u64 = 16 * 1024;

async fn a_slow_origin_holds_the_client_back_and_not_in_memory() {
    let world = World::new().await;
    let _origin = world
        .raw("good.test", 443, |mut connection| async move {
            connection.read_record().await?;
            connection.send(b"ready").await?;
            connection.stall().await
        })
        .await;
    // Each piece is one more line on standard output, so that the test sees how far it got.
    let mut script = script().read_until(b"ready");
    for piece in 0..64 {
        script = script
            .step(Step::SendPayload(1 << 20))
            .step(Step::Say(format!("piece {piece}.")));
    }
    let running = world.exec().allow("good.test").start(&raw(&world, &script));
    running.says("piece 0.").await;
    let before = resident(running.pid());
    settled(|| async { running.stdout().matches("piece").count() as u64 }).await;

    let held = running.stdout().matches("piece").count() as u64 * PIECE;
    assert!(held < MOST_HELD, "{held} bytes are under way");
    let growth = resident(running.pid()).saturating_sub(before);
    assert!(growth < MOST_GROWTH, "the agent grew by {growth} bytes");
    assert_eq!(world.agent_dns.names_asked(), ["good.test"]);
}

/// Waits until a number has stayed the same for a second: there is no event for "nothing happens any more".
async fn settled<F: Future<Output = u64>>(number: impl Fn() -> F) {
    let mut last = number().await;
    let mut same = 0;
    while same < 10 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let now = number().await;
        same = if now == last { same + 1 } else { 0 };
        last = now;
    }
}

/// Bytes of memory that a process occupies.
fn resident(pid: Pid) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).expect("the agent is there");
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("Rss:"))
        .expect("a line Rss");
    line.trim()
        .trim_end_matches(" kB")
        .parse::<u64>()
        .expect("a number")
        * 1024
}

async fn the_record_counts_the_bytes() {
    let world = World::new().await;
    let _origin = world
        .raw("good.test", 443, |mut connection| async move {
            connection.read_record().await?;
            connection.hash_to_end().await?;
            connection.send_payload(123_457).await
        })
        .await;
    let script = script()
        .step(Step::SendPayload(76_543))
        .finish_sending()
        .read_to_end();

    let output = world
        .exec()
        .allow("good.test")
        .log(Format::Json)
        .run(&raw(&world, &script))
        .await;

    let log = output.json_log();
    assert_eq!(log[0]["bytes_to_client"], 123_457, "{}", output.log);
    assert_eq!(
        log[0]["bytes_to_origin"],
        76_543 + hello().len(),
        "{}",
        output.log
    );
}
