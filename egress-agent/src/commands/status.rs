//! `status`: asks every agent on this machine what it does.

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::Path,
    process::ExitCode,
    time::Duration,
};

use anyhow::Context;

use crate::{
    cli::{Output, StatusArgs},
    instance::{self, Found},
    status::Status,
};

/// An agent that does not answer in this time is told as stuck.
const PATIENCE: Duration = Duration::from_secs(2);
/// Larger than any answer.
const MOST_BYTES: u64 = 1 << 20;

/// Prints what every agent says of itself.
///
/// # Errors
/// The directory of instances cannot be read, or the output cannot be written.
pub(super) fn run(args: &StatusArgs, out: &mut dyn Write, err: &mut dyn Write) -> anyhow::Result<ExitCode> {
    let mut answers = Vec::new();
    let found: Vec<_> = instance::find_all()?.into_iter().map(Found::unlocked).collect();
    for found in found {
        if found.is_dead() {
            writeln!(
                err,
                "{}: its process is gone and its programs are still in force: run `egress-agent cleanup`",
                found.name
            )?;
            continue;
        }
        match ask(&found.socket()) {
            Ok(status) => answers.push(status),
            Err(error) => writeln!(err, "{}: does not answer: {error:#}", found.name)?,
        }
    }
    match args.output {
        Output::Json => writeln!(out, "{}", serde_json::to_string_pretty(&answers)?)?,
        Output::Text if answers.is_empty() => writeln!(out, "no agent is running")?,
        Output::Text => answers.iter().try_for_each(|status| write!(out, "{status}"))?,
    }
    Ok(if answers.is_empty() {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

/// Asks the agent behind a control socket.
///
/// # Errors
/// It does not answer, or not in words that this version knows.
pub(super) fn ask(socket: &Path) -> anyhow::Result<Status> {
    let stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut text = String::new();
    stream.take(MOST_BYTES).read_to_string(&mut text)?;
    serde_json::from_str(&text).context("not an answer of this version")
}
