//! The kernel programs as the running kernel took them.

use std::{collections::BTreeMap, fs, process::Command};

use egress_common::names::program;
use egress_tests::{clients::shell, lab::World, promises, require::tool};
use nix::unistd::Pid;
use serde_json::Value;

promises![the_verifier_is_far_from_its_limit];

/// The verifier gives up after a million instructions. It walks every path, so that a program that grows a little may
/// take much more of it; and other kernels than this one walk more.
const VERIFIED_AT_MOST: u64 = 250_000;

/// Set by `cargo xtask vm`, which keeps the figures in docs/programs.md.
const TELL: &str = "EGRESS_TESTS_TELL_PROGRAMS";

/// One program.
struct Loaded {
    /// Instructions, after the verifier has rewritten them.
    translated: u64,
    /// Instructions that the verifier has walked.
    verified: u64,
}

async fn the_verifier_is_far_from_its_limit() {
    let world = World::new().await;
    let running = world
        .exec()
        .allow("good.test")
        .start(&shell("echo loaded; exec sleep 1000"));
    running.says("loaded").await;

    let programs = programs_of(running.pid());

    for name in [
        program::CONNECT4,
        program::CONNECT6,
        program::SOCK_OPS,
        program::SKB_EGRESS,
    ] {
        assert!(
            programs.contains_key(name),
            "{name} is not loaded: {:?}",
            programs.keys()
        );
    }
    for (name, program) in &programs {
        if std::env::var_os(TELL).is_some() {
            println!("program {name} {} {}", program.translated, program.verified);
        }
        assert!(program.translated > 0 && program.verified > 0, "{name}");
        assert!(
            program.verified < VERIFIED_AT_MOST,
            "{name}: the verifier walked {} instructions",
            program.verified
        );
    }
}

/// The programs that a process holds. Those of another agent may have the same names.
fn programs_of(process: Pid) -> BTreeMap<String, Loaded> {
    let descriptors = fs::read_dir(format!("/proc/{process}/fdinfo")).expect("the agent runs");
    descriptors
        // One of them may be closed meanwhile.
        .filter_map(|entry| fs::read_to_string(entry.ok()?.path()).ok())
        .filter_map(|text| {
            let field = |name: &str| {
                let value = text.lines().find_map(|line| line.strip_prefix(name))?;
                value.trim().parse::<u64>().ok()
            };
            let verified = field("verified_insns:")?;
            let told = told_by_bpftool(field("prog_id:")?);
            let name = told["name"].as_str().expect("a program has a name").to_owned();
            let bytes = told["bytes_xlated"].as_u64().expect("a program has a size");
            let loaded = Loaded {
                translated: bytes / 8,
                verified,
            };
            Some((name, loaded))
        })
        .collect()
}

fn told_by_bpftool(id: u64) -> Value {
    let output = Command::new(tool("bpftool"))
        .args(["--json", "prog", "show", "id", &id.to_string()])
        .output()
        .expect("bpftool runs");
    serde_json::from_slice(&output.stdout).expect("bpftool prints JSON")
}
