//! What becomes of each oddity.

use egress_common::outcome::Outcome;

use super::{
    build::{Build, alpn, message, names, record, records, sni, vector16},
    *,
};
use crate::{policy::NameError, proxy::refuse::Alert};

fn good() -> Build {
    Build::with([sni("good.test")])
}

/// The refusal of a hello with only this as server name.
#[track_caller]
fn refused_name(name: &[u8]) -> HelloRefusal {
    let refusal = refusal(&Build::with([sni(name)]).wire());
    assert_eq!(refusal.outcome(), Outcome::InvalidServerName);
    assert_eq!(refusal.alert(), Alert::UnrecognizedName);
    refusal
}

#[track_caller]
fn malformed(bytes: &[u8], alert: Alert) -> HelloRefusal {
    let refusal = refusal(bytes);
    assert_eq!(refusal.outcome(), Outcome::MalformedTls);
    assert_eq!(refusal.alert(), alert, "{refusal}");
    refusal
}

#[test]
fn a_hello_without_a_name_is_a_hello() {
    assert_eq!(name(&Build::with([]).wire()), None);
    let empty_block = Build {
        extensions: Some(vec![]),
        ..good()
    };
    assert_eq!(name(&empty_block.wire()), None);
    let no_block = Build {
        extensions: None,
        ..good()
    };
    assert_eq!(name(&no_block.wire()), None);
}

#[test]
fn the_name_is_canonical() {
    for sent in ["good.test", "GOOD.Test", "good.test.", "gOOD.tEST."] {
        assert_eq!(
            name(&Build::with([sni(sent)]).wire()).as_deref(),
            Some("good.test"),
            "{sent}"
        );
    }
    let a_label = name(&Build::with([sni("XN--Bcher-KVA.test")]).wire());
    assert_eq!(a_label.as_deref(), Some("xn--bcher-kva.test"));
}

#[test]
fn the_name_may_stand_anywhere_between_grease() {
    // RFC 8701: reserved values as extension types, one of them empty, and as a cipher suite.
    let others = [
        (0x0a0a, vec![]),
        (0xfafa, vec![0; 5]),
        (0x33, vec![1; 1300]),
        (0x29, vec![2; 200]),
    ];
    for at in 0..=others.len() {
        let mut extensions = others.to_vec();
        extensions.insert(at, sni("good.test"));
        let hello = Build {
            suites: vec![0xba, 0xba, 0x13, 1],
            extensions: Some(extensions),
            ..good()
        };
        assert_eq!(name(&hello.wire()).as_deref(), Some("good.test"), "at {at}");
    }
}

#[test]
fn two_names_are_ambiguous_even_if_they_are_equal() {
    for entries in [
        &[(0, &b"good.test"[..]), (0, b"evil.test")][..],
        &[(0, b"good.test"), (0, b"good.test")],
        &[(0, b"good.test"), (0, b"good.test"), (0, b"good.test")],
    ] {
        let refusal = refusal(&Build::with([names(entries)]).wire());
        assert_eq!(refusal, HelloRefusal::TwoNames);
        assert_eq!(refusal.outcome(), Outcome::AmbiguousServerName);
        assert_eq!(refusal.alert(), Alert::IllegalParameter);
    }
}

#[test]
fn two_name_extensions_are_ambiguous_even_if_they_are_equal() {
    for second in ["evil.test", "good.test"] {
        let refusal = refusal(&Build::with([sni("good.test"), sni(second)]).wire());
        assert_eq!(refusal, HelloRefusal::TwoNameExtensions);
        assert_eq!(refusal.outcome(), Outcome::AmbiguousServerName);
    }
}

#[test]
fn a_name_of_unknown_type_is_refused_before_and_after_a_host_name() {
    assert_eq!(
        refusal(&Build::with([names(&[(1, b"good.test")])]).wire()),
        HelloRefusal::NameType(1)
    );
    for entries in [
        [(0, &b"good.test"[..]), (7, b"x")],
        [(7, b"x"), (0, b"good.test")],
    ] {
        let refusal = refusal(&Build::with([names(&entries)]).wire());
        assert_eq!(refusal, HelloRefusal::NameType(7));
        assert_eq!(refusal.outcome(), Outcome::InvalidServerName);
    }
}

#[test]
fn what_is_no_host_name_is_refused() {
    assert_eq!(refused_name(b""), HelloRefusal::EmptyName);
    assert_eq!(refused_name(b"."), HelloRefusal::Name(NameError::Empty));
    assert_eq!(refused_name(b"good..test"), HelloRefusal::Name(NameError::Label));
    assert_eq!(refused_name(b"good.test.."), HelloRefusal::Name(NameError::Label));
    assert_eq!(
        refused_name(b"good.test\0"),
        HelloRefusal::Name(NameError::Character)
    );
    assert_eq!(
        refused_name(b"good.test\0.evil.test"),
        HelloRefusal::Name(NameError::Character)
    );
    for text in [
        "*.test",
        "good.test:443",
        "good test",
        " good.test",
        "good.test/",
        "a@good.test",
        "%67ood.test",
    ] {
        assert_eq!(
            refused_name(text.as_bytes()),
            HelloRefusal::Name(NameError::Character),
            "{text}"
        );
    }
    assert_eq!(refused_name(&[b'a'; 64]), HelloRefusal::Name(NameError::Label));
    let long = [&b"a."[..]; 127].concat();
    assert_eq!(
        refused_name(&[&long, &b"a"[..]].concat()),
        HelloRefusal::Name(NameError::TooLong)
    );
    assert_eq!(
        refused_name(&[b'a'; 20_000]),
        HelloRefusal::Name(NameError::TooLong)
    );
}

#[test]
fn a_name_that_is_not_ascii_is_refused_whatever_it_would_map_to() {
    for sent in ["b\u{fc}cher.test", "good\u{3002}test", "\u{ff47}ood.test"] {
        assert_eq!(refused_name(sent.as_bytes()), HelloRefusal::NotAscii, "{sent}");
    }
    assert_eq!(refused_name(b"good.test\xff"), HelloRefusal::NotAscii);
}

#[test]
fn an_address_as_name_is_refused_in_every_spelling() {
    for address in ["192.0.2.1", "2001:db8::1", "[2001:db8::1]", "::ffff:192.0.2.1"] {
        assert_eq!(
            refused_name(address.as_bytes()),
            HelloRefusal::Address,
            "{address}"
        );
    }
    for address in ["192.0.2.1.", "127.1", "0x7f.1", "3221225985"] {
        assert_eq!(
            refused_name(address.as_bytes()),
            HelloRefusal::Name(NameError::Numeric),
            "{address}"
        );
    }
}

#[test]
fn wrong_lengths_in_the_name_extension_are_refused() {
    for data in [
        vec![],
        vec![0],
        // An empty list, a list longer and one shorter than the extension.
        vec![0, 0],
        vec![0, 9, 0, 0, 4, b'a', b'.', b'b', b'c'],
        vec![0, 4, 0, 0, 1, b'a', b'b'],
        // A name longer than the list, and a list that ends inside the length of a second name.
        vec![0, 4, 0, 0, 9, b'a'],
        vec![0, 6, 0, 0, 1, b'a', 0, 0],
    ] {
        malformed(&Build::with([(0, data)]).wire(), Alert::DecodeError);
    }
}

#[test]
fn wrong_lengths_around_the_extensions_are_refused() {
    let version_and_random = 2 + 32;
    let body = Build {
        extensions: Some(vec![sni("good.test")]),
        session: vec![],
        ..good()
    }
    .body();
    // Every vector of this hello, made one longer and one shorter: offsets of the low bytes of their lengths.
    for at in [
        version_and_random,
        version_and_random + 2,
        version_and_random + 7,
        version_and_random + 10,
    ] {
        for change in [1, u8::MAX] {
            let mut body = body.clone();
            body[at] = body[at].wrapping_add(change);
            malformed(&records(&message(1, &body), &[1 << 14]), Alert::DecodeError);
        }
    }
    // An extension that is longer than the block, and bytes that are too few for a type and a length.
    for block in [&[0x12, 0x34, 0, 9, 1][..], &[0x12], &[0x12, 0x34, 0]] {
        let hello = Build {
            extensions: None,
            trailer: vector16(block),
            ..good()
        };
        malformed(&hello.wire(), Alert::DecodeError);
    }
}

#[test]
fn a_body_that_ends_early_is_refused() {
    let body = Build {
        extensions: None,
        ..good()
    }
    .body();
    for end in 0..body.len() {
        malformed(
            &records(&message(1, &body[..end]), &[1 << 14]),
            Alert::DecodeError,
        );
    }
}

#[test]
fn sizes_outside_the_rules_are_refused() {
    for hello in [
        Build {
            session: vec![0; 33],
            ..good()
        },
        Build {
            suites: vec![],
            ..good()
        },
        Build {
            suites: vec![0x13, 1, 0x13],
            ..good()
        },
        Build {
            compression: vec![],
            ..good()
        },
    ] {
        malformed(&hello.wire(), Alert::DecodeError);
    }
}

#[test]
fn bytes_after_the_extensions_are_refused() {
    let hello = Build {
        trailer: vec![0],
        ..good()
    };
    assert_eq!(
        malformed(&hello.wire(), Alert::DecodeError),
        HelloRefusal::TrailingBytes
    );
}

#[test]
fn alpn_is_noted_and_checked() {
    let hello = hello(&Build::with([alpn(&[b"\x0a\x0a", b"h2", b"\xff"])]).wire());
    assert_eq!(hello.facts.alpn, ["\n\n", "h2", "\u{fffd}"]);
    for data in [
        vec![],
        vec![0, 0],
        vec![0, 1, 0],
        vec![0, 3, 2, b'h'],
        vec![0, 2, 1, b'h', 0],
    ] {
        malformed(&Build::with([(16, data)]).wire(), Alert::DecodeError);
    }
    let twice = Build::with([alpn(&[b"h2"]), alpn(&[b"h2"])]);
    assert_eq!(
        malformed(&twice.wire(), Alert::IllegalParameter),
        HelloRefusal::DuplicateExtension(16)
    );
}

#[test]
fn ech_is_noted_and_the_outer_name_is_the_name() {
    let ech = (0xfe0d, vec![0; 200]);
    let hello_bytes = Build::with([ech.clone(), sni("outer.test")]).wire();
    assert!(hello(&hello_bytes).facts.ech);
    assert_eq!(name(&hello_bytes).as_deref(), Some("outer.test"));
    let twice = Build::with([ech.clone(), ech]);
    assert_eq!(
        malformed(&twice.wire(), Alert::IllegalParameter),
        HelloRefusal::DuplicateExtension(0xfe0d)
    );
}

#[test]
fn versions_of_the_hello() {
    for version in [0x0301, 0x0302, 0x0303, 0x0304, 0x03ff] {
        assert_eq!(
            name(&Build { version, ..good() }.wire()).as_deref(),
            Some("good.test"),
            "{version:#x}"
        );
    }
    for version in [0x0000, 0x0002, 0x0300, 0x0400, 0xfefd, 0x7f1c] {
        let bytes = Build { version, ..good() }.wire();
        assert_eq!(
            malformed(&bytes, Alert::ProtocolVersion),
            HelloRefusal::Version(version)
        );
    }
}

#[test]
fn versions_of_the_record() {
    for minor in 0..=4 {
        let mut bytes = good().wire();
        bytes[2] = minor;
        assert_eq!(name(&bytes).as_deref(), Some("good.test"), "3.{minor}");
    }
    for major in [0, 2, 4, 0xfe] {
        let mut bytes = good().wire();
        bytes[1] = major;
        assert_eq!(
            malformed(&bytes, Alert::ProtocolVersion),
            HelloRefusal::RecordVersion(major)
        );
    }
}

#[test]
fn another_record_type_first_is_refused() {
    for kind in [20, 21, 23, 24, 0, 127] {
        let bytes = record(kind, &good().message());
        assert_eq!(
            malformed(&bytes, Alert::UnexpectedMessage),
            HelloRefusal::NotHandshake(kind)
        );
    }
}

#[test]
fn another_handshake_message_first_is_refused_at_its_first_byte() {
    for kind in [0, 2, 4, 11, 20, 254] {
        let bytes = record(22, &message(kind, &good().body()));
        assert_eq!(
            malformed(&bytes, Alert::UnexpectedMessage),
            HelloRefusal::NotClientHello(kind)
        );
        assert_eq!(
            parse(&bytes[..6], BOUND),
            Parsed::Refused(HelloRefusal::NotClientHello(kind))
        );
    }
}

#[test]
fn a_hello_of_ssl2_is_refused() {
    for version in [[0, 2], [3, 1]] {
        let bytes = [&[0x80, 0x2e, 1][..], &version, &[0; 41]].concat();
        assert_eq!(malformed(&bytes, Alert::ProtocolVersion), HelloRefusal::Ssl2);
    }
}

#[test]
fn every_refusal_has_the_alert_of_its_outcome_or_a_more_exact_one() {
    for refusal in [
        HelloRefusal::TooLarge,
        HelloRefusal::TwoNames,
        HelloRefusal::Address,
    ] {
        assert_eq!(Alert::for_outcome(refusal.outcome()), Some(refusal.alert()));
    }
}
