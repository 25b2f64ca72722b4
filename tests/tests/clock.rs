//! The clock on the wall: what is awaited is awaited by the monotonic one, so that setting the time changes nothing.

use std::{io, time::Duration};

use egress_tests::{
    agent::Running,
    clients::{python, raw},
    daemon::{Daemon, policy},
    hello::Hello,
    lab::World,
    origins::RawConnection,
    promises,
    raw_client::{Outcome, Script, Step},
    require::Need,
};
use nix::{
    sys::time::{TimeSpec, TimeValLike},
    time::{ClockId, clock_gettime, clock_settime},
};

promises![a_clock_that_jumps_changes_nothing: [Need::OwnClock]];

/// Sets the clock, and back when dropped.
struct Jump {
    before: TimeSpec,
    since: TimeSpec,
}

impl Jump {
    fn by(hours: i64) -> Self {
        let now = |clock| clock_gettime(clock).expect("a clock");
        let jump = Self {
            before: now(ClockId::CLOCK_REALTIME),
            since: now(ClockId::CLOCK_MONOTONIC),
        };
        clock_settime(ClockId::CLOCK_REALTIME, jump.before + TimeSpec::hours(hours))
            .expect("a guest's clock");
        jump
    }
}

impl Drop for Jump {
    fn drop(&mut self) {
        let passed = clock_gettime(ClockId::CLOCK_MONOTONIC).map(|now| now - self.since);
        let back = passed.map(|passed| clock_settime(ClockId::CLOCK_REALTIME, self.before + passed));
        if !matches!(back, Ok(Ok(()))) {
            eprintln!("the guest's clock stays wrong");
        }
    }
}

async fn echo(mut connection: RawConnection) -> io::Result<()> {
    connection.read_record().await?;
    loop {
        let bytes = connection.read_some().await?;
        if bytes.is_empty() {
            return Ok(());
        }
        connection.send(&bytes).await?;
    }
}

async fn greet(mut connection: RawConnection) -> io::Result<()> {
    connection.send(b"220 hello\r\n").await
}

/// A tunnel that says something before the first jump, between the jumps, and after them.
fn tunnel<'w>(world: &'w World, daemon: &Daemon<'w>) -> Running<'w> {
    let mut script =
        Script::to(world.sockets("good.test", 443)[0]).send(&Hello::new(Some("good.test")).bytes());
    for word in ["one", "two", "three"] {
        script = script
            .step(Step::AwaitFile(world.path(word)))
            .send(word.as_bytes())
            .read_until(word.as_bytes())
            .step(Step::Say(format!("said {word}")));
    }
    let client = raw(world, &script.finish_sending().read_to_end());
    world.start_in(&world.client, &daemon.tree.join("a"), &client)
}

async fn a_clock_that_jumps_changes_nothing() {
    let world = World::new().await;
    let _tls = world.raw("good.test", 443, echo).await;
    let _web = world.http("good.test").await;
    let _mail = world.raw("good.test", 25, greet).await;
    let rule = policy("mail", "team-a", "good.test");
    world.file(
        "policies/mail.yaml",
        &format!("{rule}    ports: [{{port: 25}}]\n"),
    );
    // Limits that a jump of an hour would exceed a hundred times over.
    let daemon = Daemon::start(
        &world,
        "limits: {idleSeconds: 300, keepAliveSeconds: 300, headSeconds: 60}",
    )
    .await;
    // Looks the name up once; what the workload was told then must hold through both jumps.
    let learn = python(
        &world,
        "learn",
        "import socket; socket.getaddrinfo('good.test', 25)",
    );
    let mail = python(
        &world,
        "mail",
        "import socket; print(socket.create_connection(('198.51.100.10', 25), 20).recv(3).decode())",
    );
    daemon.run("a", &world.client, &learn).await.succeeded();
    daemon
        .run("a", &world.client, &mail)
        .await
        .succeeded()
        .printed("220\n");
    let open = tunnel(&world, &daemon);
    world.file("one", "");
    open.says("said one").await;

    for (hours, word) in [(30, "two"), (-30, "three")] {
        let jump = Jump::by(hours);
        world.file(word, "");
        open.says(&format!("said {word}")).await;
        assert_eq!(daemon.codes("a", &world.client).await, "200,403,", "by {hours} h");
        daemon
            .run("a", &world.client, &mail)
            .await
            .succeeded()
            .printed("220\n");
        drop(jump);
    }
    let outcome = Outcome::single(&open.finish().await.text());
    assert_eq!((outcome.failure, outcome.saw_end), (None, true));
    // Durations are true, whatever the dates are.
    let longest = Duration::from_secs(600).as_millis();
    for record in daemon.log() {
        let took = record["duration_ms"].as_u64().unwrap_or(u64::MAX);
        assert!(u128::from(took) < longest, "{record}");
    }
    daemon.stop().await.succeeded();
}
