//! What has changed since somebody last asked, so that the cost of following it is that of the change and not that of all
//! there is.

use std::{
    collections::HashSet,
    hash::Hash,
    mem,
    sync::{Mutex, PoisonError},
};

/// Most that are told one by one: by then looking at everything costs no more.
const MOST: usize = 1024;

/// What has changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Changes<T: Eq + Hash> {
    /// These.
    Of(HashSet<T>),
    /// Perhaps everything.
    All,
}

/// Gathers changes for one reader.
#[derive(Debug)]
pub(super) struct Gathered<T: Eq + Hash>(Mutex<Changes<T>>);

impl<T: Eq + Hash> Default for Changes<T> {
    fn default() -> Self {
        Self::Of(HashSet::new())
    }
}

impl<T: Eq + Hash> Default for Gathered<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T: Eq + Hash> Gathered<T> {
    pub(super) fn add(&self, one: T) {
        self.change(|changes| {
            if let Changes::Of(those) = changes {
                those.insert(one);
                if those.len() > MOST {
                    *changes = Changes::All;
                }
            }
        });
    }

    pub(super) fn add_all(&self) {
        self.change(|changes| *changes = Changes::All);
    }

    /// What there is since the last call.
    pub(super) fn take(&self) -> Changes<T> {
        self.change(mem::take)
    }

    fn change<R>(&self, change: impl FnOnce(&mut Changes<T>) -> R) -> R {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_change_is_told_once_and_too_many_are_all() {
        let gathered = Gathered::default();
        assert_eq!(gathered.take(), Changes::default());
        for one in [1, 2, 1] {
            gathered.add(one);
        }
        assert_eq!(gathered.take(), Changes::Of(HashSet::from([1, 2])));
        assert_eq!(gathered.take(), Changes::default());
        (0..=MOST).for_each(|one| gathered.add(one));
        gathered.add(0);
        assert_eq!(gathered.take(), Changes::All);
        assert_eq!(gathered.take(), Changes::default());
    }
}
