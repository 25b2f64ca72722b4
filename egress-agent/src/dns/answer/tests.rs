#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "whatever else it is, the test has failed"
)]

use hickory_proto::{
    op::{MessageType, OpCode, Query},
    rr::rdata::{
        A, AAAA, CNAME, HTTPS, NULL,
        svcb::{Alpn, EchConfigList, Mandatory},
    },
};

use super::{super::message::Incoming, *};
use crate::dns::private::is_private;

fn name(text: &str) -> Name {
    Name::from_ascii(text).unwrap()
}

fn question(text: &str, kind: RecordType) -> Question {
    let mut message = Message::new(1, MessageType::Query, OpCode::Query);
    message.add_query(Query::query(name(text), kind));
    match Question::read(&message.to_vec().unwrap()) {
        Incoming::Question(question) => *question,
        other => panic!("{other:?}"),
    }
}

fn answer(records: Vec<Record>) -> Message {
    let mut message = Message::response(1, OpCode::Query);
    message.metadata.authentic_data = true;
    message.add_answers(records);
    message
}

fn v4(owner: &str, ttl: u32, octets: [u8; 4]) -> Record {
    Record::from_rdata(name(owner), ttl, RData::A(A(octets.into())))
}

fn alias(owner: &str, ttl: u32, target: &str) -> Record {
    Record::from_rdata(name(owner), ttl, RData::CNAME(CNAME(name(target))))
}

fn signature(owner: &str, covered: RecordType) -> Record {
    let mut bytes = u16::from(covered).to_be_bytes().to_vec();
    bytes.extend([0; 20]);
    let data = RData::Unknown {
        code: RecordType::RRSIG,
        rdata: NULL::with(bytes),
    };
    Record::from_rdata(name(owner), 60, data)
}

fn service(params: Vec<(SvcParamKey, SvcParamValue)>) -> Record {
    let data = RData::HTTPS(HTTPS(SVCB::new(1, Name::root(), params)));
    Record::from_rdata(name("a.test."), 60, data)
}

fn params(answer: &Message) -> Vec<SvcParamKey> {
    match &answer.answers[0].data {
        RData::HTTPS(https) => https.0.svc_params.iter().map(|(key, _)| *key).collect(),
        other => panic!("{other:?}"),
    }
}

fn ech() -> (SvcParamKey, SvcParamValue) {
    let keys = SvcParamValue::EchConfigList(EchConfigList(vec![1, 2, 3]));
    (SvcParamKey::EchConfigList, keys)
}

fn alpn() -> (SvcParamKey, SvcParamValue) {
    (
        SvcParamKey::Alpn,
        SvcParamValue::Alpn(Alpn(vec!["h2".to_owned()])),
    )
}

#[test]
fn ech_keys_are_taken_out_and_everything_else_stays() {
    let mandatory = SvcParamValue::Mandatory(Mandatory(vec![SvcParamKey::Alpn, SvcParamKey::EchConfigList]));
    let records = || {
        vec![
            service(vec![(SvcParamKey::Mandatory, mandatory.clone()), alpn(), ech()]),
            signature("a.test.", RecordType::HTTPS),
            signature("a.test.", RecordType::A),
            v4("a.test.", 60, [198, 51, 100, 1]),
        ]
    };
    let mut stripped = answer(records());
    let altered = clean(&mut stripped, Ech::Strip, is_private);
    assert!(altered.ech && !altered.private);
    assert_eq!(params(&stripped), [SvcParamKey::Mandatory, SvcParamKey::Alpn]);
    let RData::HTTPS(https) = &stripped.answers[0].data else {
        panic!()
    };
    let kept = SvcParamValue::Mandatory(Mandatory(vec![SvcParamKey::Alpn]));
    assert_eq!(
        https.0.svc_params[0].1, kept,
        "what is gone is not needed any more"
    );
    assert!(!stripped.metadata.authentic_data, "nobody has verified this");
    let kinds: Vec<_> = stripped.answers.iter().map(Record::record_type).collect();
    assert_eq!(
        kinds,
        [RecordType::HTTPS, RecordType::RRSIG, RecordType::A],
        "the signature over the altered records is gone, the other one stays"
    );
    let encoded = Message::from_vec(&stripped.to_vec().unwrap()).unwrap();
    assert_eq!(encoded.answers, stripped.answers);

    let mut allowed = answer(records());
    assert!(!clean(&mut allowed, Ech::Allow, is_private).any());
    assert_eq!(allowed, answer(records()));
}

#[test]
fn private_addresses_are_taken_out_of_records_and_hints() {
    let hint = |octets: [u8; 4]| A(octets.into());
    let both = SvcParamValue::Ipv4Hint(IpHint(vec![hint([10, 0, 0, 1]), hint([198, 51, 100, 1])]));
    let local = SvcParamValue::Ipv6Hint(IpHint(vec![AAAA("::1".parse().unwrap())]));
    let mut told = answer(vec![
        service(vec![
            (SvcParamKey::Ipv4Hint, both),
            (SvcParamKey::Ipv6Hint, local),
        ]),
        v4("a.test.", 60, [192, 168, 0, 1]),
        v4("a.test.", 60, [198, 51, 100, 1]),
    ]);
    let altered = clean(&mut told, Ech::Strip, is_private);
    assert!(altered.private && !altered.ech);
    assert_eq!(
        params(&told),
        [SvcParamKey::Ipv4Hint],
        "a hint without addresses is none"
    );
    let left: Vec<_> = told
        .answers
        .iter()
        .filter_map(|record| record.data.ip_addr())
        .collect();
    assert_eq!(left, ["198.51.100.1".parse::<IpAddr>().unwrap()]);
}

#[test]
fn addresses_are_those_at_the_end_of_the_aliases_with_the_shortest_time_on_the_way() {
    let asked = question("A.test.", RecordType::A);
    let told = answer(vec![
        v4("c.test.", 300, [198, 51, 100, 3]),
        alias("a.test.", 600, "b.test."),
        alias("b.test.", 20, "C.test."),
        v4("other.test.", 300, [198, 51, 100, 9]),
    ]);
    let expected = ("198.51.100.3".parse().unwrap(), Duration::from_secs(20));
    assert_eq!(addresses(&asked, &told), [expected]);
}

#[test]
fn aliases_in_a_circle_lead_nowhere() {
    let asked = question("a.test.", RecordType::A);
    let told = answer(vec![
        alias("a.test.", 60, "b.test."),
        alias("b.test.", 60, "a.test."),
    ]);
    assert!(addresses(&asked, &told).is_empty());
}
