//! connect(2): gather the facts, ask egress-common, carry the decision out.

use aya_ebpf::{btf_maps::lpm_trie::Key, helpers::bpf_get_prandom_u32, programs::SockAddrContext};
use aya_log_ebpf::error;
use egress_common::{
    address::Endpoint,
    decide::{self, ConnectFacts, Decision, TCP},
    outcome::Outcome,
};

use crate::{
    Verdict,
    context::{self, Task},
    maps::{EXEMPT, INTERNAL, LISTENERS, PORTS},
    report, storage,
};

#[inline(always)]
pub fn v4(ctx: &SockAddrContext) -> Verdict {
    let destination = context::destination_v4(ctx);
    match judge(ctx, destination) {
        Ok(Some(to)) => match context::set_v4(ctx, &to) {
            Ok(()) => Verdict::Proceed,
            // Cannot be: an IPv4 destination is sent to an IPv4 listener.
            Err(()) => Verdict::Refuse,
        },
        Ok(None) => Verdict::Proceed,
        Err(Refused) => Verdict::Refuse,
    }
}

/// A mapped destination (`::ffff:a.b.c.d`) reaches this hook and never connect4. It is judged as IPv4 and sent to the
/// mapped form of the IPv4 listener: `::1` would fail where IPv6 is disabled.
#[inline(always)]
pub fn v6(ctx: &SockAddrContext) -> Verdict {
    let destination = context::destination_v6(ctx);
    match judge(ctx, destination) {
        Ok(Some(to)) => {
            context::set_v6(ctx, &to);
            Verdict::Proceed
        }
        Ok(None) => Verdict::Proceed,
        Err(Refused) => Verdict::Refuse,
    }
}

struct Refused;

/// Where to send the connect instead, `None` for where it wants to go.
#[inline(always)]
fn judge(ctx: &SockAddrContext, destination: Endpoint) -> Result<Option<Endpoint>, Refused> {
    let task = context::task();
    let netns = context::netns_cookie(ctx);
    let protocol = context::protocol(ctx);
    let facts = ConnectFacts {
        destination,
        protocol,
        exempt: is_exempt(task.cgroup),
        internal: is_internal(&destination),
        port_redirected: is_redirected(destination.port()),
        // SAFETY: the agent replaces whole values, and a reader of a torn one would at worst pick a port that nobody
        // listens on: refused by the kernel, repeated by the client.
        listeners: unsafe { LISTENERS.get(netns) },
        // SAFETY: no arguments.
        spread: unsafe { bpf_get_prandom_u32() },
    };
    let outcome = match decide::connect(&facts) {
        Decision::Redirect(to, outcome) => {
            return match redirect(ctx, &facts.destination, &task, netns, to, outcome) {
                Ok(()) => Ok(Some(to)),
                Err(outcome) => {
                    report::refused(ctx, &task, netns, &facts, outcome);
                    Err(Refused)
                }
            };
        }
        Decision::Pass(outcome) => outcome,
        Decision::Deny(outcome) => {
            report::refused(ctx, &task, netns, &facts, outcome);
            return Err(Refused);
        }
    };
    // A socket that was redirected and now connects elsewhere must not answer with the old peer's name.
    storage::forget(context::socket(ctx));
    report::passed(ctx, &task, netns, &facts, outcome);
    Ok(None)
}

#[inline(always)]
pub fn redirect(
    ctx: &SockAddrContext,
    destination: &Endpoint,
    task: &Task,
    netns: u64,
    to: Endpoint,
    outcome: Outcome,
) -> Result<(), Outcome> {
    let device = context::bound_device(ctx);
    if device != 0 {
        // The device would keep the SYN from reaching the loopback address; the agent binds it on the upstream socket.
        storage::release_device(ctx).map_err(|()| Outcome::BoundDevice)?;
    }
    let Some(state) = storage::of(context::socket(ctx)) else {
        error!(ctx, "no memory for the storage of a socket: connect refused");
        return Err(Outcome::NoStorage);
    };
    // SAFETY: the storage belongs to a socket that the running connect holds; the agent does not write it. Field by
    // field, because a whole value would first be built on the 512-byte stack.
    let flow = unsafe { &mut *state };
    flow.destination = *destination;
    flow.redirect = to;
    flow.released = u32::from(matches!(
        outcome,
        Outcome::Redirected | Outcome::Query | Outcome::QueryHeld
    ));
    flow.device = device;
    flow.cgroup = task.cgroup;
    flow.socket = context::socket_cookie(ctx);
    flow.time = context::now();
    flow.pid = task.pid;
    flow.uid = task.uid;
    flow.command = task.command;
    flow.netns = netns;
    report::count(outcome);
    Ok(())
}

#[inline(always)]
pub fn is_exempt(cgroup: u64) -> bool {
    // SAFETY: only presence counts.
    unsafe { EXEMPT.get(cgroup) }.is_some()
}

#[inline(always)]
pub fn is_internal(destination: &Endpoint) -> bool {
    INTERNAL.get(&Key::new(128, destination.octets())).is_some()
}

#[inline(always)]
fn is_redirected(port: u16) -> bool {
    // SAFETY: only presence counts.
    unsafe { PORTS.get(port) }.is_some()
}

/// Whether the protocol is one whose connects are each worth an event.
#[inline(always)]
pub const fn is_tcp(protocol: u32) -> bool {
    protocol == TCP || protocol == decide::MPTCP
}
