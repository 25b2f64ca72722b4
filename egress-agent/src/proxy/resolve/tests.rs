use std::fs;

use hickory_proto::op::ResponseCode::{Refused, ServFail};

use super::*;
use crate::dns::fake_dns::{FakeDns, Reply};

fn name(text: &str) -> DomainName {
    DomainName::parse(text).unwrap()
}

fn list(addresses: &[&str]) -> Vec<IpAddr> {
    addresses.iter().map(|address| address.parse().unwrap()).collect()
}

fn asking(servers: &[&FakeDns]) -> ResolveSettings {
    ResolveSettings {
        servers: NameServers::List(servers.iter().map(|server| server.address).collect()),
        hosts: None,
        ..ResolveSettings::default()
    }
}

/// Looks `text` up for a workload that dialled `dialled`; sorted, because the order of two families is a race.
async fn lookup(resolver: &Resolver, text: &str, dialled: &str) -> Result<Vec<IpAddr>, ResolveError> {
    let answer = resolver.lookup(&name(text), dialled.parse().unwrap()).await?;
    let mut addresses = answer.addresses;
    addresses.sort();
    Ok(addresses)
}

#[tokio::test]
async fn both_families_are_asked_for_and_a_second_lookup_asks_nobody() {
    let dns = FakeDns::start(|_| Reply::Addresses(&["192.0.2.1", "192.0.2.2", "2001:db8::1"])).await;
    let resolver = Resolver::new(asking(&[&dns]));
    for _ in 0..3 {
        let found = lookup(&resolver, "good.test", "198.51.100.1").await;
        assert_eq!(found, Ok(list(&["192.0.2.1", "192.0.2.2", "2001:db8::1"])));
    }
    assert_eq!(dns.count("good.test"), 2, "A and AAAA, once each");
    // Neither a search domain nor ndots has been at work.
    assert_eq!(dns.names(), ["good.test"]);
    assert_eq!(
        lookup(&resolver, "single", "198.51.100.1").await.unwrap().len(),
        3
    );
    assert_eq!(dns.names(), ["good.test", "single"]);
}

#[tokio::test]
async fn the_dialled_address_in_the_answer_ends_the_wait_for_the_other_family() {
    let dns = FakeDns::start(|(_, kind, _)| {
        if kind == RecordType::A {
            Reply::Addresses(&["192.0.2.1"])
        } else {
            Reply::Silence
        }
    })
    .await;
    let resolver = Resolver::new(asking(&[&dns]));
    assert_eq!(
        lookup(&resolver, "good.test", "192.0.2.1").await,
        Ok(list(&["192.0.2.1"]))
    );
    assert_eq!(
        lookup(&resolver, "good.test", "::ffff:192.0.2.1").await,
        Ok(list(&["192.0.2.1"])),
        "a mapped address is the address",
    );
    // Another address was dialled: the silent family gets its 50 ms and no more.
    assert_eq!(
        lookup(&resolver, "good.test", "192.0.2.9").await,
        Ok(list(&["192.0.2.1"]))
    );
}

#[tokio::test]
async fn silence_about_the_dialled_family_does_not_spoil_the_answer_about_the_other() {
    let dns = FakeDns::start(|(_, kind, _)| {
        if kind == RecordType::A {
            Reply::Addresses(&["192.0.2.1"])
        } else {
            Reply::Silence
        }
    })
    .await;
    let mut settings = asking(&[&dns]);
    settings.timeout = Duration::from_millis(300);
    let resolver = Resolver::new(settings);
    assert_eq!(
        lookup(&resolver, "good.test", "2001:db8::9").await,
        Ok(list(&["192.0.2.1"]))
    );
}

#[tokio::test]
async fn names_that_are_only_just_host_names_are_looked_up_as_they_are() {
    let dns = FakeDns::start(|_| Reply::Addresses(&["192.0.2.1"])).await;
    let resolver = Resolver::new(asking(&[&dns]));
    let long = format!("{}.test", "a".repeat(63));
    let names = [
        "3com.test",
        "_under_score.test",
        "a--b.test",
        "xn--bcher-kva.test",
        &long,
    ];
    for name in names {
        assert_eq!(
            lookup(&resolver, name, "192.0.2.1").await,
            Ok(list(&["192.0.2.1"])),
            "{name}"
        );
        assert_eq!(dns.count_of(name, RecordType::A), 1, "{name}");
    }
}

#[tokio::test]
async fn a_family_alone_is_enough_whichever_was_dialled() {
    let dns = FakeDns::start(|(name, ..)| match name {
        "four.test" => Reply::Addresses(&["192.0.2.1"]),
        _ => Reply::Addresses(&["2001:db8::1"]),
    })
    .await;
    let resolver = Resolver::new(asking(&[&dns]));
    for dialled in ["192.0.2.9", "2001:db8::9"] {
        assert_eq!(
            lookup(&resolver, "four.test", dialled).await,
            Ok(list(&["192.0.2.1"]))
        );
        assert_eq!(
            lookup(&resolver, "six.test", dialled).await,
            Ok(list(&["2001:db8::1"]))
        );
    }
}

#[tokio::test]
async fn aliases_are_followed_in_one_answer_and_over_several() {
    let dns = FakeDns::start(|(name, ..)| match name {
        "www.test" => Reply::Alias("cdn.test"),
        "cdn.test" => Reply::Chain("edge.test", &["192.0.2.7", "2001:db8::7"]),
        "loop.test" => Reply::Alias("pool.test"),
        "pool.test" => Reply::Alias("loop.test"),
        _ => Reply::NoName(60),
    })
    .await;
    let resolver = Resolver::new(asking(&[&dns]));
    assert_eq!(
        lookup(&resolver, "www.test", "198.51.100.1").await,
        Ok(list(&["192.0.2.7", "2001:db8::7"]))
    );
    assert!(lookup(&resolver, "loop.test", "198.51.100.1").await.is_err());
    assert_eq!(
        dns.names(),
        ["cdn.test", "loop.test", "pool.test", "www.test"],
        "what comes along is not asked for"
    );
    assert!(
        dns.count("loop.test") + dns.count("pool.test") < 40,
        "a loop of aliases ends"
    );
}

#[tokio::test]
async fn what_does_not_exist_is_told_from_what_failed_and_is_remembered() {
    let dns = FakeDns::start(|(name, kind, _)| match (name, kind) {
        ("gone.test", _) => Reply::NoName(60),
        ("empty.test", _) => Reply::Addresses(&[]),
        ("broken.test", _) => Reply::Failure(ServFail),
        ("refused.test", _) => Reply::Failure(Refused),
        // One family says that there is no such name at all: RFC 8020.
        ("half.test", RecordType::AAAA) => Reply::NoName(60),
        _ => Reply::Silence,
    })
    .await;
    let mut settings = asking(&[&dns]);
    settings.timeout = Duration::from_millis(500);
    let resolver = Resolver::new(settings);
    for _ in 0..2 {
        for missing in ["gone.test", "empty.test", "half.test"] {
            let found = lookup(&resolver, missing, "198.51.100.1").await;
            assert_eq!(found, Err(ResolveError::NameNotFound), "{missing}");
        }
        for failing in ["broken.test", "refused.test"] {
            let found = lookup(&resolver, failing, "198.51.100.1").await;
            assert!(
                matches!(found, Err(ResolveError::LookupFailed(_))),
                "{failing}: {found:?}"
            );
        }
    }
    assert_eq!(
        lookup(&resolver, "mute.test", "198.51.100.1").await,
        Err(ResolveError::Timeout)
    );
    assert!(dns.count("gone.test") <= 2, "asked once for each family");
    assert!(dns.count("broken.test") > 2, "a failure is not remembered");
}

#[tokio::test]
async fn an_answer_is_kept_for_its_time_to_live_within_the_bounds() {
    const ANSWERS: [&[&str]; 2] = [&["192.0.2.1"], &["192.0.2.2"]];
    let dns = FakeDns::start(|(name, kind, before)| match (name, kind) {
        (_, RecordType::AAAA) => Reply::NoName(86_400),
        ("short.test", _) => Reply::Lasting(0, ANSWERS[before.min(1)]),
        _ => Reply::Lasting(86_400, ANSWERS[before.min(1)]),
    })
    .await;
    let mut settings = asking(&[&dns]);
    settings.positive_ttl = Duration::from_secs(1)..=Duration::from_secs(1);
    settings.negative_ttl = Duration::ZERO..=Duration::ZERO;
    let resolver = Resolver::new(settings);
    for name in ["short.test", "long.test"] {
        // The dialled address is in the answer, so the other family does not count.
        assert_eq!(
            lookup(&resolver, name, "192.0.2.1").await,
            Ok(list(&["192.0.2.1"]))
        );
        assert_eq!(
            lookup(&resolver, name, "192.0.2.1").await,
            Ok(list(&["192.0.2.1"])),
            "kept despite TTL 0"
        );
    }
    // Waiting is the only way to a later time: the cache goes by the monotonic clock.
    time::sleep(Duration::from_millis(2100)).await;
    for name in ["short.test", "long.test"] {
        assert_eq!(
            lookup(&resolver, name, "192.0.2.2").await,
            Ok(list(&["192.0.2.2"])),
            "{name}"
        );
    }
}

#[tokio::test]
async fn an_answer_too_long_for_a_datagram_comes_over_tcp() {
    let dns = FakeDns::start(|_| Reply::Truncated(&["192.0.2.1", "2001:db8::1"])).await;
    let resolver = Resolver::new(asking(&[&dns]));
    let found = lookup(&resolver, "many.test", "198.51.100.1").await;
    assert_eq!(found, Ok(list(&["192.0.2.1", "2001:db8::1"])));
}

#[tokio::test]
async fn the_first_server_decides_while_it_answers() {
    let first = FakeDns::start(|(name, ..)| match name {
        "internal.test" => Reply::Addresses(&["192.0.2.1"]),
        "broken.test" => Reply::Failure(ServFail),
        "refused.test" => Reply::Failure(Refused),
        "mute.test" => Reply::Silence,
        _ => Reply::NoName(60),
    })
    .await;
    let second = FakeDns::start(|_| Reply::Addresses(&["192.0.2.2"])).await;
    let mut settings = asking(&[&first, &second]);
    settings.patience = Duration::from_millis(100);
    let resolver = Resolver::new(settings);
    assert_eq!(
        lookup(&resolver, "internal.test", "198.51.100.1").await,
        Ok(list(&["192.0.2.1"]))
    );
    assert_eq!(
        lookup(&resolver, "gone.test", "198.51.100.1").await,
        Err(ResolveError::NameNotFound)
    );
    assert!(second.names().is_empty(), "the second server was never asked");
    for failing in ["broken.test", "refused.test", "mute.test"] {
        assert_eq!(
            lookup(&resolver, failing, "198.51.100.1").await,
            Ok(list(&["192.0.2.2"])),
            "{failing}"
        );
    }
}

#[tokio::test]
async fn a_dead_first_server_delays_a_lookup_by_the_patience_only() {
    // Nothing listens there: ICMP says so at once, as a server that is down on a live host does.
    let closed = std::net::UdpSocket::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let second = FakeDns::start(|_| Reply::Addresses(&["192.0.2.2"])).await;
    let mut settings = asking(&[&second]);
    settings.servers = NameServers::List(vec![closed, second.address]);
    let resolver = Resolver::new(settings);
    assert_eq!(
        lookup(&resolver, "good.test", "198.51.100.1").await,
        Ok(list(&["192.0.2.2"]))
    );
}

#[tokio::test]
async fn the_hosts_file_comes_first_and_is_read_again_when_it_changes() {
    let dns = FakeDns::start(|_| Reply::Addresses(&["192.0.2.1", "2001:db8::1"])).await;
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(&file, "# local\n198.51.100.1  Pinned.test alias.test\n").unwrap();
    let mut settings = asking(&[&dns]);
    settings.hosts = Some(file.path().to_owned());
    let resolver = Resolver::new(settings);
    for pinned in ["pinned.test", "alias.test"] {
        assert_eq!(
            lookup(&resolver, pinned, "2001:db8::9").await,
            Ok(list(&["198.51.100.1"])),
            "{pinned}"
        );
    }
    assert_eq!(
        dns.names(),
        [""; 0],
        "a name of the file is not asked for, for the other family neither"
    );
    assert_eq!(
        lookup(&resolver, "other.test", "2001:db8::1")
            .await
            .unwrap()
            .first(),
        list(&["2001:db8::1"]).first()
    );

    fs::write(&file, "198.51.100.22 pinned.test\n").unwrap();
    time::sleep(files::CHECK_EVERY).await;
    assert_eq!(
        lookup(&resolver, "pinned.test", "2001:db8::9").await,
        Ok(list(&["198.51.100.22"]))
    );
}

#[tokio::test]
async fn a_full_cache_makes_room() {
    let dns = FakeDns::start(|_| Reply::Addresses(&["192.0.2.1"])).await;
    let mut settings = asking(&[&dns]);
    settings.cache_entries = 16;
    let resolver = Resolver::new(settings);
    for pass in 1..=2 {
        for number in 0..100 {
            let found = lookup(&resolver, &format!("n{number}.test"), "192.0.2.1").await;
            assert_eq!(found, Ok(list(&["192.0.2.1"])));
        }
        let asked: usize = (0..100)
            .map(|number| dns.count_of(&format!("n{number}.test"), RecordType::A))
            .sum();
        // What a pass left in the cache is all that the next one can save.
        assert!(
            asked >= pass * 100 - (pass - 1) * 16,
            "{asked} questions after pass {pass}"
        );
    }
}

#[test]
fn a_resolv_conf_gives_its_servers_and_nothing_else() {
    let text = "search corp.example\noptions ndots:5\nnameserver 192.0.2.53\n nameserver 2001:db8::53 # two\n\
                nameserver nonsense\ndomain example\n";
    let expected: Vec<SocketAddr> = vec![
        "192.0.2.53:53".parse().unwrap(),
        "[2001:db8::53]:53".parse().unwrap(),
    ];
    assert_eq!(files::name_servers(text), expected);
    assert_eq!(
        files::name_servers("search x\n"),
        vec!["127.0.0.1:53".parse().unwrap()]
    );
}
