//! The kernel programs of the egress enforcer. Entry points only: gather, decide, translate to the kernel's return
//! code. Attached to the cgroup that is an ancestor of all enforced workloads.
#![cfg_attr(target_arch = "bpf", no_std, no_main, feature(asm_experimental_arch))]
#![cfg_attr(
    not(target_arch = "bpf"),
    allow(dead_code, reason = "checked on the host, run in the kernel")
)]

mod account;
mod arrival;
mod bind;
mod connect;
mod context;
mod create;
mod datagram;
mod dns;
mod exec;
mod fence;
mod maps;
mod name;
mod option;
mod packet;
mod report;
mod storage;
mod tables;
mod tcp;

use aya_ebpf::{
    macros::{
        cgroup_skb, cgroup_sock, cgroup_sock_addr, cgroup_sockopt, classifier, raw_tracepoint, sock_ops,
    },
    programs::{
        RawTracePointContext, SkBuffContext, SockAddrContext, SockContext, SockOpsContext, SockoptContext,
        TcContext,
    },
};
use egress_common::address::Endpoint;

/// The call, the bind or the packet proceeds.
const PROCEED: i32 = 1;
/// It fails with EPERM.
const REFUSE: i32 = 0;

/// A packet is dropped, and the sender of a datagram is told nothing: congestion, to the kernel
/// (`__cgroup_bpf_run_filter_skb`), which UDP does not report.
const DROP: i32 = 2;

/// TC_ACT_UNSPEC, which is TCX_NEXT too: the interface's other programs have their say.
const NEXT: i32 = -1;
/// TC_ACT_SHOT, which is TCX_DROP too.
const SHOT: i32 = 2;

#[cgroup_sock_addr(connect4)]
fn egress_connect4(ctx: SockAddrContext) -> i32 {
    let destination = context::destination_v4(&ctx);
    let mut to = NOWHERE;
    let answer = match dns::connect(&ctx, &destination, &mut to) {
        Answer::Other => connect::judge(&ctx, &destination, &mut to),
        answer @ (Answer::Refuse | Answer::Proceed | Answer::Redirect) => answer,
    };
    answer_v4(&ctx, answer, &to)
}

#[cgroup_sock_addr(connect6)]
fn egress_connect6(ctx: SockAddrContext) -> i32 {
    let destination = context::destination_v6(&ctx);
    let mut to = NOWHERE;
    let answer = match dns::connect(&ctx, &destination, &mut to) {
        Answer::Other => connect::judge(&ctx, &destination, &mut to),
        answer @ (Answer::Refuse | Answer::Proceed | Answer::Redirect) => answer,
    };
    answer_v6(&ctx, answer, &to)
}

#[cgroup_sock_addr(sendmsg4)]
fn egress_sendmsg4(ctx: SockAddrContext) -> i32 {
    let destination = context::destination_v4(&ctx);
    let mut to = NOWHERE;
    let answer = match dns::sendmsg(&ctx, &destination, &mut to) {
        Answer::Other => datagram::judge(&ctx, &destination),
        answer @ (Answer::Refuse | Answer::Proceed | Answer::Redirect) => answer,
    };
    answer_v4(&ctx, answer, &to)
}

#[cgroup_sock_addr(sendmsg6)]
fn egress_sendmsg6(ctx: SockAddrContext) -> i32 {
    let destination = context::destination_v6(&ctx);
    let mut to = NOWHERE;
    let answer = match dns::sendmsg(&ctx, &destination, &mut to) {
        Answer::Other => datagram::judge(&ctx, &destination),
        answer @ (Answer::Refuse | Answer::Proceed | Answer::Redirect) => answer,
    };
    answer_v6(&ctx, answer, &to)
}

#[cgroup_sock_addr(recvmsg4)]
fn egress_recvmsg4(ctx: SockAddrContext) -> i32 {
    if let Some(resolver) = dns::resolver_behind(&ctx, &context::destination_v4(&ctx)) {
        // A place of the IPv4 name service stands for an IPv4 resolver.
        let _never_v6 = context::set_v4(&ctx, &resolver);
    }
    PROCEED
}

#[cgroup_sock_addr(recvmsg6)]
fn egress_recvmsg6(ctx: SockAddrContext) -> i32 {
    if let Some(resolver) = dns::resolver_behind(&ctx, &context::destination_v6(&ctx)) {
        context::set_v6(&ctx, &resolver);
    }
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
    verdict(create::judge(&ctx))
}

#[cgroup_sock(sock_release)]
fn egress_release(ctx: SockContext) -> i32 {
    account::release(&ctx);
    PROCEED
}

#[cgroup_sockopt(setsockopt)]
fn egress_option(ctx: SockoptContext) -> i32 {
    option::judge(&ctx);
    PROCEED
}

#[sock_ops]
fn egress_tcp(ctx: SockOpsContext) -> u32 {
    tcp::follow(&ctx);
    0
}

#[cgroup_skb(egress)]
fn egress_packet(ctx: SkBuffContext) -> i32 {
    match dns::publish(&ctx) {
        dns::Published::NoQuery => verdict(packet::judge(&ctx)),
        dns::Published::Deliver => PROCEED,
        dns::Published::Drop => DROP,
    }
}

#[cgroup_skb(ingress)]
fn egress_arrival(ctx: SkBuffContext) -> i32 {
    arrival::note(&ctx);
    PROCEED
}

#[classifier]
fn egress_fence(ctx: TcContext) -> i32 {
    match fence::leave(&ctx) {
        Ok(()) => NEXT,
        Err(()) => SHOT,
    }
}

#[classifier]
fn egress_entry(ctx: TcContext) -> i32 {
    fence::enter(&ctx);
    NEXT
}

#[raw_tracepoint(tracepoint = "sched_process_exec")]
fn egress_exec(_ctx: RawTracePointContext) -> i32 {
    exec::announce();
    0
}

/// What becomes of a call. Numbers, because it is the result of functions that are functions in the kernel, too.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
enum Answer {
    Refuse = 0,
    Proceed = 1,
    /// It goes elsewhere.
    Redirect = 2,
    /// Somebody else is to answer.
    Other = 3,
}

const NOWHERE: Endpoint = Endpoint::v4([0; 4], 0);

#[inline(always)]
fn answer_v4(ctx: &SockAddrContext, answer: Answer, to: &Endpoint) -> i32 {
    match answer {
        Answer::Proceed => PROCEED,
        Answer::Redirect => match context::set_v4(ctx, to) {
            Ok(()) => PROCEED,
            // Cannot be: an IPv4 destination is sent to an IPv4 place.
            Err(()) => REFUSE,
        },
        Answer::Refuse | Answer::Other => REFUSE,
    }
}

/// A mapped destination (`::ffff:a.b.c.d`) reaches the IPv6 hook and never the other. It is judged as IPv4 and sent to the
/// mapped form of an IPv4 place: `::1` would fail where IPv6 is disabled.
#[inline(always)]
fn answer_v6(ctx: &SockAddrContext, answer: Answer, to: &Endpoint) -> i32 {
    match answer {
        Answer::Proceed => PROCEED,
        Answer::Redirect => {
            context::set_v6(ctx, to);
            PROCEED
        }
        Answer::Refuse | Answer::Other => REFUSE,
    }
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
