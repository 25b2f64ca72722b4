use std::net::Ipv4Addr;

use hickory_proto::op::ResponseCode::ServFail;
use tokio::net::{TcpListener, TcpSocket};

use super::*;
use crate::{
    dns::fake_dns::{FakeDns, Reply},
    proxy::resolve::NameServers,
};

/// Origins at 127.0.0.2, .3 and so on, all on one port: the witnesses of what was dialled.
struct Origins {
    listeners: Vec<TcpListener>,
    port: u16,
}

impl Origins {
    async fn start(count: u8) -> Self {
        // Another test may have the port at one of the other addresses.
        loop {
            let first = TcpListener::bind((Ipv4Addr::new(127, 0, 0, 2), 0)).await.unwrap();
            let port = first.local_addr().unwrap().port();
            let mut listeners = vec![first];
            for number in 1..count {
                listeners.extend(
                    TcpListener::bind((Ipv4Addr::new(127, 0, 0, 2 + number), port))
                        .await
                        .ok(),
                );
            }
            if listeners.len() == usize::from(count) {
                return Self { listeners, port };
            }
        }
    }

    /// How many connections each origin has got.
    async fn visits(&self) -> Vec<usize> {
        let mut visits = Vec::new();
        for listener in &self.listeners {
            let mut count = 0;
            while let std::task::Poll::Ready(Ok(_)) = futures_util::poll!(std::pin::pin!(listener.accept())) {
                count += 1;
            }
            visits.push(count);
        }
        visits
    }

    fn at(&self, address: &str) -> SocketAddr {
        SocketAddr::new(address.parse().unwrap(), self.port)
    }
}

async fn dns() -> FakeDns {
    FakeDns::start(|(name, _, before)| match name {
        "good.test" => Reply::Addresses(&["127.0.0.2", "127.0.0.3"]),
        "mixed.test" => Reply::Addresses(&["10.0.0.1", "169.254.169.254", "127.0.0.3", "fd00::1"]),
        "private.test" => Reply::Addresses(&["10.0.0.1", "::ffff:10.0.0.2", "64:ff9b::a00:3"]),
        "rebound.test" => Reply::Lasting(
            1,
            if before == 0 {
                &["127.0.0.2"]
            } else {
                &["169.254.169.254"]
            },
        ),
        "broken.test" => Reply::Failure(ServFail),
        "mute.test" => Reply::Silence,
        _ => Reply::NoName(60),
    })
    .await
}

fn settings(dns: &FakeDns) -> DialSettings {
    DialSettings {
        resolve: ResolveSettings {
            servers: NameServers::List(vec![dns.address]),
            hosts: None,
            ..ResolveSettings::default()
        },
        // The origins are on loopback.
        internal: vec!["127.0.0.0/8".parse().unwrap()],
        ..DialSettings::default()
    }
}

fn here() -> Route {
    Route {
        netns: Netns::current().unwrap(),
        source: None,
        device: None,
        user: None,
    }
}

fn name(text: &str) -> Host {
    Host::Name(DomainName::parse(text).unwrap())
}

/// Dials as a workload that has dialled `original`; what was reached, or why nothing was.
async fn dial(
    settings: DialSettings,
    host: &Host,
    original: SocketAddr,
) -> Result<(IpAddr, AddressRelation), (Outcome, Option<AddressRelation>)> {
    let dialler = Dialer::new(settings);
    let dialled = dialler
        .dial(
            Wanted {
                host,
                port: original.port(),
                sought: Sought::Dialled(original),
                private: PrivateAnswers::Refused,
                payload: Payload::Bytes,
            },
            &here(),
        )
        .await;
    match dialled {
        Ok(dialled) => {
            assert_eq!(dialled.stream.peer_addr().unwrap(), dialled.peer.address());
            assert!(dialled.stream.nodelay().unwrap());
            Ok((dialled.peer.address().ip(), dialled.peer.relation().unwrap()))
        }
        Err(error) => Err((error.outcome, error.relation)),
    }
}

fn reached(address: &str, relation: AddressRelation) -> (IpAddr, AddressRelation) {
    (address.parse().unwrap(), relation)
}

#[tokio::test]
async fn the_workloads_own_address_is_dialled_if_it_is_the_names() {
    let (dns, origins) = (dns().await, Origins::start(3).await);
    let found = dial(settings(&dns), &name("good.test"), origins.at("127.0.0.3")).await;
    assert_eq!(found, Ok(reached("127.0.0.3", AddressRelation::Match)));
    let found = dial(settings(&dns), &name("good.test"), origins.at("::ffff:127.0.0.3")).await;
    assert_eq!(
        found,
        Ok(reached("127.0.0.3", AddressRelation::Match)),
        "the mapped form is the same address"
    );
    assert_eq!(origins.visits().await, [0, 2, 0]);
}

#[tokio::test]
async fn a_forged_name_reaches_the_names_own_address_and_never_the_dialled_one() {
    let (dns, origins) = (dns().await, Origins::start(3).await);
    let found = dial(settings(&dns), &name("good.test"), origins.at("127.0.0.4")).await;
    assert_eq!(found, Ok(reached("127.0.0.2", AddressRelation::Mismatch)));
    assert_eq!(origins.visits().await, [1, 0, 0]);
}

#[tokio::test]
async fn strict_refuses_a_mismatch_and_dials_nothing() {
    let (dns, origins) = (dns().await, Origins::start(3).await);
    let strict = DialSettings {
        mode: DialMode::Strict,
        ..settings(&dns)
    };
    let found = dial(strict.clone(), &name("good.test"), origins.at("127.0.0.4")).await;
    assert_eq!(
        found,
        Err((Outcome::AddressMismatch, Some(AddressRelation::Mismatch)))
    );
    let found = dial(strict, &name("good.test"), origins.at("127.0.0.3")).await;
    assert_eq!(found, Ok(reached("127.0.0.3", AddressRelation::Match)));
    assert_eq!(origins.visits().await, [0, 1, 0]);
}

#[tokio::test]
async fn original_dials_what_the_workload_dialled_and_still_tells_whether_it_is_the_names() {
    let (dns, origins) = (dns().await, Origins::start(3).await);
    let original = DialSettings {
        mode: DialMode::Original,
        ..settings(&dns)
    };
    for (host, address, relation) in [
        ("good.test", "127.0.0.3", AddressRelation::Match),
        ("good.test", "127.0.0.4", AddressRelation::Mismatch),
        ("gone.test", "127.0.0.4", AddressRelation::Mismatch),
    ] {
        let found = dial(original.clone(), &name(host), origins.at(address)).await;
        assert_eq!(found, Ok(reached(address, relation)));
    }
    assert_eq!(origins.visits().await, [0, 1, 2]);
}

#[tokio::test]
async fn a_literal_address_is_dialled_only_if_it_is_the_dialled_one() {
    let (dns, origins) = (dns().await, Origins::start(2).await);
    let literal = Host::Address("127.0.0.2".parse().unwrap());
    let found = dial(settings(&dns), &literal, origins.at("127.0.0.2")).await;
    assert_eq!(found, Ok(reached("127.0.0.2", AddressRelation::Literal)));
    let found = dial(settings(&dns), &literal, origins.at("127.0.0.3")).await;
    assert_eq!(
        found,
        Err((Outcome::AddressMismatch, Some(AddressRelation::Mismatch)))
    );
    assert_eq!(origins.visits().await, [1, 0]);
    assert_eq!(dns.names(), [""; 0], "nothing was looked up");
}

#[tokio::test]
async fn the_original_is_dialled_without_a_lookup_for_those_who_are_only_observed() {
    let (dns, origins) = (dns().await, Origins::start(1).await);
    let dialler = Dialer::new(settings(&dns));
    let dialled = dialler
        .dial_original(origins.at("::ffff:127.0.0.2"), &here())
        .await
        .unwrap();
    assert_eq!(
        (dialled.peer.address(), dialled.peer.relation().unwrap()),
        (origins.at("127.0.0.2"), AddressRelation::Literal)
    );
    assert_eq!(dns.names(), [""; 0]);
}

#[tokio::test]
async fn private_answers_are_dropped_unless_they_are_internal_or_the_policy_allows_them() {
    let (dns, origins) = (dns().await, Origins::start(2).await);
    // Only the internal one of four is left: the metadata server is not dialled, though it was and is in the answer.
    let found = dial(settings(&dns), &name("mixed.test"), origins.at("169.254.169.254")).await;
    assert_eq!(found, Ok(reached("127.0.0.3", AddressRelation::Mismatch)));
    let found = dial(settings(&dns), &name("private.test"), origins.at("10.0.0.1")).await;
    assert_eq!(found, Err((Outcome::PrivateAnswer, Some(AddressRelation::Match))));

    let nothing_internal = DialSettings {
        internal: Vec::new(),
        ..settings(&dns)
    };
    let found = dial(
        nothing_internal.clone(),
        &name("good.test"),
        origins.at("127.0.0.2"),
    )
    .await;
    assert_eq!(found, Err((Outcome::PrivateAnswer, Some(AddressRelation::Match))));
    assert_eq!(origins.visits().await, [0, 1]);

    let original = origins.at("127.0.0.2");
    let dialler = Dialer::new(nothing_internal);
    let dialled = dialler
        .dial(
            Wanted {
                host: &name("good.test"),
                port: original.port(),
                sought: Sought::Dialled(original),
                private: PrivateAnswers::Allowed,
                payload: Payload::Bytes,
            },
            &here(),
        )
        .await
        .unwrap();
    assert_eq!(dialled.peer.address(), original);
}

#[tokio::test]
async fn a_name_that_is_bound_anew_to_the_metadata_server_is_refused_from_then_on() {
    let (dns, origins) = (dns().await, Origins::start(1).await);
    let dialler = Dialer::new(settings(&dns));
    let (host, original) = (name("rebound.test"), origins.at("127.0.0.2"));
    let route = here();
    let attempt = || {
        dialler.dial(
            Wanted {
                host: &host,
                port: original.port(),
                sought: Sought::Dialled(original),
                private: PrivateAnswers::Refused,
                payload: Payload::Bytes,
            },
            &route,
        )
    };
    assert_eq!(attempt().await.unwrap().peer.address(), original);
    // The answer's time to live is a second, and the cache goes by the clock.
    time::sleep(Duration::from_millis(2100)).await;
    assert_eq!(attempt().await.unwrap_err().outcome, Outcome::PrivateAnswer);
    assert_eq!(origins.visits().await, [1]);
}

#[tokio::test]
async fn failures_have_their_outcomes() {
    let (dns, origins) = (dns().await, Origins::start(1).await);
    let mut quick = settings(&dns);
    quick.resolve.timeout = Duration::from_millis(200);
    // Nobody listens on 127.0.0.3.
    let refused = dial(quick.clone(), &name("good.test"), origins.at("127.0.0.3")).await;
    assert_eq!(
        refused,
        Err((Outcome::OriginRefused, Some(AddressRelation::Match)))
    );
    for (host, outcome) in [
        ("gone.test", Outcome::NameNotFound),
        ("broken.test", Outcome::LookupFailed),
        ("mute.test", Outcome::LookupFailed),
    ] {
        let failed = dial(quick.clone(), &name(host), origins.at("127.0.0.2")).await;
        assert_eq!(failed, Err((outcome, None)), "{host}");
    }
    // connect(2) to a broadcast address: EACCES.
    let broadcast = origins.at("255.255.255.255");
    let failed = dial(quick.clone(), &Host::Address(broadcast.ip()), broadcast).await;
    assert!(
        matches!(
            failed,
            Err((Outcome::OriginUnreachable, Some(AddressRelation::Literal)))
        ),
        "{failed:?}"
    );
}

#[tokio::test]
async fn a_time_limit_that_ends_during_the_lookup_or_the_dial_says_which() {
    let dns = dns().await;
    let mut hasty = settings(&dns);
    hasty.timeout = Duration::from_millis(300);
    let (full, _listener, _held) = full_listener().await;
    let failed = dial(hasty.clone(), &Host::Address(full.ip()), full).await;
    assert_eq!(
        failed,
        Err((Outcome::OriginTimeout, Some(AddressRelation::Literal)))
    );
    let failed = dial(hasty, &name("mute.test"), full).await;
    assert_eq!(failed, Err((Outcome::LookupFailed, None)));
}

#[tokio::test]
async fn a_silent_address_is_overtaken_by_the_next_one() {
    let (full, _listener, _held) = full_listener().await;
    let IpAddr::V4(silent) = full.ip() else {
        panic!("an IPv4 listener")
    };
    assert_eq!(silent, Ipv4Addr::new(127, 0, 0, 2));
    let second = TcpListener::bind((Ipv4Addr::new(127, 0, 0, 3), full.port()))
        .await
        .unwrap();
    let dns = dns().await;
    let start = time::Instant::now();
    let forged = SocketAddr::new("127.0.0.9".parse().unwrap(), full.port());
    let found = dial(settings(&dns), &name("good.test"), forged).await;
    assert_eq!(found, Ok(reached("127.0.0.3", AddressRelation::Mismatch)));
    assert!(
        start.elapsed() >= ATTEMPT_DELAY,
        "the first address had its head start"
    );
    second.accept().await.unwrap();
}

/// A listener on 127.0.0.2 that drops SYNs, because its queue is full and nobody accepts.
async fn full_listener() -> (SocketAddr, TcpListener, Vec<TcpStream>) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
    let address = socket.local_addr().unwrap();
    let listener = socket.listen(1).unwrap();
    let mut held = Vec::new();
    while let Ok(connected) = time::timeout(Duration::from_millis(100), TcpStream::connect(address)).await {
        held.push(connected.unwrap());
    }
    (address, listener, held)
}

#[tokio::test]
async fn an_address_that_is_denied_by_itself_is_not_dialled_for_any_name() {
    let (dns, origins) = (dns().await, Origins::start(2).await);
    let denied: IpAddr = "127.0.0.3".parse().unwrap();
    let refused = |address| (address == denied).then_some(Outcome::ClusterDeny);
    let dial = async |mode, host: &Host| {
        let dialler = Dialer::new(DialSettings {
            mode,
            ..settings(&dns)
        });
        let (original, route) = (origins.at("127.0.0.3"), here());
        dialler
            .dial_unless(
                Wanted {
                    host,
                    port: original.port(),
                    sought: Sought::Dialled(original),
                    private: PrivateAnswers::Refused,
                    payload: Payload::Bytes,
                },
                &route,
                refused,
            )
            .await
            .map(|dialled| dialled.peer.address().ip())
            .map_err(|error| error.outcome)
    };
    // It was dialled, and is one of the name's: the name's other address is left.
    let found = dial(DialMode::Pinned, &name("good.test")).await;
    assert_eq!(found, Ok("127.0.0.2".parse().unwrap()));
    let found = dial(DialMode::Strict, &name("good.test")).await;
    assert_eq!(found, Err(Outcome::AddressMismatch));
    // Nothing else is left.
    for (mode, host) in [
        (DialMode::Pinned, name("mixed.test")),
        (DialMode::Original, name("good.test")),
        (DialMode::Pinned, Host::Address(denied)),
    ] {
        assert_eq!(
            dial(mode, &host).await,
            Err(Outcome::ClusterDeny),
            "{mode:?} {host}"
        );
    }
    assert_eq!(origins.visits().await, [1, 0]);
}

#[tokio::test]
async fn who_names_a_host_to_the_proxy_gets_an_answer_of_ours_in_every_mode() {
    let (dns, origins) = (dns().await, Origins::start(2).await);
    for mode in [DialMode::Pinned, DialMode::Strict, DialMode::Original] {
        let dialler = Dialer::new(DialSettings {
            mode,
            ..settings(&dns)
        });
        let port = origins.at("127.0.0.2").port();
        let sought = Sought::Named { by_ipv4: true };
        let dial = async |host: &Host, private| {
            let dialled = dialler
                .dial(
                    Wanted {
                        host,
                        port,
                        sought,
                        private,
                        payload: Payload::Bytes,
                    },
                    &here(),
                )
                .await;
            dialled
                .map(|dialled| (dialled.peer.address().ip(), dialled.peer.relation().unwrap()))
                .map_err(|error| error.outcome)
        };
        assert_eq!(
            dial(&name("good.test"), PrivateAnswers::Refused).await,
            Ok(reached("127.0.0.2", AddressRelation::Named)),
            "{mode:?}"
        );
        let literal = Host::Address("127.0.0.3".parse().unwrap());
        assert_eq!(
            dial(&literal, PrivateAnswers::Refused).await,
            Ok(reached("127.0.0.3", AddressRelation::Literal)),
            "{mode:?}"
        );
        assert_eq!(
            dial(&name("private.test"), PrivateAnswers::Refused).await,
            Err(Outcome::PrivateAnswer),
            "{mode:?}"
        );
    }
}

/// A parent proxy that takes one connection, reads the head of a request and answers.
async fn parent_proxy(answer: &'static str) -> (ParentProxy, tokio::task::JoinHandle<String>) {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let listener = TcpListener::bind("127.0.0.2:0").await.unwrap();
    let parent = listener.local_addr().unwrap().to_string().parse().unwrap();
    let heard = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        stream.write_all(answer.as_bytes()).await.unwrap();
        String::from_utf8(head).unwrap()
    });
    (parent, heard)
}

#[tokio::test]
async fn a_parent_proxy_is_handed_the_name_and_nobody_looks_it_up() {
    let (dns, origins) = (dns().await, Origins::start(2).await);
    let (parent, heard) = parent_proxy("HTTP/1.1 200 OK\r\n\r\n").await;
    let parent_port = parent.port();
    let dialler = Dialer::new(DialSettings {
        parent: Some(parent.with_direct(vec!["good.test".parse().unwrap()])),
        ..settings(&dns)
    });
    let sought = Sought::Dialled(origins.at("127.0.0.2"));
    let dial = async |host: &Host| {
        dialler
            .dial(
                Wanted {
                    host,
                    port: origins.port,
                    sought,
                    private: PrivateAnswers::Refused,
                    payload: Payload::Bytes,
                },
                &here(),
            )
            .await
    };
    let dialled = dial(&name("nowhere.test")).await.unwrap();
    let address = SocketAddr::from(([127, 0, 0, 2], parent_port));
    assert_eq!(dialled.peer, Peer::Parent { address });
    assert_eq!(dialled.peer.origin(), None);
    let heard = heard.await.unwrap();
    assert!(
        heard.starts_with(&format!("CONNECT nowhere.test:{} HTTP/1.1\r\n", origins.port)),
        "{heard}"
    );
    assert_eq!(dns.names(), [""; 0]);
    // A name that is left out, and an address: dialled as without a parent.
    let direct = dial(&name("good.test")).await.unwrap();
    assert_eq!(direct.peer.origin(), Some(origins.at("127.0.0.2")));
    let literal = dial(&Host::Address("127.0.0.2".parse().unwrap())).await.unwrap();
    assert_eq!(literal.peer.origin(), Some(origins.at("127.0.0.2")));
    assert_eq!(origins.visits().await, [2, 0]);
}

#[tokio::test]
async fn a_parent_that_refuses_or_is_not_there_is_told_as_one() {
    let (dns, origins) = (dns().await, Origins::start(1).await);
    let dial = async |parent: ParentProxy, payload| {
        let dialler = Dialer::new(DialSettings {
            parent: Some(parent),
            ..settings(&dns)
        });
        let sought = Sought::Named { by_ipv4: true };
        let host = name("nowhere.test");
        let dialled = dialler
            .dial(
                Wanted {
                    host: &host,
                    port: 443,
                    sought,
                    private: PrivateAnswers::Refused,
                    payload,
                },
                &here(),
            )
            .await;
        dialled.map_err(|error| (error.outcome, error.by_parent, error.address.is_some()))
    };
    let (parent, _heard) = parent_proxy("HTTP/1.1 403 Forbidden\r\n\r\n").await;
    let refused = dial(parent, Payload::Bytes).await;
    assert_eq!(refused.unwrap_err(), (Outcome::ParentFailed, true, true));
    // Requests are its to answer.
    let (parent, heard) = parent_proxy("").await;
    assert!(dial(parent, Payload::Requests).await.unwrap().peer.is_parent());
    heard.abort();
    // Nobody listens at 127.0.0.9.
    let nobody: ParentProxy = format!("127.0.0.9:{}", origins.port).parse().unwrap();
    let refused = dial(nobody, Payload::Bytes).await;
    assert_eq!(refused.unwrap_err(), (Outcome::OriginRefused, true, true));
    let unknown: ParentProxy = "nowhere.test:3128".parse().unwrap();
    let refused = dial(unknown, Payload::Bytes).await;
    assert_eq!(refused.unwrap_err(), (Outcome::NameNotFound, true, false));
}
