//! `cargo xtask setup`: what is missing is installed where we may, and named with the command to type where
//! we may not.

mod packages;
mod rust;

pub(crate) use packages::locate;
pub(crate) use rust::{cargo_deny, find as kernel_tools};

use std::{fmt, process::ExitCode, time::Instant};

use anyhow::{Result, bail};

/// What the machine is to be ready for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Compile the agent and the kernel programs.
    Build,
    /// Run the demonstration.
    Demo,
    /// Run the tests on the real kernel, with their clients.
    Test,
    /// Check the code.
    Lint,
    /// Run tests on other kernels.
    Vm,
    /// Write container images.
    Image,
    /// Write those for arm64 on another machine: only for who asks for one.
    Arm64,
    /// Run tests on Kubernetes.
    Cluster,
}

const ALL: [Purpose; 7] = [
    Purpose::Build,
    Purpose::Demo,
    Purpose::Test,
    Purpose::Lint,
    Purpose::Vm,
    Purpose::Image,
    Purpose::Cluster,
];

/// What could not be installed, and what the person types to have it.
#[derive(Debug)]
pub(crate) struct Advice {
    /// What it is wanted for.
    pub(crate) wanted: String,
    /// A command line.
    pub(crate) command: String,
}

impl fmt::Display for Advice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "  {}    # {}", self.command, self.wanted)
    }
}

pub(crate) fn verb() -> Result<ExitCode> {
    let begin = Instant::now();
    ensure(&ALL)?;
    println!("kernel programs: {}", rust::tools_line()?);
    println!(
        "everything is there ({} programs; {:.1} s)",
        packages::count(&ALL),
        begin.elapsed().as_secs_f32()
    );
    Ok(ExitCode::SUCCESS)
}

/// Makes the machine ready for `purposes`; says nothing if it is.
///
/// # Errors
///
/// Something is missing that we may not or cannot install: the message is the list of commands to type.
pub(crate) fn ensure(purposes: &[Purpose]) -> Result<()> {
    let mut advice = Vec::new();
    advice.extend(packages::ensure(purposes)?);
    advice.extend(rust::ensure(purposes)?);
    if advice.is_empty() {
        return Ok(());
    }
    let lines: Vec<_> = advice.iter().map(ToString::to_string).collect();
    bail!(
        "something is missing that I may not install here. Run, and then try again:\n{}",
        lines.join("\n")
    )
}
