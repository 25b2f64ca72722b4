//! What a person sees of it in the kernel.

use std::{path::Path, process::Command, time::Duration};

use egress_tests::{clients::shell, lab::Place, require::tool};
use serde_json::Value;

use crate::{
    stage::{ALLOWED, Stage},
    story::Story,
};

/// The maps whose content says something while one command runs, and what it says.
const MAPS: [(&str, &str); 3] = [
    (
        "PORTS",
        "TCP ports whose connections are led to the enforcer: those that the policy names by domain.",
    ),
    (
        "LISTENERS",
        "Where it listens on loopback, by network namespace: never on an address of the network.",
    ),
    (
        "QUERIES",
        "Who asked for the name: curl's own DNS question, which the enforcer answers.",
    ),
];

pub(crate) async fn while_it_runs(stage: &Stage, story: &mut Story) {
    story.scene("What is in the kernel while it runs");
    let curl = stage.curl(&format!("https://{ALLOWED}/"));
    let words = curl
        .arguments
        .iter()
        .map(|word| word.to_string_lossy())
        .collect::<Vec<_>>()
        .join(" ");
    let waiting = shell(&format!("{} {words} && exec sleep 1000", curl.program.display()));
    story.command(&stage.exec_line("sh -c 'curl ... && sleep 1000' &"));
    let running = stage.exec().start(&waiting);
    running.says("hello from").await;

    let cgroup = stage.world.cgroup.path();
    let own = child(cgroup).expect("exec makes a cgroup for its command");
    let programs = programs(&own.to_string_lossy());
    show(story, &own);

    story.command("kill %1");
    running.signal(nix::sys::signal::Signal::SIGTERM);
    let ended = running.finish().await;
    story.check(
        ended.code() == 143,
        "told to end, it ends its command and tells the signal in its exit status (128+15)",
    );
    story.check(child(cgroup).is_none(), "no cgroup is left behind");
    story.check(are_gone(&programs).await, "no program is left behind");
    story.check(
        listeners(&stage.world.client).await.is_empty(),
        "nothing listens any more",
    );
}

/// What a person would type to see it, and what that shows.
fn show(story: &mut Story, cgroup: &Path) {
    let path = cgroup.to_string_lossy();
    let attached = bpftool(&["cgroup", "show", &path]);
    story.command("bpftool cgroup show /sys/fs/cgroup/.../egress-exec-...");
    story.output(&attached);
    story.check(
        attached.contains("connect4"),
        "its programs are attached to the command's cgroup alone",
    );
    let maps = maps(&path);
    let mut named = true;
    for (name, meaning) in MAPS {
        story.command(&format!("bpftool map dump name {name}"));
        let dumps = maps
            .iter()
            .filter(|map| map.name == name)
            .map(|map| bpftool(&["map", "dump", "id", &map.id.to_string()]));
        let dump = dumps.collect::<String>();
        story.output(&in_short(&dump));
        story.say(&format!("  {meaning}"));
        named &= dump.contains("\"key\"");
    }
    story.check(
        named,
        "bpftool names the fields: the types travel with the programs",
    );
}

/// bpftool's dump with one entry in a line.
fn in_short(dump: &str) -> String {
    let words: Vec<_> = dump.split_whitespace().collect();
    let line = words.join(" ").replace("},{", "},\n{").replace(" ]", "]");
    line.trim_start_matches('[').trim_end_matches(']').to_owned()
}

/// A map that bpftool can name.
struct Map {
    name: String,
    id: u64,
}

/// The ids of the programs attached to a cgroup.
fn programs(cgroup: &str) -> Vec<u64> {
    let attached = json(&["cgroup", "show", cgroup]);
    let ids = attached
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|program| program.get("id")?.as_u64());
    ids.collect()
}

/// Waits until programs are gone, which the kernel frees some time after their last user has gone. False if they stay.
async fn are_gone(programs: &[u64]) -> bool {
    let is_there = |id: &u64| !bpftool(&["prog", "show", "id", &id.to_string()]).starts_with("Error");
    // The kernel tells nobody when: one has to ask again.
    for _ in 0..200 {
        if !programs.iter().any(is_there) {
            return true;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    false
}

/// The sockets that listen in a namespace, as `ss` tells them.
async fn listeners(place: &Place) -> String {
    let ss = tool("ss");
    let output = place
        .run(async move { Command::new(ss).args(["-H", "-l", "-t", "-n"]).output() })
        .await;
    String::from_utf8_lossy(&output.expect("ss runs").stdout).into_owned()
}

/// The maps that the programs attached to a cgroup use.
fn maps(cgroup: &str) -> Vec<Map> {
    let mut used = Vec::new();
    for program in programs(cgroup) {
        let about = json(&["prog", "show", "id", &program.to_string()]);
        used.extend(
            about
                .get("map_ids")
                .and_then(Value::as_array)
                .into_iter()
                .flatten()
                .filter_map(Value::as_u64),
        );
    }
    used.sort_unstable();
    used.dedup();
    let named = used.into_iter().filter_map(|id| {
        let about = json(&["map", "show", "id", &id.to_string()]);
        Some(Map {
            name: about.get("name")?.as_str()?.to_owned(),
            id,
        })
    });
    named.collect()
}

fn json(words: &[&str]) -> Value {
    let text = bpftool(&[&["-j"], words].concat());
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("bpftool {words:?}: {error}: {text}"))
}

fn bpftool(words: &[&str]) -> String {
    let output = Command::new(tool("bpftool"))
        .args(words)
        .output()
        .expect("bpftool runs");
    String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
}

/// The first cgroup below `cgroup`.
fn child(cgroup: &Path) -> Option<std::path::PathBuf> {
    let entries = std::fs::read_dir(cgroup).ok()?;
    entries
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.is_dir())
}
