//! rustls as the second reader: what it takes for the server name must be what we take for it.

use std::sync::Arc;

use proptest::prelude::*;
use rustls::{ClientConfig, ClientConnection, RootCertStore, pki_types::ServerName, server::Acceptor};

use super::{
    build::{Build, alpn, records, sni},
    *,
};

/// The name rustls reads: `None` if it refuses the hello or wants more, `Some(None)` if it sees no usable name.
fn rustls_name(wire: &[u8]) -> Option<Option<String>> {
    let mut acceptor = Acceptor::default();
    let mut rest = wire;
    loop {
        match acceptor.accept() {
            Ok(Some(accepted)) => {
                let name = accepted.client_hello().server_name().map(str::to_ascii_lowercase);
                return Some(name.map(|name| name.trim_end_matches('.').to_owned()));
            }
            Ok(None) if rest.is_empty() => return None,
            Ok(None) => acceptor.read_tls(&mut rest).ok()?,
            Err(_) => return None,
        };
    }
}

/// The handshake message that rustls' client sends for a name.
fn rustls_message(name: &str, protocols: Vec<Vec<u8>>) -> Vec<u8> {
    let mut config = ClientConfig::builder()
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    config.alpn_protocols = protocols;
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let mut wire = Vec::new();
    ClientConnection::new(Arc::new(config), name)
        .unwrap()
        .write_tls(&mut wire)
        .unwrap();
    wire.split_off(RECORD_HEADER)
}

/// Feeds `wire` in segments of these lengths, again and again.
fn parse_in_segments(wire: &[u8], segments: &[usize]) -> Parsed {
    let mut reader = HelloReader::new(BOUND);
    let mut end = 0;
    for segment in segments.iter().cycle() {
        end = (end + segment).min(wire.len());
        let answer = reader.read(&wire[..end]);
        if answer != Parsed::Incomplete || end == wire.len() {
            return answer;
        }
    }
    Parsed::Incomplete
}

fn host_name() -> impl Strategy<Value = String> {
    "([a-zA-Z]([a-zA-Z0-9-]{0,20}[a-zA-Z0-9])?\\.){1,4}[a-zA-Z]{2,12}"
        .prop_filter("A-labels have rules of their own", |name| {
            !name.to_lowercase().contains("xn--")
        })
}

/// Extensions without meaning for either reader, some of them as large as post-quantum shares.
fn padding() -> impl Strategy<Value = Vec<(u16, Vec<u8>)>> {
    let one = prop_oneof![0_usize..40, 1100_usize..1700];
    proptest::collection::vec(one, 0..6).prop_map(|sizes| {
        (0_u16..)
            .zip(sizes)
            .map(|(index, size)| (0x0a0a + 0x1010 * index, vec![0xa5; size]))
            .collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn any_cut_of_a_rustls_hello_gives_its_name(
        name in host_name(),
        protocols in proptest::collection::vec(proptest::collection::vec(1_u8.., 1..9), 0..3),
        sizes in proptest::collection::vec(1_usize..400, 1..8),
        segments in proptest::collection::vec(1_usize..300, 1..8),
    ) {
        let wire = records(&rustls_message(&name, protocols), &sizes);
        let Parsed::Hello(hello) = parse_in_segments(&wire, &segments) else {
            return Err(TestCaseError::fail("no hello"));
        };
        prop_assert_eq!(hello.server_name.map(|name| name.to_string()), Some(name.to_lowercase()));
        prop_assert_eq!(rustls_name(&wire), Some(Some(name.to_lowercase())));
    }

    #[test]
    fn any_cut_of_a_hand_built_hello_gives_its_name(
        name in host_name(),
        padding in padding(),
        at in any::<proptest::sample::Index>(),
        sizes in proptest::collection::vec(1_usize..900, 1..8),
        segments in proptest::collection::vec(1_usize..900, 1..8),
    ) {
        let mut extensions = padding;
        extensions.insert(at.index(extensions.len() + 1), sni(&name));
        let wire = records(&Build::with(extensions).message(), &sizes);
        let Parsed::Hello(hello) = parse_in_segments(&wire, &segments) else {
            return Err(TestCaseError::fail("no hello"));
        };
        prop_assert_eq!(hello.server_name.map(|name| name.to_string()), Some(name.to_lowercase()));
        prop_assert_eq!(rustls_name(&wire), Some(Some(name.to_lowercase())));
    }

    /// The differential that matters: a damaged hello in which both find a name, or one does and the other none, must
    /// not let a name pass that another reader would not see.
    #[test]
    fn a_damaged_hello_never_means_two_things(
        name in host_name(),
        other in host_name(),
        twice in any::<bool>(),
        sizes in proptest::collection::vec(30_usize..400, 1..4),
        damage in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 0..4),
    ) {
        let mut extensions = vec![alpn(&[b"h2"]), sni(&name)];
        if twice {
            extensions.push((21, sni(&other).1));
        }
        let mut wire = records(&Build::with(extensions).message(), &sizes);
        for (at, byte) in damage {
            let at = at.index(wire.len());
            wire[at] = byte;
        }
        if let (Parsed::Hello(ours), Some(Some(theirs))) = (parse(&wire, BOUND), rustls_name(&wire)) {
            prop_assert_eq!(ours.server_name.map(|name| name.to_string()), Some(theirs));
        }
    }
}
