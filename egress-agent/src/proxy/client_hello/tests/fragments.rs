//! Records and segments: how a hello may be cut, and how not.

use super::{
    build::{Build, message, record, records, sni},
    *,
};

fn good() -> Build {
    Build::with([sni("good.test")])
}

/// A hello of a bit more than `size` bytes.
fn large(size: usize) -> Build {
    Build::with([
        (0x7a7a, vec![0; size / 2]),
        (0x8a8a, vec![0; size / 2]),
        sni("good.test"),
    ])
}

#[test]
fn records_of_any_size_give_the_same_name() {
    for size in 1..=80 {
        assert_eq!(
            name(&records(&good().message(), &[size])).as_deref(),
            Some("good.test"),
            "{size}"
        );
    }
    for sizes in [&[1, 1, 1, 1, 9, 200][..], &[3, 2, 1], &[4, 300]] {
        assert_eq!(
            name(&records(&good().message(), sizes)).as_deref(),
            Some("good.test"),
            "{sizes:?}"
        );
    }
}

#[test]
fn a_hello_of_several_full_records_is_put_together() {
    let wire = large(50_000).wire();
    assert!(wire.len() > 3 * (1 << 14));
    assert_eq!(name(&wire).as_deref(), Some("good.test"));
}

#[test]
fn records_after_the_hello_are_not_looked_at() {
    let hello_only = good().wire();
    for after in [
        &b"\x14\x03\x03\x00\x01\x01\x17\x03\x03\x00\x05early"[..],
        b"no record at all",
    ] {
        let bytes = [&hello_only, after].concat();
        assert_eq!(hello(&bytes).wire_length, hello_only.len());
    }
}

#[test]
fn an_empty_record_is_refused_first_and_in_between() {
    let message = good().message();
    let (front, back) = message.split_at(20);
    let empty = record(22, b"");
    assert_eq!(refusal(&empty), HelloRefusal::EmptyRecord);
    assert_eq!(
        refusal(&[record(22, front), empty, record(22, back)].concat()),
        HelloRefusal::EmptyRecord
    );
}

#[test]
fn another_record_between_the_pieces_is_refused() {
    let message = good().message();
    let (front, back) = message.split_at(20);
    for kind in [20, 21, 23, 24, 0x80] {
        let bytes = [record(22, front), record(kind, b"\x01"), record(22, back)].concat();
        assert_eq!(refusal(&bytes), HelloRefusal::NotHandshake(kind));
    }
}

#[test]
fn nothing_may_follow_the_hello_in_its_last_record() {
    let message = good().message();
    let second = [message.clone(), Build::with([sni("evil.test")]).message()].concat();
    assert_eq!(refusal(&record(22, &second)), HelloRefusal::SharedRecord);
    assert_eq!(refusal(&records(&second, &[100])), HelloRefusal::SharedRecord);
    assert_eq!(
        refusal(&record(22, &[message.clone(), vec![0]].concat())),
        HelloRefusal::SharedRecord
    );
    let (front, back) = message.split_at(2);
    let header_cut = [record(22, front), record(22, &[back, &[0]].concat())].concat();
    assert_eq!(refusal(&header_cut), HelloRefusal::SharedRecord);
}

#[test]
fn a_record_holds_at_most_16384_bytes() {
    let message = large(20_000).message();
    assert_eq!(name(&records(&message, &[1 << 14])).as_deref(), Some("good.test"));
    assert_eq!(
        refusal(&record(22, &message[..(1 << 14) + 1])),
        HelloRefusal::RecordTooLong
    );
}

#[test]
fn the_bound_counts_every_byte_of_the_hello_and_none_after_it() {
    for sizes in [&[1 << 14][..], &[1], &[100, 7]] {
        let wire = records(&good().message(), sizes);
        let longer = [&wire[..], &[0; 500]].concat();
        assert!(matches!(parse(&wire, wire.len()), Parsed::Hello(_)), "{sizes:?}");
        assert!(
            matches!(parse(&longer, wire.len()), Parsed::Hello(_)),
            "{sizes:?}"
        );
        assert_eq!(
            parse(&wire, wire.len() - 1),
            Parsed::Refused(HelloRefusal::TooLarge),
            "{sizes:?}"
        );
    }
}

#[test]
fn a_hello_above_the_bound_is_refused_when_its_length_is_told() {
    let bytes = record(22, &message(1, &vec![0; 16_000]));
    assert_eq!(
        parse(&bytes[..9], 10_000),
        Parsed::Refused(HelloRefusal::TooLarge)
    );
    let three_bytes_of_length = [22, 3, 1, 0x40, 0, 1, 0xff, 0xff, 0xff];
    assert_eq!(refusal(&three_bytes_of_length), HelloRefusal::TooLarge);
}

#[test]
fn an_endless_hello_is_refused_within_the_bound() {
    // One-byte records that never complete the message.
    let mut wire = records(&[1, 0, 0x40, 0], &[1]);
    while wire.len() < 2 * BOUND {
        wire.extend(record(22, &[0]));
    }
    let mut reader = HelloReader::new(BOUND);
    let after = (0..wire.len())
        .find(|end| reader.read(&wire[..*end]) != Parsed::Incomplete)
        .unwrap();
    assert!(after <= BOUND, "{after}");
    assert_eq!(parse(&wire, BOUND), Parsed::Refused(HelloRefusal::TooLarge));
}

#[test]
fn the_smallest_bounds_refuse_and_never_wait() {
    for bound in 0..=5 {
        assert_eq!(parse(b"", bound), Parsed::Refused(HelloRefusal::TooLarge));
    }
    assert_eq!(parse(b"", 6), Parsed::Incomplete);
}
