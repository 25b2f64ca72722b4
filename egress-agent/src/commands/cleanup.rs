//! `cleanup`: removes what dead agents left.

use std::{
    fmt, fs,
    io::{self, Write},
    process::ExitCode,
};

use anyhow::{Context, anyhow};
use nix::sys::signal::{SigSet, Signal};

use super::exec::cgroup::OwnCgroup;
use crate::{
    cli::CleanupArgs,
    instance::{self, Found, Traces},
    kernel::{self, PinDirectory},
};

/// Removes the pins, cgroups and directories of every instance whose process is gone (or of those that are named), and
/// tells what it did.
///
/// # Errors
/// Not root, something could not be removed, or one that is named lives: it is named, and the rest is removed all the same.
pub(super) fn run(args: &CleanupArgs, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
    kernel::require()?;
    if args.stay {
        // Blocked from the begin: the first process of a container has no default for a signal.
        SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT]).thread_block()?;
    }
    let mut failed = None;
    // Everything is removed, whether or not somebody reads of it.
    let mut tell = |line: fmt::Arguments<'_>| drop(writeln!(out, "{line}"));
    for found in instance::find_all()? {
        let name = found.name.clone();
        if !args.instances.is_empty() && !args.instances.contains(&name) {
            continue;
        }
        if !found.is_dead() {
            tell(format_args!("{name}: is running, left alone"));
            if !args.instances.is_empty() {
                // Whoever has named it wants to know whether it is gone.
                failed = Some(anyhow!("{name} is running"));
            }
            continue;
        }
        match clean(found) {
            Ok(()) => tell(format_args!("{name}: removed")),
            Err(error) => {
                tell(format_args!("{name}: {error:#}"));
                failed = Some(error);
            }
        }
    }
    if let Some(error) = failed {
        return Err(error);
    }
    if args.stay {
        SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT]).wait()?;
    }
    Ok(ExitCode::SUCCESS)
}

fn clean(found: Found) -> anyhow::Result<()> {
    if let Some(traces) = &found.traces {
        // The members of an exec's cgroup first: once the pins are gone nothing would hold them.
        if traces.owns_cgroup {
            end_cgroup(traces)?;
        }
    }
    // By its name too, where what it noted is lost.
    let pins = match &found.traces {
        Some(traces) => Some(PinDirectory::existing(traces.pins.clone())),
        None => PinDirectory::find(&found.name)?,
    };
    if let Some(pins) = &pins {
        kernel::remove_fences(pins.path()).context("cannot remove its fences")?;
    }
    match pins.map(PinDirectory::remove) {
        Some(Err(error)) if error.kind() != io::ErrorKind::NotFound => {
            return Err(error).context("cannot remove its pins");
        }
        Some(Ok(()) | Err(_)) | None => {}
    }
    found.release().context("cannot remove its directory")
}

fn end_cgroup(traces: &Traces) -> anyhow::Result<()> {
    if !fs::exists(&traces.cgroup)? {
        return Ok(());
    }
    let cgroup = OwnCgroup::existing(traces.cgroup.clone());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime
        .block_on(cgroup.empty())
        .context("cannot end the processes in its cgroup")?;
    cgroup.remove()
}
