//! `status`: asks every agent on this machine what it does.

use std::{
    io::{self, Read, Write},
    os::unix::net::UnixStream,
    path::Path,
    process::ExitCode,
    time::Duration,
};

use anyhow::Context;
use serde::de::DeserializeOwned;

use crate::{
    cli::{Output, StatusArgs},
    instance::{self, Found},
    status::{ASK_STATUS, MOST_BYTES, Status},
};

/// An agent that does not answer in this time is told as stuck.
const PATIENCE: Duration = Duration::from_secs(2);

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
        match ask::<Status>(&found.socket(), ASK_STATUS) {
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
pub(super) fn ask<T: DeserializeOwned>(socket: &Path, question: &str) -> anyhow::Result<T> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    // An agent of an earlier version does not listen, and may have hung up already: it tells everything to everybody.
    drop(stream.write_all(format!("{question}\n").as_bytes()));
    let mut text = Vec::new();
    match stream.take(MOST_BYTES as u64).read_to_end(&mut text) {
        // So ends what such an agent says, which has left the question unread.
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {}
        read => drop(read?),
    }
    serde_json::from_slice(&text).context("not an answer of this version")
}

#[cfg(test)]
mod tests {
    use std::{os::unix::net::UnixListener, thread};

    use super::*;
    use crate::status::{ASK_HEALTH, Health};

    /// What a probe of this version wants to know is in the status of an earlier one.
    #[test]
    fn an_agent_that_does_not_listen_is_understood() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("control.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let agent = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            thread::sleep(Duration::from_millis(100));
            let status = r#"{"instance":"x","programs":["p"],"listeners":["127.0.0.1:1"],"policies":1}"#;
            stream.write_all(status.as_bytes()).unwrap();
        });
        let health: Health = ask(&path, ASK_HEALTH).unwrap();
        assert_eq!((health.programs.len(), health.listeners.len()), (1, 1));
        agent.join().unwrap();
    }
}
