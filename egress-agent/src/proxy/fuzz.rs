//! What must hold for any bytes at all. The fuzz targets and the replay of their corpora call nothing else; a broken
//! promise is a failed assertion.

use super::{
    client_hello::{HelloReader, Parsed, parse},
    detect::{DECIDED_WITHIN, Detected, detect},
    limits::Limits,
    read_head::{Opening, OpeningReader, Unreadable},
};
use crate::policy::DomainName;

/// [`super::client_hello`]: the answer does not depend on segmentation, is final, keeps the bound, and the name is
/// canonical.
pub fn client_hello(bytes: &[u8]) {
    let bound = Limits::default().head_bytes;
    let answer = parse(bytes, bound);
    let mut reader = HelloReader::new(bound);
    let mut settled = false;
    for prefix in prefixes(bytes) {
        let earlier = reader.read(prefix);
        settled = earlier != Parsed::Incomplete;
        if settled {
            assert_eq!(earlier, answer, "after {} bytes", prefix.len());
            break;
        }
        assert!(prefix.len() < bound, "a reader that waits for ever");
    }
    assert_eq!(
        settled,
        answer != Parsed::Incomplete,
        "byte by byte and at once differ"
    );
    let Parsed::Hello(hello) = &answer else {
        return;
    };
    assert!(
        hello.wire_length <= bytes.len().min(bound),
        "a hello of more bytes than there are"
    );
    let itself = bytes.get(..hello.wire_length).unwrap_or_default();
    assert_eq!(
        parse(itself, hello.wire_length),
        answer,
        "what follows a hello changes it"
    );
    if let Some(name) = &hello.server_name {
        assert_eq!(
            DomainName::parse(name.as_str()).as_ref(),
            Ok(name),
            "not canonical"
        );
    }
}

/// [`super::detect`] and [`OpeningReader`]: the answer is final, comes within its bound, and no bytes are taken for TLS
/// that were told to be something else.
pub fn detect_protocol(bytes: &[u8]) {
    let answer = detect(bytes);
    for prefix in prefixes(bytes) {
        let earlier = detect(prefix);
        assert!(
            earlier == Detected::Incomplete || earlier == answer,
            "{earlier:?} after {} bytes, then {answer:?}",
            prefix.len()
        );
    }
    assert!(
        answer != Detected::Incomplete || bytes.len() < DECIDED_WITHIN,
        "undecided after {} bytes",
        bytes.len()
    );
    let opening = OpeningReader::new(Limits::default().head_bytes).read(bytes);
    match answer {
        Detected::Incomplete => assert_eq!(opening, None),
        Detected::Http1 => assert_eq!(opening, Some(Opening::Http1)),
        Detected::Http2 => assert_eq!(opening, Some(Opening::Http2)),
        Detected::Unknown => assert_eq!(opening, Some(Opening::Unreadable(Unreadable::Unknown))),
        Detected::Tls => assert!(matches!(
            opening,
            None | Some(Opening::Tls(_) | Opening::Unreadable(Unreadable::Tls(_)))
        )),
    }
}

/// Every beginning of `bytes`, from none to all.
fn prefixes(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    (0..=bytes.len()).filter_map(|end| bytes.get(..end))
}
