//! Upstream sockets leave as the workload's own would. Needs root, for a network namespace of its own without a way out:
//!
//! ```text
//!   lo:   198.51.100.10, 2001:db8:1::10     origins
//!   out:  192.0.2.1/24, 2001:db8::1/64      a veth whose other end nobody listens at: what is sent there is lost
//! ```
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test helper that fails has failed the test"
)]

use std::{
    fs::File,
    io::Write,
    net::{IpAddr, SocketAddr, TcpListener},
    os::fd::{AsFd, AsRawFd},
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use egress_agent::{
    access_log::AddressRelation,
    netns::Netns,
    policy::{DomainName, Host},
    proxy::{
        connection::Route,
        dial::{DialError, DialSettings, Dialer, Payload, PrivateAnswers, Sought, Wanted},
    },
    socket::netns_cookie,
};
use egress_common::outcome::Outcome;
use nix::{
    net::if_::if_nametoindex,
    sched::{CloneFlags, unshare},
};
use socket2::SockRef;

const ORIGIN_V4: &str = "198.51.100.10";
const ORIGIN_V6: &str = "2001:db8:1::10";

/// A namespace with an origin on each family.
struct Place {
    netns: Netns,
    origins: [TcpListener; 2],
    port: u16,
    /// Index of the device to nowhere.
    out: u32,
}

impl Place {
    fn new() -> Self {
        let (file, origins, port, out) = thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace: this test needs root");
            for line in [
                "link set lo up",
                "link add out type veth peer name lost",
                "link set out up",
                "link set lost up",
                "address add 198.51.100.10/32 dev lo",
                "address add 2001:db8:1::10/128 dev lo nodad",
                "address add 192.0.2.1/24 dev out",
                "address add 2001:db8::1/64 dev out nodad",
                // Without these the kernel would tell after some seconds that nobody has the address.
                "neighbour add 198.51.100.10 lladdr 02:00:00:00:00:01 dev out",
                "neighbour add 2001:db8::66 lladdr 02:00:00:00:00:02 dev out",
            ] {
                // A child inherits the namespace of the thread that starts it.
                assert!(
                    Command::new("ip")
                        .args(line.split(' '))
                        .status()
                        .unwrap()
                        .success(),
                    "ip {line}"
                );
            }
            let v4 = TcpListener::bind((ORIGIN_V4, 0)).unwrap();
            let port = v4.local_addr().unwrap().port();
            let v6 = TcpListener::bind((ORIGIN_V6, port)).unwrap();
            let out = if_nametoindex("out").unwrap();
            (
                File::open("/proc/thread-self/ns/net").unwrap(),
                [v4, v6],
                port,
                out,
            )
        })
        .join()
        .unwrap();
        let netns = Netns::open(Path::new(&format!("/proc/self/fd/{}", file.as_raw_fd()))).unwrap();
        Self {
            netns,
            origins,
            port,
            out,
        }
    }

    fn route(&self, source: Option<&str>, device: Option<u32>) -> Route {
        Route {
            netns: self.netns.clone(),
            source: source.map(|source| source.parse().unwrap()),
            device,
            user: None,
        }
    }

    fn at(&self, address: &str) -> SocketAddr {
        SocketAddr::new(address.parse().unwrap(), self.port)
    }

    /// The address from which `origin` got its next connection.
    fn visitor(&self, origin: usize) -> IpAddr {
        self.origins[origin].accept().unwrap().1.ip()
    }
}

/// A dialler that knows names from a hosts file alone.
fn dialler(hosts: &str) -> Dialer {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(hosts.as_bytes()).unwrap();
    let mut settings = DialSettings {
        timeout: Duration::from_secs(3),
        ..DialSettings::default()
    };
    settings.resolve.hosts = Some(file.path().to_owned());
    Dialer::new(settings)
}

#[tokio::test]
async fn the_socket_is_the_namespaces_and_the_thread_stays_at_home() {
    let place = Place::new();
    let home = Netns::current().unwrap();
    assert_ne!(home.cookie(), place.netns.cookie());
    let dialler = dialler("");
    for (number, address) in [ORIGIN_V4, ORIGIN_V6].into_iter().enumerate() {
        let dialled = dialler
            .dial_original(place.at(address), &place.route(None, None))
            .await
            .unwrap();
        assert_eq!(
            netns_cookie(dialled.stream.as_fd()).unwrap(),
            place.netns.cookie()
        );
        assert_eq!(
            place.visitor(number),
            address.parse::<IpAddr>().unwrap(),
            "the kernel chose the source"
        );
    }
    assert_eq!(Netns::current().unwrap().cookie(), home.cookie());
}

#[tokio::test]
async fn the_workloads_source_address_is_kept_where_the_family_fits() {
    let place = Place::new();
    let dialler = dialler("");
    let cases = [
        (0, ORIGIN_V4, "192.0.2.1", "192.0.2.1"),
        (0, ORIGIN_V4, "::ffff:192.0.2.1", "192.0.2.1"),
        (1, ORIGIN_V6, "2001:db8::1", "2001:db8::1"),
        (0, ORIGIN_V4, "2001:db8::1", ORIGIN_V4),
        (1, ORIGIN_V6, "192.0.2.1", ORIGIN_V6),
        (0, ORIGIN_V4, "0.0.0.0", ORIGIN_V4),
    ];
    for (origin, address, source, seen) in cases {
        let route = place.route(Some(source), None);
        let _dialled = dialler.dial_original(place.at(address), &route).await.unwrap();
        assert_eq!(
            place.visitor(origin),
            seen.parse::<IpAddr>().unwrap(),
            "{source} to {address}"
        );
    }
    let gone = dialler
        .dial_original(place.at(ORIGIN_V4), &place.route(Some("192.0.2.99"), None))
        .await;
    assert_eq!(
        gone.unwrap_err().outcome,
        Outcome::OriginUnreachable,
        "the source address has gone"
    );
}

#[tokio::test]
async fn the_workloads_device_is_kept() {
    let place = Place::new();
    let dialler = dialler("");
    // The loopback device is the first one of every namespace.
    let dialled = dialler
        .dial_original(place.at(ORIGIN_V4), &place.route(None, Some(1)))
        .await
        .unwrap();
    assert_eq!(
        SockRef::from(&dialled.stream).device().unwrap(),
        Some(b"lo".to_vec())
    );
    let lost = dialler
        .dial_original(place.at(ORIGIN_V4), &place.route(None, Some(place.out)))
        .await;
    assert_eq!(
        lost.unwrap_err().outcome,
        Outcome::OriginTimeout,
        "out there nobody answers"
    );
    let missing = dialler
        .dial_original(place.at(ORIGIN_V4), &place.route(None, Some(77)))
        .await;
    assert_eq!(missing.unwrap_err().outcome, Outcome::OriginUnreachable);
}

#[tokio::test]
async fn the_source_towards_an_address_is_told_without_sending() {
    let place = Place::new();
    let source = |address: &str| Dialer::source_for(&place.netns, address.parse().unwrap());
    assert_eq!(source("192.0.2.77"), Some("192.0.2.1".parse().unwrap()));
    assert_eq!(source("2001:db8::77"), Some("2001:db8::1".parse().unwrap()));
    assert_eq!(source("203.0.113.1"), None, "no route");
    assert_eq!(source("2001:db8:ffff::1"), None, "no route");
}

#[tokio::test]
async fn a_family_that_leads_nowhere_costs_a_head_start_and_one_without_route_not_even_that() {
    let place = Place::new();
    let dialler = dialler(
        "2001:db8::66 blackhole.test\n198.51.100.10 blackhole.test\n\
         2001:db8:ffff::66 noroute.test\n198.51.100.10 noroute.test\n",
    );
    let dial = async |name: &str| -> (Result<_, DialError>, Duration) {
        let (host, start) = (Host::Name(DomainName::parse(name).unwrap()), Instant::now());
        // It dialled another IPv6 address, so IPv6 goes first.
        let original = place.at("2001:db8::9");
        let route = place.route(None, None);
        let dialled = dialler
            .dial(
                Wanted {
                    host: &host,
                    port: place.port,
                    sought: Sought::Dialled(original),
                    private: PrivateAnswers::Refused,
                    payload: Payload::Bytes,
                },
                &route,
            )
            .await;
        (dialled, start.elapsed())
    };
    let (dialled, waited) = dial("blackhole.test").await;
    let dialled = dialled.unwrap();
    assert_eq!(
        (dialled.peer.address(), dialled.peer.relation().unwrap()),
        (place.at(ORIGIN_V4), AddressRelation::Mismatch)
    );
    assert!(
        waited >= Duration::from_millis(250),
        "{waited:?}: IPv6 came first"
    );
    assert!(waited < Duration::from_secs(2), "{waited:?}");

    // The quickest of some, for machines that are busy with something else.
    let mut quickest = Duration::MAX;
    for _ in 0..5 {
        let (dialled, waited) = dial("noroute.test").await;
        assert_eq!(dialled.unwrap().peer.address(), place.at(ORIGIN_V4));
        quickest = quickest.min(waited);
    }
    assert!(quickest < Duration::from_millis(200), "{quickest:?}");
}

#[tokio::test]
async fn no_route_at_all_is_unreachable() {
    let place = Place::new();
    for address in ["203.0.113.1", "2001:db8:ffff::1"] {
        let failed = dialler("")
            .dial_original(place.at(address), &place.route(None, None))
            .await;
        assert_eq!(
            failed.unwrap_err().outcome,
            Outcome::OriginUnreachable,
            "{address}"
        );
    }
}
