use core::{mem::size_of, net::SocketAddr};

extern crate std;
use std::{collections::BTreeSet, format, string::ToString};

use crate::{
    address::Endpoint,
    counter::{COUNTERS, Counter},
    decide::{self, Attempt, Decision, MPTCP, Packet, PacketDecision, TCP, Tables, UDP},
    dns::{self, Asker, FIRST_RESOLVER, HeldQuery, RESOLVERS},
    event::{Event, ListenerWanted, Observed, ObservedKey},
    fence,
    flow::{ClosedFlow, Flow, FlowKey},
    listener::{FIRST_V4, Listeners, PREFERRED_PORT},
    member::{
        ALL_PORTS, Allowance, BlockKey, DOUBTS_NAT64, ENFORCE, Inbound, InboundKey, Member, NO_PORTS, PASS,
        PortChunk, Transport,
    },
    outcome::Outcome,
};

fn endpoint(text: &str) -> Endpoint {
    text.parse::<SocketAddr>().unwrap().into()
}

const LISTENERS: Listeners = Listeners {
    v4: [61443; 4],
    v6: [61443, 61444, 0, 0],
    source_v4: [0; 4],
    dns_v4: 61400,
    dns_v6: 61410,
    source_v6: [0; 16],
};

/// Tables with one of each kind.
#[derive(Clone, Copy, Default)]
struct Stage {
    is_internal: bool,
    is_proxy: bool,
    /// The only address that blocks allow, on every port of both transports.
    allowed: Option<Endpoint>,
    /// A peer that has sent a datagram.
    inbound: Option<Endpoint>,
    listeners: Option<Listeners>,
}

/// The only set of ports but the trivial ones.
const WEB: u32 = 7;

impl Tables for Stage {
    fn is_internal(&self, _: &Endpoint) -> bool {
        self.is_internal
    }
    fn is_proxy(&self, _: &Endpoint) -> bool {
        self.is_proxy
    }
    fn has_port(&self, set: u32, port: u16) -> bool {
        set == ALL_PORTS || (set == WEB && (port == 80 || port == 443))
    }
    fn allowed_ports(&self, policy: u32, destination: &Endpoint, _: Transport) -> u32 {
        let is_allowed = policy == 1
            && self
                .allowed
                .is_some_and(|net| net.octets() == destination.octets());
        if is_allowed { ALL_PORTS } else { NO_PORTS }
    }
    fn is_inbound(&self, workload: u32, peer: &Endpoint) -> bool {
        workload == 1 && self.inbound == Some(*peer)
    }
    fn listeners(&self) -> Option<&Listeners> {
        self.listeners.as_ref()
    }
}

const STAGE: Stage = Stage {
    is_internal: false,
    is_proxy: false,
    allowed: None,
    inbound: None,
    listeners: Some(LISTENERS),
};

static MEMBER: Member = Member {
    policy: 1,
    workload: 1,
    posture: ENFORCE,
    redirected: WEB,
    named: WEB,
    flags: 0,
};

/// Facts outlive their test.
fn kept<T>(value: T) -> &'static T {
    std::boxed::Box::leak(std::boxed::Box::new(value))
}

fn facts(destination: &str) -> Attempt<'static> {
    Attempt {
        destination: kept(endpoint(destination)),
        protocol: TCP,
        exempt: false,
        member: Some(&MEMBER),
        is_foreign: false,
        is_connect: false,
        spread: 0,
    }
}

fn tried(facts: &Attempt<'_>) -> Decision {
    decide::attempt(facts, &STAGE)
}

/// A pinned map made by another version must not be read with another layout: a change here is a change of format, and
/// needs another number in [`crate::names::LAYOUT`].
#[test]
fn sizes_of_shared_structs_are_as_recorded() {
    assert_eq!(size_of::<Endpoint>(), 20);
    assert_eq!(size_of::<FlowKey>(), 32);
    assert_eq!(size_of::<Flow>(), 152);
    assert_eq!(size_of::<ClosedFlow>(), 184);
    assert_eq!(size_of::<Member>(), 24);
    assert_eq!(size_of::<BlockKey>(), 20);
    assert_eq!(size_of::<Allowance>(), 8);
    assert_eq!(size_of::<PortChunk>(), 8);
    assert_eq!(size_of::<InboundKey>(), 24);
    assert_eq!(size_of::<Inbound>(), 8);
    assert_eq!(size_of::<Listeners>(), 40);
    assert_eq!(size_of::<Asker>(), 144);
    assert_eq!(size_of::<HeldQuery>(), 688);
    assert_eq!(size_of::<Event>(), 96);
    assert_eq!(size_of::<ListenerWanted>(), 24);
    assert_eq!(size_of::<ObservedKey>(), 32);
    assert_eq!(size_of::<Observed>(), 24);
    assert_eq!(size_of::<fence::Fence>(), 24);
    assert_eq!(size_of::<fence::Way>(), 56);
    assert_eq!(size_of::<fence::Arrival>(), 16);
    assert_eq!(size_of::<fence::Vetted>(), 24);
    assert_eq!(size_of::<fence::SentKey>(), 32);
    assert_eq!(size_of::<fence::FragmentKey>(), 56);
}

#[test]
fn outcome_numbers_and_words_are_unique_and_found_again() {
    let numbers: BTreeSet<u16> = Outcome::ALL.iter().map(|outcome| outcome.number()).collect();
    let words: BTreeSet<&str> = Outcome::ALL.iter().map(|outcome| outcome.as_str()).collect();
    assert_eq!(numbers.len(), Outcome::ALL.len());
    assert_eq!(words.len(), Outcome::ALL.len());
    for outcome in Outcome::ALL {
        assert_eq!(Outcome::from_number(outcome.number()), Some(*outcome));
    }
    assert_eq!(Outcome::from_number(0), None);
    for counter in Counter::ALL {
        assert!(counter.index() < COUNTERS);
        assert!(
            !numbers.contains(&u16::try_from(counter.index()).unwrap()),
            "{counter:?}"
        );
    }
}

#[test]
fn a_mapped_destination_is_the_ipv4_one() {
    let mapped = Endpoint::v6([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 192, 0, 2, 1], 443);
    assert_eq!(mapped, endpoint("192.0.2.1:443"));
    assert_eq!(mapped.socket_addr().to_string(), "192.0.2.1:443");
    assert_eq!(endpoint("[2001:db8::1]:80").octets_v4(), None);
}

#[test]
fn loopback_and_unspecified_addresses_are_left_alone() {
    for destination in [
        "127.0.0.1:80",
        "127.255.3.4:443",
        "0.0.0.0:80",
        "[::1]:443",
        "[::]:80",
    ] {
        assert_eq!(
            tried(&facts(destination)),
            Decision::Pass(Outcome::Internal),
            "{destination}"
        );
    }
    for destination in ["126.0.0.1:80", "[::2]:443", "0.0.0.1:80"] {
        assert_ne!(
            tried(&facts(destination)),
            Decision::Pass(Outcome::Internal),
            "{destination}"
        );
    }
}

#[test]
fn metadata_is_never_internal() {
    let stage = Stage {
        is_internal: true,
        ..STAGE
    };
    for destination in [
        "169.254.169.254:80",
        "168.63.129.16:80",
        "100.100.100.200:80",
        "[fd00:ec2::254]:80",
        "[64:ff9b::a9fe:a9fe]:80",
    ] {
        let decision = decide::attempt(&facts(destination), &stage);
        assert!(matches!(decision, Decision::Redirect(..)), "{destination}");
    }
    let other = decide::attempt(&facts("169.254.20.10:80"), &stage);
    assert_eq!(other, Decision::Pass(Outcome::Internal));
}

#[test]
fn a_web_connect_goes_to_a_listener_of_its_family() {
    let Decision::Redirect(to, Outcome::Redirected) = tried(&facts("192.0.2.1:443")) else {
        panic!("not redirected")
    };
    assert_eq!(to, Endpoint::v4(FIRST_V4, 61443));
    let v6 = Attempt {
        spread: 1,
        ..facts("[2001:db8::1]:443")
    };
    assert_eq!(
        tried(&v6),
        Decision::Redirect(endpoint("[::1]:61444"), Outcome::Redirected)
    );
    // A place without a listener falls back to the first.
    let v6 = Attempt {
        spread: 3,
        ..facts("[2001:db8::1]:443")
    };
    assert_eq!(
        tried(&v6),
        Decision::Redirect(endpoint("[::1]:61443"), Outcome::Redirected)
    );
}

#[test]
fn every_listener_that_can_be_picked_is_known_as_one() {
    let listeners = LISTENERS;
    for spread in 0..16 {
        for is_v4 in [true, false] {
            let picked = listeners.pick(is_v4, spread).unwrap();
            assert!(listeners.contains(&picked), "{picked:?}");
            assert!(listeners.has_port(picked.port()));
        }
    }
    assert!(!listeners.contains(&endpoint("127.69.71.5:61443")));
    assert!(!listeners.contains(&endpoint("127.0.0.1:61443")));
    assert!(!Listeners::default().has_port(0));
}

#[test]
fn a_connect_without_a_listener_is_held_and_one_without_its_family_refused() {
    let nobody = Stage {
        listeners: None,
        ..STAGE
    };
    assert_eq!(
        decide::attempt(&facts("192.0.2.1:80"), &nobody),
        Decision::Redirect(Endpoint::v4(FIRST_V4, PREFERRED_PORT), Outcome::Held)
    );
    let v4_only = Stage {
        listeners: Some(Listeners {
            v4: [61443; 4],
            ..Listeners::default()
        }),
        ..STAGE
    };
    assert_eq!(
        decide::attempt(&facts("[2001:db8::1]:80"), &v4_only),
        Decision::Deny(Outcome::NoListener)
    );
}

#[test]
fn what_nobody_allows_is_refused_whatever_it_is() {
    for (protocol, port, outcome) in [
        (TCP, 22, Outcome::Refused),
        (MPTCP, 22, Outcome::Refused),
        (UDP, 443, Outcome::Refused),
        (UDP, 53, Outcome::Refused),
        (132, 443, Outcome::ForbiddenProtocol),
        (136, 53, Outcome::ForbiddenProtocol),
        (0, 0, Outcome::ForbiddenProtocol),
    ] {
        let attempt = Attempt {
            protocol,
            ..facts(&format!("192.0.2.1:{port}"))
        };
        assert_eq!(tried(&attempt), Decision::Deny(outcome), "{protocol} {port}");
        let watched = Attempt {
            member: Some(kept(Member {
                posture: PASS,
                ..MEMBER
            })),
            ..attempt
        };
        assert!(
            matches!(tried(&watched), Decision::Direct(_) | Decision::Pass(_)),
            "{protocol} {port}"
        );
    }
    let agent = Attempt {
        exempt: true,
        ..facts("192.0.2.1:22")
    };
    assert_eq!(tried(&agent), Decision::Pass(Outcome::Exempt));
    assert!(!format!("{agent:?}").is_empty());
}

#[test]
fn a_datagram_socket_may_be_connected_because_nothing_leaves_by_that() {
    let connect = |protocol| Attempt {
        protocol,
        is_connect: true,
        ..facts("192.0.2.1:443")
    };
    assert_eq!(tried(&connect(UDP)), Decision::Pass(Outcome::DatagramConnect));
    let sent = decide::packet(&packet("192.0.2.1:443", UDP), &STAGE);
    assert_eq!(sent, PacketDecision::Deny(Outcome::Refused));
    assert_eq!(tried(&connect(132)), Decision::Deny(Outcome::ForbiddenProtocol));
    let foreign = Attempt {
        is_foreign: true,
        ..connect(UDP)
    };
    assert_eq!(tried(&foreign), Decision::Deny(Outcome::ForeignSocket));
}

#[test]
fn an_allowed_address_goes_direct_where_no_name_can_matter() {
    let stage = Stage {
        allowed: Some(endpoint("203.0.113.5:0")),
        ..STAGE
    };
    let decided = |destination: &str, protocol| {
        let attempt = Attempt {
            protocol,
            ..facts(destination)
        };
        decide::attempt(&attempt, &stage)
    };
    assert_eq!(
        decided("203.0.113.5:5432", TCP),
        Decision::Direct(Outcome::Direct)
    );
    assert_eq!(decided("203.0.113.5:443", UDP), Decision::Direct(Outcome::Direct));
    assert!(matches!(decided("203.0.113.5:443", TCP), Decision::Redirect(..)));
    assert_eq!(decided("203.0.113.6:5432", TCP), Decision::Deny(Outcome::Refused));
    // The address inside is what counts.
    assert_eq!(
        decided("[64:ff9b::203.0.113.5]:5432", TCP),
        Decision::Direct(Outcome::Direct)
    );
    let doubtful = |protocol| Attempt {
        protocol,
        member: Some(kept(Member {
            flags: DOUBTS_NAT64,
            ..MEMBER
        })),
        ..facts("[64:ff9b::203.0.113.5]:5432")
    };
    assert!(matches!(
        decide::attempt(&doubtful(TCP), &stage),
        Decision::Redirect(..)
    ));
    assert_eq!(
        decide::attempt(&doubtful(UDP), &stage),
        Decision::Deny(Outcome::Refused)
    );
    // A name could be denied there.
    let named = Attempt {
        member: Some(kept(Member {
            named: ALL_PORTS,
            ..MEMBER
        })),
        ..facts("203.0.113.5:5432")
    };
    assert!(matches!(decide::attempt(&named, &stage), Decision::Redirect(..)));
    let foreign = Attempt {
        is_foreign: true,
        ..facts("203.0.113.5:5432")
    };
    assert_eq!(
        decide::attempt(&foreign, &stage),
        Decision::Deny(Outcome::ForeignSocket)
    );
}

#[test]
fn an_unknown_cgroup_waits_for_the_agent_or_is_refused() {
    let unknown = |protocol| Attempt {
        protocol,
        member: None,
        ..facts("192.0.2.1:5432")
    };
    assert!(matches!(tried(&unknown(TCP)), Decision::Redirect(..)));
    assert_eq!(tried(&unknown(UDP)), Decision::Deny(Outcome::UnknownCgroup));
    assert_eq!(tried(&unknown(132)), Decision::Deny(Outcome::UnknownCgroup));
    let connected = Attempt {
        is_connect: true,
        ..unknown(UDP)
    };
    assert_eq!(tried(&connected), Decision::Pass(Outcome::DatagramConnect));
    assert_eq!(decide::create(132, false, None), Some(Outcome::UnknownCgroup));
    assert_eq!(decide::create(TCP, false, None), None);
}

#[test]
fn a_posture_that_is_not_known_is_enforced() {
    for posture in [0, ENFORCE, 3, u32::MAX] {
        assert!(Member { posture, ..MEMBER }.is_enforced());
    }
    assert!(
        !Member {
            posture: PASS,
            ..MEMBER
        }
        .is_enforced()
    );
}

#[test]
fn a_peer_that_has_sent_a_datagram_is_answered() {
    let stage = Stage {
        inbound: Some(endpoint("192.0.2.9:4000")),
        ..STAGE
    };
    let answer = |to: &str| Attempt {
        protocol: UDP,
        ..facts(to)
    };
    assert_eq!(
        decide::attempt(&answer("192.0.2.9:4000"), &stage),
        Decision::Pass(Outcome::InboundReply)
    );
    assert_eq!(
        decide::attempt(&answer("192.0.2.9:4001"), &stage),
        Decision::Deny(Outcome::Refused)
    );
}

#[test]
fn only_sockets_that_rules_can_allow_are_made() {
    for protocol in [TCP, UDP, MPTCP, decide::ICMP, decide::ICMPV6] {
        assert_eq!(decide::create(protocol, false, Some(&MEMBER)), None, "{protocol}");
    }
    for protocol in [33, 132, 136, 255] {
        assert_eq!(
            decide::create(protocol, false, Some(&MEMBER)),
            Some(Outcome::ForbiddenProtocol),
            "{protocol}"
        );
        assert_eq!(
            decide::create(protocol, true, Some(&MEMBER)),
            None,
            "judged by packet"
        );
    }
}

fn packet(destination: &str, protocol: u32) -> Packet<'static> {
    Packet {
        destination: endpoint(destination),
        protocol,
        has_options: false,
        is_raw: false,
        member: Some(&MEMBER),
        policy: 0,
        is_connecting: false,
    }
}

#[test]
fn packets_that_no_call_was_judged_for_are_dropped() {
    let drop = |facts: Packet<'_>, outcome| {
        let decision = decide::packet(&facts, &STAGE);
        assert_eq!(decision, PacketDecision::Deny(outcome), "{facts:?}");
    };
    drop(packet("192.0.2.1:0", decide::ICMP), Outcome::ForbiddenProtocol);
    drop(packet("192.0.2.1:0", 132), Outcome::ForbiddenProtocol);
    drop(packet("192.0.2.1:53", UDP), Outcome::Refused);
    for raw in [
        Packet {
            is_raw: true,
            ..packet("192.0.2.1:0", TCP)
        },
        Packet {
            has_options: true,
            ..packet("192.0.2.1:0", TCP)
        },
    ] {
        drop(raw, Outcome::ForbiddenProtocol);
    }
    let unknown = Packet {
        member: None,
        ..packet("192.0.2.1:53", UDP)
    };
    drop(unknown, Outcome::UnknownCgroup);
    for local in ["127.0.0.1:0", "[::1]:0"] {
        let ping = packet(local, decide::ICMP);
        assert_eq!(decide::packet(&ping, &STAGE), PacketDecision::Pass);
    }
    // A source route leads on from an internal address.
    let routed = Packet {
        has_options: true,
        ..packet("10.0.0.1:53", UDP)
    };
    let internal = Stage {
        is_internal: true,
        ..STAGE
    };
    assert_eq!(
        decide::packet(&routed, &internal),
        PacketDecision::Deny(Outcome::ForbiddenProtocol)
    );
    // Accepted connections are not our business.
    let served = packet("192.0.2.1:0", TCP);
    assert_eq!(decide::packet(&served, &STAGE), PacketDecision::Pass);
}

#[test]
fn a_newer_policy_reaches_the_packets_of_open_flows() {
    let stage = Stage {
        allowed: Some(endpoint("203.0.113.5:0")),
        ..STAGE
    };
    for protocol in [TCP, UDP] {
        let of_policy = |policy, destination: &str| {
            let facts = Packet {
                policy,
                is_connecting: true,
                ..packet(destination, protocol)
            };
            decide::packet(&facts, &stage)
        };
        assert_eq!(
            of_policy(1, "192.0.2.1:9"),
            PacketDecision::Pass,
            "judged by connect"
        );
        assert_eq!(of_policy(2, "203.0.113.5:9"), PacketDecision::Renew);
        assert!(matches!(of_policy(2, "192.0.2.1:9"), PacketDecision::Deny(_)));
        assert_eq!(
            of_policy(0, "192.0.2.1:9"),
            PacketDecision::Deny(Outcome::Refused),
            "a peer that no connect was judged for"
        );
        assert_eq!(of_policy(0, "203.0.113.5:9"), PacketDecision::Pass);
    }
    let of_nobody = |policy| {
        let facts = Packet {
            member: None,
            policy,
            is_connecting: true,
            ..packet("192.0.2.1:9", TCP)
        };
        decide::packet(&facts, &STAGE)
    };
    assert_eq!(of_nobody(0), PacketDecision::Deny(Outcome::UnknownCgroup));
    assert_eq!(
        of_nobody(1),
        PacketDecision::Pass,
        "its cgroup has gone before its last packets"
    );
}

#[test]
fn every_place_of_the_name_service_is_found_again_and_no_other() {
    for is_v4 in [true, false] {
        for slot in 0..RESOLVERS {
            let place = LISTENERS.dns(is_v4, slot).unwrap();
            assert!(place.is_loopback());
            assert_eq!(LISTENERS.dns_slot(&place), Some(slot), "{place:?}");
            assert!(LISTENERS.contains(&place));
            assert!(LISTENERS.has_dns_port(place.port()));
        }
    }
    for other in [
        "127.69.72.5:61400",
        "127.69.72.0:61400",
        "127.69.71.1:61400",
        "127.69.72.1:61401",
        "[::1]:61400",
        "[::1]:61414",
        "[::1]:61409",
        "[::]:61410",
    ] {
        assert_eq!(LISTENERS.dns_slot(&endpoint(other)), None, "{other}");
    }
    let mapped = Endpoint::v6(endpoint("127.69.72.2:1").octets(), 61400);
    assert_eq!(LISTENERS.dns_slot(&mapped), Some(1), "as an IPv6 socket sees it");
    let none = Listeners::default();
    assert_eq!(none.dns(true, 0), None);
    assert_eq!(none.dns(false, 0), None);
    assert_eq!(none.dns_slot(&Endpoint::v4(FIRST_RESOLVER, 0)), None);
    assert!(!none.has_dns_port(0));
}

#[test]
fn a_socket_remembers_the_last_resolvers_that_it_asked() {
    let mut asker = Asker::EMPTY;
    let asked = [
        "192.0.2.1:53",
        "192.0.2.2:53",
        "[2001:db8::1]:53",
        "127.0.0.53:53",
    ]
    .map(endpoint);
    let slots = asked.map(|resolver| asker.slot_of(&resolver));
    assert_eq!(slots, [0, 1, 2, 3]);
    assert_eq!(asked.map(|resolver| asker.slot_of(&resolver)), slots, "and again");
    for (resolver, slot) in asked.iter().zip(slots) {
        assert_eq!(asker.resolver(slot), Some(*resolver));
    }
    let fifth = endpoint("192.0.2.5:53");
    assert_eq!(asker.slot_of(&fifth), 0, "the oldest makes room");
    assert_eq!(asker.resolver(0), Some(fifth));
    assert_eq!(asker.resolver(RESOLVERS), None);
    assert_eq!(Asker::EMPTY.resolver(0), None);
    assert_eq!(dns::PORT, 53);
}

#[test]
fn an_address_of_the_explicit_proxy_is_redirected_wherever_it_lies() {
    let stage = Stage {
        is_internal: true,
        is_proxy: true,
        ..STAGE
    };
    for destination in ["127.0.0.1:3128", "[::1]:3128", "0.0.0.0:3128", "10.43.0.9:3128"] {
        let decision = decide::attempt(&facts(destination), &stage);
        assert!(
            matches!(decision, Decision::Redirect(_, Outcome::Redirected)),
            "{destination}"
        );
        let datagram = Attempt {
            protocol: UDP,
            ..facts(destination)
        };
        assert_eq!(
            decide::attempt(&datagram, &stage),
            Decision::Pass(Outcome::Internal),
            "{destination}"
        );
        // The agent itself would only reach itself.
        let agent = Attempt {
            exempt: true,
            ..facts(destination)
        };
        assert_eq!(
            decide::attempt(&agent, &stage),
            Decision::Pass(Outcome::Exempt),
            "{destination}"
        );
    }
}

#[test]
fn the_unspecified_address_is_of_the_same_family_and_port() {
    assert_eq!(endpoint("192.0.2.1:3128").unspecified(), endpoint("0.0.0.0:3128"));
    assert_eq!(
        endpoint("[::ffff:192.0.2.1]:3128").unspecified(),
        endpoint("0.0.0.0:3128")
    );
    assert_eq!(
        endpoint("[2001:db8::1]:3128").unspecified(),
        endpoint("[::]:3128")
    );
}
