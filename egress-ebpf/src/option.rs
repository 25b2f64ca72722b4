//! setsockopt(2): a resolver that wants to be told of errors is not told that its query is held.
//!
//! A query for which there is no name service yet is dropped and handed to the agent, which answers it late
//! ([`crate::dns::publish`]). The sender of a datagram is told of a drop if it has asked for the socket's error queue
//! (`udp_send_skb`: ENOBUFS with `recverr`), and glibc's resolver asks for it, before it connects, and gives up at
//! once. So where queries are held that option has no effect. The other way, to take back what the kernel says of a
//! dropped packet, does not exist: a cgroup's program can pass it on or drop it with an error.

use aya_ebpf::{EbpfContext, helpers::generated::bpf_get_netns_cookie, programs::SockoptContext};
use egress_common::decide::UDP;

use crate::{context, maps::LISTENERS, tables};

/// `SOL_IP`, and its option IP_RECVERR (ip(7)).
const IPV4: (i32, i32) = (0, 11);
/// `SOL_IPV6`, and its option IPV6_RECVERR (ipv6(7)).
const IPV6: (i32, i32) = (41, 25);

/// The kernel leaves the option as it is, and the call succeeds.
const IGNORED: i32 = -1;
/// The kernel takes the caller's value. It must be asked to where the value is longer than the page of it that a program
/// is shown: before Linux 6.5 the call fails otherwise (EFAULT), and iptables sets its tables by such calls.
const AS_IT_CAME: i32 = 0;
const SHOWN: i32 = 4096;

#[inline(always)]
pub fn judge(ctx: &SockoptContext) {
    let option = ctx.sockopt;
    // SAFETY: the kernel hands out a valid context; the verifier checks offset and width of each access.
    let (level, name, length) = unsafe { ((*option).level, (*option).optname, (*option).optlen) };
    let answer = if is_held(ctx, (level, name)) {
        IGNORED
    } else if length > SHOWN {
        AS_IT_CAME
    } else {
        return;
    };
    // SAFETY: as above.
    unsafe { (*option).optlen = answer };
}

#[inline(always)]
fn is_held(ctx: &SockoptContext, option: (i32, i32)) -> bool {
    if option != IPV4 && option != IPV6 {
        return false;
    }
    // SAFETY: as above; the pointer is checked.
    let protocol = unsafe {
        let socket = (*ctx.sockopt).__bindgen_anon_1.sk;
        if socket.is_null() {
            return false;
        }
        (*socket).protocol
    };
    if protocol != UDP || tables::is_exempt(context::cgroup_id()) {
        return false;
    }
    // SAFETY: the helper takes the context of a cgroup_sockopt program; the table is only read.
    unsafe { LISTENERS.get(bpf_get_netns_cookie(ctx.as_ptr())) }.is_none()
}
