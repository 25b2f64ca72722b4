//! What the kernel programs tell: refusals and flows that went past the agent into the access log, counters for `status`.

use std::{collections::BTreeMap, path::Path};

use egress_common::{counter::Counter, outcome::Outcome};

use super::ledger::Ledger;
use crate::{
    access_log::AccessLog,
    kernel::{ClosedReader, Counts, Due, EventReader, ObservedTable, TableError},
};

/// Reads events, ends of flows and counters.
#[derive(Debug)]
pub(super) struct Reports {
    events: EventReader,
    closed: ClosedReader,
    observed: ObservedTable,
    counts: Counts,
    lost: u64,
}

impl Reports {
    /// Opens the pinned maps.
    ///
    /// # Errors
    /// See [`TableError`].
    pub(super) fn open(pins: &Path) -> Result<Self, TableError> {
        Ok(Self {
            events: EventReader::open(pins)?,
            closed: ClosedReader::open(pins)?,
            observed: ObservedTable::open(pins)?,
            counts: Counts::open(pins)?,
            lost: 0,
        })
    }

    /// Reads on from where somebody else has stopped.
    ///
    /// # Errors
    /// See [`TableError`].
    pub(super) fn reopen(&mut self, pins: &Path) -> Result<(), TableError> {
        self.events = EventReader::open(pins)?;
        self.closed = ClosedReader::open(pins)?;
        Ok(())
    }

    /// Writes what waits to the log. What the kernel could not report is said once for each fetch that finds more.
    pub(super) fn fetch(&mut self, ledger: &Ledger<'_>, log: &AccessLog) {
        let observed = &mut self.observed;
        self.events.drain(|event| {
            let attempts = observed.news(event);
            ledger
                .attempts(event, attempts)
                .into_iter()
                .for_each(|record| log.record(record));
        });
        self.closed.drain(|closed| {
            ledger
                .closed(closed)
                .into_iter()
                .for_each(|record| log.record(record));
        });
        let lost = [Counter::EventsLost, Counter::EndsLost]
            .into_iter()
            .map(|counter| self.counts.loss(counter))
            .sum::<Result<u64, _>>();
        match lost {
            Ok(lost) if lost > self.lost => {
                tracing::warn!(
                    lost = lost - self.lost,
                    "the kernel reported faster than reports were read; all are counted"
                );
                self.lost = lost;
            }
            Ok(_same) => {}
            Err(error) => tracing::warn!(%error, "cannot read the kernel's counters"),
        }
    }

    /// Writes to the log what the kernel has counted and will not report, because it has ceased.
    pub(super) fn sweep(&mut self, ledger: &Ledger<'_>, log: &AccessLog, due: Due) {
        let swept = self.observed.fetch(due, |event, attempts| {
            ledger
                .attempts(event, attempts)
                .into_iter()
                .for_each(|record| log.record(record));
        });
        if let Err(error) = swept {
            tracing::warn!(%error, "cannot sweep the table of attempts");
        }
    }

    /// How many kinds of attempts are counted.
    pub(super) fn observed(&self) -> usize {
        self.observed.count()
    }

    /// Every counter by its word.
    ///
    /// # Errors
    /// The kernel refuses.
    pub(super) fn counters(&self) -> Result<BTreeMap<&'static str, u64>, TableError> {
        let mut counters = BTreeMap::new();
        for outcome in Outcome::ALL.iter().filter(|outcome| outcome.number() < 48) {
            counters.insert(outcome.as_str(), self.counts.outcome(*outcome)?);
        }
        for counter in Counter::ALL {
            counters.insert(counter.as_str(), self.counts.loss(counter)?);
        }
        Ok(counters)
    }
}
