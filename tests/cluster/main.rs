//! What is promised of the agent on Kubernetes: its real image, by the manifests of deploy/, on two nodes. Run by
//! `cargo xtask cluster test`.
//!
//! A new test goes into its file's `promises!` list and into `required.txt` beside this file.

#![expect(
    clippy::expect_used,
    reason = "a test that cannot go on fails by panic, for the place and the stack"
)]

mod chart;
mod identity;
mod install;
mod life;
mod network;
mod policies;
mod proxy;
mod restart;
mod rules;
mod start;
mod told;

use std::{collections::BTreeSet, fs, path::Path, time::Duration};

use egress_tests::{harness, harness::Promise, promises};

/// Pods come and go in seconds, and nodes in tens of them.
const DEADLINE: Duration = Duration::from_secs(400);

promises![required_txt_names_every_promise];

fn main() {
    harness::run_within(all(), DEADLINE);
}

fn all() -> Vec<Promise> {
    [
        promises(),
        install::promises(),
        chart::promises(),
        policies::promises(),
        identity::promises(),
        network::promises(),
        proxy::promises(),
        start::promises(),
        told::promises(),
        rules::promises(),
        life::promises(),
        restart::promises(),
    ]
    .concat()
}

/// CI fails if a test that `required.txt` names did not run; so every test must be named there.
async fn required_txt_names_every_promise() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("cluster/required.txt");
    let text = fs::read_to_string(path).expect("tests/cluster/required.txt");
    let required: BTreeSet<&str> = text
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split_whitespace().next())
        .collect();
    let promises = all();
    let existing: BTreeSet<&str> = promises.iter().map(Promise::short_name).collect();
    let missing: Vec<_> = existing.difference(&required).collect();
    let gone: Vec<_> = required.difference(&existing).collect();
    assert!(
        missing.is_empty() && gone.is_empty(),
        "add {missing:#?}, remove {gone:#?}"
    );
}
