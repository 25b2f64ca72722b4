//! The books of flows that do not go through the agent: opened by connect, closed with the connection or the socket, and
//! then handed to the agent for the log. Sockets of datagrams count their bytes packet by packet; TCP counts for itself.

use aya_ebpf::{
    EbpfContext,
    bindings::{BPF_RB_NO_WAKEUP, bpf_sock},
    programs::{SockAddrContext, SockContext, SockOpsContext},
};
use egress_common::{counter::Counter, decide::UDP, flow::Flow, member::Transport, outcome::Outcome};

use crate::{
    context,
    maps::{CLOSED, DIRECT},
    report, storage,
};

/// Notes a flow where the agent finds it when policies change.
#[inline(always)]
pub fn open(flow: &mut Flow) -> Result<(), Outcome> {
    let key = flow.socket;
    let noted: &Flow = flow;
    if DIRECT.insert(key, noted, 0).is_err() {
        flow.lane = 0;
        return Err(Outcome::DirectFull);
    }
    Ok(())
}

/// Another connect of a socket ends what it was connected to: only datagram sockets can.
#[inline(always)]
pub fn close(ctx: &SockAddrContext) {
    if let Some(flow) = direct(context::socket(ctx)) {
        // SAFETY: the storage of a socket that the running connect holds.
        let flow = unsafe { &mut *flow };
        if flow.protocol == UDP {
            finish(flow, flow.sent, flow.received, 1);
        } else {
            forget(flow);
        }
    }
}

/// close(2) of the last descriptor. TCP goes on after it, unless the connect has failed before it began.
#[inline(always)]
pub fn release(ctx: &SockContext) {
    let Some(flow) = storage::of_context(ctx.as_ptr()) else {
        return;
    };
    // SAFETY: the storage of a socket that is being closed.
    let flow = unsafe { &mut *flow };
    if !flow.is_direct() {
        return;
    }
    if matches!(Transport::of(flow.protocol), Some(Transport::Udp)) {
        finish(flow, flow.sent, flow.received, 1);
    } else if flow.released == 0 {
        forget(flow);
    }
}

/// The SYN is about to leave: from now on the end is told by the connection's state.
#[inline(always)]
pub fn begin(flow: &mut Flow) {
    flow.released = 1;
}

/// The end of a TCP connection, or of the attempt.
#[inline(always)]
pub fn end(ctx: &SockOpsContext, flow: &mut Flow, is_established: bool) {
    // SAFETY: the kernel hands out a valid context; the verifier checks offset and width of each read.
    let (received, acknowledged) = unsafe { ((*ctx.ops).bytes_received, (*ctx.ops).bytes_acked) };
    // The SYN counts as a byte that was sent (RFC 9293 section 3.4).
    let sent = acknowledged.saturating_sub(u64::from(is_established));
    finish(flow, sent, received, u32::from(is_established));
}

#[inline(always)]
fn direct(socket: *mut bpf_sock) -> Option<*mut Flow> {
    let flow = storage::existing(socket)?;
    // SAFETY: the storage of a socket that the running call holds.
    if unsafe { (*flow).is_direct() } {
        Some(flow)
    } else {
        None
    }
}

#[inline(always)]
fn finish(flow: &mut Flow, sent: u64, received: u64, established: u32) {
    match CLOSED.reserve(0) {
        Some(mut entry) => {
            let closed = entry.as_mut_ptr();
            // SAFETY: reserved memory of the ring buffer, all of whose fields are written here.
            unsafe {
                (*closed).flow = *flow;
                (*closed).ended = context::now();
                (*closed).sent = sent;
                (*closed).received = received;
                (*closed).established = established;
                (*closed).reserved = 0;
            }
            entry.submit(u64::from(BPF_RB_NO_WAKEUP));
        }
        None => report::count_loss(Counter::EndsLost),
    }
    forget(flow);
}

#[inline(always)]
fn forget(flow: &mut Flow) {
    let _gone_already = DIRECT.remove(flow.socket);
    flow.lane = 0;
    flow.policy = 0;
}
