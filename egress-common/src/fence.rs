//! The fence at the far end of a network namespace's way out: what may leave it that no hook of a socket has seen. Packet
//! sockets, TUN devices and address translation inside the namespace do not get past it.
//!
//! It judges where the namespace's own root can change nothing: at the host's end of the veth pair.

use crate::{address::Endpoint, decide};

/// IPPROTO_ICMP.
pub const ICMP: u32 = 1;
/// IPPROTO_IGMP.
pub const IGMP: u32 = 2;
/// IPPROTO_DCCP.
pub const DCCP: u32 = 33;
/// IPPROTO_ICMPV6.
pub const ICMPV6: u32 = 58;
/// IPPROTO_SCTP.
pub const SCTP: u32 = 132;
/// IPPROTO_UDPLITE.
pub const UDPLITE: u32 = 136;

/// One fence, by the index of the interface that it stands at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Fence {
    /// Cookie of the fenced network namespace.
    pub netns: u64,
    /// Cgroup of one of its members: whose it is said to be where a packet tells nothing.
    pub cgroup: u64,
    /// Handle of its filters where they are attached by netlink (before Linux 6.6), so that whoever clears up finds them;
    /// 0 where they are pinned links.
    pub handle: u32,
    /// Explicit padding.
    pub reserved: u32,
}

/// Both ends of what passes between a fenced namespace and the rest.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(C)]
pub struct Way {
    /// Cookie of the network namespace.
    pub netns: u64,
    /// The namespace's end; all zeros where only the other one counts.
    pub inside: Endpoint,
    /// The other end. The port is an ICMP echo's identifier at both.
    pub outside: Endpoint,
    /// Protocol number.
    pub protocol: u32,
    /// Explicit padding.
    pub reserved: u32,
}

/// What has come in by a [`Way`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Arrival {
    /// CLOCK_BOOTTIME of the last packet, in nanoseconds.
    pub last: u64,
    /// 1 if the other end began a TCP connection by it, or is a neighbour on the same link.
    pub lasting: u32,
    /// Explicit padding.
    pub reserved: u32,
}

/// Where one of the agent's own sockets may go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Vetted {
    /// Where to.
    pub destination: Endpoint,
    /// Protocol number on the wire.
    pub protocol: u32,
}

/// A datagram without a connect that a verdict has let through.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(C)]
pub struct SentKey {
    /// The socket's cookie.
    pub socket: u64,
    /// Where to.
    pub destination: Endpoint,
    /// Explicit padding.
    pub reserved: u32,
}

/// A fragmented packet whose first fragment has left.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(C)]
pub struct FragmentKey {
    /// Cookie of the network namespace.
    pub netns: u64,
    /// Source address, port 0.
    pub source: Endpoint,
    /// Destination address, port 0.
    pub destination: Endpoint,
    /// Protocol number.
    pub protocol: u32,
    /// The number that all fragments of a packet share.
    pub id: u32,
}

/// Nanoseconds that an answer may take: conntrack's time for UDP streams and longer than TIME_WAIT, in which TCP still
/// acknowledges without a socket.
pub const ARRIVAL_LIFE: u64 = 180_000_000_000;
/// Nanoseconds that an accepted connection may be silent: conntrack's time for TCP.
pub const LASTING_LIFE: u64 = 5 * 24 * 3600 * 1_000_000_000;

/// What a message of ICMP or ICMPv6 is to the fence.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Message {
    /// A ping.
    Echo,
    /// The answer to one.
    Answer,
    /// It quotes a packet that came in.
    Error,
    /// Neighbour discovery, which counts with a hop limit of 255 only.
    Neighbour,
    /// Who listens to which multicast address, with a hop limit of 1.
    Listener,
    /// Anything else.
    Other,
}

/// The headers of a packet that is about to leave.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Departure {
    /// Where to; the port is 0 where the protocol has none.
    pub destination: Endpoint,
    /// The protocol behind the network header and its extensions.
    pub protocol: u32,
    /// Type of an ICMP message.
    pub kind: u8,
    /// Hop limit, or time to live.
    pub hops: u8,
    /// It has IPv4 options or a routing header, by which it may lead elsewhere than to its destination.
    pub is_odd: bool,
    /// It is a fragment other than the first, without ports.
    pub is_later_fragment: bool,
}

/// What is looked up on the way to a decision, and only if it gets there.
pub trait Evidence {
    /// The destination lies in an internal prefix.
    fn is_internal(&self) -> bool;
    /// It comes from a socket that a verdict has let go there, or from the agent's own.
    fn is_vetted(&self) -> bool;
    /// What has come in by the same way.
    fn arrival(&self) -> Option<Arrival>;
    /// What has come in by the way of the packet that an error quotes.
    fn quoted_arrival(&self) -> Option<Arrival>;
    /// Neighbour discovery that has come from where it goes.
    fn neighbour(&self) -> Option<Arrival>;
    /// The first fragment has left.
    fn first_fragment_left(&self) -> bool;
}

/// Whether a packet may leave a fenced namespace. The order is part of the contract: what the link itself needs, detours,
/// internal destinations, what a verdict has let through, what answers something that came in; the rest stays inside.
#[must_use]
#[inline(always)]
pub fn may_leave(packet: &Departure, evidence: &impl Evidence, now: u64) -> bool {
    if is_link_business(packet) {
        return true;
    }
    if packet.is_odd || packet.destination.is_loopback() {
        return false;
    }
    if evidence.is_internal() && !packet.destination.is_metadata() {
        return true;
    }
    if packet.is_later_fragment {
        return evidence.first_fragment_left();
    }
    if evidence.is_vetted() {
        return true;
    }
    let arrival = match Message::of(packet.protocol, packet.kind) {
        None | Some(Message::Answer) => evidence.arrival(),
        Some(Message::Error) => evidence.quoted_arrival(),
        Some(Message::Neighbour) if packet.hops == u8::MAX => evidence.neighbour(),
        Some(Message::Neighbour | Message::Echo | Message::Listener | Message::Other) => None,
    };
    match arrival {
        Some(arrival) => arrival.is_fresh(now),
        None => false,
    }
}

/// What never goes further than the link: its destinations are not routed.
#[inline(always)]
fn is_link_business(packet: &Departure) -> bool {
    if packet.is_later_fragment {
        return false;
    }
    if packet.protocol == IGMP {
        return packet.hops == 1 && is_multicast_v4(&packet.destination);
    }
    match Message::of(packet.protocol, packet.kind) {
        Some(Message::Neighbour) => packet.hops == u8::MAX && is_link_local(&packet.destination),
        Some(Message::Listener) => packet.hops == 1 && is_link_local(&packet.destination),
        Some(Message::Echo | Message::Answer | Message::Error | Message::Other) | None => false,
    }
}

/// 224.0.0.0/4.
#[inline(always)]
fn is_multicast_v4(address: &Endpoint) -> bool {
    match address.octets_v4() {
        Some(octets) => octets[0] >> 4 == 0xe,
        None => false,
    }
}

/// fe80::/10, and multicast of link-local scope (RFC 4291 section 2.7).
#[inline(always)]
fn is_link_local(address: &Endpoint) -> bool {
    let [first, second, ..] = address.octets();
    (first == 0xfe && second & 0xc0 == 0x80) || (first == 0xff && second & 0xf == 2)
}

impl Message {
    /// The meaning of a type; `None` if the protocol is neither ICMP nor ICMPv6.
    #[must_use]
    #[inline(always)]
    pub const fn of(protocol: u32, kind: u8) -> Option<Self> {
        Some(match (protocol, kind) {
            (ICMP, 8) | (ICMPV6, 128) => Self::Echo,
            (ICMP, 0) | (ICMPV6, 129) => Self::Answer,
            (ICMP, 3 | 11 | 12) | (ICMPV6, 1..=4) => Self::Error,
            (ICMPV6, 133..=136) => Self::Neighbour,
            (ICMPV6, 130..=132 | 143) => Self::Listener,
            (ICMP | ICMPV6, _) => Self::Other,
            _ => return None,
        })
    }
}

impl Arrival {
    /// Whether it may still be answered.
    #[must_use]
    #[inline(always)]
    pub const fn is_fresh(&self, now: u64) -> bool {
        let life = if self.lasting == 0 {
            ARRIVAL_LIFE
        } else {
            LASTING_LIFE
        };
        // A packet that came in on another CPU after `now` was read is fresh, too.
        now.saturating_sub(self.last) <= life
    }
}

/// The protocol number that packets of a socket have.
#[must_use]
#[inline(always)]
pub const fn on_the_wire(protocol: u32) -> u32 {
    match protocol {
        decide::MPTCP => decide::TCP,
        other => other,
    }
}

/// Whether the first four bytes behind the network header are two ports.
#[must_use]
#[inline(always)]
pub const fn has_ports(protocol: u32) -> bool {
    matches!(protocol, decide::TCP | decide::UDP | SCTP | DCCP | UDPLITE)
}

#[cfg(test)]
mod tests {
    extern crate std;
    use core::net::SocketAddr;

    use super::*;
    use crate::decide::{TCP, UDP};

    const NOW: u64 = 10_000_000_000_000_000;

    #[derive(Default)]
    struct Known {
        internal: bool,
        vetted: bool,
        arrival: Option<Arrival>,
        quoted: Option<Arrival>,
        neighbour: Option<Arrival>,
        first_fragment: bool,
    }

    impl Evidence for Known {
        fn is_internal(&self) -> bool {
            self.internal
        }
        fn is_vetted(&self) -> bool {
            self.vetted
        }
        fn arrival(&self) -> Option<Arrival> {
            self.arrival
        }
        fn quoted_arrival(&self) -> Option<Arrival> {
            self.quoted
        }
        fn neighbour(&self) -> Option<Arrival> {
            self.neighbour
        }
        fn first_fragment_left(&self) -> bool {
            self.first_fragment
        }
    }

    fn packet(destination: &str, protocol: u32) -> Departure {
        Departure {
            destination: destination.parse::<SocketAddr>().unwrap().into(),
            protocol,
            kind: 0,
            hops: 64,
            is_odd: false,
            is_later_fragment: false,
        }
    }

    fn message(destination: &str, protocol: u32, kind: u8, hops: u8) -> Departure {
        Departure {
            kind,
            hops,
            ..packet(destination, protocol)
        }
    }

    fn ago(nanoseconds: u64, lasting: u32) -> Option<Arrival> {
        Some(Arrival {
            last: NOW - nanoseconds,
            lasting,
            reserved: 0,
        })
    }

    #[test]
    fn what_nothing_speaks_for_stays_inside() {
        for protocol in 0..256 {
            for kind in 0..=255 {
                let packet = message("198.51.100.66:0", protocol, kind, 64);
                assert!(!may_leave(&packet, &Known::default(), NOW), "{protocol} {kind}");
            }
        }
        assert!(!may_leave(
            &packet("[2001:db8::66]:443", TCP),
            &Known::default(),
            NOW
        ));
    }

    #[test]
    fn internal_destinations_and_vetted_sockets_pass_and_metadata_is_never_internal() {
        let internal = Known {
            internal: true,
            ..Known::default()
        };
        assert!(may_leave(&packet("10.0.0.1:0", 50), &internal, NOW));
        assert!(!may_leave(&packet("169.254.169.254:80", TCP), &internal, NOW));
        let vetted = Known {
            vetted: true,
            ..Known::default()
        };
        assert!(may_leave(&packet("169.254.169.254:80", TCP), &vetted, NOW));
    }

    #[test]
    fn a_detour_passes_for_nobody() {
        let all = Known {
            internal: true,
            vetted: true,
            ..Known::default()
        };
        let mut odd = packet("10.0.0.1:80", TCP);
        odd.is_odd = true;
        assert!(!may_leave(&odd, &all, NOW));
    }

    #[test]
    fn answers_pass_for_as_long_as_they_may_take() {
        let known = |arrival| Known {
            arrival,
            ..Known::default()
        };
        let answer = packet("198.51.100.66:5555", UDP);
        assert!(may_leave(&answer, &known(ago(ARRIVAL_LIFE, 0)), NOW));
        assert!(!may_leave(&answer, &known(ago(ARRIVAL_LIFE + 1, 0)), NOW));
        let accepted = packet("198.51.100.66:5555", TCP);
        assert!(may_leave(&accepted, &known(ago(LASTING_LIFE, 1)), NOW));
        assert!(!may_leave(&accepted, &known(ago(LASTING_LIFE + 1, 1)), NOW));
        let later = Some(Arrival {
            last: NOW + 1,
            ..Arrival::default()
        });
        assert!(may_leave(&answer, &known(later), NOW));
    }

    #[test]
    fn of_icmp_answers_pass_and_pings_do_not() {
        let arrived = Known {
            arrival: ago(1, 0),
            ..Known::default()
        };
        for (protocol, ping, answer) in [(ICMP, 8, 0), (ICMPV6, 128, 129)] {
            assert!(!may_leave(
                &message("[2001:db8::1]:7", protocol, ping, 64),
                &arrived,
                NOW
            ));
            assert!(may_leave(
                &message("[2001:db8::1]:7", protocol, answer, 64),
                &arrived,
                NOW
            ));
        }
    }

    #[test]
    fn an_error_passes_if_what_it_quotes_came_in() {
        let error = message("198.51.100.66:0", ICMP, 3, 64);
        assert!(!may_leave(
            &error,
            &Known {
                arrival: ago(1, 0),
                ..Known::default()
            },
            NOW
        ));
        assert!(may_leave(
            &error,
            &Known {
                quoted: ago(1, 0),
                ..Known::default()
            },
            NOW
        ));
    }

    #[test]
    fn the_link_is_served_and_nothing_behind_it() {
        let none = Known::default();
        assert!(may_leave(
            &message("[ff02::1:ff00:1]:0", ICMPV6, 135, 255),
            &none,
            NOW
        ));
        assert!(may_leave(&message("[fe80::1]:0", ICMPV6, 136, 255), &none, NOW));
        assert!(may_leave(&message("[ff02::16]:0", ICMPV6, 143, 1), &none, NOW));
        assert!(may_leave(&message("224.0.0.22:0", IGMP, 0, 1), &none, NOW));
        // A router would pass these on.
        for packet in [
            message("[ff02::1]:0", ICMPV6, 135, 64),
            message("[2001:db8::66]:0", ICMPV6, 135, 255),
            message("[ff05::16]:0", ICMPV6, 143, 1),
            message("[ff02::16]:0", ICMPV6, 143, 64),
            message("224.0.0.22:0", IGMP, 0, 2),
            message("198.51.100.66:0", IGMP, 0, 1),
        ] {
            assert!(!may_leave(&packet, &none, NOW), "{packet:?}");
        }
        let neighbour = Known {
            neighbour: ago(1, 1),
            ..Known::default()
        };
        assert!(may_leave(
            &message("[2001:db8::1]:0", ICMPV6, 135, 255),
            &neighbour,
            NOW
        ));
        assert!(!may_leave(
            &message("[2001:db8::1]:0", ICMPV6, 135, 64),
            &neighbour,
            NOW
        ));
    }

    #[test]
    fn later_fragments_follow_the_first() {
        let mut later = packet("198.51.100.66:0", UDP);
        later.is_later_fragment = true;
        let known = |first_fragment| Known {
            arrival: ago(1, 0),
            first_fragment,
            ..Known::default()
        };
        assert!(may_leave(&later, &known(true), NOW));
        assert!(!may_leave(&later, &known(false), NOW));
        // Its first bytes are no type of a message.
        let mut neighbour = message("[ff02::1]:0", ICMPV6, 135, 255);
        neighbour.is_later_fragment = true;
        assert!(!may_leave(&neighbour, &known(false), NOW));
    }
}
