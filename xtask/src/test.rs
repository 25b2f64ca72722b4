//! `cargo xtask test`: every test there is, and one line at the end that sums them up.

mod attacks;
pub(crate) mod required;
pub(crate) mod runner;
pub(crate) mod tally;

use std::{path::Path, process::ExitCode};

use anyhow::Result;
use clap::Args;

use self::{required::Required, tally::Tally};
use crate::{
    build,
    cluster::{self, Outcome},
    setup::{self, Purpose},
    vm, workspace,
};

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Only tests whose names contain one of these
    filters: Vec<String>,

    /// Those on other kernels too, in brief (`cargo xtask vm --brief`)
    #[arg(long)]
    kernels: bool,

    /// Those on a Kubernetes of two nodes too (`cargo xtask cluster test`)
    #[arg(long)]
    cluster: bool,
}

/// Packages whose tests want nothing of the machine.
const UNIT: [&str; 4] = ["bpf-build", "egress-common", "egress-agent", "xtask"];

pub(crate) fn verb(arguments: &Arguments) -> Result<ExitCode> {
    workspace::demand_root("test")?;
    setup::ensure(&[Purpose::Build, Purpose::Demo, Purpose::Test])?;

    let mut complaints = Vec::new();
    println!("== unit tests");
    let (units, failure) = runner::units(&UNIT, &arguments.filters)?;
    complaints.extend(failure);

    println!("== tests on the real kernel");
    let agent = build::agent(false)?;
    let (kernel, failure) = runner::kernel(&agent, &arguments.filters, &[])?;
    complaints.extend(failure);

    if arguments.filters.is_empty() {
        complaints.extend(Required::read()?.complaints(&kernel, std::env::var_os("CI").is_some()));
    } else {
        println!("(filtered: tests/required.txt is not checked)");
    }
    let mut tally = units.with(kernel);
    if arguments.kernels {
        println!("== tests on other kernels");
        let (ran, further) = vm::brief()?;
        tally = tally.with(ran);
        complaints.extend(further);
    }
    if arguments.cluster {
        println!("== tests on a cluster");
        match cluster::all()? {
            Outcome::Ran(ran, further) => {
                tally = tally.with(ran);
                complaints.extend(further);
            }
            // Asked for and not had: no pass.
            Outcome::NotRun(why) => complaints.push(format!("the tests on a cluster were not run: {why}")),
        }
    }
    Ok(close(&tally, &complaints))
}

/// The tests of those names on the real kernel, for another verb.
pub(crate) fn on_the_kernel(
    agent: &Path,
    names: &[String],
    variables: &[(&str, &str)],
) -> Result<(Tally, Option<String>)> {
    runner::kernel(agent, names, variables)
}

/// The last line, which CI reads, and the exit status that agrees with it.
pub(crate) fn close(tally: &Tally, complaints: &[String]) -> ExitCode {
    println!();
    print!("{}", tally.attacks());
    for (name, why) in tally.not_passed() {
        println!("{why}: {name}");
    }
    for complaint in complaints {
        println!("error: {complaint}");
    }
    println!("{tally}");
    if complaints.is_empty() && tally.is_success() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
