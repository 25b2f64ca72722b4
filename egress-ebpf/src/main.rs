//! The kernel programs of the egress enforcer. Entry points only: gather, decide, translate to the kernel's return
//! code. Attached to the cgroup that is an ancestor of all enforced workloads.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]
#![cfg_attr(
    not(target_arch = "bpf"),
    allow(dead_code, reason = "checked on the host, run in the kernel")
)]

mod bind;
mod connect;
mod context;
mod datagram;
mod maps;
mod name;
mod packet;
mod report;
mod storage;
mod tcp;

use aya_ebpf::{
    macros::{cgroup_skb, cgroup_sock, cgroup_sock_addr, sock_ops},
    programs::{SkBuffContext, SockAddrContext, SockContext, SockOpsContext},
};

/// The call, the bind or the packet proceeds.
const PROCEED: i32 = 1;
/// It fails with EPERM.
const REFUSE: i32 = 0;

#[cgroup_sock_addr(connect4)]
fn egress_connect4(ctx: SockAddrContext) -> i32 {
    verdict(connect::v4(&ctx))
}

#[cgroup_sock_addr(connect6)]
fn egress_connect6(ctx: SockAddrContext) -> i32 {
    verdict(connect::v6(&ctx))
}

#[cgroup_sock_addr(sendmsg4)]
fn egress_sendmsg4(ctx: SockAddrContext) -> i32 {
    datagram::observe(&ctx, context::destination_v4(&ctx));
    PROCEED
}

#[cgroup_sock_addr(sendmsg6)]
fn egress_sendmsg6(ctx: SockAddrContext) -> i32 {
    datagram::observe(&ctx, context::destination_v6(&ctx));
    PROCEED
}

#[cgroup_sock_addr(getpeername4)]
fn egress_peer4(ctx: SockAddrContext) -> i32 {
    name::peer_v4(&ctx);
    PROCEED
}

#[cgroup_sock_addr(getpeername6)]
fn egress_peer6(ctx: SockAddrContext) -> i32 {
    name::peer_v6(&ctx);
    PROCEED
}

#[cgroup_sock_addr(getsockname4)]
fn egress_name4(ctx: SockAddrContext) -> i32 {
    name::own_v4(&ctx);
    PROCEED
}

#[cgroup_sock_addr(getsockname6)]
fn egress_name6(ctx: SockAddrContext) -> i32 {
    name::own_v6(&ctx);
    PROCEED
}

#[cgroup_sock_addr(bind4)]
fn egress_bind4(ctx: SockAddrContext) -> i32 {
    verdict(bind::judge(&ctx, context::destination_v4(&ctx)))
}

#[cgroup_sock_addr(bind6)]
fn egress_bind6(ctx: SockAddrContext) -> i32 {
    verdict(bind::judge(&ctx, context::destination_v6(&ctx)))
}

#[cgroup_sock(sock_create)]
fn egress_create(ctx: SockContext) -> i32 {
    verdict(storage::note_birth(&ctx))
}

#[sock_ops]
fn egress_tcp(ctx: SockOpsContext) -> u32 {
    tcp::follow(&ctx);
    0
}

#[cgroup_skb(egress)]
fn egress_packet(ctx: SkBuffContext) -> i32 {
    verdict(packet::judge(&ctx))
}

/// Whether the kernel goes on.
enum Verdict {
    Proceed,
    Refuse,
}

#[inline(always)]
fn verdict(verdict: Verdict) -> i32 {
    match verdict {
        Verdict::Proceed => PROCEED,
        Verdict::Refuse => REFUSE,
    }
}

/// Loops: the verifier then refuses any program from which a panic can be reached ("infinite loop detected").
#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[cfg(target_arch = "bpf")]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";

#[cfg(not(target_arch = "bpf"))]
fn main() {}
