//! sock_ops: publish a redirected connect for the agent before its SYN leaves, withdraw it if the connect fails.

use aya_ebpf::{
    bindings::{
        BPF_SOCK_OPS_STATE_CB, BPF_SOCK_OPS_STATE_CB_FLAG, BPF_SOCK_OPS_TCP_CONNECT_CB, BPF_TCP_CLOSE,
        BPF_TCP_SYN_SENT,
    },
    programs::SockOpsContext,
};
use egress_common::{
    address::Endpoint,
    counter::Counter,
    flow::{Flow, FlowKey},
};

use crate::{context, maps::FLOWS, report, storage};

#[inline(always)]
pub fn follow(ctx: &SockOpsContext) {
    match ctx.op() {
        BPF_SOCK_OPS_TCP_CONNECT_CB => publish(ctx),
        BPF_SOCK_OPS_STATE_CB => withdraw(ctx),
        _ => {}
    }
}

/// Runs after the local port is chosen and before the SYN is built.
#[inline(always)]
fn publish(ctx: &SockOpsContext) {
    let Some(flow) = redirected(ctx) else { return };
    // SAFETY: the storage of the socket whose connect is running.
    let flow = unsafe { &*flow };
    let key = FlowKey::leg(flow.netns, local(ctx, flow), &flow.redirect);
    if FLOWS.insert(key, flow, 0).is_err() {
        // The SYN cannot be stopped here; the agent closes what it cannot explain.
        report::count_loss(Counter::FlowsFull);
        return;
    }
    // Without the flag a failed connect's flow would stay until the agent's sweep.
    let _swept_later = ctx.set_cb_flags(BPF_SOCK_OPS_STATE_CB_FLAG as i32);
}

/// Only for connects that failed: an established connection waits in the listener's queue and its flow for the accept,
/// even if the client has closed already.
#[inline(always)]
fn withdraw(ctx: &SockOpsContext) {
    if ctx.arg(0) != BPF_TCP_SYN_SENT || ctx.arg(1) != BPF_TCP_CLOSE {
        return;
    }
    let Some(flow) = redirected(ctx) else { return };
    // SAFETY: as in `publish`.
    let flow = unsafe { &*flow };
    let key = FlowKey::leg(flow.netns, local(ctx, flow), &flow.redirect);
    let _taken_already = FLOWS.remove(key);
}

#[inline(always)]
fn redirected(ctx: &SockOpsContext) -> Option<*mut Flow> {
    // SAFETY: the kernel hands out a valid context.
    let socket = unsafe { (*ctx.ops).__bindgen_anon_2.sk };
    let flow = storage::existing(socket)?;
    // SAFETY: as in `publish`.
    if unsafe { (*flow).is_redirected() } {
        Some(flow)
    } else {
        None
    }
}

/// The client's end of the loopback leg. A mapped connect has its IPv4 address in `local_ip4` on every kernel, in
/// `local_ip6` only on some at this moment.
#[inline(always)]
fn local(ctx: &SockOpsContext, flow: &Flow) -> Endpoint {
    let port = ctx.local_port() as u16;
    if flow.redirect.octets_v4().is_some() {
        return Endpoint::v4(ctx.local_ip4().to_ne_bytes(), port);
    }
    // Volatile, or LLVM shares one load between this branch and the one above, from a pointer that it chose by branch:
    // "dereference of modified ctx ptr" (6.18).
    // SAFETY: the kernel hands out a valid context; the verifier checks offset and width of each read.
    let (a, b, c, d) = unsafe {
        let ops = ctx.ops;
        (
            (&raw const (*ops).local_ip6[0]).read_volatile(),
            (&raw const (*ops).local_ip6[1]).read_volatile(),
            (&raw const (*ops).local_ip6[2]).read_volatile(),
            (&raw const (*ops).local_ip6[3]).read_volatile(),
        )
    };
    Endpoint::v6(context::join(a, b, c, d), port)
}
