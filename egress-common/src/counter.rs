//! Places in the kernel's counter array: outcomes by their number, then losses.

use crate::outcome::Outcome;

/// Length of the counter array. A power of two, so that an index can be masked where the verifier sees it.
pub const COUNTERS: u32 = 64;

/// What a kernel program counts.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u32)]
pub enum Counter {
    /// An event found the ring buffer full.
    EventsLost = 48,
    /// A request for a listener found its ring buffer full; the SYN's retransmission asks again.
    WantedLost = 49,
    /// The flow table was full: the connection was accepted and closed as unexplained.
    FlowsFull = 50,
    /// SYNs held back for want of a listener, retransmissions included.
    SynsHeld = 51,
    /// The kernel had no memory for the report table: the attempt was reported at once instead.
    ObservedFull = 52,
    /// A query without a name service could not be handed to the agent; its asker asks again.
    QueriesLost = 53,
    /// The end of a direct flow found its ring buffer full: its bytes are not in the log.
    EndsLost = 54,
    /// The kernel had no memory for one of the fence's tables: what it would have explained stays inside.
    FencesFull = 55,
    /// The table of direct flows was full: one that nothing was enforced on went on without a record.
    AccountsFull = 56,
}

impl Counter {
    /// Every loss counter.
    pub const ALL: [Self; 9] = [
        Self::EventsLost,
        Self::WantedLost,
        Self::FlowsFull,
        Self::SynsHeld,
        Self::ObservedFull,
        Self::QueriesLost,
        Self::EndsLost,
        Self::FencesFull,
        Self::AccountsFull,
    ];

    /// Index in the counter array.
    #[must_use]
    #[inline(always)]
    pub const fn index(self) -> u32 {
        self as u32
    }

    /// The word used in `status`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::EventsLost => "events_lost",
            Self::WantedLost => "listener_requests_lost",
            Self::FlowsFull => "flow_table_full",
            Self::SynsHeld => "syns_held",
            Self::ObservedFull => "report_table_full",
            Self::QueriesLost => "dns_queries_lost",
            Self::EndsLost => "direct_ends_lost",
            Self::FencesFull => "fence_tables_full",
            Self::AccountsFull => "direct_accounts_full",
        }
    }
}

/// Index of an outcome that the kernel tells (number below 48).
#[must_use]
#[inline(always)]
pub const fn outcome_index(outcome: Outcome) -> u32 {
    outcome as u32 & (COUNTERS - 1)
}
