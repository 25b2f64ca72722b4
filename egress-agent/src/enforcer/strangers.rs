//! Whose connections were open when the enforcement began, but not known whose they were: an agent may start before the API
//! server tells its pods. They are closed, if they are not allowed, when that is known.

use std::{
    collections::{HashMap, HashSet},
    time::Instant,
};

use crate::telemetry::Throttle;

/// Most cgroups that are remembered. A machine has some thousand.
const MOST: usize = 65_536;

/// Cgroups that nobody knows, with the network namespaces (cookies) in which they have connections from before the
/// enforcement.
#[derive(Debug, Default)]
pub(super) struct Strangers {
    cgroups: HashMap<u64, HashSet<u64>>,
    left_out: Throttle,
}

impl Strangers {
    /// A cgroup has such a connection in a namespace.
    pub(super) fn note(&mut self, cgroup: u64, namespace: u64) {
        if let Some(namespaces) = self.cgroups.get_mut(&cgroup) {
            namespaces.insert(namespace);
        } else if self.cgroups.len() < MOST {
            self.cgroups.insert(cgroup, HashSet::from([namespace]));
        } else if let Some(unsaid) = self.left_out.pass(Instant::now()) {
            tracing::error!(
                cgroup,
                unsaid,
                most = MOST,
                "too many cgroups that nobody knows: connections of further ones from before the enforcement go on"
            );
        }
    }

    /// The namespaces of those for which `is_enforced` says so; `None` is for those that are strangers still.
    pub(super) fn namespaces_of_enforced(&self, is_enforced: impl Fn(u64) -> Option<bool>) -> HashSet<u64> {
        let enforced = self
            .cgroups
            .iter()
            .filter(|(cgroup, _)| is_enforced(**cgroup) == Some(true));
        enforced
            .flat_map(|(_, namespaces)| namespaces.iter().copied())
            .collect()
    }

    /// Forgets those who are known.
    pub(super) fn forget(&mut self, is_known: impl Fn(u64) -> bool) {
        self.cgroups.retain(|cgroup, _| !is_known(*cgroup));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_becomes_known_is_looked_at_once_and_only_where_it_was() {
        let mut strangers = Strangers::default();
        for (cgroup, namespace) in [(1, 10), (1, 11), (2, 20), (3, 30)] {
            strangers.note(cgroup, namespace);
        }
        // 1 is enforced, 2 observed, 3 unknown still.
        let is_enforced = |cgroup| (cgroup < 3).then_some(cgroup == 1);
        assert_eq!(
            strangers.namespaces_of_enforced(is_enforced),
            HashSet::from([10, 11])
        );
        strangers.forget(|cgroup| cgroup < 3);
        assert!(strangers.namespaces_of_enforced(is_enforced).is_empty());
        assert_eq!(
            strangers.namespaces_of_enforced(|_| Some(true)),
            HashSet::from([30])
        );
    }

    #[test]
    fn there_are_never_too_many() {
        let mut strangers = Strangers::default();
        for cgroup in 0..=MOST as u64 {
            strangers.note(cgroup, 1);
        }
        strangers.note(0, 2);
        assert_eq!(strangers.cgroups.len(), MOST);
        assert_eq!(strangers.cgroups[&0].len(), 2);
    }
}
