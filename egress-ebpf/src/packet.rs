//! Packets on their way out: a SYN is held until its namespace has a listener; what no hook of a system call has judged,
//! or a newer policy has revoked, is dropped.

use aya_ebpf::{
    bindings::{BPF_RB_FORCE_WAKEUP, bpf_sock},
    helpers::generated::{bpf_sk_fullsock, bpf_skb_cgroup_id},
    programs::SkBuffContext,
};
use egress_common::{
    address::Endpoint,
    counter::Counter,
    decide::{self, PacketDecision, TCP, UDP},
    event::{ListenerWanted, ObservedKey},
    flow::Flow,
    outcome::Outcome,
};
use network_types::ip::{Ipv4Hdr, Ipv6Hdr};

use crate::{
    Verdict, context,
    create::RAW,
    maps::{LISTENERS, WANTED},
    report::{self, By},
    storage,
    tables::{self, Maps},
};

/// `AF_INET6`.
const AF_INET6: u32 = 10;
/// `BPF_TCP_LISTEN`: packets of a connect that is being accepted come with the listener's socket.
const LISTEN: u32 = 10;

/// `ETH_P_IP` and `ETH_P_IPV6`.
const ETH_P_IP: u16 = 0x0800;
const ETH_P_IPV6: u16 = 0x86dd;

/// Bytes of a UDP header (RFC 768).
pub const UDP_HEADER: u32 = 8;

/// IPv6 extension headers that can have a source route, or hide one behind them (RFC 8200 section 4).
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const DESTINATION: u8 = 60;

/// Bytes of an IPv4 header without options, in words.
const PLAIN: u8 = 5;

#[inline(always)]
pub fn judge(ctx: &SkBuffContext) -> Verdict {
    let Some(socket) = full_socket(ctx) else {
        // The kernel calls programs for whole sockets only.
        return Verdict::Proceed;
    };
    let flow = storage::existing(socket);
    // SAFETY: the helper takes the context of a cgroup_skb program.
    let cgroup = unsafe { bpf_skb_cgroup_id(ctx.skb.skb) };
    let Some(mut facts) = facts(ctx, socket, cgroup) else {
        // Shorter than its own header, or not of the version that it is sent as: nothing that would leave.
        return Verdict::Refuse;
    };
    if let Some(flow) = flow {
        // SAFETY: the storage of the socket that the packet holds.
        let flow = unsafe { &mut *flow };
        if flow.is_redirected() && flow.released == 0 {
            return release(flow);
        }
        recall(ctx, socket, flow, &mut facts);
    }
    match decide::packet(&facts, &Maps { netns: 0 }) {
        PacketDecision::Pass => Verdict::Proceed,
        PacketDecision::Renew => {
            if let (Some(flow), Some(member)) = (flow, facts.member) {
                // SAFETY: as above.
                unsafe { (*flow).policy = member.policy };
            }
            Verdict::Proceed
        }
        PacketDecision::Report(outcome) => {
            told(cgroup, &facts, outcome, flow);
            Verdict::Proceed
        }
        PacketDecision::Deny(_) if tables::is_exempt(cgroup) => Verdict::Proceed,
        PacketDecision::Deny(outcome) => {
            told(cgroup, &facts, outcome, flow);
            Verdict::Refuse
        }
    }
}

/// What is known of the socket's connect.
#[inline(always)]
fn recall(ctx: &SkBuffContext, socket: *mut bpf_sock, flow: &mut Flow, facts: &mut decide::Packet<'_>) {
    if facts.is_raw || facts.has_options {
        return;
    }
    if facts.protocol == TCP {
        if flow.is_direct() {
            facts.policy = flow.policy;
            facts.is_connecting = flow.policy != 0;
        } else {
            // SAFETY: a whole socket, as the verifier knows it.
            facts.is_connecting = unsafe { (*socket).state } != LISTEN;
        }
        if facts.is_connecting && !facts.destination.is_loopback() {
            facts.destination = peer(socket);
        }
    } else if facts.protocol == UDP && flow.is_direct() && peer(socket).is(&flow.destination) {
        facts.policy = flow.policy;
        flow.sent = flow.sent.wrapping_add(u64::from(payload(ctx)));
    }
}

/// Where the kernel has the socket connected to.
#[inline(always)]
fn peer(socket: *mut bpf_sock) -> Endpoint {
    // SAFETY: a whole socket, as the verifier knows it, which checks offset and width of each read. Word by word as in
    // `context::destination_v6`.
    unsafe {
        let port = u16::from_be((*socket).dst_port);
        if (*socket).family == AF_INET6 {
            let [a, b, c, d] = [
                (&raw const (*socket).dst_ip6[0]).read_volatile(),
                (&raw const (*socket).dst_ip6[1]).read_volatile(),
                (&raw const (*socket).dst_ip6[2]).read_volatile(),
                (&raw const (*socket).dst_ip6[3]).read_volatile(),
            ];
            Endpoint::v6(context::join(a, b, c, d), port)
        } else {
            Endpoint::v4((*socket).dst_ip4.to_ne_bytes(), port)
        }
    }
}

#[inline(always)]
fn told(cgroup: u64, facts: &decide::Packet<'_>, outcome: Outcome, flow: Option<*mut Flow>) {
    let key = ObservedKey {
        cgroup,
        destination: facts.destination,
        protocol: facts.protocol as u16,
        outcome: outcome as u16,
    };
    // SAFETY: the storage of the socket that the packet holds.
    let flow = flow.map(|flow| unsafe { &*flow });
    report::observed(&key, 0, 0, By::Packet as u32, flow);
}

/// Lets the packets of a held connect go once there is the listener they are addressed to. Until then the SYN is
/// dropped and the kernel sends it again after a second: a late success instead of ECONNREFUSED.
#[inline(always)]
fn release(flow: &mut Flow) -> Verdict {
    // SAFETY: read-only; the agent replaces whole values.
    if let Some(listeners) = unsafe { LISTENERS.get(flow.netns) }
        && listeners.contains(&flow.redirect)
    {
        flow.released = 1;
        return Verdict::Proceed;
    }
    report::count_loss(Counter::SynsHeld);
    let wanted = ListenerWanted {
        netns: flow.netns,
        cgroup: flow.cgroup,
        pid: flow.pid,
        reserved: 0,
    };
    if WANTED.output(wanted, u64::from(BPF_RB_FORCE_WAKEUP)).is_err() {
        report::count_loss(Counter::WantedLost);
    }
    Verdict::Refuse
}

#[inline(always)]
pub fn full_socket(ctx: &SkBuffContext) -> Option<*mut bpf_sock> {
    // SAFETY: the kernel hands out a valid context; both pointers are checked.
    let socket = unsafe { (*ctx.skb.skb).__bindgen_anon_2.sk };
    if socket.is_null() {
        return None;
    }
    // SAFETY: checked not null.
    let full = unsafe { bpf_sk_fullsock(socket) };
    if full.is_null() { None } else { Some(full) }
}

/// The packet begins with its network header. Extension headers of IPv6 are told as what they are.
#[inline(always)]
fn facts(ctx: &SkBuffContext, socket: *mut bpf_sock, cgroup: u64) -> Option<decide::Packet<'static>> {
    let version: u8 = ctx.load(0).ok()?;
    // SAFETY: the kernel hands out a valid context.
    let sent_as = u16::from_be(unsafe { (*ctx.skb.skb).protocol } as u16);
    // Who writes the header of a raw socket's packet could write another version's, whose addresses lie elsewhere.
    let (destination, protocol, has_options, begin) = match (version >> 4, sent_as) {
        (4, ETH_P_IP) => {
            let header: Ipv4Hdr = ctx.load(0).ok()?;
            (
                Endpoint::v4(header.dst_addr, 0),
                u32::from(header.proto),
                version & 0xf != PLAIN,
                u32::from(version & 0xf) * 4,
            )
        }
        (6, ETH_P_IPV6) => {
            let header: Ipv6Hdr = ctx.load(0).ok()?;
            (
                Endpoint::v6(header.dst_addr, 0),
                u32::from(header.next_hdr),
                matches!(header.next_hdr, HOP_BY_HOP | ROUTING | DESTINATION),
                size_of::<Ipv6Hdr>() as u32,
            )
        }
        _ => return None,
    };
    let destination = if protocol == UDP || protocol == TCP {
        let port: [u8; 2] = ctx.load(begin as usize + 2).ok()?;
        destination.with_port(u16::from_be_bytes(port))
    } else {
        destination
    };
    Some(decide::Packet {
        destination,
        protocol,
        has_options,
        // SAFETY: a whole socket, as the verifier knows it.
        is_raw: unsafe { (*socket).type_ } == RAW,
        member: tables::member(cgroup),
        policy: 0,
        is_connecting: false,
    })
}

/// The protocol after the network header.
#[inline(always)]
pub fn protocol(ctx: &SkBuffContext) -> Option<u32> {
    let version: u8 = ctx.load(0).ok()?;
    let protocol: u8 = match version >> 4 {
        4 => ctx.load(9).ok()?,
        6 => ctx.load(6).ok()?,
        _ => return None,
    };
    Some(u32::from(protocol))
}

/// Bytes behind the headers of a datagram. One that is segmented by the device counts its header once.
#[inline(always)]
pub fn payload(ctx: &SkBuffContext) -> u32 {
    let headers = match ctx.load::<u8>(0) {
        Ok(version) if version >> 4 == 6 => size_of::<Ipv6Hdr>() as u32,
        Ok(version) => u32::from(version & 0xf) * 4,
        Err(_) => 0,
    };
    ctx.len().saturating_sub(headers + UDP_HEADER)
}

/// The ends of a datagram, and where what it carries begins.
pub struct Ends {
    pub from: Endpoint,
    pub to: Endpoint,
    pub payload: u32,
}

/// The ends of a datagram; `None` if it is none, or has extension headers of IPv6.
#[inline(always)]
pub fn ends(ctx: &SkBuffContext) -> Option<Ends> {
    let version: u8 = ctx.load(0).ok()?;
    match version >> 4 {
        4 => {
            let header: Ipv4Hdr = ctx.load(0).ok()?;
            let begin = u32::from(version & 0xf) * 4;
            let (source, destination) = ports(ctx, begin)?;
            Some(Ends {
                from: Endpoint::v4(header.src_addr, source),
                to: Endpoint::v4(header.dst_addr, destination),
                payload: begin + UDP_HEADER,
            })
        }
        6 => {
            let header: Ipv6Hdr = ctx.load(0).ok()?;
            if u32::from(header.next_hdr) != UDP {
                return None;
            }
            let begin = size_of::<Ipv6Hdr>() as u32;
            let (source, destination) = ports(ctx, begin)?;
            Some(Ends {
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
