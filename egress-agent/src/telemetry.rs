//! The agent's own log: to standard error, levels by `RUST_LOG`.
//!
//! ERROR and WARN are for somebody to act on; names and addresses appear at DEBUG and below only, because more people
//! read this log than the access log.

use std::io::IsTerminal;

use tracing_subscriber::{EnvFilter, fmt};

/// Starts the log. `quiet` is for verbs whose standard error belongs to somebody else: warnings and errors only.
pub fn start(quiet: bool) {
    let default = if quiet { "warn" } else { "info" };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_unset_or_wrong| EnvFilter::new(default));
    let started = fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        // It would say so on standard error, where nobody may be left to read it, and panic for that.
        .log_internal_errors(false)
        .try_init();
    // Only a second start can fail, and then the first one's log is there.
    drop(started);
}
