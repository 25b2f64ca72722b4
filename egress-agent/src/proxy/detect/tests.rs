use proptest::prelude::*;

use super::*;

/// The answer for `bytes`, having checked that every shorter prefix says the same or nothing yet.
fn settled(bytes: &[u8]) -> Detected {
    let answer = detect(bytes);
    for end in 0..bytes.len() {
        let earlier = detect(&bytes[..end]);
        assert!(
            earlier == Detected::Incomplete || earlier == answer,
            "{earlier:?} after {end} bytes of {:?}, then {answer:?}",
            bytes.escape_ascii().to_string()
        );
    }
    answer
}

/// The number of bytes after which the answer stands.
fn settled_after(bytes: &[u8]) -> usize {
    (0..=bytes.len())
        .find(|end| detect(&bytes[..*end]) != Detected::Incomplete)
        .unwrap()
}

#[test]
fn nothing_is_incomplete() {
    assert_eq!(detect(b""), Detected::Incomplete);
}

#[test]
fn every_registered_method_is_http1() {
    // https://www.iana.org/assignments/http-methods
    for method in [
        "ACL",
        "BASELINE-CONTROL",
        "BIND",
        "CHECKIN",
        "CHECKOUT",
        "CONNECT",
        "COPY",
        "DELETE",
        "GET",
        "HEAD",
        "LABEL",
        "LINK",
        "LOCK",
        "MERGE",
        "MKACTIVITY",
        "MKCALENDAR",
        "MKCOL",
        "MKREDIRECTREF",
        "MKWORKSPACE",
        "MOVE",
        "OPTIONS",
        "ORDERPATCH",
        "PATCH",
        "POST",
        "PROPFIND",
        "PROPPATCH",
        "PUT",
        "REBIND",
        "REPORT",
        "SEARCH",
        "TRACE",
        "UNBIND",
        "UNCHECKOUT",
        "UNLINK",
        "UNLOCK",
        "UPDATE",
        "UPDATEREDIRECTREF",
        "VERSION-CONTROL",
    ] {
        let line = format!("{method} / HTTP/1.1\r\n");
        assert_eq!(settled(line.as_bytes()), Detected::Http1, "{method}");
        assert_eq!(settled_after(line.as_bytes()), method.len() + 1, "{method}");
    }
}

#[test]
fn unknown_and_lower_case_methods_are_http1() {
    for line in [
        "get / HTTP/1.1",
        "FOO2 /",
        "x *",
        "M-SEARCH * HTTP/1.1",
        "PRI /",
        "P /",
        "!#$ /",
    ] {
        let line = format!("{line} ");
        assert_eq!(settled(line.as_bytes()), Detected::Http1, "{line}");
    }
}

#[test]
fn a_method_has_at_most_32_letters() {
    assert_eq!(
        settled(format!("{} ", "A".repeat(32)).as_bytes()),
        Detected::Http1
    );
    let longer = "A".repeat(33);
    assert_eq!(settled(longer.as_bytes()), Detected::Unknown);
    assert_eq!(settled_after(longer.as_bytes()), 33);
}

#[test]
fn the_whole_preface_is_http2_and_a_part_of_it_nothing_yet() {
    assert_eq!(settled(HTTP2_PREFACE), Detected::Http2);
    assert_eq!(settled_after(HTTP2_PREFACE), 24);
    let mut with_settings = HTTP2_PREFACE.to_vec();
    with_settings.extend_from_slice(&[0, 0, 0, 4, 0, 0, 0, 0, 0]);
    assert_eq!(settled(&with_settings), Detected::Http2);
}

#[test]
fn a_preface_that_goes_wrong_is_left_to_the_http1_reader() {
    for line in [
        "PRI * HTTP/1.1\r\n",
        "PRI * HTTP/2.0\r\nHost: a\r\n",
        "\r\nPRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ] {
        assert_eq!(settled(line.as_bytes()), Detected::Http1, "{line:?}");
    }
}

#[test]
fn one_empty_line_before_the_request_is_passed_over() {
    assert_eq!(settled(b"\r\nGET / HTTP/1.1\r\n"), Detected::Http1);
    assert_eq!(detect(b"\r"), Detected::Incomplete);
    assert_eq!(detect(b"\r\n"), Detected::Incomplete);
    assert_eq!(settled(b"\r\n\r\nGET / HTTP/1.1\r\n"), Detected::Unknown);
    assert_eq!(settled(b"\nGET / HTTP/1.1\r\n"), Detected::Unknown);
    assert_eq!(settled(b"\rGET / HTTP/1.1\r\n"), Detected::Unknown);
}

#[test]
fn records_of_ssl3_and_tls_are_tls_whatever_their_type() {
    for kind in 20..=24 {
        for minor in 0..=4 {
            assert_eq!(settled(&[kind, 3, minor, 0, 2]), Detected::Tls);
        }
    }
    assert_eq!(detect(&[22]), Detected::Incomplete);
    assert_eq!(settled(&[22, 2]), Detected::Unknown);
    assert_eq!(settled(&[22, 0xfe, 0xfd]), Detected::Unknown, "DTLS");
}

#[test]
fn an_ssl2_hello_is_tls() {
    assert_eq!(settled(&[0x80, 0x2e, 1, 0, 2, 0, 0x15]), Detected::Tls);
    assert_eq!(settled(&[0x80, 0x2e, 1, 3, 1, 0, 0x15]), Detected::Tls);
    assert_eq!(settled(&[0x80, 0x2e, 4, 0, 2]), Detected::Unknown);
    assert_eq!(settled(&[0x80, 0x2e, 1, 0, 3]), Detected::Unknown);
}

#[test]
fn other_protocols_are_unknown_at_their_first_impossible_byte() {
    for (bytes, after) in [
        (&b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n"[..], 4),
        (b"\x13BitTorrent protocol", 1),
        (b"\x00\x00\x00\x08\x04\xd2\x16\x2f", 1),
        (b" GET / HTTP/1.1\r\n", 1),
        (b"GET\t/ HTTP/1.1\r\n", 4),
        (b"*1\r\n$4\r\nPING\r\n", 3),
        (b"PING\r\n", 5),
        (b"\xef\xbb\xbfGET / HTTP/1.1\r\n", 3),
        (b"{\"json\": 1}", 1),
        (b"<stream:stream>", 1),
    ] {
        assert_eq!(settled(bytes), Detected::Unknown, "{}", bytes.escape_ascii());
        assert_eq!(settled_after(bytes), after, "{}", bytes.escape_ascii());
    }
}

proptest! {
    #[test]
    fn the_answer_is_final_and_comes_within_the_bound(
        bytes in prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..64),
            "(\r\n)?[A-Z!*2-]{0,40} ?[ -~\r\n]{0,9}".prop_map(String::into_bytes),
            (0..30_usize, any::<u8>()).prop_map(|(at, byte)| {
                let mut bytes = [&HTTP2_PREFACE[..], b"\0\0\0\x04"].concat();
                if let Some(target) = bytes.get_mut(at) {
                    *target = byte;
                }
                bytes
            }),
        ],
    ) {
        let answer = settled(&bytes);
        prop_assert!(answer != Detected::Incomplete || bytes.len() < DECIDED_WITHIN);
    }
}
