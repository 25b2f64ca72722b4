//! How long things may take. A machine that is emulated takes several times as long for all of them: `cargo xtask vm`
//! says so to its guests.

use std::{sync::OnceLock, time::Duration};

/// The variable with the factor.
const FACTOR: &str = "EGRESS_TESTS_PATIENCE";

/// A time limit of an ordinary machine, stretched to what this one may take.
#[must_use]
pub fn stretched(limit: Duration) -> Duration {
    limit * factor()
}

/// The same in seconds.
#[must_use]
pub fn seconds(limit: u64) -> Duration {
    stretched(Duration::from_secs(limit))
}

fn factor() -> u32 {
    static KNOWN: OnceLock<u32> = OnceLock::new();
    *KNOWN.get_or_init(|| {
        let told = std::env::var(FACTOR).ok();
        told.and_then(|text| text.parse().ok()).unwrap_or(1)
    })
}
