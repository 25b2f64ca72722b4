//! How long to wait before an API server is asked again.

use std::{
    hash::{BuildHasher, RandomState},
    time::Duration,
};

use kube::runtime::utils::Backoff;

/// The first wait.
const FIRST: Duration = Duration::from_millis(250);
/// The longest: an agent that waits longer would be late with policies after an outage, and its requests are few.
const LONGEST: Duration = Duration::from_secs(5);

/// Waits that double, with up to half of each added at random: after an outage all nodes come back at once.
#[derive(Debug)]
pub(super) struct Waits {
    next: Duration,
}

impl Default for Waits {
    fn default() -> Self {
        Self { next: FIRST }
    }
}

impl Iterator for Waits {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let wait = self.next;
        self.next = (wait * 2).min(LONGEST);
        // The keys of a RandomState are random for each thread and differ for each instance.
        let chance = RandomState::new().hash_one(wait) % 512;
        Some(wait + wait.mul_f64(f64::from(u32::try_from(chance).unwrap_or_default()) / 1024.0))
    }
}

impl Backoff for Waits {
    fn reset(&mut self) {
        self.next = FIRST;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_a_bound_and_begin_anew_after_a_success() {
        let mut waits = Waits::default();
        let first = waits.next().unwrap();
        assert!((FIRST..FIRST * 3 / 2).contains(&first), "{first:?}");
        let late = waits.by_ref().nth(20).unwrap();
        assert!((LONGEST..LONGEST * 3 / 2).contains(&late), "{late:?}");
        waits.reset();
        assert!(waits.next().unwrap() < FIRST * 3 / 2);
    }
}
