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
    decide::{MPTCP, TCP, UDP},
    dns::{self, Asker, LONGEST_HELD, OWNERSHIP},
    flow::FlowKey,
    listener::{LISTENERS_PER_FAMILY, Listeners},
    outcome::Outcome,
};

use network_types::ip::{Ipv4Hdr, Ipv6Hdr};

use crate::{
    connect,
    context::{self, Task},
    maps::{ASKERS, HELD, LISTENERS, QUERIES},
    packet, report, storage,
};

/// connect(2) to a name server; `None` if it is none, or none of our business.
#[inline(always)]
pub fn connect(ctx: &SockAddrContext, resolver: &Endpoint) -> Option<Result<Endpoint, ()>> {
    let query = Query::of(ctx, resolver)?;
    if !query.is_datagram {
        // The proxy takes it as it takes every redirected connect, and tells it by its port.
        return None;
    }
    let redirected = query.note(ctx).and_then(|(to, outcome)| {
        connect::redirect(ctx, resolver, &query.task, query.netns, to, outcome)?;
        Ok(to)
    });
    Some(redirected.map_err(|outcome| query.refused(ctx, outcome)))
}

/// sendmsg(2) to a name server on a socket that is not connected to it.
#[inline(always)]
pub fn sendmsg(ctx: &SockAddrContext, resolver: &Endpoint) -> Option<Result<Endpoint, ()>> {
    let query = Query::of(ctx, resolver)?;
    if !query.is_datagram {
        return None;
    }
    if context::bound_device(ctx) != 0 {
        // The device would keep the datagram from the loopback address.
        query.refused(ctx, Outcome::BoundDevice);
        return Some(Err(()));
    }
    match query.note(ctx) {
        Ok((to, outcome)) => {
            report::count(outcome);
            Some(Ok(to))
        }
        Err(outcome) => {
            query.refused(ctx, outcome);
            Some(Err(()))
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
    let Some(sent) = Sent::read(ctx) else {
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
fn hand_over(ctx: &SkBuffContext, asker: &Asker, sent: &Sent) -> Option<()> {
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

/// The ends of a datagram, and where what it carries begins.
struct Sent {
    from: Endpoint,
    to: Endpoint,
    payload: u32,
}

/// The ports of a UDP header (RFC 768), which is eight bytes long.
const UDP_HEADER: u32 = 8;

impl Sent {
    #[inline(always)]
    fn read(ctx: &SkBuffContext) -> Option<Self> {
        let version: u8 = ctx.load(0).ok()?;
        match version >> 4 {
            4 => {
                let header: Ipv4Hdr = ctx.load(0).ok()?;
                let begin = u32::from(version & 0xf) * 4;
                let (source, destination) = Self::ports(ctx, begin)?;
                Some(Self {
                    from: Endpoint::v4(header.src_addr, source),
                    to: Endpoint::v4(header.dst_addr, destination),
                    payload: begin + UDP_HEADER,
                })
            }
            6 => {
                let header: Ipv6Hdr = ctx.load(0).ok()?;
                // With extension headers it is not recognised, found unexplained by the agent, and dropped.
                if u32::from(header.next_hdr) != UDP {
                    return None;
                }
                let begin = size_of::<Ipv6Hdr>() as u32;
                let (source, destination) = Self::ports(ctx, begin)?;
                Some(Self {
                    from: Endpoint::v6(header.src_addr, source),
                    to: Endpoint::v6(header.dst_addr, destination),
                    payload: begin + UDP_HEADER,
                })
            }
            _ => None,
        }
    }

    #[inline(always)]
    fn ports(ctx: &SkBuffContext, begin: u32) -> Option<(u16, u16)> {
        let [a, b, c, d]: [u8; 4] = ctx.load(begin as usize).ok()?;
        Some((u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])))
    }
}

/// A call that is about to ask a name server.
struct Query {
    resolver: Endpoint,
    task: Task,
    netns: u64,
    is_datagram: bool,
    protocol: u32,
}

impl Query {
    #[inline(always)]
    fn of(ctx: &SockAddrContext, resolver: &Endpoint) -> Option<Self> {
        if resolver.port() != dns::PORT {
            return None;
        }
        let protocol = context::protocol(ctx);
        let is_stream = protocol == TCP || protocol == MPTCP;
        if protocol != UDP && !is_stream {
            return None;
        }
        let task = context::task();
        if connect::is_exempt(task.cgroup) {
            return None;
        }
        Some(Self {
            resolver: *resolver,
            task,
            netns: context::netns_cookie(ctx),
            is_datagram: !is_stream,
            protocol,
        })
    }

    /// Notes it with the socket. Where it goes then: without a name service in the namespace, to where it will be; see
    /// [`publish`].
    #[inline(always)]
    fn note(&self, ctx: &SockAddrContext) -> Result<(Endpoint, Outcome), Outcome> {
        let socket = context::socket(ctx);
        let Some(asker) = lookup(socket, &raw const EMPTY, BPF_SK_STORAGE_GET_F_CREATE) else {
            return Err(Outcome::NoStorage);
        };
        // SAFETY: the storage of the socket whose call is running. Two threads that ask by one socket at once may take
        // each other's place: an answer then seems to come from the other resolver. Field by field, because a whole
        // value would first be built on the 512-byte stack.
        let asker = unsafe { &mut *asker };
        let slot = asker.slot_of(&self.resolver);
        asker.netns = self.netns;
        asker.cgroup = self.task.cgroup;
        asker.birth_cgroup = storage::birth(socket);
        asker.pid = self.task.pid;
        asker.uid = self.task.uid;
        asker.command = self.task.command;
        let is_v4 = self.resolver.octets_v4().is_some();
        // SAFETY: read-only; the agent replaces whole values.
        match unsafe { LISTENERS.get(self.netns) } {
            Some(listeners) => match listeners.dns(is_v4, slot) {
                Some(to) => Ok((to, Outcome::Query)),
                None => Err(Outcome::NoListener),
            },
            None => Ok((dns::place(is_v4, slot, dns::PREFERRED_PORT), Outcome::QueryHeld)),
        }
    }

    #[inline(always)]
    fn refused(&self, ctx: &SockAddrContext, outcome: Outcome) {
        report::refused_endpoint(ctx, &self.task, self.netns, self.resolver, self.protocol, outcome);
    }
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
