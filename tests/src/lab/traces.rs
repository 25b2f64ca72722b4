//! What an agent has put into the kernel, and whether it is gone.

use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    process::Stdio,
    time::{Duration, Instant},
};

use nix::unistd::Pid;
use serde_json::Value;
use tokio::{process::Command, time::sleep};

use crate::{lab::Place, patience::stretched, require::tool};

/// The kernel frees BPF objects some time after their last user has gone: RCU, then a work queue.
const GONE_WITHIN: Duration = Duration::from_secs(10);

/// BPF objects by kind (`prog`, `map`, `link`) and number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Traces {
    objects: BTreeSet<(&'static str, u32)>,
}

impl Traces {
    /// What the process `agent` holds now. Precise also where other agents run on the machine: it is read from the
    /// process' own descriptors.
    ///
    /// # Panics
    /// The process is gone, or holds no program, which means that this looks at the wrong process.
    #[must_use]
    pub fn of(agent: Pid) -> Self {
        let directory = format!("/proc/{agent}/fdinfo");
        let entries = fs::read_dir(&directory).unwrap_or_else(|error| panic!("{directory}: {error}"));
        let objects: BTreeSet<_> = entries
            .filter_map(|entry| fs::read_to_string(entry.ok()?.path()).ok())
            .flat_map(|text| text.lines().filter_map(object).collect::<Vec<_>>())
            .collect();
        assert!(
            objects.iter().any(|(kind, _)| *kind == "link"),
            "process {agent} holds no link: {objects:?}"
        );
        Self { objects }
    }

    /// Numbers of the objects of one kind.
    #[must_use]
    pub fn of_kind(&self, kind: &str) -> BTreeSet<u32> {
        let alike = self.objects.iter().filter(|(of, _)| *of == kind);
        alike.map(|(_, id)| *id).collect()
    }

    /// Asserts that all of it is gone, whoever might have held it: a pin, another process, an attachment.
    ///
    /// # Panics
    /// Something is still there.
    pub async fn are_gone(&self) {
        let begin = Instant::now();
        loop {
            let mut left = Vec::new();
            for (kind, id) in &self.objects {
                if exists(kind, *id).await {
                    left.push(format!("{kind} {id}"));
                }
            }
            if left.is_empty() {
                return;
            }
            assert!(begin.elapsed() < stretched(GONE_WITHIN), "left behind: {left:?}");
            sleep(Duration::from_millis(50)).await;
        }
    }
}

/// The sockets that listen in a namespace, as `ss` tells them.
///
/// # Panics
/// `ss` failed.
pub async fn listeners(place: &Place) -> Vec<String> {
    let ss = tool("ss");
    let output = place
        .run(async move {
            std::process::Command::new(ss)
                .args(["-H", "-l", "-t", "-n"])
                .output()
                .expect("ss runs")
        })
        .await;
    assert!(
        output.status.success(),
        "ss: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut addresses: Vec<String> = text
        .lines()
        .filter_map(|line| line.split_whitespace().nth(3).map(str::to_owned))
        .collect();
    addresses.sort();
    addresses
}

/// The programs attached to a cgroup and below it, as `bpftool` tells them.
///
/// # Panics
/// `bpftool` failed.
pub async fn attached(cgroup: &Path) -> String {
    let output = Command::new(tool("bpftool"))
        .args(["cgroup", "tree"])
        .arg(cgroup)
        .output()
        .await
        .expect("bpftool runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    // A heading, and for each cgroup a line with its path; those of programs begin with their numbers.
    let is_program = |line: &&str| {
        line.trim_start()
            .starts_with(|first: char| first.is_ascii_digit())
    };
    text.lines().filter(is_program).collect::<Vec<_>>().join("\n")
}

/// What the pinned map has in it, as `bpftool` tells it.
///
/// # Panics
/// `bpftool` failed.
pub async fn entries_of(pin: &Path) -> Vec<Value> {
    let output = Command::new(tool("bpftool"))
        .args(["--json", "map", "dump", "pinned"])
        .arg(pin)
        .output()
        .await
        .expect("bpftool runs");
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("bpftool map dump {}: {error}", pin.display()))
}

fn object(line: &str) -> Option<(&'static str, u32)> {
    let (key, value) = line.split_once(':')?;
    let kind = match key {
        "prog_id" => "prog",
        "map_id" => "map",
        "link_id" => "link",
        _ => return None,
    };
    Some((kind, value.trim().parse().ok()?))
}

async fn exists(kind: &str, id: u32) -> bool {
    Command::new(tool("bpftool"))
        .args([kind, "show", "id", &id.to_string()])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .await
        .expect("bpftool runs")
        .success()
}
