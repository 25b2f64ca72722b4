//! How much of something each workload has, so that none takes what others need.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{PodUid, Workload};

/// Who is counted as one.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Key {
    /// Not by its name, which the next pod may have while this one's connections and namespaces are there yet.
    Pod(PodUid),
    /// Namespace and name: cgroups below a workload's own are parts of it.
    Named(String, String),
    /// The cgroup of somebody who is not known.
    Stranger(String),
}

/// The counts. A workload that has nothing has no entry.
#[derive(Debug)]
pub struct Tally {
    most: u32,
    taken: Mutex<HashMap<Key, u32>>,
}

/// One place of a workload's, free again when it is dropped.
#[derive(Debug)]
pub struct Place {
    tally: Arc<Tally>,
    key: Key,
}

impl Tally {
    /// Allows each workload `most`.
    #[must_use]
    pub fn new(most: u32) -> Arc<Self> {
        Arc::new(Self {
            most,
            taken: Mutex::default(),
        })
    }

    /// One more place for the workload, if it may have one.
    #[must_use]
    pub fn enter(self: &Arc<Self>, workload: &Workload) -> Option<Place> {
        let key = Key::of(workload);
        let mut taken = self.lock();
        let count = taken.entry(key.clone()).or_default();
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
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Key {
    fn of(workload: &Workload) -> Self {
        match &workload.pod {
            Some(pod) => Self::Pod(pod.uid),
            None if workload.name.is_empty() => Self::Stranger(workload.cgroup.clone()),
            None => Self::Named(workload.namespace.clone(), workload.name.clone()),
        }
    }
}

/// Room for a number of things, of which each workload may have a quarter.
#[derive(Debug)]
pub struct Shares {
    all: Arc<Semaphore>,
    each: Arc<Tally>,
}

/// One thing's room, free again when it is dropped.
#[derive(Debug)]
pub struct Seat {
    _of_all: OwnedSemaphorePermit,
    _of_workload: Place,
}

impl Shares {
    /// Room for `most`.
    #[must_use]
    pub fn new(most: usize) -> Self {
        let share = u32::try_from(most / 4).unwrap_or(u32::MAX).max(1);
        Self {
            all: Arc::new(Semaphore::new(most)),
            each: Tally::new(share),
        }
    }

    /// Room for one thing more of the workload, if it may have it and there is any.
    #[must_use]
    pub fn enter(&self, workload: &Workload) -> Option<Seat> {
        Some(Seat {
            _of_all: Arc::clone(&self.all).try_acquire_owned().ok()?,
            _of_workload: self.each.enter(workload)?,
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.tally.lock();
        if let Some(count) = taken.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::PodFacts;

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

    #[test]
    fn pods_are_told_apart_by_their_uid_and_strangers_by_their_cgroup() {
        let tally = Tally::new(1);
        let pod = |uid: &str, container: &str| Workload {
            pod: Some(PodFacts {
                container: container.to_owned(),
                ..PodFacts::unknown(uid.parse().unwrap(), false)
            }),
            ..workload("web-0")
        };
        let stranger = |cgroup: &str| Workload {
            cgroup: cgroup.to_owned(),
            ..Workload::default()
        };
        let old = tally.enter(&pod("4b4a7a52-0c0c-4b5c-9d9c-1f8a3a7d6e01", "app"));
        let new = tally.enter(&pod("4b4a7a52-0c0c-4b5c-9d9c-1f8a3a7d6e02", "app"));
        assert!(old.is_some() && new.is_some(), "another pod of the same name");
        let second = pod("4b4a7a52-0c0c-4b5c-9d9c-1f8a3a7d6e01", "sidecar");
        assert!(tally.enter(&second).is_none(), "all containers of a pod are one");
        let first = tally.enter(&stranger("/a"));
        assert!(first.is_some() && tally.enter(&stranger("/b")).is_some());
        assert!(tally.enter(&stranger("/a")).is_none());
    }

    #[test]
    fn a_workload_has_a_quarter_and_all_together_have_the_whole() {
        let shares = Shares::new(8);
        let enter = |name: &str| shares.enter(&workload(name));
        let first = [enter("a"), enter("a")];
        assert!(first.iter().all(Option::is_some));
        assert!(enter("a").is_none(), "others need the rest");
        let others = ["b", "b", "c", "c", "d", "d"].map(enter);
        assert!(others.iter().all(Option::is_some));
        assert!(enter("e").is_none(), "nothing is left");
        drop(first);
        assert!(enter("e").is_some());
    }
}
