//! Makes the attempts of some classes in a world: first without an agent, then under it.

use std::{
    fs::{self, File, OpenOptions},
    io::Write,
    path::PathBuf,
    time::{Duration, Instant},
};

use nix::{sys::stat::Mode, unistd::mkfifo};
use serde_json::{Value, json};

use super::{Attack, Class, Seen, Told, Verdict, all, wire::Wire};
use crate::{
    agent::{Format, Running},
    clients::{Client, python},
    daemon::Daemon,
    dns::Answer,
    lab::{World, ip},
    origins::{Origin, RawConnection},
    patience::seconds,
};

/// The names that workload `a` may look up.
const ALLOWED: [&str; 2] = ["good.test", "rebind.test"];

/// What the workload may reach besides good.test. See the head of attacks.yaml.
const POLICY: &str = "
apiVersion: egress-enforcer.io/v1alpha1
kind: EgressPolicy
metadata: {name: more, namespace: team-a}
spec:
  egress:
  - to: [{domain: rebind.test}]
  - to: [{cidr: 203.0.113.0/25}]
    ports: [{port: 5432}, {port: 123, protocol: UDP}]
";

/// Addresses with a meaning of their own lead to the origins like all others.
const ROUTES: [&str; 5] = [
    "169.254.169.254/32",
    "168.63.129.16/32",
    "100.100.100.200/32",
    "fd00:ec2::254/128",
    "64:ff9b::/96",
];

/// What the tap's marks are sent to, so that they pass a fence.
const MARKS_ARE_INTERNAL: &str = "internal: [198.51.100.250/32, '2001:db8:1::250/128']";

/// How long the agent may take to write a record down: refusals by the kernel are counted, and told once a second.
const RECORDED_WITHIN: u64 = 15;

/// Makes every attempt of these classes and tells what came of each.
///
/// # Panics
/// The world does not work: not even what is allowed does.
pub async fn attempt(classes: &[Class]) -> Vec<Told> {
    let attacks: Vec<Attack> = all()
        .into_iter()
        .filter(|attack| classes.contains(&attack.class))
        .collect();
    let (here, elsewhere): (Vec<_>, Vec<_>) = attacks
        .into_iter()
        .map(|attack| (attack.needs.and_then(|need| need.missing()), attack))
        .partition(|(missing, _)| missing.is_none());
    let mut told: Vec<Told> = elsewhere
        .into_iter()
        .map(|(missing, attack)| Told {
            attack,
            seen: "-".to_owned(),
            verdict: Verdict::NotHere(missing.unwrap_or_default()),
        })
        .collect();
    let (mut inside, mut fenced, mut leaving) = (Vec::new(), Vec::new(), Vec::new());
    for (_, attack) in here {
        match attack.class {
            Class::Leaving => leaving.push(attack),
            Class::Packet => fenced.push(attack),
            Class::Tcp
            | Class::Udp
            | Class::Raw
            | Class::Address
            | Class::Name
            | Class::Http
            | Class::Dns
            | Class::Socket
            | Class::Sctp
            | Class::Dccp
            | Class::Smc
            | Class::Rxrpc => inside.push(attack),
        }
    }
    if !inside.is_empty() {
        let stage = Stage::new(Agent::Inside).await;
        told.extend(stage.as_workload(&inside).await);
    }
    if !fenced.is_empty() {
        let stage = Stage::new(Agent::Beyond).await;
        told.extend(stage.as_workload(&fenced).await);
    }
    if !leaving.is_empty() {
        let stage = Stage::new(Agent::Inside).await;
        told.extend(stage.as_command(&leaving).await);
    }
    told
}

/// Where the agent is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Agent {
    /// In the workload's network namespace, as with `exec` and on a host: there is no fence between them, and whatever comes
    /// out of the cable counts.
    Inside,
    /// At the far end of the workload's cable, as with containers: it puts a fence there.
    Beyond,
}

/// A world with everything that the attempts are aimed at.
struct Stage {
    agent: Agent,
    world: World,
    wire: Wire,
    /// The servers, which end with the stage.
    _origins: Vec<Origin>,
}

impl Stage {
    async fn new(agent: Agent) -> Self {
        let world = World::new().await;
        world
            .client
            .sysctl("net/ipv4/ping_group_range", "0 2147483647")
            .await;
        for route in ROUTES {
            let (family, near) = if route.contains(':') {
                ("-6", "2001:db8:0:2::1")
            } else {
                ("-4", "192.0.2.1")
            };
            world
                .origins
                .ip(&format!("{family} route add local {route} dev lo"))
                .await;
            world
                .client
                .ip(&format!("{family} route add {route} via {near}"))
                .await;
        }
        let rebound = Answer::Addresses(vec![ip("10.66.0.1"), ip("169.254.169.254")]);
        world.zone.set("rebind.test", rebound);
        world.file("policies/more.yaml", POLICY);
        for workload in ["a", "b"] {
            world.cgroup.child(&format!("tree/{workload}"));
        }
        let mut origins = Vec::new();
        for name in ["good.test", "evil.test"] {
            origins.push(world.http(name).await);
            origins.push(world.https(name).await);
        }
        origins.push(world.raw("evil.test", 8080, swallow).await);
        let wire = match agent {
            Agent::Inside => Wire::tap(&world).await,
            Agent::Beyond => Wire::behind_a_fence(&world).await,
        };
        Self {
            agent,
            world,
            wire,
            _origins: origins,
        }
    }

    /// By processes in the cgroup of the workload `a`, under a daemon.
    async fn as_workload(&self, attacks: &[Attack]) -> Vec<Told> {
        let world = &self.world;
        let tree = world.cgroup.path().join("tree");
        let without = self.without(attacks, Some(&tree)).await;

        // What is opened early is opened now.
        let mut actors = Actors::new(world, "with", attacks, Some(&tree), false);
        let home = match self.agent {
            Agent::Inside => world.cgroup.child("outside"),
            // A namespace that it shares with somebody who is not enforced is not fenced.
            Agent::Beyond => tree.join("b"),
        };
        actors
            .started(world.start_in(&world.client, &home, &actors.client))
            .await;
        let dns_log = world.path("dns.json");
        let more = format!("dns: {{log: {{target: {}, level: all}}}}", dns_log.display());
        let (daemon, _member) = match self.agent {
            Agent::Inside => (Daemon::start(world, &more).await, None),
            Agent::Beyond => {
                let daemon = Daemon::beyond(world, &format!("{more}\n{MARKS_ARE_INTERNAL}")).await;
                let member = daemon.fenced(&world.client).await;
                (daemon, Some(member))
            }
        };
        self.works(&daemon).await;
        let log = world.path("log.json");
        let mut told = Vec::new();
        for (attack, without) in attacks.iter().zip(without) {
            let records = Records::after(&[(&log, ""), (&dns_log, "dns:")]);
            let with = self.one(&mut actors, attack).await;
            told.push(close(attack, &without, with, &records).await);
        }
        self.works(&daemon).await;
        told
    }

    /// By the command of an `exec`.
    async fn as_command(&self, attacks: &[Attack]) -> Vec<Told> {
        let without = self.without(attacks, None).await;
        let (fatal, others): (Vec<_>, Vec<_>) = attacks
            .iter()
            .cloned()
            .zip(without)
            .partition(|(attack, _)| attack.fatal);
        let mut groups = vec![others];
        groups.extend(fatal.into_iter().map(|one| vec![one]));
        let mut told = Vec::new();
        for (number, group) in groups.into_iter().filter(|group| !group.is_empty()).enumerate() {
            let attacks: Vec<Attack> = group.iter().map(|(attack, _)| attack.clone()).collect();
            let mut actors = Actors::new(&self.world, &format!("exec-{number}"), &attacks, None, true);
            let exec = self.world.exec().allow("good.test").log(Format::Json);
            actors.started(exec.start(&actors.client)).await;
            let log = self.world.path("access.log");
            for (attack, without) in group {
                let records = Records::after(&[(&log, "")]);
                let with = self.one(&mut actors, &attack).await;
                told.push(close(&attack, &without, with, &records).await);
            }
        }
        told
    }

    /// All of them without an agent.
    async fn without(&self, attacks: &[Attack], tree: Option<&PathBuf>) -> Vec<Seen> {
        let name = if tree.is_some() { "without" } else { "exec-without" };
        let mut actors = Actors::new(&self.world, name, attacks, tree, false);
        let outside = self.world.cgroup.child("outside");
        actors
            .started(self.world.start_in(&self.world.client, &outside, &actors.client))
            .await;
        self.wire.arrived(&self.world).await;
        let mut seen = Vec::new();
        for attack in attacks {
            seen.push(self.one(&mut actors, attack).await);
        }
        actors.end().await;
        seen
    }

    /// Makes one attempt. What arrives in between is not its doing, but still nothing may.
    async fn one(&self, actors: &mut Actors<'_>, attack: &Attack) -> Seen {
        let mut arrived = self.wire.arrived(&self.world).await;
        let asked = self.world.agent_dns.questions().len();
        let text = actors.make(&attack.id).await;
        arrived.extend(self.wire.arrived(&self.world).await);
        let questions = self.world.agent_dns.questions();
        let names = questions.iter().skip(asked).map(|question| &question.name);
        arrived.extend(
            names
                .filter(|name| !ALLOWED.contains(&name.as_str()))
                .map(|name| format!("a query for {name}")),
        );
        Seen { text, arrived }
    }

    /// What is allowed works, and what is not does not: otherwise a broken network would pass for a fence.
    async fn works(&self, daemon: &Daemon<'_>) {
        assert_eq!(daemon.codes("a", &self.world.client).await, "200,403,");
        // What has been sent for this is nobody's attempt.
        self.wire.arrived(&self.world).await;
    }
}

async fn close(attack: &Attack, without: &Seen, with: Seen, records: &Records<'_>) -> Told {
    // What got out, or was told wrongly, needs no wait for its record.
    let logged = !attack.is_told(&with) || records.appear(&attack.log).await;
    Told {
        attack: attack.clone(),
        verdict: attack.judge(without, &with, logged),
        seen: with.text,
    }
}

async fn swallow(mut connection: RawConnection) -> std::io::Result<()> {
    while !connection.read_some().await?.is_empty() {}
    Ok(())
}

/// The program that makes attempts, and the pipe by which it is told which.
struct Actors<'w> {
    client: Client,
    control: PathBuf,
    running: Option<(Running<'w>, File)>,
}

impl<'w> Actors<'w> {
    fn new(world: &World, name: &str, attacks: &[Attack], tree: Option<&PathBuf>, has_agent: bool) -> Self {
        let control = world.path(&format!("control-{name}"));
        mkfifo(&control, Mode::S_IRUSR | Mode::S_IWUSR).expect("a pipe with a name");
        let rows: Vec<Value> = attacks
            .iter()
            .map(|attack| {
                json!({
                    "id": attack.id, "early": attack.early, "before": attack.before, "run": attack.run,
                    "capabilities": attack.capabilities,
                })
            })
            .collect();
        let specification = json!({
            "tree": tree.map(|tree| tree.display().to_string()).unwrap_or_default(),
            "control": control, "rows": rows, "agent": has_agent, "patience": seconds(10).as_secs(),
        });
        let file = world.file(&format!("attacks-{name}.json"), &specification.to_string());
        let client = python(world, "attacks", include_str!("../../programs/attacks.py")).arg(file);
        Self {
            client,
            control,
            running: None,
        }
    }

    /// Waits until it is ready for the first attempt.
    async fn started(&mut self, running: Running<'w>) {
        running.says("ready\n").await;
        let path = self.control.clone();
        // Waits for the reader.
        let open = tokio::task::spawn_blocking(move || OpenOptions::new().write(true).open(path));
        let control = open.await.expect("no panic").expect("the pipe's other end");
        self.running = Some((running, control));
    }

    /// Tells it that there are no more, and waits until it is gone.
    async fn end(self) {
        let (running, control) = self.running.expect("started");
        drop(control);
        running.finish().await;
    }

    /// Makes one attempt, and returns what it saw.
    async fn make(&mut self, id: &str) -> String {
        let (running, control) = self.running.as_mut().expect("started");
        writeln!(control, "{id}").expect("it reads");
        let begin = format!("{{\"id\": \"{id}\", \"seen\": ");
        running.says(&begin).await;
        // The line's end may come later than its beginning.
        running.says(&format!("\"end\": \"{id}\"}}\n")).await;
        let text = running.stdout();
        let line = text
            .lines()
            .find(|line| line.starts_with(&begin))
            .unwrap_or_default();
        let told: Value = serde_json::from_str(line).unwrap_or_default();
        told["seen"].as_str().unwrap_or("nothing").to_owned()
    }
}

/// Logs, and how long they were.
struct Records<'a> {
    logs: Vec<(&'a PathBuf, &'static str, usize)>,
}

impl<'a> Records<'a> {
    fn after(logs: &[(&'a PathBuf, &'static str)]) -> Self {
        let logs = logs
            .iter()
            .map(|(path, prefix)| (*path, *prefix, lines(path).len()));
        Self { logs: logs.collect() }
    }

    /// Whether a record of the outcome is written: no event tells from outside.
    async fn appear(&self, outcome: &str) -> bool {
        if outcome == "-" {
            return true;
        }
        let begun = Instant::now();
        while begun.elapsed() < seconds(RECORDED_WITHIN) {
            for (path, prefix, before) in &self.logs {
                let is_it = |line: &String| {
                    serde_json::from_str::<Value>(line).is_ok_and(|record| {
                        format!("{prefix}{}", record["outcome"].as_str().unwrap_or_default()) == outcome
                            && record["enforced"] != false
                    })
                };
                if lines(path).iter().skip(*before).any(is_it) {
                    return true;
                }
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        false
    }
}

fn lines(path: &PathBuf) -> Vec<String> {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}
