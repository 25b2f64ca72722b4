//! bind(2): the listener's port belongs to the agent. Without this a neighbour with SO_REUSEPORT, or one that is there
//! first, would be handed redirected connections.

use aya_ebpf::programs::SockAddrContext;
use egress_common::{address::Endpoint, member::Transport, outcome::Outcome};

use crate::{Verdict, context, maps::LISTENERS, report};

#[inline(always)]
pub fn judge(ctx: &SockAddrContext, wanted: Endpoint) -> Verdict {
    let protocol = context::protocol(ctx);
    let Some(transport) = Transport::of(protocol) else {
        return Verdict::Proceed;
    };
    let netns = context::netns_cookie(ctx);
    // SAFETY: read-only; the agent replaces whole values.
    let Some(listeners) = (unsafe { LISTENERS.get(netns) }) else {
        return Verdict::Proceed;
    };
    let is_ours = match transport {
        Transport::Udp => listeners.has_dns_port(wanted.port()),
        Transport::Tcp => listeners.has_port(wanted.port()),
    };
    if !(wanted.is_loopback() && is_ours) {
        return Verdict::Proceed;
    }
    report::attempt(ctx, netns, &wanted, protocol, Outcome::ListenerAddress);
    Verdict::Refuse
}
