//! The kernel's reports: attempts (drained by timer), requests for listeners and held queries (which wake the agent).

use std::{
    fmt, io,
    marker::PhantomData,
    os::fd::{AsRawFd, RawFd},
    path::Path,
};

use aya::maps::{Map, MapData, RingBuf};
use egress_common::{
    dns::HeldQuery,
    event::{Event, ListenerWanted},
    flow::ClosedFlow,
    names::map,
};
use tokio::io::{Interest, unix::AsyncFd};

use super::tables::{TableError, at, open};
use crate::readiness;

/// Reads records of which the programs never wake it (a wake-up would cost a connect 11 us): call it by timer.
pub struct TimedReader<T> {
    ring: RingBuf<MapData>,
    records: PhantomData<T>,
}

/// Reads [`Event`]s.
pub type EventReader = TimedReader<Event>;

/// Reads direct flows at their ends.
pub type ClosedReader = TimedReader<ClosedFlow>;

/// Reads [`ListenerWanted`] as they come.
pub type WantedReader = WakingReader<ListenerWanted>;

/// Reads [`HeldQuery`]s as they come.
pub type HeldReader = WakingReader<HeldQuery>;

/// Reads records that wake us.
#[derive(Debug)]
pub struct WakingReader<T> {
    ring: AsyncFd<Ring>,
    records: PhantomData<T>,
}

/// What comes in a ring buffer of its own.
pub trait Reported: aya::Pod {
    /// The ring buffer's name.
    const MAP: &'static str;
}

impl Reported for ListenerWanted {
    const MAP: &'static str = map::WANTED;
}

impl Reported for HeldQuery {
    const MAP: &'static str = map::HELD;
}

impl Reported for Event {
    const MAP: &'static str = map::EVENTS;
}

impl Reported for ClosedFlow {
    const MAP: &'static str = map::CLOSED;
}

struct Ring(RingBuf<MapData>);

impl<T> fmt::Debug for TimedReader<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TimedReader").finish_non_exhaustive()
    }
}

impl fmt::Debug for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ring").finish_non_exhaustive()
    }
}

impl AsRawFd for Ring {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl<T: Reported> TimedReader<T> {
    /// Opens the pinned ring buffer.
    ///
    /// # Errors
    /// See [`TableError`].
    pub fn open(pins: &Path) -> Result<Self, TableError> {
        Ok(Self {
            ring: ring(pins, T::MAP)?,
            records: PhantomData,
        })
    }

    /// Hands every waiting record to `each`.
    pub fn drain(&mut self, mut each: impl FnMut(&T)) {
        while let Some(item) = self.ring.next() {
            match record::<T>(&item) {
                Some(record) => each(&record),
                None => tracing::error!(
                    length = item.len(),
                    map = T::MAP,
                    "a record of another layout: agent and programs differ"
                ),
            }
        }
    }
}

impl<T: Reported> WakingReader<T> {
    /// Opens the pinned ring buffer.
    ///
    /// # Errors
    /// See [`TableError`]; also outside a runtime.
    pub fn open(pins: &Path) -> io::Result<Self> {
        let ring = ring(pins, T::MAP)?;
        Ok(Self {
            ring: readiness::watch(Ring(ring), Interest::READABLE)?,
            records: PhantomData,
        })
    }

    /// Waits for records and returns all that are there.
    ///
    /// # Errors
    /// The descriptor cannot be waited for.
    pub async fn next(&mut self) -> io::Result<Vec<T>> {
        loop {
            let mut guard = self.ring.readable_mut().await?;
            let mut records = Vec::new();
            while let Some(item) = guard.get_inner_mut().0.next() {
                records.extend(record::<T>(&item));
            }
            guard.clear_ready();
            if !records.is_empty() {
                return Ok(records);
            }
        }
    }
}

fn ring(pins: &Path, name: &'static str) -> Result<RingBuf<MapData>, TableError> {
    RingBuf::try_from(Map::RingBuf(open(pins, name)?)).map_err(at(name))
}

/// The record in `bytes` if they have its size.
fn record<T: aya::Pod>(bytes: &[u8]) -> Option<T> {
    if bytes.len() != size_of::<T>() {
        return None;
    }
    // SAFETY: the size was checked, the read may be unaligned, and for a Pod any bytes are a value.
    Some(unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
}
