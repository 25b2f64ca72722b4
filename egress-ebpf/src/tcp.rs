//! sock_ops: publish a redirected connect for the agent before its SYN leaves, withdraw it if the connect fails; close the
//! books of a direct one.

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

use crate::{
    account, context,
    maps::{FLOWS, UNDER_WAY},
    report, storage,
};

#[inline(always)]
pub fn follow(ctx: &SockOpsContext) {
    match ctx.op() {
        BPF_SOCK_OPS_TCP_CONNECT_CB => publish(ctx),
        BPF_SOCK_OPS_STATE_CB => ended(ctx),
        _ => {}
    }
}

/// Runs after the local port is chosen and before the SYN is built.
#[inline(always)]
fn publish(ctx: &SockOpsContext) {
    let Some(flow) = of(ctx) else { return };
    // SAFETY: the storage of the socket whose connect is running.
    let flow = unsafe { &mut *flow };
    if flow.is_direct() {
        account::begin(flow);
        // Without the flag the account stays open until the agent finds that the socket is gone.
        let _swept_later = ctx.set_cb_flags(BPF_SOCK_OPS_STATE_CB_FLAG as i32);
        return;
    }
    if !flow.is_redirected() {
        return;
    }
    let flow: &Flow = flow;
    let key = FlowKey::leg(flow.netns, local(ctx, flow), &flow.redirect);
    if FLOWS.insert(key, flow, 0).is_err() {
        // The SYN cannot be stopped here; the agent closes what it cannot explain.
        report::count_loss(Counter::FlowsFull);
        return;
    }
    count(flow);
    // Without the flag a failed connect's flow would stay until the agent's sweep.
    let _swept_later = ctx.set_cb_flags(BPF_SOCK_OPS_STATE_CB_FLAG as i32);
}

/// A redirected connect that failed is withdrawn: an established connection waits in the listener's queue and its flow for
/// the accept, even if the client has closed already. A direct one is closed in the books.
#[inline(always)]
fn ended(ctx: &SockOpsContext) {
    if ctx.arg(1) != BPF_TCP_CLOSE {
        return;
    }
    let Some(flow) = of(ctx) else { return };
    // SAFETY: as in `publish`.
    let flow = unsafe { &mut *flow };
    let has_failed = ctx.arg(0) == BPF_TCP_SYN_SENT;
    if flow.is_direct() {
        account::end(ctx, flow, !has_failed);
    } else if flow.is_redirected() && has_failed {
        let key = FlowKey::leg(flow.netns, local(ctx, flow), &flow.redirect);
        if FLOWS.remove(key).is_ok()
            && let Some(taken) = UNDER_WAY.get_ptr_mut(flow.share)
        {
            // SAFETY: as in `count`.
            let taken = unsafe { &mut *taken };
            *taken = taken.saturating_sub(1);
        }
    }
}

#[inline(always)]
fn count(flow: &Flow) {
    if let Some(taken) = UNDER_WAY.get_ptr_mut(flow.share) {
        // SAFETY: an entry of a preallocated map stays readable and writable even if it is removed meanwhile.
        unsafe { *taken += 1 };
    } else {
        let _uncounted = UNDER_WAY.insert(flow.share, 1, 0);
    }
}

#[inline(always)]
fn of(ctx: &SockOpsContext) -> Option<*mut Flow> {
    // SAFETY: the kernel hands out a valid context.
    let socket = unsafe { (*ctx.ops).__bindgen_anon_2.sk };
    storage::existing(socket)
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
