//! What happens to a connect, a datagram and a packet: pure functions over plain values and the tables that they ask, so
//! that the host tests and explains the very code that the kernel runs.

use crate::{
    address::Endpoint,
    dns,
    listener::{self, Listeners, PREFERRED_PORT},
    member::{DOUBTS_NAT64, Member, Transport},
    outcome::Outcome,
};

/// IPPROTO_TCP.
pub const TCP: u32 = 6;
/// IPPROTO_UDP.
pub const UDP: u32 = 17;
/// IPPROTO_ICMP, also of the sockets that `ping` uses without privileges.
pub const ICMP: u32 = 1;
/// IPPROTO_ICMPV6.
pub const ICMPV6: u32 = 58;
/// IPPROTO_MPTCP: a TCP connect as far as the network sees it.
pub const MPTCP: u32 = 262;

/// What is looked up on the way to a decision, and only if it gets there: a look-up in the policies' blocks costs more than
/// all the rest.
pub trait Tables {
    /// Whether the address lies in an internal prefix.
    fn is_internal(&self, destination: &Endpoint) -> bool;
    /// Whether the address and port are ones of the explicit proxy.
    fn is_proxy(&self, destination: &Endpoint) -> bool;
    /// Whether a set of ports has the port.
    fn has_port(&self, set: u32, port: u16) -> bool;
    /// The set of ports on which a policy allows the (canonical) address.
    fn allowed_ports(&self, policy: u32, destination: &Endpoint, transport: Transport) -> u32;
    /// Whether the peer has sent the workload a datagram lately, without having been asked.
    fn is_inbound(&self, workload: u32, peer: &Endpoint) -> bool;
    /// The network namespace's listeners, if it has any.
    fn listeners(&self) -> Option<&Listeners>;
}

/// A connect, or a datagram without a connect.
#[derive(Clone, Copy, Debug)]
pub struct Attempt<'a> {
    /// Where to.
    pub destination: &'a Endpoint,
    /// The socket's protocol number.
    pub protocol: u32,
    /// The task's cgroup is exempt (the agent's own).
    pub exempt: bool,
    /// What is enforced on the task's cgroup; `None` if the agent does not know it yet.
    pub member: Option<&'a Member>,
    /// The socket was made in another workload.
    pub is_foreign: bool,
    /// It is connect(2). Of a datagram socket nothing leaves by that: getaddrinfo(3) connects one to each answer, to see by
    /// which of its own addresses the machine would go there (RFC 6724). What is sent then is judged packet by packet.
    pub is_connect: bool,
    /// Any number, best a random one: spreads connects over listeners.
    pub spread: u32,
}

/// What to do with an attempt.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Decision {
    /// Leave it alone.
    Pass(Outcome),
    /// Leave it alone and keep an account of it: it leaves by another way than the proxy.
    Direct(Outcome),
    /// Send it to the listener instead; held until the listener exists if the outcome is [`Outcome::Held`].
    Redirect(Endpoint, Outcome),
    /// Refuse it with EPERM.
    Deny(Outcome),
}

/// Decides one connect or datagram. The order is part of the contract: exempt, name servers, explicit proxy, metadata, internal,
/// whose it is, redirect, blocks, the rest, which is denied.
#[must_use]
#[inline(always)]
pub fn attempt(facts: &Attempt<'_>, tables: &impl Tables) -> Decision {
    if facts.exempt {
        return Decision::Pass(Outcome::Exempt);
    }
    let destination = facts.destination;
    let transport = Transport::of(facts.protocol);
    // Resolvers are often on loopback or internal, so this comes first. Their datagrams do not come this far: see the
    // kernel programs' dns.rs.
    if destination.port() == dns::PORT && matches!(transport, Some(Transport::Tcp)) {
        return redirect(facts, tables);
    }
    // Nobody listens there but us, and such addresses too are often on loopback or internal.
    if matches!(transport, Some(Transport::Tcp)) && tables.is_proxy(destination) {
        return redirect(facts, tables);
    }
    if is_left_alone(destination, tables) {
        return Decision::Pass(Outcome::Internal);
    }
    let (Some(member), Some(transport)) = (facts.member, transport) else {
        return without_table(facts, transport, tables);
    };
    if matches!(transport, Transport::Tcp) && tables.has_port(member.redirected, destination.port()) {
        return redirect(facts, tables);
    }
    if !member.is_enforced() {
        return Decision::Direct(match transport {
            Transport::Tcp => Outcome::OtherTcp,
            Transport::Udp => Outcome::OtherUdp,
        });
    }
    if facts.is_foreign {
        return Decision::Deny(Outcome::ForeignSocket);
    }
    match (is_allowed(member, destination, transport, tables), transport) {
        (Allowed::Directly, Transport::Tcp) if tables.has_port(member.named, destination.port()) => {
            redirect(facts, tables)
        }
        (Allowed::Directly, _) => Decision::Direct(Outcome::Direct),
        (Allowed::ByProxy, Transport::Tcp) => redirect(facts, tables),
        (_, Transport::Udp) if tables.is_inbound(member.workload, destination) => {
            Decision::Pass(Outcome::InboundReply)
        }
        (_, Transport::Udp) if facts.is_connect => Decision::Pass(Outcome::DatagramConnect),
        _ => Decision::Deny(Outcome::Refused),
    }
}

/// Nobody's cgroup, or a protocol that no rule can name.
#[inline(always)]
fn without_table(facts: &Attempt<'_>, transport: Option<Transport>, tables: &impl Tables) -> Decision {
    match (facts.member, transport) {
        // The proxy waits, for a while, until the agent knows whose it is.
        (None, Some(Transport::Tcp)) => redirect(facts, tables),
        (None, Some(Transport::Udp)) if facts.is_connect => Decision::Pass(Outcome::DatagramConnect),
        (None, _) => Decision::Deny(Outcome::UnknownCgroup),
        (Some(member), _) if !member.is_enforced() => Decision::Pass(Outcome::OtherSocket),
        (Some(_), _) => Decision::Deny(Outcome::ForbiddenProtocol),
    }
}

/// Decides whether a socket may be made: SCTP, DCCP and UDP-Lite have connects that no hook sees, or that no rule can
/// allow. What raw sockets send is judged packet by packet, because they are used for destinations that are left alone.
#[must_use]
#[inline(always)]
pub fn create(protocol: u32, is_raw: bool, member: Option<&Member>) -> Option<Outcome> {
    if is_raw || Transport::of(protocol).is_some() || matches!(protocol, ICMP | ICMPV6) {
        return None;
    }
    match member {
        None => Some(Outcome::UnknownCgroup),
        Some(member) if member.is_enforced() => Some(Outcome::ForbiddenProtocol),
        Some(_) => None,
    }
}

/// A packet on its way out, as the hook of its socket's cgroup sees it.
#[derive(Clone, Copy, Debug)]
pub struct Packet<'a> {
    /// Where to; the port is 0 but for TCP and UDP. Of a TCP socket whose connect is known it is where that went: packets
    /// come here behind the machine's own NAT.
    pub destination: Endpoint,
    /// The protocol after the network header; an IPv6 extension header is told as what it is.
    pub protocol: u32,
    /// The network header says more than where to, which can be a source route: IPv4 options, or a hop-by-hop, routing or
    /// destination header of IPv6. A call's hook is told the end of such a route, the packet's header its next hop.
    pub has_options: bool,
    /// Of a raw socket: whoever writes it chooses every byte.
    pub is_raw: bool,
    /// What is enforced on the socket's cgroup; `None` if the agent does not know it yet.
    pub member: Option<&'a Member>,
    /// The policy that allowed the socket's connect; 0 if its connect was not decided by blocks, or the socket has another
    /// peer than the one that was decided on: a connect can still fail behind its hook, and leaves the earlier peer.
    pub policy: u32,
    /// Of a TCP socket that was made under the programs, for a connect that was judged. Others have accepted, listen, are
    /// older, or were only observed.
    pub is_connecting: bool,
}

/// What to do with a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PacketDecision {
    /// It goes on.
    Pass,
    /// It goes on and is reported.
    Report(Outcome),
    /// It goes on; the connection is now allowed by the member's policy, which is a newer one.
    Renew,
    /// It is dropped; the system call that sends it fails with EPERM.
    Deny(Outcome),
}

/// Decides one packet: what no hook of a system call has seen, and what a newer policy has revoked.
#[must_use]
#[inline(always)]
pub fn packet(facts: &Packet<'_>, tables: &impl Tables) -> PacketDecision {
    let destination = &facts.destination;
    // A source route leads on from where the header says: also from an internal address.
    if destination.is_loopback() || (!facts.has_options && is_left_alone(destination, tables)) {
        return PacketDecision::Pass;
    }
    let transport = match Transport::of(facts.protocol) {
        Some(transport) if !facts.is_raw && !facts.has_options => transport,
        _ => {
            return match facts.member {
                None => PacketDecision::Deny(Outcome::UnknownCgroup),
                Some(member) if member.is_enforced() => PacketDecision::Deny(Outcome::ForbiddenProtocol),
                Some(_) => PacketDecision::Report(Outcome::OtherSocket),
            };
        }
    };
    let Some(member) = facts.member else {
        // A TCP connect of an unknown cgroup goes to loopback, so this is somebody else's connect that was accepted, or the
        // end of what was allowed before the cgroup went.
        return match transport {
            Transport::Tcp if !facts.is_connecting || facts.policy != 0 => PacketDecision::Pass,
            Transport::Tcp | Transport::Udp => PacketDecision::Deny(Outcome::UnknownCgroup),
        };
    };
    if !member.is_enforced() || (facts.policy == member.policy && facts.policy != 0) {
        return PacketDecision::Pass;
    }
    match transport {
        // Accepted, or opened before the enforcement: those the agent has closed.
        Transport::Tcp if !facts.is_connecting => PacketDecision::Pass,
        Transport::Tcp => match is_allowed(member, destination, transport, tables) {
            Allowed::Directly if facts.policy != 0 => PacketDecision::Renew,
            Allowed::Directly => PacketDecision::Pass,
            Allowed::ByProxy | Allowed::Not if facts.policy != 0 => PacketDecision::Deny(Outcome::Revoked),
            // A connect to 0.0.0.0 goes to the socket's own address, which IP_TRANSPARENT makes any address at all
            // (`ip_route_connect`).
            Allowed::ByProxy | Allowed::Not => PacketDecision::Deny(Outcome::Refused),
        },
        // Also of sockets that were connected before the enforcement.
        Transport::Udp => match is_allowed(member, destination, transport, tables) {
            Allowed::Directly if facts.policy != 0 => PacketDecision::Renew,
            Allowed::Directly => PacketDecision::Pass,
            Allowed::ByProxy | Allowed::Not if tables.is_inbound(member.workload, destination) => {
                PacketDecision::Pass
            }
            Allowed::ByProxy | Allowed::Not => PacketDecision::Deny(Outcome::Refused),
        },
    }
}

/// Loopback and internal destinations. A metadata service is never internal, whatever prefix covers it.
#[inline(always)]
fn is_left_alone(destination: &Endpoint, tables: &impl Tables) -> bool {
    destination.is_loopback() || (tables.is_internal(destination) && !destination.is_metadata())
}

/// What the blocks of a policy say.
enum Allowed {
    Not,
    Directly,
    /// Perhaps: only the agent can tell.
    ByProxy,
}

#[inline(always)]
fn is_allowed(
    member: &Member,
    destination: &Endpoint,
    transport: Transport,
    tables: &impl Tables,
) -> Allowed {
    let inside = destination.inside_nat64();
    let address = match &inside {
        Some(v4) => v4,
        None => destination,
    };
    let ports = tables.allowed_ports(member.policy, address, transport);
    if !tables.has_port(ports, destination.port()) {
        return Allowed::Not;
    }
    if inside.is_some() && member.flags & DOUBTS_NAT64 != 0 {
        return Allowed::ByProxy;
    }
    Allowed::Directly
}

#[inline(always)]
fn redirect(facts: &Attempt<'_>, tables: &impl Tables) -> Decision {
    let is_v4 = facts.destination.octets_v4().is_some();
    match tables.listeners() {
        // Held: the first listener's address with the port that the agent will try first. If it has to take another,
        // the SYN stays held and the connect times out; the next one goes to the right port.
        None => Decision::Redirect(listener::endpoint(is_v4, 0, PREFERRED_PORT), Outcome::Held),
        Some(listeners) => match listeners.pick(is_v4, facts.spread) {
            Some(to) => Decision::Redirect(to, Outcome::Redirected),
            None => Decision::Deny(Outcome::NoListener),
        },
    }
}
