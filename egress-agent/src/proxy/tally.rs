//! How many connections each workload has open, so that none takes what others need. One for all workers: the first
//! connects of a new namespace are held, and all of them then come to the same worker.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::identity::Workload;

/// Namespace and name: as cgroups below a workload's own are parts of it.
type Key = (String, String);

/// The counts. A workload without open connections has no entry.
#[derive(Debug)]
pub(super) struct Tally {
    most: u32,
    open: Mutex<HashMap<Key, u32>>,
}

/// One connection's place, free again when it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    tally: Arc<Tally>,
    key: Key,
}

impl Tally {
    /// Allows each workload `most`.
    pub(super) fn new(most: u32) -> Arc<Self> {
        Arc::new(Self {
            most,
            open: Mutex::default(),
        })
    }

    /// A place for one more connection of the workload, if there is one.
    pub(super) fn enter(self: &Arc<Self>, workload: &Workload) -> Option<Place> {
        let key = (workload.namespace.clone(), workload.name.clone());
        let mut open = self.lock();
        let count = open.entry(key.clone()).or_default();
        if *count >= self.most {
            return None;
        }
        *count += 1;
        Some(Place {
            tally: Arc::clone(self),
            key,
        })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, u32>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.tally.lock();
        if let Some(count) = open.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn workload(name: &str) -> Workload {
        Workload {
            name: name.to_owned(),
            ..Workload::default()
        }
    }

    #[test]
    fn a_full_workload_gets_no_place_until_one_is_free_and_others_are_not_concerned() {
        let tally = Tally::new(2);
        let first = tally.enter(&workload("a"));
        let second = tally.enter(&workload("a"));
        assert!(first.is_some() && second.is_some());
        assert!(tally.enter(&workload("a")).is_none());
        assert!(tally.enter(&workload("b")).is_some());
        drop(first);
        let third = tally.enter(&workload("a"));
        assert!(third.is_some());
        drop((second, third));
        assert!(tally.lock().is_empty(), "nothing is kept of who has none");
    }
}
