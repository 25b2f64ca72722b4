//! Runs the test runners, shows what they print and reads it.

use std::{
    io::{BufRead, BufReader, Read, Write},
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context, Result};

use super::tally::{Ending, Tally};
use crate::workspace;

/// A run's tests, and what is wrong with the run itself.
pub(crate) type Ran = (Tally, Option<String>);

/// The unit tests: by nextest, which runs them side by side across packages, where the person has it.
pub(super) fn units(packages: &[&str], filters: &[String]) -> Result<Ran> {
    let packages: Vec<&str> = packages
        .iter()
        .flat_map(|package| ["--package", package])
        .collect();
    if which::which("cargo-nextest").is_err() {
        let mut cargo = workspace::cargo("test");
        cargo
            .args(["--locked", "--no-fail-fast"])
            .args(&packages)
            .arg("--")
            .args(filters);
        return run(&mut cargo, Stream::Stdout, Tally::read_libtest);
    }
    let mut nextest = workspace::cargo("nextest");
    nextest
        .args([
            "run",
            "--locked",
            "--no-fail-fast",
            "--color=never",
            "--no-tests=pass",
        ])
        .args(&packages)
        .args(filters);
    let (tests, failure) = run(&mut nextest, Stream::Stderr, Tally::read_nextest)?;
    // nextest leaves the examples in the documentation out.
    let mut cargo = workspace::cargo("test");
    cargo
        .args(["--locked", "--doc", "--no-fail-fast"])
        .args(&packages)
        .arg("--")
        .args(filters);
    let (examples, other) = run(&mut cargo, Stream::Stdout, Tally::read_libtest)?;
    Ok((tests.with(examples), failure.or(other)))
}

/// The tests of the program `agent` on the real kernel, with further variables in their environment.
pub(super) fn kernel(agent: &Path, filters: &[String], variables: &[(&str, &str)]) -> Result<Ran> {
    let mut all = Tally::default();
    let mut failure = None;
    // The harness takes one filter.
    let filters: Vec<Option<&String>> = if filters.is_empty() {
        vec![None]
    } else {
        filters.iter().map(Some).collect()
    };
    for filter in filters {
        let mut cargo = workspace::cargo("test");
        cargo
            .args([
                "--locked",
                "--package",
                "egress-tests",
                "--test",
                "promises",
                "--",
            ])
            .args(filter)
            .env("EGRESS_AGENT", agent)
            .envs(variables.iter().copied());
        let (tests, complaint) = run(&mut cargo, Stream::Stdout, Tally::read_libtest)?;
        all = all.with(tests);
        failure = failure.or(complaint);
    }
    Ok((all, failure))
}

/// A test program that prints as libtest does.
pub(crate) fn program(command: &mut Command) -> Result<Ran> {
    run(command, Stream::Stdout, Tally::read_libtest)
}

/// Where a runner prints its verdicts.
enum Stream {
    Stdout,
    Stderr,
}

fn run(command: &mut Command, verdicts: Stream, read: fn(&mut Tally, &str)) -> Result<Ran> {
    let what = workspace::describe(command);
    command.stdin(Stdio::null());
    match verdicts {
        Stream::Stdout => command.stdout(Stdio::piped()),
        Stream::Stderr => command.stderr(Stdio::piped()),
    };
    let mut child = command.spawn().with_context(|| format!("cannot run {what}"))?;
    let mut tally = Tally::default();
    if let Some(output) = child.stdout.take() {
        follow(output, std::io::stdout(), |line| read(&mut tally, line))?;
    }
    if let Some(output) = child.stderr.take() {
        follow(output, std::io::stderr(), |line| read(&mut tally, line))?;
    }
    let status = child.wait().with_context(|| format!("cannot wait for {what}"))?;
    // A runner that fails although no test did has not compiled something, or has crashed: tests are missing
    // from the tally.
    let unexplained = !status.success() && tally.count(Ending::Failed) == 0;
    let failure = unexplained.then(|| format!("`{what}` failed ({status}) without a failed test"));
    Ok((tally, failure))
}

fn follow(from: impl Read, mut to: impl Write, mut each: impl FnMut(&str)) -> Result<()> {
    for line in BufReader::new(from).split(b'\n') {
        let line = line?;
        to.write_all(&line)?;
        to.write_all(b"\n")?;
        each(String::from_utf8_lossy(&line).trim_end());
    }
    Ok(())
}
