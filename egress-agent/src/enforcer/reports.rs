//! What the kernel programs tell: events into the agent's own log, counters for `status`.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use egress_common::{
    counter::Counter,
    event::Event,
    outcome::{Class, Outcome},
};

use crate::{
    identity::Identities,
    kernel::{Counts, EventReader, TableError},
};

/// Reads events and counters.
#[derive(Debug)]
pub(super) struct Reports {
    events: EventReader,
    counts: Counts,
    identities: Arc<Identities>,
    lost: u64,
}

impl Reports {
    /// A reader of both.
    #[must_use]
    pub(super) fn new(events: EventReader, counts: Counts, identities: Arc<Identities>) -> Self {
        Self {
            events,
            counts,
            identities,
            lost: 0,
        }
    }

    /// Reads on from where somebody else has stopped.
    ///
    /// # Errors
    /// See [`TableError`].
    pub(super) fn reopen(&mut self, pins: &Path) -> Result<(), TableError> {
        self.events = EventReader::open(pins)?;
        Ok(())
    }

    /// Writes waiting events to the log. What the kernel could not report is said once for each fetch that finds more.
    pub(super) fn fetch(&mut self) {
        let identities = &self.identities;
        self.events.drain(|event| tell(event, identities));
        match self.counts.loss(Counter::EventsLost) {
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

/// Destinations are at most DEBUG: the agent's own log is read by more people than the access log.
fn tell(event: &Event, identities: &Identities) {
    let Some(outcome) = Outcome::from_number(event.outcome) else {
        tracing::error!(number = event.outcome, "an outcome that this agent does not know");
        return;
    };
    let workload = identities.of(event.cgroup);
    let (namespace, name) = workload.as_ref().map_or(("", ""), |workload| {
        (workload.namespace.as_str(), workload.name.as_str())
    });
    let end = event
        .command
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(event.command.len());
    let command = String::from_utf8_lossy(event.command.get(..end).unwrap_or_default());
    match outcome.class() {
        Class::Allow => tracing::debug!(
            outcome = outcome.as_str(), destination = %event.destination.socket_addr(), protocol = event.protocol,
            namespace, name, pid = event.pid, %command, count = event.count, "left by another way than the proxy"
        ),
        Class::Deny | Class::Fail => tracing::debug!(
            outcome = outcome.as_str(), destination = %event.destination.socket_addr(), protocol = event.protocol,
            namespace, name, pid = event.pid, %command, "refused in the kernel"
        ),
    }
}
