//! The bounded queue between the data path and the writer.
//!
//! Not a channel: the writer must be woken once per burst and not once per record (a wake-up costs ten times what the
//! push does), must learn of reopening and closing in the same wait, and the bound is in bytes, since one record can be
//! a thousand times as large as another.

use std::{
    collections::VecDeque,
    mem,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use http::HeaderValue;

use super::record::{Asked, Record};

#[derive(Debug)]
pub(super) struct Queue {
    limit: usize,
    state: Mutex<State>,
    to_writer: Condvar,
    from_writer: Condvar,
}

#[derive(Debug, Default)]
struct State {
    records: VecDeque<Record>,
    /// Weight of `records`.
    bytes: usize,
    /// Records ever taken in.
    taken: u64,
    /// Records ever refused.
    dropped: u64,
    /// Of them, those that the writer has not been told of.
    untold: u64,
    /// Records that have been written, or given up.
    settled: u64,
    writer: Writer,
    /// Somebody waits for the writer and must not wait for the end of its pause.
    hurry: bool,
    reopen: bool,
    closing: Option<Instant>,
}

#[derive(Debug, Default, PartialEq, Eq)]
enum Writer {
    /// At work, or pausing between two batches: it will look again by itself.
    #[default]
    Awake,
    /// Waits for the first record.
    Asleep,
    /// It has ended; the number of records that it could not write.
    Ended(u64),
}

/// What the writer has to do.
#[derive(Debug, Default)]
pub(super) struct Work {
    pub(super) records: VecDeque<Record>,
    /// Records refused after those above.
    pub(super) dropped: u64,
    pub(super) reopen: bool,
    /// Write what is there, by this time, and end.
    pub(super) closing: Option<Instant>,
}

/// Records were lost when the log was closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0} access log records could not be written before the deadline")]
pub struct Unwritten(pub u64);

impl Queue {
    pub(super) fn new(limit: usize) -> Self {
        Self {
            limit,
            state: Mutex::default(),
            to_writer: Condvar::new(),
            from_writer: Condvar::new(),
        }
    }

    /// Never waits for the writer.
    pub(super) fn push(&self, mut record: Record) {
        detach(&mut record);
        let weight = weight(&record);
        let mut state = self.lock();
        if state.closing.is_some() || state.bytes + weight > self.limit {
            state.dropped += 1;
            state.untold += 1;
            // The record's memory is freed without the lock.
            drop(state);
            return;
        }
        state.taken += 1;
        let was_below = state.bytes < self.limit / 2;
        state.bytes += weight;
        state.records.push_back(record);
        let is_filling = was_below && state.bytes >= self.limit / 2;
        let was_asleep = state.writer == Writer::Asleep;
        if was_asleep {
            state.writer = Writer::Awake;
        }
        drop(state);
        if was_asleep || is_filling {
            self.to_writer.notify_one();
        }
    }

    pub(super) fn reopen(&self) {
        self.lock().reopen = true;
        self.to_writer.notify_one();
    }

    pub(super) fn flush(&self, deadline: Instant) -> bool {
        let mut state = self.lock();
        let wanted = state.taken;
        while state.settled < wanted {
            if matches!(state.writer, Writer::Ended(_)) {
                return false;
            }
            state.hurry = true;
            self.to_writer.notify_one();
            let Some(left) = left_until(deadline) else {
                return false;
            };
            state = wait(&self.from_writer, state, Some(left));
        }
        true
    }

    pub(super) fn close(&self, deadline: Instant) -> Result<(), Unwritten> {
        let mut state = self.lock();
        state.closing.get_or_insert(deadline);
        self.to_writer.notify_one();
        loop {
            if let Writer::Ended(unwritten) = state.writer {
                return if unwritten == 0 {
                    Ok(())
                } else {
                    Err(Unwritten(unwritten))
                };
            }
            // The writer keeps to the deadline by itself unless the kernel holds it in a write.
            let Some(left) = left_until(deadline + GRACE) else {
                return Err(Unwritten(state.taken - state.settled));
            };
            state = wait(&self.from_writer, state, Some(left));
        }
    }

    /// Nobody is left to hand in records or to wait.
    pub(super) fn abandon(&self) {
        let mut state = self.lock();
        state.closing.get_or_insert_with(|| Instant::now() + LAST_WORDS);
        drop(state);
        self.to_writer.notify_one();
    }

    /// Records taken in and refused.
    pub(super) fn counts(&self) -> (u64, u64) {
        let state = self.lock();
        (state.taken, state.dropped)
    }

    /// The writer's wait: for work, or until `retry` if it has something to retry.
    pub(super) fn next(&self, retry: Option<Instant>) -> Work {
        let mut state = self.lock();
        while !state.has_work() {
            let left = match retry.map(left_until) {
                Some(None) => break,
                Some(left) => left,
                None => None,
            };
            state.writer = Writer::Asleep;
            state = wait(&self.to_writer, state, left);
        }
        state.writer = Writer::Awake;
        state.hurry = false;
        state.bytes = 0;
        Work {
            records: mem::take(&mut state.records),
            dropped: mem::take(&mut state.untold),
            reopen: mem::take(&mut state.reopen),
            closing: state.closing,
        }
    }

    /// The writer's report: `count` more records are written or given up.
    pub(super) fn settle(&self, count: u64) {
        if count > 0 {
            self.lock().settled += count;
            self.from_writer.notify_all();
        }
    }

    /// The writer's rest between two batches, so that a busy log costs a write per pause and not one per record. Cut
    /// short when there is a hurry.
    pub(super) fn pause(&self, length: Duration) {
        let end = Instant::now() + length;
        let mut state = self.lock();
        while !(state.hurry || state.reopen || state.closing.is_some() || state.bytes >= self.limit / 2) {
            let Some(left) = left_until(end) else {
                break;
            };
            state = wait(&self.to_writer, state, Some(left));
        }
    }

    /// The writer's last word.
    pub(super) fn end(&self, unwritten: u64) {
        self.lock().writer = Writer::Ended(unwritten);
        self.from_writer.notify_all();
    }

    /// A panic elsewhere leaves at worst a counter behind its queue: the log goes on.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How much longer than its deadline a close waits for a writer that is about to end.
const GRACE: Duration = Duration::from_millis(200);
/// How long the writer goes on when the last handle was dropped without a close.
const LAST_WORDS: Duration = Duration::from_secs(1);

impl State {
    fn has_work(&self) -> bool {
        !self.records.is_empty() || self.untold > 0 || self.reopen || self.hurry || self.closing.is_some()
    }
}

fn wait<'a>(
    signal: &Condvar,
    state: MutexGuard<'a, State>,
    limit: Option<Duration>,
) -> MutexGuard<'a, State> {
    match limit {
        Some(limit) => {
            signal
                .wait_timeout(state, limit)
                .unwrap_or_else(PoisonError::into_inner)
                .0
        }
        None => signal.wait(state).unwrap_or_else(PoisonError::into_inner),
    }
}

fn left_until(deadline: Instant) -> Option<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    (!left.is_zero()).then_some(left)
}

/// Copies the headers, which are slices of a message's head (the URL was put together anew): otherwise a few bytes of
/// `User-Agent` would keep a read buffer of up to the head's limit in memory for as long as the record waits, which no
/// weight tells.
fn detach(record: &mut Record) {
    for header in [
        &mut record.referer,
        &mut record.user_agent,
        &mut record.content_type,
    ] {
        if let Some(value) = header
            && let Ok(own) = HeaderValue::from_bytes(value.as_bytes())
        {
            *value = own;
        }
    }
}

/// The memory that a waiting record holds, roughly.
fn weight(record: &Record) -> usize {
    let header = |value: &Option<HeaderValue>| value.as_ref().map_or(0, HeaderValue::len);
    let asked = match &record.asked {
        Asked::Request { url, .. } => {
            url.path_and_query().map_or(0, |path| path.as_str().len())
                + url.authority().map_or(0, |a| a.as_str().len())
        }
        Asked::Tunnel { .. } | Asked::Connect { .. } | Asked::Nothing => 0,
    };
    let alpn = record
        .tls
        .iter()
        .flat_map(|tls| &tls.alpn)
        .map(String::len)
        .sum::<usize>();
    size_of::<Record>()
        + asked
        + alpn
        + header(&record.referer)
        + header(&record.user_agent)
        + header(&record.content_type)
}
