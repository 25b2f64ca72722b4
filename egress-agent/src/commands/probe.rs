//! `probe`: whether an agent serves, found out by what serving takes and not by its process.

use std::{
    io::{self, Read},
    net::{IpAddr, SocketAddr},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use socket2::{Domain, Protocol, Socket, Type};

use super::status::ask;
use crate::{
    cli::ProbeArgs,
    console, instance,
    proxy::PROBE,
    status::{ASK_HEALTH, Health},
};

/// For each worker; the whole is shorter than a container's probe may take.
const PATIENCE: Duration = Duration::from_secs(1);

/// Tells whether the agent serves, and if not why.
pub(super) fn run(args: &ProbeArgs) -> ExitCode {
    match probe(&args.instance) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            console::complain(format_args!("{}: {error:#}", args.instance));
            ExitCode::FAILURE
        }
    }
}

fn probe(name: &str) -> anyhow::Result<()> {
    let health: Health = ask(&instance::control_socket(name), ASK_HEALTH).context("does not answer")?;
    in_force(&health)?;
    for listener in &health.listeners {
        serves(*listener).with_context(|| format!("the worker at {listener} does not serve"))?;
    }
    Ok(())
}

fn in_force(health: &Health) -> anyhow::Result<()> {
    if let Some(error) = &health.repair_error {
        bail!("the enforcement is damaged: {error}");
    }
    ensure!(!health.programs.is_empty(), "no program is in force");
    ensure!(!health.listeners.is_empty(), "it does not listen");
    Ok(())
}

/// A worker closes a connection that no redirected connect explains, once it has accepted it and looked for one.
fn serves(listener: SocketAddr) -> anyhow::Result<()> {
    let socket = Socket::new(Domain::for_address(listener), Type::STREAM, Some(Protocol::TCP))?;
    socket.bind(&SocketAddr::new(IpAddr::V4(PROBE), 0).into())?;
    socket.set_read_timeout(Some(PATIENCE))?;
    // The worker may be so quick that the reset is what the connect is told.
    let read = socket
        .connect_timeout(&listener.into(), PATIENCE)
        .and_then(|()| (&socket).read(&mut [0]));
    match read {
        Ok(0) => Ok(()),
        Ok(_) => bail!("it speaks"),
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(()),
        Err(error) => Err(error.into()),
    }
}
