//! sendmsg(2) on datagram sockets without a peer: counted and reported.

use aya_ebpf::programs::SockAddrContext;
use egress_common::{address::Endpoint, outcome::Outcome};

use crate::{
    connect, context,
    report::{self, Sender},
};

#[inline(always)]
pub fn observe(ctx: &SockAddrContext, destination: Endpoint) {
    let internal = connect::is_internal(&destination) && !destination.is_metadata();
    if destination.is_loopback() || internal {
        report::count(Outcome::Internal);
        return;
    }
    let sender = Sender::of(ctx, &context::task(), context::netns_cookie(ctx));
    report::observed(&sender, destination, context::protocol(ctx), Outcome::OtherUdp);
}
