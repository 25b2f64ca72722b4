//! `cargo xtask lint`: every check that needs no kernel. All of them run, so that one run shows everything.

mod bpf;
mod layers;
mod words;

use std::{process::ExitCode, time::Instant};

use anyhow::{Context, Result, bail};

use crate::{
    setup::{self, Purpose},
    workspace,
};

type Check = (&'static str, fn() -> Result<()>);

/// The quick ones first.
const CHECKS: [Check; 6] = [
    ("formatting", formatting),
    ("order of the modules", layers::check),
    ("words", words::check),
    ("dependencies", dependencies),
    ("clippy", clippy),
    ("kernel programs", bpf::check),
];

pub(crate) fn verb() -> Result<ExitCode> {
    setup::ensure(&[Purpose::Build, Purpose::Lint])?;
    let mut failed = Vec::new();
    for (name, check) in CHECKS {
        println!("== {name}");
        let begin = Instant::now();
        match check() {
            Ok(()) => println!("{name}: good ({:.1} s)", begin.elapsed().as_secs_f32()),
            Err(error) => {
                println!("{name}: {error:#}");
                failed.push(name);
            }
        }
    }
    println!();
    if failed.is_empty() {
        println!("lint: {} checks passed", CHECKS.len());
        return Ok(ExitCode::SUCCESS);
    }
    bail!("these checks failed: {}", failed.join(", "))
}

fn formatting() -> Result<()> {
    workspace::run(workspace::cargo("fmt").args(["--all", "--check"])).context("run `cargo fmt --all`")
}

fn clippy() -> Result<()> {
    // With the kernel programs: they compile for the host, too, and its clippy knows more than the compiler
    // of the other target.
    workspace::run(workspace::cargo("clippy").args([
        "--locked",
        "--workspace",
        "--all-targets",
        "--",
        "-D",
        "warnings",
    ]))
}

fn dependencies() -> Result<()> {
    let deny = setup::cargo_deny().context("cargo-deny is not installed: run `cargo xtask setup`")?;
    let mut command = std::process::Command::new(deny);
    command
        .current_dir(workspace::root())
        .args(["--locked", "check", "--hide-inclusion-graph"])
        .args(["licenses", "bans", "sources"]);
    workspace::run(&mut command)
}
