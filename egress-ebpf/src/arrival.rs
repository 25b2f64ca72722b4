//! Packets that arrive: a datagram from a peer that was not asked may be answered, because what servers do is not our
//! business; datagrams of direct flows are counted.

use aya_ebpf::{helpers::generated::bpf_skb_cgroup_id, programs::SkBuffContext};
use egress_common::decide::{Tables, UDP};

use crate::{
    packet::{self, Ends},
    storage,
    tables::{self, Maps},
};

/// Index of `lo` in every network namespace (LOOPBACK_IFINDEX).
const LOOPBACK: u32 = 1;

#[inline(always)]
pub fn note(ctx: &SkBuffContext) {
    if packet::protocol(ctx) != Some(UDP) {
        return;
    }
    // SAFETY: the kernel hands out a valid context; the verifier checks offset and width of each read.
    if unsafe { (*ctx.skb.skb).ifindex } == LOOPBACK {
        // Whoever may open a packet socket sends itself datagrams from anybody.
        return;
    }
    let Some(socket) = packet::full_socket(ctx) else {
        return;
    };
    if let Some(flow) = storage::existing(socket) {
        // SAFETY: the storage of the socket that the packet is for. Two CPUs may both add and one addition be lost.
        let flow = unsafe { &mut *flow };
        if flow.is_direct() {
            flow.received = flow.received.wrapping_add(u64::from(packet::payload(ctx)));
            return;
        }
    }
    // SAFETY: the helper takes the context of a cgroup_skb program.
    let cgroup = unsafe { bpf_skb_cgroup_id(ctx.skb.skb) };
    let Some(member) = tables::member(cgroup) else {
        return;
    };
    if !member.is_enforced() {
        return;
    }
    let Some(Ends { from, .. }) = packet::ends(ctx) else {
        return;
    };
    if from.is_loopback() || (Maps { netns: 0 }).is_internal(&from) {
        return;
    }
    tables::note_inbound(member.workload, &from);
}
