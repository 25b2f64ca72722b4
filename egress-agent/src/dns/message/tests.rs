#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "whatever else it is, the test has failed"
)]

use hickory_proto::{
    op::Metadata,
    rr::{RData, Record, rdata::A},
};
use proptest::prelude::*;

use super::*;

fn query(name: &str, kind: RecordType, change: impl FnOnce(&mut Message)) -> Vec<u8> {
    let mut message = Message::query();
    message.metadata = Metadata::new(0x1234, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    change(&mut message);
    message.to_vec().unwrap()
}

fn question(bytes: &[u8]) -> Box<Question> {
    match Question::read(bytes) {
        Incoming::Question(question) => question,
        other => panic!("{other:?}"),
    }
}

fn error_of(bytes: &[u8]) -> (ResponseCode, Message) {
    match Question::read(bytes) {
        Incoming::Error(reply, code) => (code, Message::from_vec(&reply).unwrap()),
        other => panic!("{other:?}"),
    }
}

fn extended(reply: &Message) -> Option<(u16, String)> {
    match reply.edns.as_ref()?.option(EdnsCode::from(EXTENDED_ERROR))? {
        EdnsOption::Unknown(_, bytes) => {
            let (code, text) = bytes.split_at(2);
            Some((
                u16::from_be_bytes([code[0], code[1]]),
                String::from_utf8(text.to_vec()).unwrap(),
            ))
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn nothing_of_a_query_leaves_but_its_name_in_lower_case_and_its_type() {
    let bytes = query("ExAmPlE.test.", RecordType::TXT, |message| {
        message.metadata.authentic_data = true;
        let mut edns = Edns::new();
        edns.set_max_payload(4096).set_dnssec_ok(true);
        edns.options_mut()
            .insert(EdnsOption::Unknown(65_001, b"payload".to_vec()));
        message.set_edns(edns);
    });
    let anew = question(&bytes).anew();
    let sent = anew.to_vec().unwrap();
    let seen = Message::from_vec(&sent).unwrap();
    assert_eq!(seen.queries[0].name().to_ascii(), "example.test.");
    assert_eq!(seen.queries[0].query_type(), RecordType::TXT);
    assert!(!seen.metadata.authentic_data);
    let edns = seen.edns.unwrap();
    assert!(edns.options().options.is_empty());
    assert!(edns.flags().dnssec_ok, "signatures are wanted");
    assert!(!sent.windows(7).any(|window| window == b"payload"));
    let others: std::collections::HashSet<u16> =
        (0..32).map(|_| question(&bytes).anew().metadata.id).collect();
    assert!(others.len() > 16, "ids are random: {others:?}");
}

#[test]
fn a_refused_name_does_not_exist_and_the_reason_is_told_to_those_who_can_read_it() {
    let plain = question(&query("a.test.", RecordType::A, |_| ()));
    let reply = plain.refusal(ResponseCode::NXDomain, Extended::Blocked);
    let reply = Message::from_vec(&plain.encode(&reply, Transport::Udp)).unwrap();
    assert_eq!(reply.metadata.id, 0x1234);
    assert_eq!(reply.metadata.response_code, ResponseCode::NXDomain);
    assert!(reply.metadata.recursion_available && reply.metadata.recursion_desired);
    assert!(reply.edns.is_none(), "no EDNS where none was asked for");

    let able = question(&query("a.test.", RecordType::A, |message| {
        message.set_edns(Edns::new());
    }));
    let reply = able.refusal(ResponseCode::NXDomain, Extended::Blocked);
    let reply = Message::from_vec(&able.encode(&reply, Transport::Udp)).unwrap();
    let (code, text) = extended(&reply).unwrap();
    assert_eq!(code, 15);
    assert!(text.contains("policy"), "{text}");
}

#[test]
fn the_client_gets_its_own_spelling_back() {
    let asked = question(&query("WWW.a.Test.", RecordType::A, |_| ()));
    let reply = asked.refusal(ResponseCode::NXDomain, Extended::Blocked);
    let bytes = asked.encode(&reply, Transport::Udp);
    assert!(bytes.windows(3).any(|window| window == b"WWW"));
}

#[test]
fn what_is_no_query_is_left_or_refused_in_a_defined_way() {
    assert!(matches!(Question::read(&[0; 11]), Incoming::Ignored));
    let response = query("a.test.", RecordType::A, |message| {
        message.metadata.message_type = MessageType::Response;
    });
    assert!(matches!(Question::read(&response), Incoming::Ignored));

    let mut cut = query("a.test.", RecordType::A, |_| ());
    cut.truncate(16);
    assert_eq!(error_of(&cut).0, ResponseCode::FormErr);
    let two = query("a.test.", RecordType::A, |message| {
        message.add_query(Query::query(Name::from_ascii("b.test.").unwrap(), RecordType::A));
    });
    assert_eq!(error_of(&two).0, ResponseCode::FormErr);
    let none = query("a.test.", RecordType::A, |message| message.queries.clear());
    assert_eq!(error_of(&none).0, ResponseCode::FormErr);
    let with_records = query("a.test.", RecordType::A, |message| {
        let record = Record::from_rdata(Name::root(), 1, RData::A(A::new(1, 2, 3, 4)));
        message.add_answer(record);
    });
    assert_eq!(error_of(&with_records).0, ResponseCode::FormErr);
    let update = query("a.test.", RecordType::SOA, |message| {
        message.metadata.op_code = OpCode::Update;
    });
    assert_eq!(error_of(&update).0, ResponseCode::NotImp);
    for kind in [RecordType::AXFR, RecordType::IXFR, RecordType::ANY] {
        let (code, reply) = error_of(&query("a.test.", kind, |message| {
            message.set_edns(Edns::new());
        }));
        assert_eq!(code, ResponseCode::NotImp, "{kind}");
        assert_eq!(extended(&reply).unwrap().0, 21);
    }
    let chaos = query("version.bind.", RecordType::TXT, |message| {
        message.queries[0].set_query_class(DNSClass::CH);
    });
    assert_eq!(error_of(&chaos).0, ResponseCode::NotImp);
    let future = query("a.test.", RecordType::A, |message| {
        let mut edns = Edns::new();
        edns.set_version(1);
        message.set_edns(edns);
    });
    let (code, reply) = error_of(&future);
    // The number of BADSIG too, which is what the library calls it.
    let told = u16::from(reply.metadata.response_code);
    assert_eq!((code, told), (ResponseCode::BADVERS, 16));
}

#[test]
fn service_labels_belong_to_their_host_and_other_labels_do_not() {
    let host = |name: &str| {
        question(&query(name, RecordType::TXT, |_| ()))
            .host()
            .map(ToString::to_string)
    };
    assert_eq!(host("a.test.").unwrap(), "a.test");
    assert_eq!(host("_443._tcp.a.test.").unwrap(), "a.test");
    assert_eq!(host("_dmarc.A.test.").unwrap(), "a.test");
    assert_eq!(host("_x._y._z.a.test.").unwrap(), "_z.a.test");
    assert_eq!(host("secret.a.test.").unwrap(), "secret.a.test");
    assert_eq!(host("."), None);
    assert_eq!(host("*.a.test."), None, "no host has such a name");
}

#[test]
fn an_answer_that_is_too_large_for_the_client_is_cut_and_tcp_brings_it_whole() {
    let big = |message: &mut Message| {
        for number in 0..100 {
            let data = RData::A(A::new(198, 51, 100, number));
            message.add_answer(Record::from_rdata(Name::from_ascii("a.test.").unwrap(), 60, data));
        }
    };
    let small = question(&query("a.test.", RecordType::A, |_| ()));
    let mut told = small.anew();
    told.metadata.message_type = MessageType::Response;
    big(&mut told);
    let reply = small.pass_on(told.clone());
    let udp = small.encode(&reply, Transport::Udp);
    assert!(udp.len() <= 512);
    let udp = Message::from_vec(&udp).unwrap();
    assert!(udp.metadata.truncation && udp.answers.is_empty());
    let tcp = Message::from_vec(&small.encode(&reply, Transport::Tcp)).unwrap();
    assert!(!tcp.metadata.truncation);
    assert_eq!(tcp.answers.len(), 100);

    let able = question(&query("a.test.", RecordType::A, |message| {
        let mut edns = Edns::new();
        edns.set_max_payload(4096);
        message.set_edns(edns);
    }));
    let whole = able.encode(&able.pass_on(told), Transport::Udp);
    assert_eq!(Message::from_vec(&whole).unwrap().answers.len(), 100);
}

#[test]
fn only_the_very_answer_to_a_question_is_one() {
    let asked = question(&query("a.test.", RecordType::A, |_| ())).anew();
    let mut told = asked.clone();
    told.metadata.message_type = MessageType::Response;
    assert!(is_answer_to(&told, &asked));
    let with = |change: fn(&mut Message)| {
        let mut other = told.clone();
        change(&mut other);
        is_answer_to(&other, &asked)
    };
    assert!(with(|answer| {
        answer.queries[0].set_name(Name::from_ascii("A.TEST.").unwrap());
    }));
    assert!(!with(|answer| answer.metadata.id ^= 1));
    assert!(!with(|answer| answer.metadata.message_type = MessageType::Query));
    assert!(!with(|answer| answer.queries.clear()));
    assert!(!with(|answer| {
        answer.queries[0].set_name(Name::from_ascii("b.test.").unwrap());
    }));
    assert!(!with(|answer| {
        answer.queries[0].set_query_type(RecordType::AAAA);
    }));
}

proptest! {
    #[test]
    fn no_bytes_are_too_strange(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        if let Incoming::Question(question) = Question::read(&bytes) {
            let reply = question.refusal(ResponseCode::NXDomain, Extended::Blocked);
            prop_assert!(question.encode(&reply, Transport::Udp).len() <= 65_535);
        }
    }

    /// One byte changed somewhere in a good query.
    #[test]
    fn no_broken_query_is_too_strange(at in 0_usize..50, byte in any::<u8>()) {
        let mut bytes = query("_a._b.long.name.test.", RecordType::HTTPS, |message| {
            message.set_edns(Edns::new());
        });
        let length = bytes.len();
        bytes[at % length] = byte;
        if let Incoming::Question(question) = Question::read(&bytes) {
            let sent = question.anew().to_vec().unwrap();
            prop_assert!(Message::from_vec(&sent).is_ok());
        }
    }
}
