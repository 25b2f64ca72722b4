//! One output: a format and where its lines go.

mod file;

use std::{
    io, mem,
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use jiff::{Timestamp, tz::TimeZone};
use serde::Serialize;

use super::{
    Ending, Options, Record,
    facts::Facts,
    format::{Format, Renderer},
};
use file::{Opened, Written};

/// Where lines go, and in which words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// In which words.
    pub format: Format,
    /// Where.
    pub target: Target,
    /// Whether it is told of tunnels when they are opened, too, and not only at their end.
    pub opened: bool,
}

/// Where lines go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// A file, appended to; made with mode 0640 if it does not exist.
    File(PathBuf),
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// What an output has done so far.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct OutputStatus {
    /// Where: a path, `stdout` or `stderr`.
    pub target: String,
    /// In which words.
    pub format: String,
    /// Lines written.
    pub written: u64,
    /// Lines given up because the output did not take them, or the queue was full.
    pub lost: u64,
    /// Failed attempts to write or open.
    pub errors: u64,
    /// Why nothing is being written at the moment, if that is so.
    pub failing: Option<String>,
}

/// The part of a sink that others may look at.
#[derive(Debug)]
pub(super) struct SinkCounters {
    target: String,
    format: String,
    written: AtomicU64,
    lost: AtomicU64,
    errors: AtomicU64,
    failing: Mutex<Option<String>>,
}

/// An output in the writer's hands.
#[derive(Debug)]
pub(super) struct Sink {
    target: Target,
    opened: bool,
    file: Opened,
    renderer: Renderer,
    /// Lines rendered and not yet written, from `sent` on.
    buffer: Vec<u8>,
    sent: usize,
    backlog: usize,
    /// The last write did not take everything: the next try is the writer's to time.
    is_stuck: bool,
    /// Lines lost since the log last said so.
    untold: u64,
    complaint: Complaint,
    counters: Arc<SinkCounters>,
}

/// When the agent's own log last heard of this sink's troubles.
#[derive(Debug, Default)]
struct Complaint {
    last: Option<Instant>,
    /// Lines lost and not yet spoken of there.
    lost: u64,
}

/// Between two messages about the same trouble.
const COMPLAIN_EVERY: Duration = Duration::from_secs(60);

impl Sink {
    pub(super) fn open(output: Output, options: &Options) -> io::Result<Self> {
        let Output {
            format,
            target,
            opened,
        } = output;
        let zone = options.zone.clone().unwrap_or_else(TimeZone::system);
        let renderer = format
            .renderer(zone, options.strip_query_terms)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        let named =
            |error: io::Error| io::Error::new(error.kind(), format!("access log {}: {error}", target.name()));
        let file = Opened::new(&target).map_err(named)?;
        let counters = Arc::new(SinkCounters {
            target: target.name(),
            format: format.to_string(),
            written: AtomicU64::new(0),
            lost: AtomicU64::new(0),
            errors: AtomicU64::new(0),
            failing: Mutex::new(None),
        });
        Ok(Self {
            target,
            opened,
            file,
            renderer,
            buffer: Vec::new(),
            sent: 0,
            backlog: options.backlog_bytes,
            is_stuck: false,
            untold: 0,
            complaint: Complaint::default(),
            counters,
        })
    }

    pub(super) fn counters(&self) -> Arc<SinkCounters> {
        Arc::clone(&self.counters)
    }

    /// Whether a record is one for this output.
    pub(super) const fn takes(&self, record: &Record) -> bool {
        self.opened || !matches!(record.ending, Ending::Open)
    }

    /// Whether something waits for a later [`Self::write`].
    pub(super) const fn is_behind(&self) -> bool {
        !self.buffer.is_empty() || self.untold > 0
    }

    /// Renders a line, unless too much waits already: then it is lost, and counted.
    pub(super) fn append(&mut self, facts: &Facts<'_>) {
        if self.pending() > self.backlog && !self.is_stuck {
            self.write();
        }
        // As long as a gap has not been marked nothing may be written behind it.
        if self.untold > 0 || self.pending() > self.backlog {
            return self.lose(1);
        }
        self.renderer.render(facts, &mut self.buffer);
        if self.pending() >= file::CHUNK && !self.is_stuck {
            self.write();
        }
    }

    /// Counts lines that will be missing from here on.
    pub(super) fn lose(&mut self, count: u64) {
        if count == 0 {
            return;
        }
        self.untold += count;
        self.complaint.lost += count;
        self.counters.lost.fetch_add(count, Ordering::Relaxed);
    }

    /// Writes as much as the output takes now.
    pub(super) fn write(&mut self) {
        loop {
            self.is_stuck = !self.write_buffer();
            self.forget_sent();
            if self.is_stuck || self.untold == 0 {
                return;
            }
            let lost = mem::take(&mut self.untold);
            self.renderer
                .render(&Facts::lost(lost, Timestamp::now()), &mut self.buffer);
        }
    }

    /// Opens the file again by its name. Should that fail, the old one is kept.
    pub(super) fn reopen(&mut self) {
        if !matches!(self.target, Target::File(_)) {
            return;
        }
        self.write();
        match Opened::new(&self.target) {
            Ok(file) => {
                self.drop_torn_line();
                self.buffer.drain(..self.sent);
                self.sent = 0;
                self.file = file;
                self.write();
            }
            Err(error) => self.failed(&error),
        }
    }

    /// Forgets what was not written, and says how many lines that were.
    pub(super) fn give_up(&mut self) -> u64 {
        let left = self.buffer.get(self.sent..).unwrap_or_default();
        let lines = lines_in(left);
        self.counters.lost.fetch_add(lines, Ordering::Relaxed);
        self.buffer.clear();
        self.sent = 0;
        lines + mem::take(&mut self.untold)
    }

    /// Bytes that are rendered and not written.
    const fn pending(&self) -> usize {
        self.buffer.len() - self.sent
    }

    /// Gives back the memory of what was written, also to an output that is never quite idle. The last byte stays: it
    /// tells whether a line is half written.
    fn forget_sent(&mut self) {
        if self.sent > file::CHUNK {
            self.buffer.drain(..self.sent - 1);
            self.sent = 1;
        }
    }

    /// True once nothing is left.
    fn write_buffer(&mut self) -> bool {
        while let Some(left) = self.buffer.get(self.sent..).filter(|left| !left.is_empty()) {
            match self.file.write(left) {
                Ok(Written::Some(count)) => {
                    let lines = lines_in(left.get(..count).unwrap_or(left));
                    self.counters.written.fetch_add(lines, Ordering::Relaxed);
                    self.sent += count;
                }
                Ok(Written::NotNow) => return false,
                Err(error) => {
                    self.failed(&error);
                    return false;
                }
            }
        }
        self.buffer.clear();
        self.sent = 0;
        self.recovered();
        true
    }

    /// The rest of a line whose beginning stands in a file that will not be written to any more.
    fn drop_torn_line(&mut self) {
        let is_torn = self.sent > 0 && self.buffer.get(self.sent - 1) != Some(&b'\n');
        if is_torn {
            let left = self.buffer.get(self.sent..).unwrap_or_default();
            let rest = left
                .iter()
                .position(|&byte| byte == b'\n')
                .map_or(left.len(), |end| end + 1);
            self.sent += rest;
            self.lose(1);
        }
    }

    fn failed(&mut self, error: &io::Error) {
        self.counters.errors.fetch_add(1, Ordering::Relaxed);
        self.counters.set_failing(Some(error.to_string()));
        self.complain(Some(error));
    }

    fn recovered(&self) {
        if self.counters.set_failing(None) {
            tracing::info!(
                target = self.counters.target,
                "the access log is being written again"
            );
        }
    }

    /// When there is something to say that was not said because too little time had passed.
    pub(super) fn speaks_at(&self) -> Option<Instant> {
        let last = self.complaint.last.filter(|_| self.complaint.lost > 0)?;
        last.checked_add(COMPLAIN_EVERY)
    }

    /// Says it, if it is time.
    pub(super) fn speak(&mut self) {
        if self.complaint.lost > 0 {
            self.complain(None);
        }
    }

    /// At most one message per interval: trouble with a disk comes at the rate of the records.
    fn complain(&mut self, error: Option<&io::Error>) {
        if self
            .complaint
            .last
            .is_some_and(|last| last.elapsed() < COMPLAIN_EVERY)
        {
            return;
        }
        self.complaint.last = Some(Instant::now());
        let lost = mem::take(&mut self.complaint.lost);
        let target = &self.counters.target;
        match error {
            Some(error) => tracing::warn!(target, lost, %error, "the access log cannot be written"),
            None => tracing::warn!(target, lost, "access log records were lost"),
        }
    }
}

impl SinkCounters {
    pub(super) fn status(&self) -> OutputStatus {
        OutputStatus {
            target: self.target.clone(),
            format: self.format.clone(),
            written: self.written.load(Ordering::Relaxed),
            lost: self.lost.load(Ordering::Relaxed),
            errors: self.errors.load(Ordering::Relaxed),
            failing: self
                .failing
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .clone(),
        }
    }

    pub(super) fn is_failing(&self) -> bool {
        self.failing
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .is_some()
    }

    /// Whether that is news.
    fn set_failing(&self, why: Option<String>) -> bool {
        let mut failing = self.failing.lock().unwrap_or_else(PoisonError::into_inner);
        let is_news = failing.is_some() != why.is_some();
        *failing = why;
        is_news
    }
}

impl Target {
    fn name(&self) -> String {
        match self {
            Self::File(path) => path.display().to_string(),
            Self::Stdout => "stdout".to_owned(),
            Self::Stderr => "stderr".to_owned(),
        }
    }
}

fn lines_in(bytes: &[u8]) -> u64 {
    bytes.iter().filter(|&&byte| byte == b'\n').count() as u64
}
