//! `launch`: the last steps of `exec`'s child. A program of its own rather than code between fork and exec, where hardly
//! anything is allowed and all of it is unsafe.

use std::{
    ffi::{CString, OsString},
    fs, io,
    os::unix::process::CommandExt,
    path::Path,
    process::{Command, ExitCode},
};

use anyhow::Context;
use caps::{CapSet, Capability};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
    sys::{
        prctl,
        signal::{SigSet, SigmaskHow, sigprocmask},
    },
    unistd::{Gid, Uid, User, getgrouplist, setgid, setgroups, setuid},
};

use crate::{cli::LaunchArgs, console, instance, kernel};

/// What would let a command leave its cgroup, its namespaces or the programs behind.
const DROPPED: [Capability; 9] = [
    Capability::CAP_SYS_ADMIN,
    Capability::CAP_NET_ADMIN,
    Capability::CAP_NET_RAW,
    Capability::CAP_BPF,
    Capability::CAP_SYS_PTRACE,
    // Past the kernel's own checks: modules, ports and memory, another kernel, files by handle.
    Capability::CAP_SYS_MODULE,
    Capability::CAP_SYS_RAWIO,
    Capability::CAP_SYS_BOOT,
    Capability::CAP_DAC_READ_SEARCH,
];

/// `env(1)`'s statuses for a command that is not there, and one that cannot be run.
const NOT_FOUND: u8 = 127;
const NOT_RUNNABLE: u8 = 126;

/// Becomes the command; returns only if that fails.
///
/// # Errors
/// A step before the command failed; nothing of it has run.
pub(super) fn run(args: &LaunchArgs) -> anyhow::Result<ExitCode> {
    fs::write(args.cgroup.join("cgroup.procs"), "0")
        .with_context(|| format!("cannot enter the cgroup {}", args.cgroup.display()))?;
    if args.keep_privileges {
        if let Some(identity) = &args.identity {
            become_user(identity)?;
        }
    } else {
        seal_mounts().context("cannot take the cgroup and BPF file systems out of the command's reach")?;
        drop_privileges(args.identity.as_deref()).context("cannot drop privileges")?;
    }
    // The agent blocks signals to read them from a descriptor; a blocked mask would be inherited.
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None).context("cannot unblock signals")?;
    let error = become_command(&args.command);
    let name = args
        .command
        .first()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default();
    console::complain(format_args!("egress-agent: cannot run {name}: {error}"));
    Ok(ExitCode::from(if error.kind() == io::ErrorKind::NotFound {
        NOT_FOUND
    } else {
        NOT_RUNNABLE
    }))
}

fn become_command(command: &[OsString]) -> io::Error {
    match command.split_first() {
        Some((program, arguments)) => Command::new(program).args(arguments).exec(),
        None => io::Error::from(io::ErrorKind::NotFound),
    }
}

/// A mount namespace of the command's own, in which cgroups are read-only and pins are out of sight: a command that runs
/// as root without capabilities still owns those files, and could write its pid into another cgroup or unlink a pin.
/// Without CAP_SYS_ADMIN it cannot undo this.
fn seal_mounts() -> io::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    let none = None::<&str>;
    // What the machine mounts later still arrives; what is done here does not leave.
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SLAVE, none)?;
    let read_only = MsFlags::MS_REMOUNT
        | MsFlags::MS_BIND
        | MsFlags::MS_RDONLY
        | MsFlags::MS_NOSUID
        | MsFlags::MS_NODEV
        | MsFlags::MS_NOEXEC;
    for point in kernel::mount_points("cgroup2")?
        .into_iter()
        .chain(kernel::mount_points("cgroup")?)
    {
        mount(none, &point, none, read_only, none)?;
    }
    for point in kernel::mount_points("bpf")? {
        cover(&point)?;
    }
    cover(Path::new(instance::DIRECTORY))
}

/// Hides a directory under an empty one.
fn cover(directory: &Path) -> io::Result<()> {
    mount(
        Some("none"),
        directory,
        Some("tmpfs"),
        MsFlags::MS_RDONLY,
        Some("mode=0700"),
    )?;
    Ok(())
}

fn drop_privileges(identity: Option<&str>) -> anyhow::Result<()> {
    for capability in DROPPED {
        caps::drop(None, CapSet::Bounding, capability)?;
    }
    if let Some(identity) = identity {
        become_user(identity)?;
    }
    for set in [
        CapSet::Ambient,
        CapSet::Inheritable,
        CapSet::Effective,
        CapSet::Permitted,
    ] {
        for capability in DROPPED {
            caps::drop(None, set, capability)?;
        }
    }
    prctl::set_no_new_privs()?;
    Ok(())
}

fn become_user(identity: &str) -> anyhow::Result<()> {
    let (uid, gid) = identity.split_once(':').context("the identity is not UID:GID")?;
    let (uid, gid) = (Uid::from_raw(uid.parse()?), Gid::from_raw(gid.parse()?));
    let groups = match User::from_uid(uid)? {
        Some(user) => getgrouplist(&CString::new(user.name)?, gid)?,
        None => vec![gid],
    };
    setgroups(&groups)?;
    setgid(gid)?;
    setuid(uid)?;
    Ok(())
}
