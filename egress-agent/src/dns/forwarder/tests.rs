use hickory_proto::{
    op::{Edns, MessageType, OpCode, Query},
    rr::{
        Name, RData, Record, RecordType,
        rdata::{
            HTTPS, SVCB,
            svcb::{EchConfigList, SvcParamKey, SvcParamValue},
        },
    },
};

use super::*;
use crate::{
    dns::{
        fake_dns::{FakeDns, Reply},
        names::NameLimits,
    },
    policy::{Policy, PolicySet, Settings, Unselected, read_text},
};

struct Lab {
    dns: FakeDns,
    forwarder: Forwarder,
    set: Arc<PolicySet>,
    workload: Workload,
}

const POLICY: &str = "apiVersion: egress-enforcer.io/v1alpha1\nkind: EgressPolicy\nmetadata: {name: p, namespace: team}\n\
    spec: {egress: [{to: [{domain: .good.test}]}, {to: [{domain: inside.test}]}], privateAnswers: [inside.test]}\n";

impl Lab {
    async fn new(answer: impl Fn((&str, RecordType, usize)) -> Reply + Send + Sync + 'static) -> Self {
        Self::with(answer, |_| ()).await
    }

    async fn with(
        answer: impl Fn((&str, RecordType, usize)) -> Reply + Send + Sync + 'static,
        change: impl FnOnce(&mut ForwardSettings),
    ) -> Self {
        let dns = FakeDns::start(answer).await;
        let mut settings = ForwardSettings {
            servers: NameServers::List(vec![dns.address]),
            internal_names: vec!["**.cluster.local".parse().unwrap()],
            internal: vec!["10.0.0.0/8".parse().unwrap()],
            timeout: Duration::from_millis(300),
            ..ForwardSettings::default()
        };
        change(&mut settings);
        let policies: Vec<Policy> = read_text(Path::new("p.yaml"), POLICY).unwrap();
        let unselected = Unselected::Enforce;
        let set = PolicySet::build(
            policies,
            Settings {
                unselected,
                audit: false,
            },
        )
        .unwrap();
        Self {
            dns,
            forwarder: Forwarder::new(
                settings,
                Arc::new(NameTable::new(NameLimits::default())),
                DnsLog::default(),
            ),
            set: Arc::new(set),
            workload: Workload {
                namespace: "team".to_owned(),
                name: "one".to_owned(),
                ..Workload::default()
            },
        }
    }

    async fn ask(&self, name: &str, kind: RecordType) -> Message {
        let mut message = Message::new(77, MessageType::Query, OpCode::Query);
        message.metadata.recursion_desired = true;
        message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
        message.set_edns(Edns::new());
        let reply = self.send(&message.to_vec().unwrap()).await.unwrap();
        let reply = Message::from_vec(&reply).unwrap();
        assert_eq!(reply.metadata.id, 77);
        reply
    }

    async fn send(&self, bytes: &[u8]) -> Option<Vec<u8>> {
        let client = SocketAddr::from(([127, 0, 0, 1], 4000));
        let asking = Asking {
            workload: &self.workload,
            process: &Process::default(),
            view: &self.set.view(&self.workload),
            client,
            resolver: SocketAddr::from(([192, 0, 2, 53], 53)),
            transport: Transport::Udp,
        };
        self.forwarder.answer(bytes, &asking).await
    }

    fn learned(&self, address: &str) -> Option<String> {
        let address = address.parse().unwrap();
        let names = self.forwarder.names();
        names
            .name_of(&self.workload, address, Instant::now())
            .map(|name| name.to_string())
    }
}

fn addresses(message: &Message) -> Vec<String> {
    message
        .answers
        .iter()
        .filter_map(|record| Some(record.data.ip_addr()?.to_string()))
        .collect()
}

#[tokio::test]
async fn an_allowed_name_is_answered_and_learned() {
    let lab = Lab::new(|_| Reply::Addresses(&["198.51.100.1", "2001:db8::1"])).await;
    let reply = lab.ask("Www.Good.test.", RecordType::A).await;
    assert_eq!(addresses(&reply), ["198.51.100.1"]);
    assert_eq!(reply.queries[0].name().to_ascii(), "Www.Good.test.");
    assert_eq!(lab.dns.names(), ["www.good.test"]);
    assert_eq!(lab.learned("198.51.100.1").unwrap(), "www.good.test");
    assert_eq!(lab.learned("2001:db8::1"), None, "only what was told");
}

#[tokio::test]
async fn a_name_that_cannot_be_allowed_is_asked_of_nobody() {
    let lab = Lab::new(|_| Reply::Addresses(&["198.51.100.1"])).await;
    for name in [
        "evil.test.",
        "c2VjcmV0.evil.test.",
        "good.test.search.test.",
        "notgood.test.",
        ".",
        "_443._tcp.evil.test.",
        "4.100.51.198.in-addr.arpa.",
        "cluster.local.evil.test.",
    ] {
        for kind in [
            RecordType::A,
            RecordType::AAAA,
            RecordType::TXT,
            RecordType::HTTPS,
            RecordType::PTR,
        ] {
            let reply = lab.ask(name, kind).await;
            assert_eq!(
                reply.metadata.response_code,
                ResponseCode::NXDomain,
                "{name} {kind}"
            );
        }
    }
    assert!(lab.dns.names().is_empty());
    assert_eq!(lab.forwarder.counts().denied, 40);
}

#[tokio::test]
async fn internal_names_and_reverse_names_of_internal_addresses_pass() {
    let lab = Lab::new(|_| Reply::Addresses(&["10.96.0.1"])).await;
    let reply = lab.ask("db.team.svc.cluster.local.", RecordType::A).await;
    assert_eq!(addresses(&reply), ["10.96.0.1"], "they may be private");
    lab.ask("1.0.96.10.in-addr.arpa.", RecordType::PTR).await;
    lab.ask("1.0.0.127.in-addr.arpa.", RecordType::PTR).await;
    assert_eq!(lab.dns.names().len(), 3);
    let part = lab.ask("96.10.in-addr.arpa.", RecordType::PTR).await;
    assert_eq!(
        part.metadata.response_code,
        ResponseCode::NXDomain,
        "no single address"
    );
}

#[tokio::test]
async fn service_records_of_an_allowed_host_are_looked_up_and_teach_nothing() {
    let lab = Lab::new(|_| Reply::Addresses(&["198.51.100.1"])).await;
    lab.ask("_443._tcp.good.test.", RecordType::A).await;
    assert_eq!(lab.dns.names(), ["_443._tcp.good.test"]);
    assert_eq!(lab.learned("198.51.100.1"), None);
}

#[tokio::test]
async fn a_public_name_with_a_private_address_has_none() {
    let lab = Lab::new(|(name, ..)| match name {
        "mixed.good.test" => Reply::Addresses(&["192.168.0.1", "198.51.100.1"]),
        "intern.good.test" => Reply::Addresses(&["10.1.2.3"]),
        _ => Reply::Addresses(&["192.168.0.1", "169.254.169.254"]),
    })
    .await;
    let reply = lab.ask("good.test.", RecordType::A).await;
    assert_eq!(reply.metadata.response_code, ResponseCode::NoError);
    assert!(reply.answers.is_empty());
    assert_eq!(lab.forwarder.counts().denied, 1);
    assert_eq!(
        addresses(&lab.ask("mixed.good.test.", RecordType::A).await),
        ["198.51.100.1"]
    );
    assert_eq!(lab.learned("192.168.0.1"), None);
    assert_eq!(
        addresses(&lab.ask("intern.good.test.", RecordType::A).await),
        ["10.1.2.3"],
        "internal destinations are no business of the policy's"
    );
    assert_eq!(addresses(&lab.ask("inside.test.", RecordType::A).await).len(), 2);
}

#[tokio::test]
async fn ech_keys_never_reach_the_workload() {
    let lab = Lab::new(|_| {
        let keys = SvcParamValue::EchConfigList(EchConfigList(b"ech keys".to_vec()));
        let service = SVCB::new(1, Name::root(), vec![(SvcParamKey::EchConfigList, keys)]);
        let owner = Name::from_ascii("good.test.").unwrap();
        Reply::Records(vec![Record::from_rdata(owner, 60, RData::HTTPS(HTTPS(service)))])
    })
    .await;
    let reply = lab.ask("good.test.", RecordType::HTTPS).await;
    assert_eq!(reply.answers.len(), 1, "the record itself stays");
    assert!(
        !reply
            .to_vec()
            .unwrap()
            .windows(8)
            .any(|window| window == b"ech keys")
    );
}

#[tokio::test]
async fn what_the_servers_say_is_passed_on_and_silence_becomes_a_failure() {
    let lab = Lab::new(|(name, ..)| match name {
        "gone.good.test" => Reply::NoName(60),
        "broken.good.test" => Reply::Failure(ResponseCode::ServFail),
        "long.good.test" => Reply::Truncated(&["198.51.100.1"]),
        "alias.good.test" => Reply::Chain("elsewhere.test", &["198.51.100.7"]),
        _ => Reply::Silence,
    })
    .await;
    let code = async |name: &str| lab.ask(name, RecordType::A).await.metadata.response_code;
    assert_eq!(code("gone.good.test.").await, ResponseCode::NXDomain);
    assert_eq!(code("broken.good.test.").await, ResponseCode::ServFail);
    assert_eq!(code("silent.good.test.").await, ResponseCode::ServFail);
    assert_eq!(lab.forwarder.counts().failed, 1);
    let long = lab.ask("long.good.test.", RecordType::A).await;
    assert_eq!(addresses(&long), ["198.51.100.1"], "by TCP");
    let alias = lab.ask("alias.good.test.", RecordType::A).await;
    assert_eq!(alias.answers.len(), 2);
    assert_eq!(lab.learned("198.51.100.7").unwrap(), "alias.good.test");
}

#[tokio::test]
async fn a_server_that_fails_is_overtaken_by_the_next() {
    let good = FakeDns::start(|_| Reply::Addresses(&["198.51.100.1"])).await;
    let second = good.address;
    let lab = Lab::with(
        |_| Reply::Failure(ResponseCode::Refused),
        |settings| match &mut settings.servers {
            NameServers::List(list) => list.push(second),
            NameServers::File(_) => {}
        },
    )
    .await;
    assert_eq!(
        addresses(&lab.ask("good.test.", RecordType::A).await),
        ["198.51.100.1"]
    );
}

#[tokio::test]
async fn more_queries_than_may_wait_fail_at_once() {
    let lab = Lab::with(|_| Reply::Silence, |settings| settings.most_waiting = 0).await;
    let reply = lab.ask("good.test.", RecordType::A).await;
    assert_eq!(reply.metadata.response_code, ResponseCode::ServFail);
    assert!(lab.dns.names().is_empty());
    let refused = lab.ask("evil.test.", RecordType::A).await;
    assert_eq!(
        refused.metadata.response_code,
        ResponseCode::NXDomain,
        "which costs nothing"
    );
}

#[tokio::test]
async fn one_workload_does_not_take_the_name_service_from_the_others() {
    let mut lab = Lab::with(|_| Reply::Silence, |settings| settings.most_waiting = 8).await;
    let ask = async |lab: &Lab| {
        let begun = Instant::now();
        let code = lab.ask("good.test.", RecordType::A).await.metadata.response_code;
        assert_eq!(code, ResponseCode::ServFail);
        // No server answers: who was let wait has waited.
        begun.elapsed() < Duration::from_millis(200)
    };
    let (first, second, third) = tokio::join!(ask(&lab), ask(&lab), ask(&lab));
    assert_eq!((first, second, third), (false, false, true));
    let counts = lab.forwarder.counts();
    assert_eq!(
        (counts.failed, counts.denied),
        (2, 1),
        "as more than all may have"
    );
    let one = lab.workload.clone();
    let seats = [
        lab.forwarder.waiting.enter(&one),
        lab.forwarder.waiting.enter(&one),
    ];
    assert!(ask(&lab).await, "its share is taken");
    lab.workload.name = "two".to_owned();
    assert!(!ask(&lab).await, "another one's is not");
    drop(seats);
}

#[tokio::test]
async fn garbage_is_answered_or_counted() {
    let lab = Lab::new(|_| Reply::Silence).await;
    assert_eq!(
        lab.send(b"GET / HTTP/1.1\r\n").await.map(|reply| reply.len()),
        Some(12)
    );
    assert_eq!(lab.send(b"x").await, None);
    let counts = lab.forwarder.counts();
    assert_eq!((counts.denied, counts.dropped), (1, 1));
    assert!(lab.dns.names().is_empty());
}
