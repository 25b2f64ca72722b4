//! The name service: queries of workloads go to the agent, and their sockets are told the resolver that they asked.
//!
//! One socket may ask several resolvers (musl asks all of resolv.conf at once), and an answer must seem to come from the
//! one that was asked. So each resolver of a socket has a place of its own at the agent: the n-th an address of its own
//! in 127.0.0.0/8, or a port of its own on ::1. Which resolver has which place is known per socket, so there is no table
//! that one workload could fill for another.

use crate::{address::Endpoint, listener::Listeners};

/// The port of name servers.
pub const PORT: u16 = 53;

/// How many resolvers of one socket are told apart; one more takes the place of the first. glibc and musl read at most
/// three from resolv.conf.
pub const RESOLVERS: usize = 4;

/// The same, to compare distances with.
const PLACES: u32 = 4;
const _: () = assert!(PLACES as usize == RESOLVERS);

/// Where the first resolver's queries go; the n-th one's go n addresses further. Beside the listeners' addresses.
pub const FIRST_RESOLVER: [u8; 4] = [127, 69, 72, 1];

/// The UDP port tried first in each namespace.
pub const PREFERRED_PORT: u16 = 61353;

/// A socket that asks name servers. Kept in the socket's own storage, and published for the agent with each query, under
/// the socket's local address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Asker {
    /// The resolvers by their places; all zeros where there is none.
    pub resolvers: [Endpoint; RESOLVERS],
    /// Network namespace cookie; 0 for a socket that never asked.
    pub netns: u64,
    /// Cgroup of the task that asked last.
    pub cgroup: u64,
    /// Cgroup in which the socket was made; 0 if that was before the programs were attached.
    pub birth_cgroup: u64,
    /// CLOCK_BOOTTIME of the last query, in nanoseconds.
    pub time: u64,
    /// Thread group id in the root pid namespace.
    pub pid: u32,
    /// User id in the root user namespace.
    pub uid: u32,
    /// The task's `comm`, NUL-padded.
    pub command: [u8; 16],
    /// The place that the next new resolver takes.
    pub next: u32,
    /// Explicit padding.
    pub reserved: u32,
}

/// A query for which there is no name service yet, handed to the agent as it is: were it dropped, its asker would ask
/// again only after seconds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct HeldQuery {
    /// Who asks.
    pub asker: Asker,
    /// The asker's own address.
    pub source: Endpoint,
    /// The place that it was sent to.
    pub slot: u32,
    /// How long the query is.
    pub length: u32,
    /// Explicit padding.
    pub reserved: u32,
    /// The query; zeros or remains of others behind its length.
    pub query: [u8; LONGEST_HELD],
}

/// The longest query that is handed over; others are lost. A name has 255 bytes.
pub const LONGEST_HELD: usize = 512;

/// Nanoseconds for which a local address belongs to the cgroup that asked from it: longer than a query waits for the
/// agent to read it.
pub const OWNERSHIP: u64 = 1_000_000_000;

impl Asker {
    /// A socket that has not asked yet.
    pub const EMPTY: Self = Self {
        resolvers: [Endpoint::v6([0; 16], 0); RESOLVERS],
        netns: 0,
        cgroup: 0,
        birth_cgroup: 0,
        time: 0,
        pid: 0,
        uid: 0,
        command: [0; 16],
        next: 0,
        reserved: 0,
    };

    /// The place of `resolver`, a new one if it has none.
    #[inline(always)]
    pub fn slot_of(&mut self, resolver: &Endpoint) -> usize {
        if self.resolvers[0].is(resolver) {
            return 0;
        }
        if self.resolvers[1].is(resolver) {
            return 1;
        }
        if self.resolvers[2].is(resolver) {
            return 2;
        }
        if self.resolvers[3].is(resolver) {
            return 3;
        }
        // The mask keeps the index in bounds in a way that the verifier can follow.
        let slot = self.next as usize & (RESOLVERS - 1);
        self.next = self.next.wrapping_add(1);
        self.resolvers[slot] = *resolver;
        slot
    }

    /// The resolver at a place.
    #[must_use]
    #[inline(always)]
    pub fn resolver(&self, slot: usize) -> Option<Endpoint> {
        if slot >= RESOLVERS {
            return None;
        }
        let resolver = self.resolvers[slot & (RESOLVERS - 1)];
        if resolver.port() == 0 {
            None
        } else {
            Some(resolver)
        }
    }
}

impl Listeners {
    /// Where queries for the resolver at `slot` go; `None` if there is no name service of that family.
    #[must_use]
    #[inline(always)]
    pub fn dns(&self, is_v4: bool, slot: usize) -> Option<Endpoint> {
        let port = if is_v4 { self.dns_v4 } else { self.dns_v6 };
        if port == 0 {
            None
        } else {
            Some(place(is_v4, slot, port))
        }
    }

    /// Which place of the name service `endpoint` is, if it is one.
    #[must_use]
    #[inline(always)]
    pub fn dns_slot(&self, endpoint: &Endpoint) -> Option<usize> {
        let port = endpoint.port();
        let slot = match endpoint.octets_v4() {
            Some(octets) if port == self.dns_v4 && port != 0 => {
                u32::from_be_bytes(octets).wrapping_sub(u32::from_be_bytes(FIRST_RESOLVER))
            }
            Some(_) => return None,
            None if u128::from_be_bytes(endpoint.octets()) == 1 && self.dns_v6 != 0 => {
                u32::from(port).wrapping_sub(u32::from(self.dns_v6))
            }
            None => return None,
        };
        if slot < PLACES { Some(slot as usize) } else { None }
    }

    /// Whether the name service has this port, for the bind hooks, which refuse wildcard addresses too.
    #[must_use]
    #[inline(always)]
    pub fn has_dns_port(&self, port: u16) -> bool {
        let distance = u32::from(port).wrapping_sub(u32::from(self.dns_v6));
        port != 0 && (port == self.dns_v4 || (self.dns_v6 != 0 && distance < PLACES))
    }
}

/// The place of the resolver at `slot` of a name service on `port`.
#[must_use]
#[inline(always)]
pub fn place(is_v4: bool, slot: usize, port: u16) -> Endpoint {
    let distance = match slot {
        0 => 0_u8,
        1 => 1,
        2 => 2,
        _ => 3,
    };
    if is_v4 {
        let first = u32::from_be_bytes(FIRST_RESOLVER);
        Endpoint::v4(first.wrapping_add(u32::from(distance)).to_be_bytes(), port)
    } else {
        let port = port.wrapping_add(u16::from(distance));
        Endpoint::v6([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1], port)
    }
}
