//! One record per connection (per request for HTTP), in squid's formats and JSON.
//!
//! The data path fills in a [`Record`], usually through a [`Pending`] one, and hands it to the [`AccessLog`]: a queue of
//! bounded size in front of one thread, which alone renders and writes. `docs/access-log.md` is the manual.

mod facts;
mod format;
#[doc(hidden)]
pub mod fuzz;
mod json;
mod pending;
mod queue;
mod record;
mod result_code;
#[cfg(test)]
mod samples;
mod sink;
mod squid;
mod writer;

pub use format::{Format, UnknownFormat};
pub use pending::{ByteCounts, Pending};
pub use queue::Unwritten;
pub use record::{AddressRelation, Asked, Carrier, Ending, Protocol, Record, TlsFacts};
pub use result_code::{Hierarchy, ResultCode, Suffix, Tag};
pub use sink::{Output, OutputStatus, Target};
pub use squid::{COMBINED, COMMON, FormatError, FormatErrorKind, LogFormat, SQUID};

use std::{
    fmt, io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use jiff::tz::TimeZone;
use serde::Serialize;

use crate::policy::DenialFeed;
use queue::Queue;
use sink::{Sink, SinkCounters};

/// Takes records; a clone writes to the same log. Never blocks on the log's files: what the writer cannot keep up with
/// is counted, and the count stands in the log itself, in [`Self::status`] and in the agent's own messages.
///
/// The default is [`Self::disabled`].
#[derive(Clone, Default)]
pub struct AccessLog {
    running: Option<Arc<Running>>,
    denials: DenialFeed,
}

/// How a log is set up, beyond its outputs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Leaves the query out of `%ru` and JSON's `url`. squid does so unless told otherwise.
    pub strip_query_terms: bool,
    /// How many bytes of records may wait for the writer. 16 MiB are about 30,000 usual records: half a second of a
    /// busy node.
    pub queue_bytes: usize,
    /// How many rendered bytes may wait for each output that does not take them.
    pub backlog_bytes: usize,
    /// The zone of `%tl`; the system's unless told otherwise.
    pub zone: Option<TimeZone>,
}

/// What the log has done so far.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Status {
    /// Records taken.
    pub records: u64,
    /// Records refused because the queue was full.
    pub dropped: u64,
    /// Each output, in the order in which they were given.
    pub outputs: Vec<OutputStatus>,
}

/// The side of the log that records are handed to. The last one to go lets the writer end by itself.
struct Running {
    queue: Arc<Queue>,
    sinks: Vec<Arc<SinkCounters>>,
    /// Some output is told of tunnels when they are opened.
    tells_opened: bool,
    /// The agent is past its drain deadline: records that are dropped from now on were cut off by it.
    drained: AtomicBool,
}

impl AccessLog {
    /// A log that takes records and keeps none.
    #[must_use]
    pub fn disabled() -> Self {
        Self::default()
    }

    /// The same, that tells `denials` of what is denied, even where no records are kept.
    #[must_use]
    pub fn with_denials(mut self, denials: DenialFeed) -> Self {
        self.denials = denials;
        self
    }

    /// Opens `outputs` and starts the writer. Without outputs the log is disabled.
    ///
    /// # Errors
    /// A file cannot be opened, or the thread not be started.
    pub fn start(outputs: Vec<Output>) -> io::Result<Self> {
        Self::start_with(outputs, &Options::default())
    }

    /// As [`Self::start`], with options.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_with(outputs: Vec<Output>, options: &Options) -> io::Result<Self> {
        if outputs.is_empty() {
            return Ok(Self::disabled());
        }
        let tells_opened = outputs.iter().any(|output| output.opened);
        let sinks = outputs
            .into_iter()
            .map(|output| Sink::open(output, options))
            .collect::<io::Result<Vec<_>>>()?;
        let queue = Arc::new(Queue::new(options.queue_bytes));
        let running = Running {
            drained: AtomicBool::new(false),
            tells_opened,
            queue: Arc::clone(&queue),
            sinks: sinks.iter().map(Sink::counters).collect(),
        };
        thread::Builder::new()
            .name("access-log".to_owned())
            .spawn(move || writer::run(&queue, sinks))?;
        Ok(Self {
            running: Some(Arc::new(running)),
            denials: DenialFeed::default(),
        })
    }

    /// From now on a record that is dropped unfinished ends as [`Ending::Drained`]: the agent itself cuts it off.
    pub fn mark_drained(&self) {
        if let Some(running) = &self.running {
            running.drained.store(true, Ordering::Relaxed);
        }
    }

    /// Whether [`Self::mark_drained`] was called.
    fn is_drained(&self) -> bool {
        self.running
            .as_ref()
            .is_some_and(|running| running.drained.load(Ordering::Relaxed))
    }

    /// Hands over a finished record. Costs a lock held for the time of a move, and a wake-up of the writer only if it
    /// sleeps for want of work.
    pub fn record(&self, record: Record) {
        self.denials
            .tell(&record.workload, &record.verdict, record.enforced, || {
                record.subject()
            });
        if let Some(running) = &self.running {
            running.queue.push(record);
        }
    }

    /// Tells the outputs that want to know of a tunnel that has just been opened; its end is another record. The others
    /// cost nothing.
    pub fn opened(&self, record: &Record) {
        if let Some(running) = self.running.as_ref().filter(|running| running.tells_opened) {
            running.queue.push(Record {
                ending: Ending::Open,
                ..record.clone()
            });
        }
    }

    /// Whether records go anywhere: what only the log needs may be left out otherwise.
    #[must_use]
    pub const fn is_enabled(&self) -> bool {
        self.running.is_some()
    }

    /// Opens the files again by their names, for log rotation. What was recorded before goes to the old ones. A file
    /// that cannot be opened is reported and the old one kept.
    pub fn reopen(&self) {
        if let Some(running) = &self.running {
            running.queue.reopen();
        }
    }

    /// Waits until all that was recorded before has been written, at most for `limit`. True if it has.
    #[must_use]
    pub fn flush(&self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        self.running
            .as_ref()
            .is_none_or(|running| running.queue.flush(deadline))
    }

    /// Writes all that is left, at most for `limit`, and ends the writer. Records that come later are dropped and
    /// counted. Blocks: from asynchronous code to be called where that is allowed.
    ///
    /// # Errors
    /// Not all could be written in time.
    pub fn close(&self, limit: Duration) -> Result<(), Unwritten> {
        let deadline = Instant::now() + limit;
        self.running
            .as_ref()
            .map_or(Ok(()), |running| running.queue.close(deadline))
    }

    /// Whether an output cannot be written at the moment.
    #[must_use]
    pub fn is_failing(&self) -> bool {
        self.running
            .as_ref()
            .is_some_and(|running| running.sinks.iter().any(|sink| sink.is_failing()))
    }

    /// What the log has done so far.
    #[must_use]
    pub fn status(&self) -> Status {
        let Some(running) = &self.running else {
            return Status::default();
        };
        let (records, dropped) = running.queue.counts();
        let outputs = running.sinks.iter().map(|sink| sink.status()).collect();
        Status {
            records,
            dropped,
            outputs,
        }
    }
}

impl Default for Options {
    fn default() -> Self {
        Self {
            strip_query_terms: false,
            queue_bytes: 16 << 20,
            backlog_bytes: 1 << 20,
            zone: None,
        }
    }
}

impl fmt::Debug for AccessLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AccessLog")
            .field("is_enabled", &self.is_enabled())
            .finish_non_exhaustive()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.queue.abandon();
    }
}

#[cfg(test)]
mod tests;
