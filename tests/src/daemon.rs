//! A daemon with two workloads, for tests of `egress-agent run`.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use nix::sys::{
    signal::Signal,
    wait::{Id, WaitPidFlag, waitid},
};
use serde_json::Value;

use crate::{
    agent::{Finished, Running, Start, verb},
    clients::{Client, curl, shell},
    lab::{AGENT_DNS, Place, World},
    patience::seconds,
};

/// A daemon that enforces `tree` below the world's cgroup.
#[derive(Debug)]
pub struct Daemon<'w> {
    world: &'w World,
    /// Where it runs.
    place: &'w Place,
    /// Its process.
    pub running: Running<'w>,
    /// Its name among the agents of the machine.
    pub instance: String,
    /// The enforced cgroup.
    pub tree: PathBuf,
}

impl<'w> Daemon<'w> {
    /// Starts one with the workloads `a` (of the namespace team-a, which may reach good.test) and `b` (of team-b, which
    /// may reach other.test). `more` goes into its configuration.
    ///
    /// # Panics
    /// It does not come up.
    pub async fn start(world: &'w World, more: &str) -> Self {
        Self::start_with(world, more, &[]).await
    }

    /// The same with another file for its access log than the one that [`Self::log`] reads.
    ///
    /// # Panics
    /// It does not come up.
    pub async fn start_logging_to(world: &'w World, log: &str, more: &str) -> Self {
        Self::begin(world, &world.client, log, more, &[]).await
    }

    /// The same at the far end of the first workload's veth pair, as it is with containers.
    ///
    /// # Panics
    /// It does not come up.
    pub async fn beyond(world: &'w World, more: &str) -> Self {
        let log = world.path("log.json").display().to_string();
        Self::begin(world, &world.origins, &log, more, &[]).await
    }

    /// The same with `words` on its command line.
    ///
    /// # Panics
    /// It does not come up.
    pub async fn start_with(world: &'w World, more: &str, words: &[&str]) -> Self {
        let log = world.path("log.json").display().to_string();
        Self::begin(world, &world.client, &log, more, words).await
    }

    async fn begin(world: &'w World, place: &'w Place, log: &str, more: &str, words: &[&str]) -> Self {
        let tree = world.cgroup.child("tree");
        for workload in ["a", "b"] {
            world.cgroup.child(&format!("tree/{workload}"));
        }
        let instance = format!(
            "test-{}",
            tree.parent()
                .and_then(|path| path.file_name())
                .unwrap_or_default()
                .display()
        );
        let config = format!(
            "instance: {instance}\nnameservers: [{AGENT_DNS:?}]\n\
             accessLog:\n- {{format: json, target: {log}}}\n\
             workloads:\n- {{cgroup: a, namespace: team-a, name: one, labels: {{app: web}}}}\n\
             - {{cgroup: b, namespace: team-b, name: two}}\n{more}\n",
        );
        let config = world.file("config.yaml", &config);
        world.file("policies/a.yaml", &policy("a", "team-a", "good.test"));
        world.file("policies/b.yaml", &policy("b", "team-b", "other.test"));
        assert!(config.ends_with("config.yaml"), "the successors read it too");
        let daemon = Self {
            world,
            place,
            running: process(world, place, &tree, words).start(),
            instance,
            tree,
        };
        daemon.is_ready().await;
        daemon
    }

    async fn is_ready(&self) {
        let pid = self.running.pid().as_raw();
        self.eventually("it answers", async || {
            self.status().await.is_some_and(|status| status["pid"] == pid)
        })
        .await;
    }

    /// Starts another process with the same configuration and `words`, and waits until it is the one that answers. What
    /// has become of this one is the caller's to know: it is returned too.
    pub async fn succeed(self, words: &[&str]) -> (Self, Running<'w>) {
        let successor = Self {
            world: self.world,
            place: self.place,
            running: process(self.world, self.place, &self.tree, words).start(),
            instance: self.instance,
            tree: self.tree,
        };
        successor.is_ready().await;
        (successor, self.running)
    }

    /// Kills it without a warning; when this returns it is dead and holds nothing any more.
    ///
    /// # Panics
    /// It was dead already.
    pub fn kill(&self) {
        self.end_by(Signal::SIGKILL);
    }

    /// Sends it `signal`; when this returns it has ended.
    ///
    /// # Panics
    /// It was dead already.
    pub fn end_by(&self, signal: Signal) {
        self.running.signal(signal);
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT;
        waitid(Id::Pid(self.running.pid()), flags).expect("it is our child");
    }

    /// Makes it have been one whose maps had another layout: so its note will say to the next one.
    ///
    /// # Panics
    /// There is no note, or none of a layout.
    pub fn note_layout(&self, layout: u32) {
        let note = self.state().join("traces.json");
        let text = fs::read_to_string(&note).expect("the agent's note");
        let mut traces: Value = serde_json::from_str(&text).expect("a note in JSON");
        let before = traces["layout"].as_u64();
        assert!(before.is_some_and(|layout| layout > 0), "{traces}");
        traces["layout"] = Value::from(layout);
        fs::write(&note, traces.to_string()).expect("the note is ours");
    }

    /// Kills it, and starts another one in its place.
    pub async fn kill_and_succeed(self) -> Self {
        self.kill();
        let (successor, killed) = self.succeed(&[]).await;
        killed.finish().await;
        successor
    }

    /// Another process of the same name for `cgroup`, which need not come up.
    #[must_use]
    pub fn rival(&self, cgroup: &Path, words: &[&str]) -> Running<'w> {
        process(self.world, self.place, cgroup, words).start()
    }

    /// One for the same cgroup that is itself in `own`.
    #[must_use]
    pub fn rival_in(&self, own: &Path) -> Running<'w> {
        process(self.world, self.place, &self.tree, &[])
            .cgroup(own)
            .start()
    }

    /// Where its links and maps are pinned.
    #[must_use]
    pub fn pins(&self) -> PathBuf {
        PathBuf::from("/sys/fs/bpf/egress").join(&self.instance)
    }

    /// Its directory of state.
    #[must_use]
    pub fn state(&self) -> PathBuf {
        PathBuf::from("/run/egress-agent").join(&self.instance)
    }

    /// What `status` tells of this instance.
    pub async fn status(&self) -> Option<Value> {
        // Where it runs: elsewhere it would be a stranger in a workload's namespace.
        let output = verb(self.world, self.place, &["status", "--output", "json"])
            .start()
            .finish()
            .await;
        let all: Value = serde_json::from_str(&output.text()).ok()?;
        all.as_array()?
            .iter()
            .find(|status| status["instance"] == self.instance.as_str())
            .cloned()
    }

    /// Waits for what no event tells from outside.
    ///
    /// # Panics
    /// It does not come about in 20 s.
    pub async fn eventually(&self, what: &str, is_so: impl AsyncFn() -> bool) {
        let begun = Instant::now();
        while begun.elapsed() < seconds(20) {
            if is_so().await {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("never: {what}; the daemon said:\n{}", self.running.stderr());
    }

    /// Runs `client` as the workload `name` in `place`.
    pub async fn run(&self, name: &str, place: &Place, client: &Client) -> Finished {
        self.world
            .start_in(place, &self.tree.join(name), client)
            .finish()
            .await
    }

    /// Starts a member of the workload `a` in `place`, whose network namespace is not the daemon's, and waits until that is
    /// fenced.
    ///
    /// # Panics
    /// It never is.
    pub async fn fenced(&self, place: &Place) -> Running<'w> {
        let member = self
            .world
            .start_in(place, &self.tree.join("a"), &shell("echo here; exec sleep 1000"));
        member.says("here").await;
        self.eventually("its namespace is fenced", async || {
            self.status()
                .await
                .is_some_and(|status| status["fences"]["namespaces"] == 1)
        })
        .await;
        member
    }

    /// The status codes of requests for `good.test` and `other.test`.
    pub async fn codes(&self, name: &str, place: &Place) -> String {
        self.run(name, place, &both(self.world)).await.text()
    }

    /// The access log's records so far.
    #[must_use]
    pub fn log(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.world.path("log.json")).unwrap_or_default();
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap_or_default())
            .collect()
    }

    /// Asks it to end, and waits for that.
    pub async fn stop(self) -> Finished {
        self.running.signal(Signal::SIGTERM);
        self.running.finish().await
    }
}

/// The daemon's process; no member itself of what it enforces.
fn process<'w>(world: &'w World, place: &Place, tree: &Path, more: &[&str]) -> Start<'w> {
    let own = world.cgroup.child("daemon");
    let paths = [world.path("config.yaml"), tree.to_owned(), world.path("policies")]
        .map(|path| path.display().to_string());
    let mut words = vec![
        "run",
        "--config",
        &paths[0],
        "--cgroup",
        &paths[1],
        "--policy-dir",
        &paths[2],
    ];
    words.extend(more);
    verb(world, place, &words).cgroup(&own)
}

/// A policy that lets every workload of a namespace reach one domain.
#[must_use]
pub fn policy(name: &str, namespace: &str, domain: &str) -> String {
    format!(
        "apiVersion: egress-enforcer.io/v1alpha1\nkind: EgressPolicy\n\
         metadata: {{name: {name}, namespace: {namespace}}}\nspec:\n  egress:\n  - to: [{{domain: {domain}}}]\n"
    )
}

/// Asks for `/` of good.test and of other.test, and prints the two status codes.
#[must_use]
pub fn both(world: &World) -> Client {
    curl(world)
        .words("--ipv4 --output /dev/null --write-out %{http_code}, http://good.test/")
        .words("--output /dev/null http://other.test/")
}
