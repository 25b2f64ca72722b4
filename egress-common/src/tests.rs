use core::{mem::size_of, net::SocketAddr};

extern crate std;
use std::{collections::BTreeSet, format, string::ToString};

use crate::{
    address::Endpoint,
    counter::{COUNTERS, Counter},
    decide::{self, ConnectFacts, Decision, TCP, UDP},
    dns::{self, Asker, FIRST_RESOLVER, HeldQuery, RESOLVERS},
    event::{Event, ListenerWanted, Observed, ObservedKey},
    flow::{Flow, FlowKey},
    listener::{FIRST_V4, Listeners, PREFERRED_PORT},
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

fn facts(destination: &str) -> ConnectFacts<'static> {
    ConnectFacts {
        destination: endpoint(destination),
        protocol: TCP,
        exempt: false,
        internal: false,
        port_redirected: true,
        listeners: Some(&LISTENERS),
        spread: 0,
    }
}

/// A pinned map made by another version must not be read with another layout: a change here is a change of format, and
/// needs another number in [`crate::names::LAYOUT`].
#[test]
fn sizes_of_shared_structs_are_as_recorded() {
    assert_eq!(size_of::<Endpoint>(), 20);
    assert_eq!(size_of::<FlowKey>(), 32);
    assert_eq!(size_of::<Flow>(), 112);
    assert_eq!(size_of::<Listeners>(), 40);
    assert_eq!(size_of::<Asker>(), 144);
    assert_eq!(size_of::<HeldQuery>(), 688);
    assert_eq!(size_of::<Event>(), 88);
    assert_eq!(size_of::<ListenerWanted>(), 24);
    assert_eq!(size_of::<ObservedKey>(), 32);
    assert_eq!(size_of::<Observed>(), 16);
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
            decide::connect(&facts(destination)),
            Decision::Pass(Outcome::Internal),
            "{destination}"
        );
    }
    for destination in ["126.0.0.1:80", "[::2]:443", "0.0.0.1:80"] {
        assert_ne!(
            decide::connect(&facts(destination)),
            Decision::Pass(Outcome::Internal),
            "{destination}"
        );
    }
}

#[test]
fn metadata_is_never_internal() {
    for destination in [
        "169.254.169.254:80",
        "168.63.129.16:80",
        "100.100.100.200:80",
        "[fd00:ec2::254]:80",
        "[64:ff9b::a9fe:a9fe]:80",
    ] {
        let facts = ConnectFacts {
            internal: true,
            ..facts(destination)
        };
        assert!(
            matches!(decide::connect(&facts), Decision::Redirect(..)),
            "{destination}"
        );
    }
    let facts = ConnectFacts {
        internal: true,
        ..facts("169.254.20.10:80")
    };
    assert_eq!(decide::connect(&facts), Decision::Pass(Outcome::Internal));
}

#[test]
fn a_web_connect_goes_to_a_listener_of_its_family() {
    let Decision::Redirect(to, Outcome::Redirected) = decide::connect(&facts("192.0.2.1:443")) else {
        panic!("not redirected")
    };
    assert_eq!(to, Endpoint::v4(FIRST_V4, 61443));
    let v6 = ConnectFacts {
        spread: 1,
        ..facts("[2001:db8::1]:443")
    };
    assert_eq!(
        decide::connect(&v6),
        Decision::Redirect(endpoint("[::1]:61444"), Outcome::Redirected)
    );
    // A place without a listener falls back to the first.
    let v6 = ConnectFacts {
        spread: 3,
        ..facts("[2001:db8::1]:443")
    };
    assert_eq!(
        decide::connect(&v6),
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
    let held = ConnectFacts {
        listeners: None,
        ..facts("192.0.2.1:80")
    };
    assert_eq!(
        decide::connect(&held),
        Decision::Redirect(Endpoint::v4(FIRST_V4, PREFERRED_PORT), Outcome::Held)
    );
    let v4_only = Listeners {
        v4: [61443; 4],
        ..Listeners::default()
    };
    let refused = ConnectFacts {
        listeners: Some(&v4_only),
        ..facts("[2001:db8::1]:80")
    };
    assert_eq!(decide::connect(&refused), Decision::Deny(Outcome::NoListener));
}

#[test]
fn other_ports_and_protocols_are_told_apart() {
    let ssh = ConnectFacts {
        port_redirected: false,
        ..facts("192.0.2.1:22")
    };
    assert_eq!(decide::connect(&ssh), Decision::Pass(Outcome::OtherTcp));
    let quic = ConnectFacts {
        protocol: UDP,
        ..facts("192.0.2.1:443")
    };
    assert_eq!(decide::connect(&quic), Decision::Pass(Outcome::OtherUdp));
    let sctp = ConnectFacts {
        protocol: 132,
        ..facts("192.0.2.1:443")
    };
    assert_eq!(decide::connect(&sctp), Decision::Pass(Outcome::OtherSocket));
    let agent = ConnectFacts {
        exempt: true,
        ..facts("192.0.2.1:443")
    };
    assert_eq!(decide::connect(&agent), Decision::Pass(Outcome::Exempt));
    assert!(!format!("{agent:?}").is_empty());
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
