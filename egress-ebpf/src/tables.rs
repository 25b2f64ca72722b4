//! What decisions look up, from the maps.

use aya_ebpf::btf_maps::lpm_trie::Key;
use egress_common::{
    address::Endpoint,
    decide::Tables,
    flow::MOST_UNDER_WAY,
    listener::Listeners,
    member::{
        ALL_PORTS, BlockKey, INBOUND_LIFE, Inbound, InboundKey, Member, NO_PORTS, POLICY_BITS, PortChunk,
        Transport,
    },
};

use crate::{
    context,
    maps::{BLOCKS, EXEMPT, INBOUND, INTERNAL, LISTENERS, MEMBERS, PORTS, PROXIES, UNDER_WAY},
};

/// The tables, as a socket of one network namespace sees them.
pub struct Maps {
    /// The namespace's cookie; 0 where no listener is asked for.
    pub netns: u64,
}

impl Tables for Maps {
    #[inline(always)]
    fn is_internal(&self, destination: &Endpoint) -> bool {
        INTERNAL.get(&Key::new(128, destination.octets())).is_some()
    }

    /// Two look-ups, of some 20 ns each where the table is empty.
    #[inline(always)]
    fn is_proxy(&self, destination: &Endpoint) -> bool {
        // SAFETY: only presence counts.
        unsafe { PROXIES.get(destination).is_some() || PROXIES.get(destination.unspecified()).is_some() }
    }

    #[inline(always)]
    fn has_port(&self, set: u32, port: u16) -> bool {
        if set == NO_PORTS || set == ALL_PORTS {
            return set == ALL_PORTS;
        }
        let (chunk, word, bit) = PortChunk::of(set, port);
        // SAFETY: read-only; a set is written before anything points to it, and not changed afterwards.
        match unsafe { PORTS.get(chunk) } {
            Some(ports) => ports[word & 7] >> bit & 1 == 1,
            None => false,
        }
    }

    #[inline(always)]
    fn allowed_ports(&self, policy: u32, destination: &Endpoint, transport: Transport) -> u32 {
        let key = BlockKey {
            policy,
            address: destination.octets(),
        };
        match BLOCKS.get(&Key::new(POLICY_BITS + 128, key)) {
            Some(allowance) => allowance.ports(transport),
            None => NO_PORTS,
        }
    }

    #[inline(always)]
    fn is_inbound(&self, workload: u32, peer: &Endpoint) -> bool {
        let key = InboundKey {
            workload,
            peer: *peer,
        };
        // SAFETY: read-only; one word is not torn.
        match unsafe { INBOUND.get(key) } {
            Some(inbound) => {
                inbound.arrived != 0 && context::now().wrapping_sub(inbound.arrived) < INBOUND_LIFE
            }
            None => false,
        }
    }

    #[inline(always)]
    fn listeners(&self) -> Option<&Listeners> {
        // SAFETY: the agent replaces whole values, and a reader of a torn one would at worst pick a port that nobody
        // listens on: refused by the kernel, repeated by the client.
        unsafe { LISTENERS.get(self.netns) }
    }
}

/// What is enforced on a cgroup; `None` if the agent does not know it yet.
#[inline(always)]
pub fn member(cgroup: u64) -> Option<&'static Member> {
    // SAFETY: the agent replaces whole values. A torn one has a new policy with an old set of ports, or the other way
    // round, for one decision; no number of a set or policy is used again for another one. Not copied, because of the
    // 512-byte stack.
    unsafe { MEMBERS.get(cgroup) }
}

/// Whether a share of the table of connects under way is used up. What several CPUs count at this instant comes on top.
#[inline(always)]
pub fn has_full_share(share: &u64) -> bool {
    // SAFETY: read-only; one word is not torn.
    unsafe { UNDER_WAY.get(share) }.is_some_and(|taken| *taken >= MOST_UNDER_WAY)
}

#[inline(always)]
pub fn is_exempt(cgroup: u64) -> bool {
    // SAFETY: only presence counts.
    unsafe { EXEMPT.get(cgroup) }.is_some()
}

/// Notes that a workload has sent a datagram to a peer of its own accord: what comes back opens nothing.
#[inline(always)]
pub fn note_outbound(workload: u32, peer: &Endpoint) {
    let key = InboundKey {
        workload,
        peer: *peer,
    };
    // SAFETY: only presence counts.
    if unsafe { INBOUND.get(key) }.is_none() {
        // Without room the least recently used leave; that never fails for another reason than memory, and then the
        // peer's answers are taken for its own accord, which is what a policy has allowed.
        let _room = INBOUND.insert(key, Inbound { arrived: 0 }, 0);
    }
}

/// Notes that a peer has sent a workload a datagram.
#[inline(always)]
pub fn note_inbound(workload: u32, peer: &Endpoint) {
    /// An entry is not written anew with every datagram of a busy peer.
    const FRESH: u64 = 1_000_000_000;
    let key = InboundKey {
        workload,
        peer: *peer,
    };
    let now = context::now();
    // SAFETY: read-only; one word is not torn.
    if let Some(known) = unsafe { INBOUND.get(key) }
        && (known.arrived == 0 || now.wrapping_sub(known.arrived) < FRESH)
    {
        return;
    }
    // Without memory the peer is not answered.
    let _unanswered = INBOUND.insert(key, Inbound { arrived: now }, 0);
}
