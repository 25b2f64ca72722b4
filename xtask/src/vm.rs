//! `cargo xtask vm`: the tests of the kernel programs on other kernels than the machine's, each booted in qemu.

mod guest;
mod image;
mod kernels;
mod programs;
mod verdict;

use std::{fs::File, process::ExitCode};

use anyhow::{Context, Result, bail};
use clap::Args;
use nix::fcntl::{Flock, FlockArg};

use self::{guest::Guest, kernels::Kernels, programs::Programs, verdict::Verdicts};
use crate::{
    build,
    setup::{self, Purpose},
    test::required::Required,
    workspace,
};

/// The kernels that every change is tested on.
const MATRIX: [&str; 3] = ["6.1", "6.12", "newest"];

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Versions such as 6.1, or `newest`
    #[arg(default_values = MATRIX)]
    kernels: Vec<String>,

    /// Write what the kernels say of the programs' size to docs/programs.md, in place of comparing it
    #[arg(long, conflicts_with = "filters")]
    table: bool,

    /// Only tests whose names contain one of these, in place of those that are meant for other kernels
    #[arg(last = true)]
    filters: Vec<String>,
}

/// The files of tests that ask whether the kernel does what the programs take for granted. The others ask what
/// the agent makes of it, which depends on no kernel.
const FILES: [&str; 12] = [
    "attacks::",
    "clock::",
    "dns::",
    "exec::",
    "exec_privileges::",
    "fence::",
    "lab::",
    "life::",
    "programs::",
    "protocols::",
    "redirect::",
    "sockets::",
];

pub(crate) fn verb(arguments: &Arguments) -> Result<ExitCode> {
    if !cfg!(target_arch = "x86_64") {
        bail!("the kernels that this boots are for x86_64");
    }
    setup::ensure(&[Purpose::Build, Purpose::Demo, Purpose::Test, Purpose::Vm])?;
    let _alone = alone()?;
    let kernels = Kernels::open()?.obtain(&arguments.kernels)?;
    let guest = Guest::new(&build::agent(false)?, &build::tests()?, build::guest_init()?)?;
    let wanted = wanted(&guest.list()?, &arguments.filters, arguments.table)?;
    let mut verdicts = Verdicts::new(Required::read()?);
    let mut programs = Programs::default();
    for kernel in &kernels {
        println!("== Linux {}: {} tests", kernel.release, wanted.len());
        let ran = guest.run(kernel, &wanted)?;
        programs.add(kernel, &ran);
        verdicts.add(kernel, &ran, &wanted);
    }
    let grown = if arguments.table {
        programs.write().map(|()| Vec::new())
    } else {
        programs.complaints()
    };
    let whole = arguments.kernels == MATRIX && arguments.filters.is_empty() && !arguments.table;
    Ok(verdicts.print(&grown?, whole))
}

/// Of all tests those that are to be run.
fn wanted(all: &[String], filters: &[String], table: bool) -> Result<Vec<String>> {
    let matches = |name: &String| {
        if table {
            name == programs::TEST
        } else if filters.is_empty() {
            FILES.iter().any(|file| name.starts_with(file))
        } else {
            filters.iter().any(|filter| name.contains(filter))
        }
    };
    let wanted: Vec<String> = all.iter().filter(|name| matches(name)).cloned().collect();
    if wanted.is_empty() {
        bail!("no test has such a name");
    }
    Ok(wanted)
}

/// One run at a time: another would take the programs from under the guests.
fn alone() -> Result<Flock<File>> {
    let path = directory()?.join("lock");
    let file = File::create(&path).with_context(|| format!("cannot make {}", path.display()))?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(lock),
        Err((file, _)) => {
            eprintln!("waiting for the end of another run");
            Flock::lock(file, FlockArg::LockExclusive)
                .map_err(|(_, error)| error)
                .context("a lock")
        }
    }
}

/// Where kernels and what is made for the guests are kept.
fn directory() -> Result<std::path::PathBuf> {
    let directory = workspace::target()?.join("vm");
    std::fs::create_dir_all(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
    Ok(directory)
}
