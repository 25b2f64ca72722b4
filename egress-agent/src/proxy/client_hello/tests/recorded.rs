//! Hellos of real clients; `testdata/client_hello/README.md` says how they were recorded.

use std::{collections::BTreeSet, fs, path::Path};

use super::*;

/// File, name, ALPN, whether there is an encrypted_client_hello extension.
const RECORDED: &[(&str, Option<&str>, &[&str], bool)] = &[
    (
        "boringssl-as-chrome131",
        Some("recorded.test"),
        &["h2", "http/1.1"],
        true,
    ),
    (
        "boringssl-as-chrome150",
        Some("recorded.test"),
        &["h2", "http/1.1"],
        true,
    ),
    (
        "boringssl-as-chrome99",
        Some("recorded.test"),
        &["h2", "http/1.1"],
        false,
    ),
    (
        "boringssl-as-firefox147",
        Some("recorded.test"),
        &["h2", "http/1.1"],
        true,
    ),
    (
        "boringssl-as-safari260",
        Some("recorded.test"),
        &["h2", "http/1.1"],
        false,
    ),
    (
        "boringssl-as-tor145",
        Some("recorded.test"),
        &["h2", "http/1.1"],
        true,
    ),
    ("curl-7.88-h2", Some("recorded.test"), &["h2", "http/1.1"], false),
    ("curl-7.88-http1.1", Some("recorded.test"), &["http/1.1"], false),
    (
        "java-17-httpclient",
        Some("recorded.test"),
        &["h2", "http/1.1"],
        false,
    ),
    ("node-20-fetch", Some("recorded.test"), &["http/1.1"], false),
    (
        "node-24-fetch-ml-kem",
        Some("recorded.test"),
        &["http/1.1"],
        false,
    ),
    ("openssl-3.0", Some("recorded.test"), &[], false),
    ("openssl-3.0-early-data", Some("recorded.test"), &[], false),
    ("openssl-3.0-no-name", None, &[], false),
    ("openssl-3.0-tls1.0", Some("recorded.test"), &[], false),
    (
        "openssl-3.0-tls1.2",
        Some("recorded.test"),
        &["h2", "http/1.1"],
        false,
    ),
    ("openssl-3.0-upper-case", Some("recorded.test"), &[], false),
    ("python-3.11-urllib", Some("recorded.test"), &["http/1.1"], false),
    ("wget-1.21-gnutls", Some("recorded.test"), &[], false),
];

/// 60 protocols, in three records.
const MANY_RECORDS: &str = "openssl-3.0-512-byte-records";
/// An address as server name.
const ADDRESS: &str = "openssl-3.0-address";

fn directory() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/client_hello"))
}

fn recorded(file: &str) -> Vec<u8> {
    fs::read(directory().join(format!("{file}.bin"))).unwrap_or_else(|error| panic!("{file}: {error}"))
}

#[test]
fn every_recorded_hello_gives_its_name_and_facts() {
    for (file, name, alpn, ech) in RECORDED {
        let hello = hello(&recorded(file));
        assert_eq!(
            hello.server_name.as_ref().map(DomainName::as_str),
            *name,
            "{file}"
        );
        assert_eq!(hello.facts.alpn, *alpn, "{file}");
        assert_eq!(hello.facts.ech, *ech, "{file}");
    }
}

#[test]
fn every_file_of_the_directory_is_expected() {
    let there: BTreeSet<_> = fs::read_dir(directory())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter_map(|file| file.strip_suffix(".bin").map(str::to_owned))
        .collect();
    let expected = RECORDED
        .iter()
        .map(|(file, ..)| *file)
        .chain([MANY_RECORDS, ADDRESS]);
    assert_eq!(there, expected.map(str::to_owned).collect());
}

#[test]
fn every_truncation_of_a_recorded_hello_is_incomplete() {
    for file in RECORDED.iter().map(|(file, ..)| *file).chain([MANY_RECORDS]) {
        let bytes = recorded(file);
        let length = hello(&bytes).wire_length;
        for end in 0..length {
            assert_eq!(
                parse(&bytes[..end], BOUND),
                Parsed::Incomplete,
                "{file} after {end} of {length}"
            );
        }
        assert_eq!(parse(&bytes[..length], BOUND), parse(&bytes, BOUND), "{file}");
    }
}

#[test]
fn a_hello_is_all_that_a_client_sends_unless_it_has_early_data() {
    for (file, ..) in RECORDED {
        let bytes = recorded(file);
        let rest = bytes.len() - hello(&bytes).wire_length;
        // change_cipher_spec and a record of application data.
        assert_eq!(
            rest,
            if *file == "openssl-3.0-early-data" {
                6 + 61
            } else {
                0
            },
            "{file}"
        );
    }
}

#[test]
fn a_recorded_hello_over_three_records_is_put_together() {
    let hello = hello(&recorded(MANY_RECORDS));
    assert_eq!(hello.server_name.unwrap().as_str(), "recorded.test");
    assert_eq!(hello.facts.alpn.len(), 16, "no more protocols are kept");
    assert_eq!(hello.facts.alpn[15], "protocol-15");
}

#[test]
fn a_recorded_address_as_server_name_is_refused() {
    assert_eq!(refusal(&recorded(ADDRESS)), HelloRefusal::Address);
}
