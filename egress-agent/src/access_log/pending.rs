//! A record that cannot be forgotten.

use std::{
    fmt::Debug,
    mem,
    ops::{Deref, DerefMut},
    sync::Arc,
    time::Instant,
};

use super::{AccessLog, Asked, Ending, Record};

/// Bytes that somebody else counts while a [`Pending`] record is open.
pub trait ByteCounts: Debug + Send + Sync {
    /// Bytes sent to the client so far.
    fn to_client(&self) -> u64;
    /// Bytes sent to the origin so far.
    fn to_origin(&self) -> u64;
}

/// A record from the moment its connection or request began. It is logged exactly once: by [`Self::finish`], or, when
/// the task that owns it is dropped half-way (the client went away, the runtime stops, a panic), by its own `Drop`.
///
/// The duration is measured here; the other fields are filled in through `DerefMut` as they become known. Begin it with
/// the verdict that shall stand if nothing further does: before a name was read, that is
/// [`ClientGone`](egress_common::outcome::Outcome::ClientGone).
#[derive(Debug)]
pub struct Pending {
    log: AccessLog,
    began: Instant,
    record: Record,
    counts: Option<Arc<dyn ByteCounts>>,
    if_dropped: Ending,
    logged: bool,
}

impl Pending {
    /// Opens a record that began at `began`.
    #[must_use]
    pub const fn new(log: AccessLog, began: Instant, record: Record) -> Self {
        Self {
            log,
            began,
            record,
            counts: None,
            if_dropped: Ending::ClientAborted,
            logged: false,
        }
    }

    /// Lets `counts` be added to the record's bytes when it is logged, however that comes about.
    pub fn count(&mut self, counts: Arc<dyn ByteCounts>) {
        self.counts = Some(counts);
    }

    /// What to log if this is dropped before it is finished: [`Ending::ClientAborted`] unless told here.
    pub const fn if_dropped(&mut self, ending: Ending) {
        self.if_dropped = ending;
    }

    /// Logs the record as it stands, with `ending`.
    pub fn finish(mut self, ending: Ending) {
        self.log_as(ending);
    }

    /// Logs as it stands now, where that is wanted, that the tunnel has been opened.
    pub fn opened(&mut self) {
        self.record.duration = self.began.elapsed();
        self.log.opened(&self.record);
    }

    /// Gives the record up without logging it, because another one takes its place.
    pub fn discard(mut self) {
        self.logged = true;
    }

    fn log_as(&mut self, ending: Ending) {
        if mem::replace(&mut self.logged, true) {
            return;
        }
        self.record.ending = ending;
        self.record.duration = self.began.elapsed();
        if let Some(counts) = &self.counts {
            let record = &mut self.record;
            record.bytes_to_client = record.bytes_to_client.saturating_add(counts.to_client());
            record.bytes_to_origin = record.bytes_to_origin.saturating_add(counts.to_origin());
        }
        self.log.record(moved_out_of(&mut self.record));
    }
}

/// The record without a copy of its texts: nobody sees what is left behind.
fn moved_out_of(record: &mut Record) -> Record {
    Record {
        started: record.started,
        duration: record.duration,
        client: record.client,
        original: record.original,
        workload: Arc::clone(&record.workload),
        process: mem::take(&mut record.process),
        carrier: record.carrier,
        protocol: record.protocol,
        asked: mem::replace(&mut record.asked, Asked::Nothing),
        tls: record.tls.take(),
        status: record.status,
        bytes_to_client: record.bytes_to_client,
        bytes_to_origin: record.bytes_to_origin,
        referer: record.referer.take(),
        user_agent: record.user_agent.take(),
        content_type: record.content_type.take(),
        upstream: record.upstream,
        by_parent: record.by_parent,
        relation: record.relation,
        verdict: record.verdict.clone(),
        enforced: record.enforced,
        ending: record.ending,
        attempts: record.attempts,
    }
}

impl Deref for Pending {
    type Target = Record;

    fn deref(&self) -> &Record {
        &self.record
    }
}

impl DerefMut for Pending {
    fn deref_mut(&mut self) -> &mut Record {
        &mut self.record
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        self.log_as(if self.log.is_drained() {
            Ending::Drained
        } else {
            self.if_dropped
        });
    }
}
