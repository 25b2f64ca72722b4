//! Attempts that the kernel has counted and not reported yet.

use std::{
    collections::{HashMap, HashSet},
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
    told: HashMap<ObservedKey, Event>,
}

impl ObservedTable {
    /// Opens the pinned map.
    ///
    /// # Errors
    /// See [`TableError`].
    pub fn open(pins: &Path) -> Result<Self, TableError> {
        Ok(Self {
            map: hash(pins, map::OBSERVED)?,
            told: HashMap::new(),
        })
    }

    /// How many kinds of attempts are counted. A system call for each.
    #[must_use]
    pub fn count(&self) -> usize {
        self.map.keys().count()
    }

    /// How many attempts a report stands for that the caller has not been told of.
    pub fn news(&mut self, event: &Event) -> u64 {
        let before = event.total.saturating_sub(event.count);
        let told = match self.told.insert(kind(event), *event) {
            // Otherwise the kernel's count has begun anew.
            Some(told) if told.total <= event.total => told.total,
            Some(_) | None => before,
        };
        event.total.saturating_sub(told)
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
            let event = self.told.entry(*key).or_insert_with(|| anonymous(key, observed));
            let is_due = due == Due::All || age >= Duration::from_nanos(REPORT_INTERVAL);
            if observed.count > event.total && is_due {
                each(event, observed.count - event.total);
                event.total = observed.count;
            } else if observed.count <= event.total && age > IDLE {
                silent.push(*key);
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
        self.told.retain(|key, _| present.contains(key));
        Ok(())
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
