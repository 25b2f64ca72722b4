//! Replays the corpora of the fuzz targets through the same functions, without a fuzzer.
#![expect(clippy::unwrap_used, reason = "a test helper that fails has failed the test")]

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use egress_agent::{access_log, dns, identity, import, policy, proxy};

type Check = fn(&[u8]);

/// Fuzz target and what it calls.
const TARGETS: &[(&str, Check)] = &[
    ("cgroup_path", identity::fuzz::cgroup_path),
    ("client_hello", proxy::fuzz::client_hello),
    ("detect", proxy::fuzz::detect_protocol),
    ("dns_query", dns::fuzz::query),
    ("authority", proxy::http::fuzz::authority),
    ("http_path", proxy::http::fuzz::path),
    ("host_pattern", policy::fuzz::fuzz_host_pattern),
    ("policy_document", policy::fuzz::fuzz_policy_document),
    ("log_format", access_log::fuzz::log_format),
    ("squid_conf", import::fuzz::squid_conf),
];

/// What the committed corpora may take, so that a checkout and a test run stay small.
const MOST_FILES: usize = 200;
const MOST_BYTES: usize = 300 * 1024;

fn fuzz_crate() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz")
}

fn corpus(target: &str) -> Vec<(PathBuf, Vec<u8>)> {
    fs::read_dir(fuzz_crate().join("corpus").join(target))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.clone(), fs::read(&path).unwrap()))
        .collect()
}

/// File names in a directory, without extension.
fn stems(directory: &Path) -> BTreeSet<String> {
    fs::read_dir(directory)
        .unwrap()
        .map(|entry| {
            entry
                .unwrap()
                .path()
                .file_stem()
                .unwrap()
                .to_str()
                .unwrap()
                .to_owned()
        })
        .collect()
}

#[test]
fn every_input_of_every_corpus_keeps_its_promises() {
    for (target, check) in TARGETS {
        let inputs = corpus(target);
        assert!(!inputs.is_empty(), "the corpus of {target} is empty");
        for (path, bytes) in inputs {
            // Shown if the check panics.
            println!("{}", path.display());
            check(&bytes);
        }
    }
}

#[test]
fn every_fuzz_target_has_a_corpus_that_is_replayed() {
    let replayed: BTreeSet<_> = TARGETS.iter().map(|(target, _)| (*target).to_owned()).collect();
    assert_eq!(stems(&fuzz_crate().join("fuzz_targets")), replayed);
    assert_eq!(stems(&fuzz_crate().join("corpus")), replayed);
}

#[test]
fn the_corpora_stay_small() {
    let sizes: Vec<_> = TARGETS
        .iter()
        .flat_map(|(target, _)| corpus(target))
        .map(|(_, bytes)| bytes.len())
        .collect();
    assert!(
        sizes.iter().sum::<usize>() <= MOST_BYTES,
        "{} bytes",
        sizes.iter().sum::<usize>()
    );
    for (target, _) in TARGETS {
        let files = corpus(target).len();
        assert!(files <= MOST_FILES, "{files} files for {target}");
    }
}
