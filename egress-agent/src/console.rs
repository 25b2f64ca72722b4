//! What verbs print. Whoever reads it may go before it is all there (`| head`): the verb then ends as a program does that
//! SIGPIPE ends. The signal itself is ignored, as Rust starts programs: a daemon must not end because a peer has gone.

use std::{
    fmt,
    io::{self, Write},
    process::ExitCode,
};

/// What a shell says of a program that SIGPIPE (13) has ended.
const UNREAD: u8 = 128 + 13;

/// An output that people or programs read.
#[derive(Debug)]
pub(crate) struct Printed<W>(pub(crate) W);

/// Nobody reads the output any more.
#[derive(Debug, thiserror::Error)]
#[error("nobody reads the output any more")]
struct Unread;

impl<W: Write> Write for Printed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes).map_err(told_apart)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush().map_err(told_apart)
    }
}

/// From another pipe or connection that is closed.
fn told_apart(error: io::Error) -> io::Error {
    if error.kind() == io::ErrorKind::BrokenPipe {
        io::Error::new(io::ErrorKind::BrokenPipe, Unread)
    } else {
        error
    }
}

/// The end of a verb: in silence if the only trouble is that nobody reads what it prints.
pub(crate) fn quietly(result: anyhow::Result<ExitCode>) -> anyhow::Result<ExitCode> {
    match result {
        Err(error) if error.chain().any(is_unread) => Ok(ExitCode::from(UNREAD)),
        other => other,
    }
}

fn is_unread(cause: &(dyn std::error::Error + 'static)) -> bool {
    cause
        .downcast_ref::<io::Error>()
        .and_then(io::Error::get_ref)
        .is_some_and(|inner| inner.is::<Unread>())
}

/// Tells what went wrong on standard error. That nobody reads it is nothing to fail for.
pub fn complain(what: impl fmt::Display) {
    drop(writeln!(io::stderr(), "{what}"));
}
