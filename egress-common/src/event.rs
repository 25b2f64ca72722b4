//! What the kernel programs report.

use crate::address::Endpoint;

/// One attempt, or several alike since the last report.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Event {
    /// CLOCK_BOOTTIME in nanoseconds.
    pub time: u64,
    /// Socket cookie; 0 where there is no socket.
    pub socket: u64,
    /// Cgroup of the task (of the socket, for packets).
    pub cgroup: u64,
    /// Network namespace cookie; 0 where the kernel does not tell.
    pub netns: u64,
    /// What was to be reached.
    pub destination: Endpoint,
    /// Thread group id in the root pid namespace; 0 outside a task's own call.
    pub pid: u32,
    /// User id in the root user namespace.
    pub uid: u32,
    /// Number of an [`crate::outcome::Outcome`].
    pub outcome: u16,
    /// IP protocol number.
    pub protocol: u16,
    /// How many attempts there have been since the kernel's last report of the same kind.
    pub count: u64,
    /// How many there have been since the kind was first seen.
    pub total: u64,
    /// The task's `comm`, NUL-padded.
    pub command: [u8; 16],
}

/// Asks the agent for a listener: somebody's SYN is held for want of one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct ListenerWanted {
    /// Network namespace cookie.
    pub netns: u64,
    /// Cgroup of the task that connected.
    pub cgroup: u64,
    /// A thread group id inside the namespace, in the root pid namespace.
    pub pid: u32,
    /// Explicit padding.
    pub reserved: u32,
}

/// Attempts that are counted in the kernel and reported at most once per [`REPORT_INTERVAL`]: refusals, datagrams and
/// packets, of which a workload can bring about a million per second. What has been counted since the last report is
/// fetched by the agent.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(C)]
pub struct ObservedKey {
    /// Cgroup of the sender.
    pub cgroup: u64,
    /// Where to.
    pub destination: Endpoint,
    /// IP protocol number.
    pub protocol: u16,
    /// Number of an [`crate::outcome::Outcome`].
    pub outcome: u16,
}

/// The count behind an [`ObservedKey`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Observed {
    /// Attempts so far.
    pub count: u64,
    /// How many of them the kernel has reported.
    pub told: u64,
    /// CLOCK_BOOTTIME of the last report in nanoseconds.
    pub reported: u64,
}

/// Nanoseconds between two reports of the same [`ObservedKey`].
pub const REPORT_INTERVAL: u64 = 10_000_000_000;
