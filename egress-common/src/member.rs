//! What the kernel programs know of policies: whose cgroup it is, how it is treated, and where it may go without being
//! asked for a name.
//!
//! The agent compiles a workload's policies to a [`Member`], blocks of addresses ([`BlockKey`] -> [`Allowance`]) and sets
//! of ports ([`PortChunk`] -> [`Ports`]), puts blocks and sets in place under a number that is not in use yet, and then
//! points the members to it: each cgroup changes from one policy to the next in one store.

use crate::{
    address::Endpoint,
    decide::{MPTCP, TCP, UDP},
};

/// What is enforced on the tasks of a cgroup.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Member {
    /// Number of the compiled policy; 0 for none.
    pub policy: u32,
    /// Number of the workload: the same for all its cgroups.
    pub workload: u32,
    /// [`ENFORCE`] or [`PASS`]; anything else is taken for `ENFORCE`.
    pub posture: u32,
    /// Set of the TCP ports whose connects go to the proxy, whatever the address.
    pub redirected: u32,
    /// Set of the TCP ports on which a rule speaks of names: what is allowed there by its address is judged by the proxy
    /// all the same.
    pub named: u32,
    /// [`DOUBTS_NAT64`] or 0.
    pub flags: u32,
}

/// Verdicts are carried out.
pub const ENFORCE: u32 = 1;
/// Everything passes and is reported: no policy selects the workload, or all that do only audit.
pub const PASS: u32 = 2;

/// The policies have denials of IPv6 blocks. Such a denial holds against a NAT64 address, while everything else of it is
/// judged by the IPv4 address inside: the proxy sorts that out, and datagrams are refused.
pub const DOUBTS_NAT64: u32 = 1;

/// The set without ports.
pub const NO_PORTS: u32 = 0;
/// The set of all ports. Not kept in the table.
pub const ALL_PORTS: u32 = u32::MAX;

/// A block of addresses of one policy, as key of a longest-prefix match: all 32 bits of the policy, then the block's.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(C)]
pub struct BlockKey {
    /// Number of the compiled policy.
    pub policy: u32,
    /// The block's address in 16-byte form.
    pub address: [u8; 16],
}

/// Bits of a [`BlockKey`] before the address.
pub const POLICY_BITS: u32 = 32;

/// What the policies of a workload allow to a block, those of all blocks around it included: the longest prefix alone
/// decides.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
#[repr(C)]
pub struct Allowance {
    /// Set of TCP ports.
    pub tcp: u32,
    /// Set of UDP ports.
    pub udp: u32,
}

/// 512 ports of a set: a set that names few ports takes few of them.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(C)]
pub struct PortChunk {
    /// Number of the set.
    pub set: u32,
    /// The ports' upper seven bits.
    pub chunk: u32,
}

/// A bit for each port of a [`PortChunk`].
pub type Ports = [u64; 8];

/// Who may be answered: a peer that has sent a datagram to a socket of a workload.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(C)]
pub struct InboundKey {
    /// Number of the workload.
    pub workload: u32,
    /// The peer.
    pub peer: Endpoint,
}

/// What is known of an [`InboundKey`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Inbound {
    /// CLOCK_BOOTTIME of the last datagram in nanoseconds; 0 if the workload spoke first: what comes back is an answer, and
    /// opens nothing.
    pub arrived: u64,
}

/// Nanoseconds after which a peer that has fallen silent may not be sent datagrams any more: conntrack's time for UDP
/// streams (nf_conntrack_udp_timeout_stream).
pub const INBOUND_LIFE: u64 = 120_000_000_000;

/// What ports are meant.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Transport {
    /// TCP, MPTCP included.
    Tcp,
    /// UDP.
    Udp,
}

impl Transport {
    /// The transport of an IP protocol number, if rules can name it.
    #[must_use]
    #[inline(always)]
    pub const fn of(protocol: u32) -> Option<Self> {
        match protocol {
            TCP | MPTCP => Some(Self::Tcp),
            UDP => Some(Self::Udp),
            _ => None,
        }
    }
}

impl Member {
    /// Whether verdicts are carried out.
    #[must_use]
    #[inline(always)]
    pub const fn is_enforced(&self) -> bool {
        self.posture != PASS
    }
}

impl Allowance {
    /// The set for a transport.
    #[must_use]
    #[inline(always)]
    pub const fn ports(&self, transport: Transport) -> u32 {
        match transport {
            Transport::Tcp => self.tcp,
            Transport::Udp => self.udp,
        }
    }
}

impl PortChunk {
    /// Where the bit of `port` is: the chunk, the index of the word and the bit in it.
    #[must_use]
    #[inline(always)]
    pub const fn of(set: u32, port: u16) -> (Self, usize, u32) {
        let chunk = Self {
            set,
            chunk: port as u32 >> 9,
        };
        // The masks keep the index in bounds in a way that the verifier can follow.
        (chunk, (port as usize >> 6) & 7, port as u32 & 63)
    }
}
