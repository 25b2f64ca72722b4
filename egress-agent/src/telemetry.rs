//! The agent's own log: to standard error, levels by `RUST_LOG`.
//!
//! ERROR and WARN are for somebody to act on; names and addresses appear at DEBUG and below only, because more people
//! read this log than the access log.

use std::{
    io::IsTerminal,
    time::{Duration, Instant},
};

use tracing_subscriber::{EnvFilter, fmt};

/// The time between two messages about the same trouble, where somebody else decides how often there is any.
const PAUSE: Duration = Duration::from_secs(1);

/// Lets one message a second through, and counts the others.
#[derive(Debug, Default)]
pub struct Throttle {
    told: Option<Instant>,
    unsaid: u64,
}

impl Throttle {
    /// Whether to tell it now: if so, how many were not told since the last time.
    pub fn pass(&mut self, now: Instant) -> Option<u64> {
        let waits = |told: Instant| now.saturating_duration_since(told) < PAUSE;
        if self.told.is_some_and(waits) {
            self.unsaid += 1;
            return None;
        }
        self.told = Some(now);
        Some(std::mem::take(&mut self.unsaid))
    }
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_message_a_second_tells_how_many_were_left_out() {
        let (mut throttle, now) = (Throttle::default(), Instant::now());
        assert_eq!(throttle.pass(now), Some(0));
        assert_eq!(throttle.pass(now), None);
        assert_eq!(throttle.pass(now + PAUSE / 2), None);
        assert_eq!(throttle.pass(now + PAUSE), Some(2));
        assert_eq!(throttle.pass(now + 3 * PAUSE), Some(0));
    }
}
