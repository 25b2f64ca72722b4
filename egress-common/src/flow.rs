//! A redirected connect: what the kernel noted and the agent takes on accept.

use crate::address::Endpoint;

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

/// What connect(2) was asked, and by whom. Kept in the socket's own storage (freed with it), and published for the
/// agent under a [`FlowKey`] just before the SYN leaves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Flow {
    /// The destination that the workload asked for.
    pub destination: Endpoint,
    /// Where the connect was sent instead.
    pub redirect: Endpoint,
    /// 1 once the SYN may leave; 0 while it is held for want of a listener.
    pub released: u32,
    /// Index of the device the socket was bound to; 0 for none.
    pub device: u32,
    /// Network namespace cookie; 0 marks a socket whose connect was not redirected.
    pub netns: u64,
    /// Cgroup of the task that connected.
    pub cgroup: u64,
    /// Cgroup in which the socket was made; 0 if that was before the programs were attached.
    pub birth_cgroup: u64,
    /// Socket cookie.
    pub socket: u64,
    /// CLOCK_BOOTTIME of the connect, in nanoseconds.
    pub time: u64,
    /// Thread group id in the root pid namespace.
    pub pid: u32,
    /// User id in the root user namespace.
    pub uid: u32,
    /// The task's `comm`, NUL-padded.
    pub command: [u8; 16],
}

impl Flow {
    /// A socket of which nothing is known but its birth.
    #[must_use]
    #[inline(always)]
    pub const fn born(birth_cgroup: u64) -> Self {
        Self {
            destination: Endpoint::v6([0; 16], 0),
            redirect: Endpoint::v6([0; 16], 0),
            released: 0,
            device: 0,
            netns: 0,
            cgroup: 0,
            birth_cgroup,
            socket: 0,
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
        self.netns != 0
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
