//! Name service: what a workload asks of a name server goes to the agent, and the answer seems to come from the server
//! that was asked. Before every rule that leaves destinations alone, because resolvers are often on loopback or inside
//! the cluster.

use aya_ebpf::{
    bindings::{BPF_RB_FORCE_WAKEUP, BPF_SK_STORAGE_GET_F_CREATE, bpf_sock},
    helpers::generated::{bpf_sk_storage_get, bpf_skb_load_bytes},
    programs::{SkBuffContext, SockAddrContext},
};
use egress_common::{
    address::Endpoint,
    counter::Counter,
    decide::UDP,
    dns::{self, Asker, LONGEST_HELD, OWNERSHIP},
    flow::FlowKey,
    listener::{LISTENERS_PER_FAMILY, Listeners},
    outcome::Outcome,
};

use crate::{
    Answer, account, connect, context,
    maps::{ASKERS, HELD, LISTENERS, QUERIES},
    packet::{self, Ends},
    report, storage, tables,
};

/// connect(2) to a name server: `Other` if it is none, or none of our business; where to is written to `to`. A function of
/// its own in the kernel, too: what it puts on the stack is not added to what other connects do.
#[inline(never)]
pub fn connect(ctx: &SockAddrContext, resolver: &Endpoint, to: &mut Endpoint) -> Answer {
    // The proxy takes a stream as it takes every redirected connect, and tells it by its port.
    if !is_query(ctx, resolver) {
        return Answer::Other;
    }
    let netns = context::netns_cookie(ctx);
    // Whatever it was connected to before.
    account::close(ctx);
    let asked = note(ctx, resolver, netns, to)
        .and_then(|outcome| connect::redirect(ctx, resolver, netns, to, outcome));
    match asked {
        Ok(()) => Answer::Redirect,
        Err(outcome) => refuse(ctx, resolver, netns, outcome),
    }
}

/// sendmsg(2) to a name server on a socket that is not connected to it.
#[inline(never)]
pub fn sendmsg(ctx: &SockAddrContext, resolver: &Endpoint, to: &mut Endpoint) -> Answer {
    if !is_query(ctx, resolver) {
        return Answer::Other;
    }
    let netns = context::netns_cookie(ctx);
    if context::bound_device(ctx) != 0 {
        // The device would keep the datagram from the loopback address.
        return refuse(ctx, resolver, netns, Outcome::BoundDevice);
    }
    match note(ctx, resolver, netns, to) {
        Ok(outcome) => {
            report::count(outcome);
            Answer::Redirect
        }
        Err(outcome) => refuse(ctx, resolver, netns, outcome),
    }
}

#[inline(always)]
fn is_query(ctx: &SockAddrContext, resolver: &Endpoint) -> bool {
    resolver.port() == dns::PORT && context::protocol(ctx) == UDP && !tables::is_exempt(context::cgroup_id())
}

#[inline(always)]
fn refuse(ctx: &SockAddrContext, resolver: &Endpoint, netns: u64, outcome: Outcome) -> Answer {
    report::attempt(ctx, netns, resolver, UDP, outcome);
    Answer::Refuse
}

/// Notes a query with its socket, and where it goes: without a name service in the namespace, to where it will be; see
/// [`publish`].
#[inline(always)]
fn note(
    ctx: &SockAddrContext,
    resolver: &Endpoint,
    netns: u64,
    to: &mut Endpoint,
) -> Result<Outcome, Outcome> {
    let socket = context::socket(ctx);
    let Some(asker) = lookup(socket, &raw const EMPTY, BPF_SK_STORAGE_GET_F_CREATE) else {
        return Err(Outcome::NoStorage);
    };
    // SAFETY: the storage of the socket whose call is running. Two threads that ask by one socket at once may take
    // each other's place: an answer then seems to come from the other resolver. Field by field, because a whole
    // value would first be built on the 512-byte stack.
    let asker = unsafe { &mut *asker };
    let slot = asker.slot_of(resolver);
    asker.netns = netns;
    asker.cgroup = context::cgroup_id();
    asker.birth_cgroup = storage::birth(socket);
    context::identify(&mut asker.pid, &mut asker.uid, &mut asker.command);
    let is_v4 = resolver.octets_v4().is_some();
    // SAFETY: read-only; the agent replaces whole values.
    match unsafe { LISTENERS.get(netns) } {
        Some(listeners) => match listeners.dns(is_v4, slot) {
            Some(place) => {
                *to = place;
                Ok(Outcome::Query)
            }
            None => Err(Outcome::NoListener),
        },
        None => {
            *to = dns::place(is_v4, slot, dns::PREFERRED_PORT);
            Ok(Outcome::QueryHeld)
        }
    }
}

/// The resolver that was asked, for a datagram that came from a place of the name service.
#[inline(always)]
pub fn resolver_behind(ctx: &SockAddrContext, from: &Endpoint) -> Option<Endpoint> {
    if !from.is_loopback() {
        return None;
    }
    let asker = lookup(context::socket(ctx), core::ptr::null(), 0)?;
    // SAFETY: the storage of the socket whose call is running.
    let asker = unsafe { &*asker };
    // SAFETY: read-only; the agent replaces whole values.
    let listeners = unsafe { LISTENERS.get(asker.netns) }?;
    asker.resolver(listeners.dns_slot(from)?)
}

/// What becomes of a packet.
pub enum Published {
    /// It is no query.
    NoQuery,
    /// The agent will find who sent it.
    Deliver,
    /// It must not go on: the agent has it already, could not tell its asker from another one, or cannot be told.
    Drop,
}

/// Publishes who asks before the query is delivered: only now the local address is known for sure. Without a name service
/// in the namespace the agent is handed the query.
#[inline(always)]
pub fn publish(ctx: &SkBuffContext) -> Published {
    let Some(socket) = packet::full_socket(ctx) else {
        return Published::NoQuery;
    };
    let Some(asker) = lookup(socket, core::ptr::null(), 0) else {
        return Published::NoQuery;
    };
    // SAFETY: the storage of the socket that the packet holds.
    let asker = unsafe { &mut *asker };
    // With extension headers of IPv6 it is not recognised, found unexplained by the agent, and dropped.
    let Some(sent) = packet::ends(ctx) else {
        return Published::NoQuery;
    };
    if asker.netns == 0 || !sent.to.is_loopback() {
        return Published::NoQuery;
    }
    asker.time = context::now();
    // SAFETY: read-only; the agent replaces whole values.
    let is_served = match unsafe { LISTENERS.get(asker.netns) } {
        Some(listeners) => listeners.dns_slot(&sent.to).is_some(),
        None => false,
    };
    if !is_served {
        return match hand_over(ctx, asker, &sent) {
            Some(()) => Published::Drop,
            None => Published::NoQuery,
        };
    }
    let key = FlowKey::socket(asker.netns, sent.from);
    // SAFETY: read-only; a torn value at worst loses this query, and the asker asks again.
    if let Some(last) = unsafe { QUERIES.get(key) }
        && last.cgroup != asker.cgroup
        && asker.time.wrapping_sub(last.time) < OWNERSHIP
    {
        report::count(Outcome::QueryAmbiguous);
        return Published::Drop;
    }
    let asker: &Asker = asker;
    if QUERIES.insert(key, asker, 0).is_err() {
        report::count_loss(Counter::QueriesLost);
        return Published::Drop;
    }
    Published::Deliver
}

/// Hands a query to the agent; `None` if the packet is not one for the place where the name service will be. What cannot
/// be handed over is counted, and its asker asks again.
#[inline(always)]
fn hand_over(ctx: &SkBuffContext, asker: &Asker, sent: &Ends) -> Option<()> {
    let preferred = Listeners {
        dns_v4: dns::PREFERRED_PORT,
        dns_v6: dns::PREFERRED_PORT,
        ..EMPTY_LISTENERS
    };
    let slot = preferred.dns_slot(&sent.to)?;
    let length = ctx.len().wrapping_sub(sent.payload);
    if length == 0 || length > LONGEST_HELD as u32 {
        report::count_loss(Counter::QueriesLost);
        return Some(());
    }
    let Some(mut entry) = HELD.reserve(0) else {
        report::count_loss(Counter::QueriesLost);
        return Some(());
    };
    let held = entry.as_mut_ptr();
    // SAFETY: reserved memory of the ring buffer, all of whose fields are written here but the bytes behind the query,
    // which hold other queries or zeros. Field by field, because a whole value would first be built on the stack.
    let status = unsafe {
        (*held).asker = *asker;
        (*held).source = sent.from;
        (*held).slot = slot as u32;
        (*held).length = length;
        (*held).reserved = 0;
        load(ctx, sent.payload, &raw mut (*held).query, length)
    };
    if status == 0 {
        entry.submit(u64::from(BPF_RB_FORCE_WAKEUP));
    } else {
        entry.discard(0);
        report::count_loss(Counter::QueriesLost);
    }
    Some(())
}

/// Copies `length` bytes of the packet, 1 to [`LONGEST_HELD`].
#[inline(always)]
unsafe fn load(ctx: &SkBuffContext, offset: u32, to: *mut [u8; LONGEST_HELD], length: u32) -> i64 {
    // The verifier must see the bounds where the helper is called; LLVM, which has seen them before, would drop a plain
    // mask. One less and one more, because 512 is no mask and 0 is refused as "invalid zero-sized read".
    let mut bounded = length.wrapping_sub(1);
    #[cfg(target_arch = "bpf")]
    // SAFETY: changes a register and nothing else.
    unsafe {
        core::arch::asm!("{0} &= 511", inout(reg) bounded);
    }
    bounded &= 511;
    // SAFETY: the helper writes at most 512 bytes to `to`, as the verifier checks.
    unsafe { bpf_skb_load_bytes(ctx.skb.skb.cast(), offset, to.cast(), bounded + 1) }
}

static EMPTY: Asker = Asker::EMPTY;

const EMPTY_LISTENERS: Listeners = Listeners {
    v4: [0; LISTENERS_PER_FAMILY],
    v6: [0; LISTENERS_PER_FAMILY],
    source_v4: [0; 4],
    dns_v4: 0,
    dns_v6: 0,
    source_v6: [0; 16],
};

#[inline(always)]
fn lookup(socket: *mut bpf_sock, initial: *const Asker, flags: u32) -> Option<*mut Asker> {
    if socket.is_null() {
        return None;
    }
    let map = (&raw const ASKERS).cast_mut().cast();
    // SAFETY: `map` is the storage map (the loader puts its descriptor in), `socket` checked not null and a socket as the
    // verifier knows it, `initial` null or an Asker that outlives the call.
    let state =
        unsafe { bpf_sk_storage_get(map, socket.cast(), initial.cast_mut().cast(), u64::from(flags)) };
    if state.is_null() { None } else { Some(state.cast()) }
}
