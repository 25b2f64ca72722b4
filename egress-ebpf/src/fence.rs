//! The host's end of the veth pair of a fenced network namespace: what leaves it without a socket that a verdict has let
//! go there is dropped, whoever made it. egress-common's `fence` decides; this gathers what speaks for a packet.

use aya_ebpf::{
    bindings::bpf_sock,
    helpers::generated::{bpf_get_socket_cookie, bpf_sk_fullsock, bpf_sk_storage_get, bpf_skb_cgroup_id},
    programs::{SockAddrContext, TcContext},
};
use egress_common::{
    address::Endpoint,
    counter::Counter,
    decide::{TCP, Tables, UDP},
    event::ObservedKey,
    fence::{
        self, Arrival, Departure, Evidence, Fence, FragmentKey, ICMP, ICMPV6, Message, SentKey, Vetted, Way,
    },
    outcome::Outcome,
};
use network_types::ip::{Ipv4Hdr, Ipv6Hdr};

use crate::{
    context,
    maps::{ARRIVALS, FENCES, FRAGMENTS, SCRATCH, SENT, VETTED},
    report::{self, By},
    storage,
    tables::Maps,
};

/// Length of an Ethernet header: a VLAN tag is taken out before these programs run.
const ETHERNET: u32 = 14;
const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_ARP: u16 = 0x0806;
const ETHERTYPE_IPV6: u16 = 0x86dd;

const AF_INET: u32 = 2;
const AF_INET6: u32 = 10;

/// Extension headers that a packet may have. RFC 8200 section 4.1 knows five without ESP, each of them once but one.
const MOST_EXTENSIONS: usize = 6;

/// Notes that a verdict lets a datagram without a connect go. Without room its fence, if it has one, drops it.
#[inline(always)]
pub fn vet_datagram(ctx: &SockAddrContext, destination: &Endpoint) {
    let key = SentKey {
        socket: context::socket_cookie(ctx),
        destination: *destination,
        reserved: 0,
    };
    // SAFETY: only presence counts.
    if unsafe { SENT.get(key) }.is_none() && SENT.insert(key, 1, 0).is_err() {
        report::count_loss(Counter::FencesFull);
    }
}

/// Whether a packet may leave.
#[inline(always)]
pub fn leave(ctx: &TcContext) -> Result<(), ()> {
    let ethertype = ethertype(ctx);
    if ethertype == ETHERTYPE_ARP {
        return Ok(());
    }
    // Noted before the program was attached: without it this is no place for it to be. The scratch is always there.
    let (Some(fence), Some(scratch)) = (fence_at(ctx), SCRATCH.get_ptr_mut(0)) else {
        report::count(Outcome::Unvetted);
        return Err(());
    };
    // SAFETY: this CPU's own; programs of this kind run with softirqs off and so never within each other on one CPU. The
    // fields are apart.
    let (seen, way, fragment) = unsafe {
        (
            &mut (*scratch).seen,
            &raw mut (*scratch).way,
            &raw mut (*scratch).fragment,
        )
    };
    if seen.read(ctx, ethertype).is_none() {
        refuse(ctx, fence, Endpoint::v6([0; 16], 0), u32::from(ethertype));
        return Err(());
    }
    let seen: &Seen = seen;
    let known = Known {
        ctx,
        netns: fence.netns,
        seen,
        way,
        fragment,
    };
    if !fence::may_leave(&seen.headers, &known, context::now()) {
        refuse(ctx, fence, seen.reported(), seen.headers.protocol);
        return Err(());
    }
    if seen.has_more_fragments
        && !seen.headers.is_later_fragment
        && FRAGMENTS.insert(known.fragment(), 1, 0).is_err()
    {
        report::count_loss(Counter::FencesFull);
    }
    Ok(())
}

/// Notes what comes in: it may be answered.
#[inline(always)]
pub fn enter(ctx: &TcContext) {
    let (Some(fence), Some(scratch)) = (fence_at(ctx), SCRATCH.get_ptr_mut(0)) else {
        return;
    };
    // SAFETY: as in `leave`.
    let (seen, way) = unsafe { (&mut (*scratch).seen, &mut (*scratch).way) };
    if seen.read(ctx, ethertype(ctx)).is_none() || seen.headers.is_later_fragment {
        return;
    }
    let headers = &seen.headers;
    let lasting = match Message::of(headers.protocol, headers.kind) {
        None => headers.protocol == TCP && headers.kind & SYN_ACK == SYN,
        Some(Message::Echo) => false,
        // No router passes a packet on with the highest limit: who sends it is on this link.
        Some(Message::Neighbour) if headers.hops == u8::MAX => {
            neighbour(way, fence.netns, &seen.source);
            note_arrival(way, true);
            return;
        }
        // Not to be answered.
        Some(Message::Neighbour | Message::Answer | Message::Error | Message::Listener | Message::Other) => {
            return;
        }
    };
    if (Maps { netns: 0 }).is_internal(&seen.source) {
        return;
    }
    way.netns = fence.netns;
    way.inside = headers.destination;
    way.outside = seen.source;
    way.protocol = headers.protocol;
    way.reserved = 0;
    note_arrival(way, lasting);
}

#[inline(always)]
fn note_arrival(way: &Way, lasting: bool) {
    let now = context::now();
    if let Some(known) = ARRIVALS.get_ptr_mut(way) {
        // SAFETY: an entry of a preallocated map stays readable and writable even if it is evicted meanwhile; each field
        // is written whole.
        unsafe {
            (*known).last = now;
            if lasting {
                (*known).lasting = 1;
            }
        }
        return;
    }
    let arrival = Arrival {
        last: now,
        lasting: u32::from(lasting),
        reserved: 0,
    };
    if ARRIVALS.insert(way, arrival, 0).is_err() {
        report::count_loss(Counter::FencesFull);
    }
}

/// Flags of a TCP header (RFC 9293): of a packet that comes in they stand where an ICMP message has its type.
const SYN: u8 = 0x02;
const SYN_ACK: u8 = 0x12;

/// What the programs work on: on the stack it would not fit. One for each CPU.
#[repr(C)]
pub struct Scratch {
    seen: Seen,
    way: Way,
    fragment: FragmentKey,
}

/// The headers of a packet.
#[repr(C)]
struct Seen {
    source: Endpoint,
    headers: Departure,
    /// Where what follows the network header begins.
    begin: u32,
    fragment: u32,
    has_more_fragments: bool,
}

impl Seen {
    /// `None` if it is not of the internet, or cut off. A TCP segment's flags are its `kind`.
    #[inline(always)]
    fn read(&mut self, ctx: &TcContext, ethertype: u16) -> Option<()> {
        match ethertype {
            ETHERTYPE_IPV4 => self.read_v4(ctx)?,
            ETHERTYPE_IPV6 => self.read_v6(ctx)?,
            _ => return None,
        }
        self.headers.kind = 0;
        if self.headers.is_later_fragment {
            return Some(());
        }
        let begin = self.begin as usize;
        if fence::has_ports(self.headers.protocol) {
            let [a, b, c, d]: [u8; 4] = ctx.load(begin).ok()?;
            self.source = self.source.with_port(u16::from_be_bytes([a, b]));
            self.headers.destination = self.headers.destination.with_port(u16::from_be_bytes([c, d]));
            if self.headers.protocol == TCP {
                // The first fragment may be cut off before its flags: it begins nothing then.
                self.headers.kind = ctx.load(begin + 13).unwrap_or(0);
            }
        } else if matches!(self.headers.protocol, ICMP | ICMPV6) {
            let [kind, _, _, _, a, b, _, _]: [u8; 8] = ctx.load(begin).ok()?;
            self.headers.kind = kind;
            let identifier = u16::from_be_bytes([a, b]);
            self.source = self.source.with_port(identifier);
            self.headers.destination = self.headers.destination.with_port(identifier);
        }
        Some(())
    }

    #[inline(always)]
    fn read_v4(&mut self, ctx: &TcContext) -> Option<()> {
        let header: Ipv4Hdr = ctx.load(ETHERNET as usize).ok()?;
        if header.vihl >> 4 != 4 {
            return None;
        }
        let length = u32::from(header.vihl & 0xf) * 4;
        let fragment = u16::from_be_bytes(header.frags);
        self.source = Endpoint::v4(header.src_addr, 0);
        self.headers.destination = Endpoint::v4(header.dst_addr, 0);
        self.headers.protocol = u32::from(header.proto);
        self.headers.hops = header.ttl;
        self.headers.is_odd = length != size_of::<Ipv4Hdr>() as u32;
        self.headers.is_later_fragment = fragment & 0x1fff != 0;
        self.has_more_fragments = fragment & 0x2000 != 0;
        self.fragment = u32::from(u16::from_be_bytes(header.id));
        self.begin = ETHERNET + length;
        Some(())
    }

    #[inline(always)]
    fn read_v6(&mut self, ctx: &TcContext) -> Option<()> {
        let header: Ipv6Hdr = ctx.load(ETHERNET as usize).ok()?;
        if header.vcf[0] >> 4 != 6 {
            return None;
        }
        self.source = Endpoint::v6(header.src_addr, 0);
        self.headers.destination = Endpoint::v6(header.dst_addr, 0);
        self.headers.hops = header.hop_limit;
        self.headers.is_odd = false;
        self.headers.is_later_fragment = false;
        self.has_more_fragments = false;
        self.fragment = 0;
        let mut protocol = u32::from(header.next_hdr);
        let mut begin = ETHERNET + size_of::<Ipv6Hdr>() as u32;
        for _ in 0..MOST_EXTENSIONS {
            match protocol {
                HOP_BY_HOP | DESTINATION_OPTIONS | ROUTING => {
                    let [next, length]: [u8; 2] = ctx.load(begin as usize).ok()?;
                    self.headers.is_odd |= protocol == ROUTING;
                    protocol = u32::from(next);
                    begin += (u32::from(length) + 1) * 8;
                }
                FRAGMENT if !self.headers.is_later_fragment => {
                    let [next, _, a, b, c, d, e, f]: [u8; 8] = ctx.load(begin as usize).ok()?;
                    let place = u16::from_be_bytes([a, b]);
                    protocol = u32::from(next);
                    begin += 8;
                    self.fragment = u32::from_be_bytes([c, d, e, f]);
                    self.has_more_fragments = place & 1 != 0;
                    self.headers.is_later_fragment = place & 0xfff8 != 0;
                    if self.headers.is_later_fragment {
                        break;
                    }
                }
                _ => break,
            }
        }
        self.headers.protocol = protocol;
        self.begin = begin;
        // With more of them than there are.
        if matches!(protocol, HOP_BY_HOP | ROUTING | FRAGMENT | DESTINATION_OPTIONS)
            && !self.headers.is_later_fragment
        {
            return None;
        }
        Some(())
    }

    /// The destination as a person knows it: identifiers are no ports.
    #[inline(always)]
    fn reported(&self) -> Endpoint {
        if fence::has_ports(self.headers.protocol) {
            self.headers.destination
        } else {
            self.headers.destination.with_port(0)
        }
    }
}

/// Next headers (RFC 8200).
const HOP_BY_HOP: u32 = 0;
const ROUTING: u32 = 43;
const FRAGMENT: u32 = 44;
const DESTINATION_OPTIONS: u32 = 60;

/// What speaks for a packet.
struct Known<'a> {
    ctx: &'a TcContext,
    netns: u64,
    seen: &'a Seen,
    way: *mut Way,
    fragment: *mut FragmentKey,
}

impl Evidence for Known<'_> {
    #[inline(always)]
    fn is_internal(&self) -> bool {
        Maps { netns: 0 }.is_internal(&self.seen.headers.destination)
    }

    /// By the socket that the packet still belongs to: it is kept across the pair (Linux 4.19), and lost where the
    /// namespace forwards what it has got from a TUN device or another namespace. That the packet goes where the socket was
    /// let go is looked at here, because the namespace's own root may have translated its addresses. The agent notes its own
    /// sockets.
    #[inline(always)]
    fn is_vetted(&self) -> bool {
        let Some(socket) = internet_socket(self.ctx) else {
            return false;
        };
        let headers = &self.seen.headers;
        if let Some(flow) = storage::existing(socket) {
            // SAFETY: the storage of the socket that the packet holds.
            let flow = unsafe { &*flow };
            if flow.is_direct()
                && flow.destination == headers.destination
                && fence::on_the_wire(flow.protocol) == headers.protocol
            {
                return true;
            }
        }
        if let Some(noted) = of_the_agent(socket) {
            // SAFETY: as above.
            let noted = unsafe { &*noted };
            if noted.protocol == headers.protocol && noted.destination == headers.destination {
                return true;
            }
        }
        if headers.protocol == UDP {
            let key = SentKey {
                // SAFETY: the helper takes the context of a tc program.
                socket: unsafe { bpf_get_socket_cookie(self.ctx.skb.skb.cast()) },
                destination: headers.destination,
                reserved: 0,
            };
            // SAFETY: only presence counts.
            return unsafe { SENT.get(key) }.is_some();
        }
        false
    }

    #[inline(always)]
    fn arrival(&self) -> Option<Arrival> {
        // SAFETY: as in `leave`.
        let way = unsafe { &mut *self.way };
        way.netns = self.netns;
        way.inside = self.seen.source;
        way.outside = self.seen.headers.destination;
        way.protocol = self.seen.headers.protocol;
        way.reserved = 0;
        arrival(way)
    }

    #[inline(always)]
    fn quoted_arrival(&self) -> Option<Arrival> {
        // SAFETY: as in `leave`.
        let way = unsafe { &mut *self.way };
        self.quoted(way)?;
        // An error goes to whoever has sent what it quotes.
        if way.outside.with_port(0) != self.seen.headers.destination.with_port(0) {
            return None;
        }
        arrival(way)
    }

    #[inline(always)]
    fn neighbour(&self) -> Option<Arrival> {
        // SAFETY: as in `leave`.
        let way = unsafe { &mut *self.way };
        neighbour(way, self.netns, &self.seen.headers.destination);
        arrival(way)
    }

    #[inline(always)]
    fn first_fragment_left(&self) -> bool {
        // SAFETY: as in `leave`; only presence counts.
        unsafe { FRAGMENTS.get(self.fragment()) }.is_some()
    }
}

impl Known<'_> {
    #[inline(always)]
    fn fragment(&self) -> &FragmentKey {
        // SAFETY: as in `leave`.
        let key = unsafe { &mut *self.fragment };
        key.netns = self.netns;
        key.source = self.seen.source.with_port(0);
        key.destination = self.seen.headers.destination.with_port(0);
        key.protocol = self.seen.headers.protocol;
        key.id = self.seen.fragment;
        key
    }

    /// The way of the packet that an ICMP error quotes, which stands behind its eight bytes.
    #[inline(always)]
    fn quoted(&self, way: &mut Way) -> Option<()> {
        let begin = self.seen.begin + 8;
        let behind = if self.seen.headers.protocol == ICMP {
            let header: Ipv4Hdr = self.ctx.load(begin as usize).ok()?;
            way.outside = Endpoint::v4(header.src_addr, 0);
            way.inside = Endpoint::v4(header.dst_addr, 0);
            way.protocol = u32::from(header.proto);
            begin + u32::from(header.vihl & 0xf) * 4
        } else {
            let header: Ipv6Hdr = self.ctx.load(begin as usize).ok()?;
            way.outside = Endpoint::v6(header.src_addr, 0);
            way.inside = Endpoint::v6(header.dst_addr, 0);
            way.protocol = u32::from(header.next_hdr);
            begin + size_of::<Ipv6Hdr>() as u32
        };
        if fence::has_ports(way.protocol) {
            let [a, b, c, d]: [u8; 4] = self.ctx.load(behind as usize).ok()?;
            way.outside = way.outside.with_port(u16::from_be_bytes([a, b]));
            way.inside = way.inside.with_port(u16::from_be_bytes([c, d]));
        }
        way.netns = self.netns;
        way.reserved = 0;
        Some(())
    }
}

#[inline(always)]
fn arrival(way: &Way) -> Option<Arrival> {
    // SAFETY: read-only; a torn value is at worst answered a moment too long.
    unsafe { ARRIVALS.get(way) }.copied()
}

/// Makes it the way that stands for a neighbour on the link.
#[inline(always)]
fn neighbour(way: &mut Way, netns: u64, address: &Endpoint) {
    way.netns = netns;
    way.inside = Endpoint::v6([0; 16], 0);
    way.outside = address.with_port(0);
    way.protocol = ICMPV6;
    way.reserved = 0;
}

/// The packet's socket, if it is one of the internet's: those of packet sockets have another family.
#[inline(always)]
fn internet_socket(ctx: &TcContext) -> Option<*mut bpf_sock> {
    // SAFETY: the kernel hands out a valid context.
    let socket = unsafe { (*ctx.skb.skb).__bindgen_anon_2.sk };
    if socket.is_null() {
        return None;
    }
    // SAFETY: checked not null.
    let full = unsafe { bpf_sk_fullsock(socket) };
    if full.is_null() {
        return None;
    }
    // SAFETY: checked not null; the verifier knows the pointer as a socket.
    let family = unsafe { (*full).family };
    if family == AF_INET || family == AF_INET6 {
        Some(full)
    } else {
        None
    }
}

/// What the agent has noted of a socket of its own.
#[inline(always)]
fn of_the_agent(socket: *mut bpf_sock) -> Option<*mut Vetted> {
    let map = (&raw const VETTED).cast_mut().cast();
    // SAFETY: `map` is the storage map (the loader puts its descriptor in), `socket` checked not null and a socket as the
    // verifier knows it.
    let noted = unsafe { bpf_sk_storage_get(map, socket.cast(), core::ptr::null_mut(), 0) };
    if noted.is_null() { None } else { Some(noted.cast()) }
}

#[inline(always)]
fn fence_at(ctx: &TcContext) -> Option<&'static Fence> {
    // SAFETY: the kernel hands out a valid context; the agent replaces whole values.
    unsafe { FENCES.get((*ctx.skb.skb).ifindex) }
}

#[inline(always)]
fn ethertype(ctx: &TcContext) -> u16 {
    u16::from_be(ctx.skb.protocol() as u16)
}

#[inline(always)]
fn cgroup(ctx: &TcContext) -> u64 {
    // SAFETY: the helper takes the context of a tc program.
    unsafe { bpf_skb_cgroup_id(ctx.skb.skb) }
}

#[inline(always)]
fn refuse(ctx: &TcContext, fence: &Fence, destination: Endpoint, protocol: u32) {
    let cgroup = match cgroup(ctx) {
        0 => fence.cgroup,
        cgroup => cgroup,
    };
    let key = ObservedKey {
        cgroup,
        destination,
        protocol: protocol as u16,
        outcome: Outcome::Unvetted as u16,
    };
    report::observed(&key, fence.netns, 0, By::Packet as u32, None);
}
