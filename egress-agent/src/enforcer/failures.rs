//! What could not be opened a moment ago. A connect that is held asks again, and a workload can hold many: each request
//! costs a look at the processes of its cgroup, on the one thread that does everything else too.

use std::{
    collections::{HashMap, HashSet},
    time::{Duration, Instant},
};

/// For so long it is not tried again. Less than the second after which a SYN is sent again: that one is to find it forgotten.
const REMEMBERED: Duration = Duration::from_millis(800);
/// Failures of one cgroup that are remembered; it is left alone beyond them, whatever it asks for.
const MOST_OF_CGROUP: usize = 16;
/// Cgroups of which failures are remembered. Of more than these at a time nothing is.
const MOST_CGROUPS: usize = 1024;

/// Failures by the cgroups that had asked: one must not keep another of the same namespace from being served.
#[derive(Debug, Default)]
pub(super) struct Failures {
    cgroups: HashMap<u64, Failed>,
}

#[derive(Debug)]
struct Failed {
    first: Instant,
    namespaces: HashSet<u64>,
}

impl Failures {
    /// Whether this is not to be tried yet.
    pub(super) fn remember(&self, cgroup: u64, namespace: u64, now: Instant) -> bool {
        self.cgroups.get(&cgroup).is_some_and(|failed| {
            failed.is_fresh(now)
                && (failed.namespaces.contains(&namespace) || failed.namespaces.len() >= MOST_OF_CGROUP)
        })
    }

    /// Notes a failure.
    pub(super) fn note(&mut self, cgroup: u64, namespace: u64, now: Instant) {
        if self.cgroups.len() >= MOST_CGROUPS {
            self.cgroups.retain(|_, failed| failed.is_fresh(now));
        }
        if self.cgroups.len() >= MOST_CGROUPS && !self.cgroups.contains_key(&cgroup) {
            return;
        }
        let fresh = || Failed {
            first: now,
            namespaces: HashSet::new(),
        };
        let failed = self.cgroups.entry(cgroup).or_insert_with(fresh);
        if !failed.is_fresh(now) {
            *failed = fresh();
        }
        failed.namespaces.insert(namespace);
    }
}

impl Failed {
    fn is_fresh(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.first) < REMEMBERED
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_failed_is_left_alone_until_its_syn_is_sent_again() {
        let (mut failures, now) = (Failures::default(), Instant::now());
        failures.note(1, 10, now);
        assert!(failures.remember(1, 10, now));
        assert!(!failures.remember(1, 11, now), "another namespace");
        assert!(!failures.remember(2, 10, now), "another cgroup");
        let later = now + Duration::from_secs(1);
        assert!(!failures.remember(1, 10, later));
        failures.note(1, 11, later);
        assert!(!failures.remember(1, 10, later), "each second anew");
    }

    #[test]
    fn a_cgroup_has_a_bounded_number_of_failures() {
        let (mut failures, now) = (Failures::default(), Instant::now());
        for namespace in 0..MOST_OF_CGROUP as u64 {
            assert!(!failures.remember(1, namespace, now));
            failures.note(1, namespace, now);
        }
        assert!(failures.remember(1, 4711, now));
        for cgroup in 0..2 * MOST_CGROUPS as u64 {
            failures.note(cgroup, 1, now);
        }
        assert_eq!(failures.cgroups.len(), MOST_CGROUPS);
        let later = now + Duration::from_secs(1);
        failures.note(1_000_000, 1, later);
        assert_eq!(failures.cgroups.len(), 1, "what is old makes room");
    }
}
