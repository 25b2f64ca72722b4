//! Packets on their way out: a SYN is held until its namespace has a listener, and what is neither TCP nor UDP is
//! counted and reported.

use aya_ebpf::{
    bindings::{BPF_RB_FORCE_WAKEUP, bpf_sock},
    helpers::generated::{bpf_sk_fullsock, bpf_skb_cgroup_id},
    programs::SkBuffContext,
};
use egress_common::{
    address::Endpoint,
    counter::Counter,
    decide::{TCP, UDP},
    event::ListenerWanted,
    flow::Flow,
    outcome::Outcome,
};
use network_types::ip::{Ipv4Hdr, Ipv6Hdr};

use crate::{
    Verdict,
    maps::{LISTENERS, WANTED},
    report::{self, Sender},
    storage,
};

#[inline(always)]
pub fn judge(ctx: &SkBuffContext) -> Verdict {
    if let Some(flow) = full_socket(ctx).and_then(storage::existing) {
        // SAFETY: the storage of the socket that the packet holds.
        let flow = unsafe { &mut *flow };
        if flow.is_redirected() && flow.released == 0 {
            return release(flow);
        }
    }
    observe(ctx);
    Verdict::Proceed
}

/// Lets the packets of a held connect go once there is the listener they are addressed to. Until then the SYN is
/// dropped and the kernel sends it again after a second: a late success instead of ECONNREFUSED.
#[inline(always)]
fn release(flow: &mut Flow) -> Verdict {
    // SAFETY: read-only; the agent replaces whole values.
    if let Some(listeners) = unsafe { LISTENERS.get(flow.netns) }
        && listeners.contains(&flow.redirect)
    {
        flow.released = 1;
        return Verdict::Proceed;
    }
    report::count_loss(Counter::SynsHeld);
    let wanted = ListenerWanted {
        netns: flow.netns,
        cgroup: flow.cgroup,
        pid: flow.pid,
        reserved: 0,
    };
    if WANTED.output(wanted, u64::from(BPF_RB_FORCE_WAKEUP)).is_err() {
        report::count_loss(Counter::WantedLost);
    }
    Verdict::Refuse
}

#[inline(always)]
pub fn full_socket(ctx: &SkBuffContext) -> Option<*mut bpf_sock> {
    // SAFETY: the kernel hands out a valid context; both pointers are checked.
    let socket = unsafe { (*ctx.skb.skb).__bindgen_anon_2.sk };
    if socket.is_null() {
        return None;
    }
    // SAFETY: checked not null.
    let full = unsafe { bpf_sk_fullsock(socket) };
    if full.is_null() { None } else { Some(full) }
}

#[inline(always)]
fn observe(ctx: &SkBuffContext) {
    let Some((destination, protocol)) = destination(ctx) else {
        return;
    };
    if protocol == TCP || protocol == UDP || destination.is_loopback() {
        // Judged by their sockets' hooks already.
        return;
    }
    // SAFETY: the helper takes the context of a cgroup_skb program.
    let cgroup = unsafe { bpf_skb_cgroup_id(ctx.skb.skb) };
    let sender = Sender {
        cgroup,
        netns: 0,
        socket: 0,
        pid: 0,
        uid: 0,
        command: [0; 16],
    };
    report::observed(&sender, destination, protocol, Outcome::OtherSocket);
}

/// The packet begins with its network header. Extension headers of IPv6 are told as what they are.
#[inline(always)]
fn destination(ctx: &SkBuffContext) -> Option<(Endpoint, u32)> {
    let version: u8 = ctx.load(0).ok()?;
    match version >> 4 {
        4 => {
            let header: Ipv4Hdr = ctx.load(0).ok()?;
            Some((Endpoint::v4(header.dst_addr, 0), u32::from(header.proto)))
        }
        6 => {
            let header: Ipv6Hdr = ctx.load(0).ok()?;
            Some((Endpoint::v6(header.dst_addr, 0), u32::from(header.next_hdr)))
        }
        _ => None,
    }
}
