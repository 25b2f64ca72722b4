//! getpeername(2) and getsockname(2): a redirected socket shows the peer it asked for and the address it would have had,
//! never the loopback leg.

use aya_ebpf::programs::SockAddrContext;
use egress_common::{address::Endpoint, flow::Flow};

use crate::{context, maps::LISTENERS, storage};

#[inline(always)]
pub fn peer_v4(ctx: &SockAddrContext) {
    if let Some(flow) = flow(ctx) {
        // An IPv4 socket only ever asked for IPv4.
        let _never_v6 = context::set_v4(ctx, &flow.destination);
    }
}

#[inline(always)]
pub fn peer_v6(ctx: &SockAddrContext) {
    if let Some(flow) = flow(ctx) {
        context::set_v6(ctx, &flow.destination);
    }
}

#[inline(always)]
pub fn own_v4(ctx: &SockAddrContext) {
    if let Some(own) = own(ctx, context::destination_v4(ctx)) {
        let _never_v6 = context::set_v4(ctx, &own);
    }
}

#[inline(always)]
pub fn own_v6(ctx: &SockAddrContext) {
    if let Some(own) = own(ctx, context::destination_v6(ctx)) {
        context::set_v6(ctx, &own);
    }
}

/// The address to show instead of the loopback one. A source address that the application had bound is shown as it is.
#[inline(always)]
fn own(ctx: &SockAddrContext, seen: Endpoint) -> Option<Endpoint> {
    if !seen.is_loopback() {
        return None;
    }
    let flow = flow(ctx)?;
    // SAFETY: the agent replaces whole values; the worst of a torn one is a wrong address shown once.
    let listeners = unsafe { LISTENERS.get(flow.netns) }?;
    let is_v4 = flow.destination.octets_v4().is_some();
    let own = if is_v4 {
        Endpoint::v4(listeners.source_v4, seen.port())
    } else {
        Endpoint::v6(listeners.source_v6, seen.port())
    };
    // Unspecified: the namespace has no route out, so there is no better answer than the true one.
    if own.is_loopback() { None } else { Some(own) }
}

#[inline(always)]
fn flow(ctx: &SockAddrContext) -> Option<&'static Flow> {
    let flow = storage::existing(context::socket(ctx))?;
    // SAFETY: the storage lives as long as the socket, which the running call holds.
    let flow = unsafe { &*flow };
    if flow.is_redirected() { Some(flow) } else { None }
}
