//! Attempts that the kernel has counted and not reported yet.

use std::{
    collections::{HashMap, HashSet, hash_map::Entry},
    path::Path,
    time::Duration,
};

use aya::maps::{HashMap as KernelHashMap, MapData, MapError};
use egress_common::{
    event::{Event, Observed, ObservedKey, REPORT_INTERVAL},
    names::map,
};
use nix::time::{ClockId, clock_gettime};

use super::tables::{TableError, at, hash};

/// What is silent for longer leaves the table.
const IDLE: Duration = Duration::from_secs(60);

/// Of what the caller wants to be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Due {
    /// What would have been reported by now, had it gone on.
    Silent,
    /// Everything: nobody will ask again.
    All,
}

/// The table of counted attempts, and the last that the caller was told of each kind.
#[derive(Debug)]
pub struct ObservedTable {
    map: KernelHashMap<MapData, ObservedKey, Observed>,
    told: Told,
}

impl ObservedTable {
    /// Opens the pinned map.
    ///
    /// # Errors
    /// See [`TableError`].
    pub fn open(pins: &Path) -> Result<Self, TableError> {
        Ok(Self {
            map: hash(pins, map::OBSERVED)?,
            told: Told::default(),
        })
    }

    /// How many kinds of attempts are counted. A system call for each.
    #[must_use]
    pub fn count(&self) -> usize {
        self.map.keys().count()
    }

    /// How many attempts a report stands for that the caller has not been told of.
    pub fn news(&mut self, event: &Event) -> u64 {
        self.told.news(event)
    }

    /// Tells `each` of what was counted since the last report and will have none, because nothing of the kind has been
    /// tried again. What has long been silent leaves the table. The event is the last report of its kind; of an attempt
    /// that another agent was told of, no more is known than its kind.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn fetch(&mut self, due: Due, mut each: impl FnMut(&Event, u64)) -> Result<(), TableError> {
        let now = clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Duration::ZERO, Duration::from);
        // An entry that vanishes while it is read ends the walk early: the next one finds the others.
        let entries: Vec<(ObservedKey, Observed)> = self.map.iter().filter_map(Result::ok).collect();
        let mut silent = Vec::new();
        for (key, observed) in &entries {
            let age = now.saturating_sub(Duration::from_nanos(observed.reported));
            match self.told.swept(key, observed, age, due) {
                Swept::Untold(event, attempts) => each(&event, attempts),
                Swept::Told if age > IDLE => silent.push(*key),
                Swept::Told | Swept::NotDue => {}
            }
        }
        for key in silent {
            match self.map.remove(&key) {
                Ok(()) | Err(MapError::KeyNotFound) => {}
                Err(error) => return Err(at(map::OBSERVED)(error)),
            }
        }
        // Of what the kernel has no count of any more nothing needs to be known; the table is as large as its one.
        let present: HashSet<&ObservedKey> = entries.iter().map(|(key, _)| key).collect();
        self.told.0.retain(|key, _| present.contains(key));
        Ok(())
    }
}

/// The last that the caller was told of each kind.
#[derive(Debug, Default)]
struct Told(HashMap<ObservedKey, Event>);

/// What becomes of an entry of the table.
#[derive(Debug, PartialEq, Eq)]
enum Swept {
    /// So many attempts that nobody was told of; the event is the last of their kind.
    Untold(Event, u64),
    /// All are told.
    Told,
    /// The kernel will report it, or has done so and the report is not read yet.
    NotDue,
}

impl Told {
    fn news(&mut self, event: &Event) -> u64 {
        let before = event.total.saturating_sub(event.count);
        let told = match self.0.insert(kind(event), *event) {
            // Otherwise the kernel's count has begun anew.
            Some(told) if told.total <= event.total => told.total,
            Some(_) | None => before,
        };
        event.total.saturating_sub(told)
    }

    fn swept(&mut self, key: &ObservedKey, observed: &Observed, age: Duration, due: Due) -> Swept {
        let is_due = due == Due::All || age >= Duration::from_nanos(REPORT_INTERVAL);
        let event = match self.0.entry(*key) {
            Entry::Occupied(entry) => entry.into_mut(),
            // Reports are read before the table is swept: one that was made in between is still to be read, and who took
            // its attempts for told would forget them.
            Entry::Vacant(_) if age < Duration::from_nanos(REPORT_INTERVAL) => return Swept::NotDue,
            Entry::Vacant(entry) => entry.insert(anonymous(key, observed)),
        };
        if observed.count <= event.total {
            return Swept::Told;
        }
        if !is_due {
            return Swept::NotDue;
        }
        let attempts = observed.count - event.total;
        let last = *event;
        event.total = observed.count;
        Swept::Untold(last, attempts)
    }
}

const fn kind(event: &Event) -> ObservedKey {
    ObservedKey {
        cgroup: event.cgroup,
        destination: event.destination,
        protocol: event.protocol,
        outcome: event.outcome,
    }
}

/// What is known of attempts by their kind alone.
const fn anonymous(key: &ObservedKey, observed: &Observed) -> Event {
    Event {
        time: observed.reported,
        socket: 0,
        cgroup: key.cgroup,
        netns: 0,
        destination: key.destination,
        pid: 0,
        uid: 0,
        outcome: key.outcome,
        protocol: key.protocol,
        count: 0,
        total: observed.told,
        command: [0; 16],
    }
}

#[cfg(test)]
mod tests {
    use egress_common::address::Endpoint;

    use super::*;

    const KEY: ObservedKey = ObservedKey {
        cgroup: 7,
        destination: Endpoint::v4([198, 51, 100, 66], 22),
        protocol: 6,
        outcome: 20,
    };

    fn observed(count: u64, told: u64) -> Observed {
        Observed {
            count,
            told,
            reported: 1,
        }
    }

    fn report(count: u64, total: u64) -> Event {
        Event {
            count,
            total,
            pid: 42,
            ..anonymous(&KEY, &observed(0, 0))
        }
    }

    #[test]
    fn a_report_that_is_read_after_a_sweep_is_not_forgotten() {
        let mut told = Told::default();
        let first = observed(1, 1);

        assert_eq!(
            told.swept(&KEY, &first, Duration::ZERO, Due::Silent),
            Swept::NotDue
        );
        assert_eq!(told.swept(&KEY, &first, Duration::ZERO, Due::All), Swept::NotDue);
        assert_eq!(told.news(&report(1, 1)), 1);
        assert_eq!(told.swept(&KEY, &first, Duration::ZERO, Due::Silent), Swept::Told);
    }

    #[test]
    fn what_ceases_before_its_next_report_is_told_once_with_who_it_was() {
        let mut told = Told::default();
        let ceased = observed(5, 1);
        assert_eq!(told.news(&report(1, 1)), 1);

        let soon = told.swept(&KEY, &ceased, Duration::from_secs(9), Due::Silent);
        let later = told.swept(&KEY, &ceased, Duration::from_secs(10), Due::Silent);
        let again = told.swept(&KEY, &ceased, Duration::from_secs(11), Due::Silent);

        assert_eq!(soon, Swept::NotDue);
        assert_eq!(later, Swept::Untold(report(1, 1), 4));
        assert_eq!(again, Swept::Told);
        assert_eq!(
            told.news(&report(6, 7)),
            2,
            "what the sweep has told is not told again"
        );
    }

    #[test]
    fn of_what_another_agent_was_told_only_the_rest_is_told() {
        let mut told = Told::default();

        let swept = told.swept(&KEY, &observed(5, 3), Duration::from_secs(30), Due::Silent);

        assert!(matches!(swept, Swept::Untold(event, 2) if event.pid == 0));
    }

    #[test]
    fn a_count_that_has_begun_anew_is_news() {
        let mut told = Told::default();
        assert_eq!(told.news(&report(9, 9)), 9);

        assert_eq!(told.news(&report(1, 1)), 1);
    }
}
