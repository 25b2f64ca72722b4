//! Whoever reads what a verb prints may go at any time (`| head`): the verb ends quietly then, and does not panic.
#![expect(clippy::expect_used, reason = "a test helper that fails has failed the test")]

use std::{
    fs::File,
    process::{Command, Stdio},
};

/// A pipe that nobody reads.
fn closed() -> Stdio {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    Stdio::from(writer)
}

/// Runs a verb whose output nobody reads, and tells its exit status and what it says of errors.
fn run(words: &[&str]) -> (Option<i32>, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_egress-agent"))
        .args(words)
        .stdout(closed())
        .stderr(Stdio::piped())
        .output()
        .expect("it runs");
    (
        output.status.code(),
        String::from_utf8_lossy(&output.stderr).into_owned(),
    )
}

const SQUID: &str = "acl good dstdomain .example.org\nhttp_access allow good\nhttp_access deny all\n";

#[test]
fn verbs_whose_output_nobody_reads_end_as_by_sigpipe() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = |name: &str, text: &str| {
        let path = directory.path().join(name);
        std::fs::write(&path, text).expect("a file");
        path.display().to_string()
    };
    let policy = file(
        "a.yaml",
        "apiVersion: egress-enforcer.io/v1alpha1\nkind: EgressPolicy\nmetadata: {name: a}\n\
         spec: {egress: [{to: [{domain: example.org}]}]}\n",
    );
    let squid = file("squid.conf", SQUID);
    for words in [
        &["check", &policy] as &[&str],
        &["check", "/nonexistent.yaml"],
        &["explain", "--policy", &policy, "https://example.org/"],
        &["import", &squid],
        &["crdgen"],
        &["status"],
        &["status", "--output", "json"],
    ] {
        let (code, told) = run(words);
        assert_eq!(code, Some(141), "{words:?}: {told}");
        // `status` may have something to say of other agents of the machine.
        assert!(!told.contains("panicked"), "{words:?}: {told}");
    }
    // clap's own: it says nothing of it.
    assert_eq!(run(&["--help"]), (Some(0), String::new()));
}

#[test]
fn complaints_that_nobody_reads_are_no_panic() {
    for words in [
        &["explain", "--policy", "/nonexistent.yaml", "https://example.org/"] as &[&str],
        &["run", "--config", "/nonexistent.yaml"],
    ] {
        let status = Command::new(env!("CARGO_BIN_EXE_egress-agent"))
            .args(words)
            .stdout(closed())
            .stderr(closed())
            .status()
            .expect("it runs");
        assert_eq!(status.code(), Some(2), "{words:?}");
    }
}

/// A full disk is a failure all the same.
#[test]
fn an_output_that_cannot_be_written_is_told() {
    let full = File::options().write(true).open("/dev/full").expect("/dev/full");
    let output = Command::new(env!("CARGO_BIN_EXE_egress-agent"))
        .arg("crdgen")
        .stdout(full)
        .stderr(Stdio::piped())
        .output()
        .expect("it runs");
    assert_eq!(output.status.code(), Some(2));
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(told.contains("No space left on device"), "{told}");
}
