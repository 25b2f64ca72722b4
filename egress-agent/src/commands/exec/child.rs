//! The command as a child: started by `launch`, given our signals, waited for.

use std::{
    os::unix::process::ExitStatusExt,
    path::Path,
    process::{Command, ExitCode, ExitStatus},
};

use anyhow::Context;
use nix::{
    sys::{
        signal::{self, SigSet, Signal},
        signalfd::{SfdFlags, SignalFd},
    },
    unistd::Pid,
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::mpsc,
};

use crate::{cli::ExecArgs, enforcer::Enforcer, readiness};

/// Signals that are passed on to the command.
const FORWARDED: [Signal; 6] = [
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGTERM,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
];

/// `si_code` of a signal that the kernel sent: for SIGINT and SIGQUIT the terminal, which sends it to the whole
/// foreground group, the command included.
const SI_KERNEL: i32 = 0x80;

/// Blocks the forwarded signals in this thread, and in those started from now on, and reads them from a descriptor.
pub(super) fn block_signals() -> anyhow::Result<SignalFd> {
    let mask = SigSet::from_iter(FORWARDED);
    mask.thread_block().context("cannot block signals")?;
    SignalFd::with_flags(&mask, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC).context("cannot read signals")
}

/// Starts the command in `cgroup` and serves the enforcer until it ends.
pub(super) async fn run(
    args: &ExecArgs,
    identity: Option<&str>,
    cgroup: &Path,
    enforcer: &mut Enforcer,
    signals: SignalFd,
) -> anyhow::Result<ExitCode> {
    // Our own program by descriptor: the file may have been replaced since we were started.
    let mut launch = Command::new("/proc/self/exe");
    launch.arg("launch").arg("--cgroup").arg(cgroup);
    if let Some(identity) = identity {
        launch.arg("--identity").arg(identity);
    }
    if args.keep_privileges {
        launch.arg("--keep-privileges");
    }
    launch.arg("--").args(&args.command);
    let mut child = tokio::process::Command::from(launch)
        .spawn()
        .context("cannot start the command")?;
    let pid = child
        .id()
        .and_then(|pid| i32::try_from(pid).ok())
        .map(Pid::from_raw);
    let signals = readiness::watch(signals, Interest::READABLE)?;
    let mut status = None;
    let stop = async {
        loop {
            tokio::select! {
                biased;
                ended = child.wait() => {
                    status = Some(ended);
                    return;
                }
                forwarded = forward(&signals, pid) => {
                    if let Err(error) = forwarded {
                        tracing::warn!(%error, "cannot pass signals on");
                    }
                }
            }
        }
    };
    // Nobody updates the policies of a command.
    let (_sender, mut updates) = mpsc::channel(1);
    enforcer
        .serve(&mut updates, std::pin::pin!(stop))
        .await
        .context("the kernel's side failed")?;
    let status = status.context("the command was not waited for")??;
    Ok(exit_code(status))
}

/// Passes waiting signals on.
async fn forward(signals: &AsyncFd<SignalFd>, pid: Option<Pid>) -> anyhow::Result<()> {
    let mut ready = signals.readable().await?;
    while let Some(received) = signals.get_ref().read_signal()? {
        let number = i32::try_from(received.ssi_signo)?;
        if received.ssi_code == SI_KERNEL {
            continue;
        }
        if let Some(pid) = pid {
            signal::kill(pid, Signal::try_from(number)?)?;
        }
    }
    ready.clear_ready();
    Ok(())
}

/// The shell's convention: 128+n for signal n.
fn exit_code(status: ExitStatus) -> ExitCode {
    let code = status
        .code()
        .or_else(|| status.signal().map(|signal| 128 + signal))
        .unwrap_or(1);
    ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX))
}
