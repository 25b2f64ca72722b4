//! bind(2): the listener's port belongs to the agent. Without this a neighbour with SO_REUSEPORT, or one that is there
//! first, would be handed redirected connections.

use aya_ebpf::programs::SockAddrContext;
use egress_common::{
    address::Endpoint,
    decide::{ConnectFacts, UDP},
    outcome::Outcome,
};

use crate::{Verdict, connect, context, maps::LISTENERS, report};

#[inline(always)]
pub fn judge(ctx: &SockAddrContext, wanted: Endpoint) -> Verdict {
    let protocol = context::protocol(ctx);
    if !connect::is_tcp(protocol) && protocol != UDP {
        return Verdict::Proceed;
    }
    let netns = context::netns_cookie(ctx);
    // SAFETY: read-only; the agent replaces whole values.
    let Some(listeners) = (unsafe { LISTENERS.get(netns) }) else {
        return Verdict::Proceed;
    };
    let is_ours = if protocol == UDP {
        listeners.has_dns_port(wanted.port())
    } else {
        listeners.has_port(wanted.port())
    };
    if !(wanted.is_loopback() && is_ours) {
        return Verdict::Proceed;
    }
    let facts = ConnectFacts {
        destination: wanted,
        protocol,
        exempt: false,
        internal: false,
        port_redirected: false,
        listeners: None,
        spread: 0,
    };
    report::refused(ctx, &context::task(), netns, &facts, Outcome::ListenerAddress);
    Verdict::Refuse
}
