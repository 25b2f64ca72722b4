//! A connect: what the kernel noted of it. The agent takes redirected ones on accept, and closes the books of direct ones.

use crate::{address::Endpoint, member::Member};

/// Identifies the loopback leg of a redirected connect, as both ends see it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(C)]
pub struct FlowKey {
    /// Cookie of the network namespace: loopback addresses repeat in each.
    pub netns: u64,
    /// The workload's end of the loopback leg: what accept(2) tells as the peer.
    pub local: Endpoint,
    /// The agent's end, as the last byte of its address and its port: a workload's sockets may use one port of theirs
    /// towards several of the agent's listeners. 0 where only one end counts.
    pub listener: u32,
}

/// By whom a socket was made, and what connect(2) was asked, and by whom. Kept in the socket's own storage (freed with it). A
/// redirected connect is published for the agent under a [`FlowKey`] just before the SYN leaves, a direct one under the
/// socket's cookie.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Flow {
    /// The destination that the workload asked for.
    pub destination: Endpoint,
    /// Where the connect was sent instead.
    pub redirect: Endpoint,
    /// [`REDIRECTED`], [`DIRECT`], or 0 for a socket that has not connected.
    pub lane: u32,
    /// Redirected: 1 once the SYN may leave; 0 while it is held for want of a listener.
    pub released: u32,
    /// Index of the device the socket was bound to; 0 for none.
    pub device: u32,
    /// Direct: number of the compiled policy that allowed it last; 0 if none had to.
    pub policy: u32,
    /// Direct: the socket's protocol number.
    pub protocol: u32,
    /// Direct: number of the [`crate::outcome::Outcome`] that let it pass.
    pub outcome: u32,
    /// Direct: datagram bytes sent and received; TCP counts for itself.
    pub sent: u64,
    /// See `sent`.
    pub received: u64,
    /// Network namespace cookie.
    pub netns: u64,
    /// Cgroup of the task that connected.
    pub cgroup: u64,
    /// Cgroup in which the socket was made; 0 if that was before the programs were attached.
    pub birth_cgroup: u64,
    /// Socket cookie.
    pub socket: u64,
    /// Redirected: whose share of the table of connects under way it takes a place of; see [`share`].
    pub share: u64,
    /// CLOCK_BOOTTIME of the connect, in nanoseconds.
    pub time: u64,
    /// Thread group id in the root pid namespace of who connected last, or else made the socket. 0: before the programs
    /// were attached.
    pub pid: u32,
    /// User id in the root user namespace.
    pub uid: u32,
    /// The task's `comm`, NUL-padded.
    pub command: [u8; 16],
}

/// The connect was sent to the agent.
pub const REDIRECTED: u32 = 1;
/// The connect went where it wanted to.
pub const DIRECT: u32 = 2;

/// Redirected connects that one workload may have under way, of the 65,536 that a machine has room for: nobody takes them
/// while there is no agent, and one workload is not to have it all. Counted without atomic additions, which this target
/// has none of, so it may be exceeded by what several CPUs count at the same instant.
pub const MOST_UNDER_WAY: u32 = 16_384;

/// Strangers are counted by their cgroups, whose ids are never as large.
const STRANGER: u64 = 1 << 63;

/// Whose share of the table of connects under way a connect takes a place of.
#[must_use]
#[inline(always)]
pub const fn share(cgroup: u64, member: Option<&Member>) -> u64 {
    match member {
        Some(member) => member.workload as u64,
        None => cgroup | STRANGER,
    }
}

/// A direct flow at its end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct ClosedFlow {
    /// What it was.
    pub flow: Flow,
    /// CLOCK_BOOTTIME of the end, in nanoseconds.
    pub ended: u64,
    /// Bytes that the workload sent.
    pub sent: u64,
    /// Bytes that it received.
    pub received: u64,
    /// 1 if the connection came about; always for datagrams.
    pub established: u32,
    /// Explicit padding.
    pub reserved: u32,
}

impl Flow {
    /// A socket of which nothing is known but its birth.
    #[must_use]
    #[inline(always)]
    pub const fn born(birth_cgroup: u64) -> Self {
        Self {
            destination: Endpoint::v6([0; 16], 0),
            redirect: Endpoint::v6([0; 16], 0),
            lane: 0,
            released: 0,
            device: 0,
            policy: 0,
            protocol: 0,
            outcome: 0,
            sent: 0,
            received: 0,
            netns: 0,
            cgroup: 0,
            birth_cgroup,
            socket: 0,
            share: 0,
            time: 0,
            pid: 0,
            uid: 0,
            command: [0; 16],
        }
    }

    /// Whether the socket's last connect was redirected.
    #[must_use]
    #[inline(always)]
    pub const fn is_redirected(&self) -> bool {
        self.lane == REDIRECTED
    }

    /// Whether the socket's last connect went where it wanted to, and an account is kept of it.
    #[must_use]
    #[inline(always)]
    pub const fn is_direct(&self) -> bool {
        self.lane == DIRECT
    }
}

impl FlowKey {
    /// The key of a loopback leg from `local` to the agent's `listener`.
    #[must_use]
    #[inline(always)]
    pub const fn leg(netns: u64, local: Endpoint, listener: &Endpoint) -> Self {
        let [.., last] = listener.octets();
        Self {
            netns,
            local,
            listener: (last as u32) << 16 | listener.port() as u32,
        }
    }

    /// The key of a socket that is not bound to one of the agent's ends.
    #[must_use]
    #[inline(always)]
    pub const fn socket(netns: u64, local: Endpoint) -> Self {
        Self {
            netns,
            local,
            listener: 0,
        }
    }
}
