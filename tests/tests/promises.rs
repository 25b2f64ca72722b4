//! What the agent promises, each promise under its own name. Run as root: `cargo test -p egress-tests`; those of one
//! file: `cargo test -p egress-tests -- tls::`.
//!
//! A new test goes into its file's `promises!` list and into `required.txt`.

#![expect(
    clippy::expect_used,
    reason = "a test that cannot go on fails by panic, for the place and the stack"
)]

mod access_log;
mod attacks;
mod clients;
mod clock;
mod daemon;
mod dns;
mod errors;
mod exec;
mod exec_privileges;
mod explicit_proxy;
mod failures;
mod fence;
mod full_disk;
mod hold;
mod host_units;
mod http;
mod http2;
mod http_transport;
mod inbound;
mod lab;
mod life;
mod load;
mod packets;
mod parent_proxy;
mod pods;
mod programs;
mod protocols;
mod redirect;
mod soak;
mod sockets;
mod squid_import;
mod squid_oracle;
mod tls;
mod tunnel;
mod window;

use std::{collections::BTreeSet, fs, path::Path};

use egress_tests::{harness, harness::Promise, promises};

promises![required_txt_names_every_promise];

fn main() {
    harness::run(all());
}

fn all() -> Vec<Promise> {
    [
        promises(),
        attacks::promises(),
        lab::promises(),
        redirect::promises(),
        sockets::promises(),
        exec::promises(),
        tls::promises(),
        http::promises(),
        http_transport::promises(),
        http2::promises(),
        clients::promises(),
        tunnel::promises(),
        failures::promises(),
        fence::promises(),
        access_log::promises(),
        daemon::promises(),
        life::promises(),
        hold::promises(),
        host_units::promises(),
        dns::promises(),
        packets::promises(),
        parent_proxy::promises(),
        load::promises(),
        errors::promises(),
        exec_privileges::promises(),
        explicit_proxy::promises(),
        full_disk::promises(),
        pods::promises(),
        programs::promises(),
        squid_oracle::promises(),
        inbound::promises(),
        protocols::promises(),
        window::promises(),
        soak::promises(),
        clock::promises(),
        squid_import::promises(),
    ]
    .concat()
}

/// CI fails if a test that `required.txt` names did not run; so every test must be named there.
async fn required_txt_names_every_promise() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("required.txt");
    let text = fs::read_to_string(path).expect("tests/required.txt");
    let required: BTreeSet<&str> = text
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        // A mark may follow.
        .filter_map(|line| line.split_whitespace().next())
        .collect();
    let promises = all();
    let existing: BTreeSet<&str> = promises.iter().map(Promise::short_name).collect();
    let missing: Vec<_> = existing.difference(&required).collect();
    let gone: Vec<_> = required.difference(&existing).collect();
    assert!(
        missing.is_empty() && gone.is_empty(),
        "add {missing:#?}, remove {gone:#?}"
    );
}
