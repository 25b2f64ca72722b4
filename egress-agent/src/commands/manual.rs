//! The examples of docs/policy.md: every document loads (those named `bad` do not), and every command prints what stands
//! there.

use std::collections::BTreeMap;

use clap::Parser as _;

use crate::cli::{Cli, Command};

const MANUAL: &str = include_str!("../../../docs/policy.md");

/// The fenced blocks of one language.
fn blocks(language: &str) -> impl Iterator<Item = &str> {
    MANUAL
        .split("\n```")
        .skip(1)
        .step_by(2)
        .filter_map(move |block| block.strip_prefix(language)?.strip_prefix('\n'))
}

/// The documents by the file name in their first line.
fn files() -> BTreeMap<&'static str, &'static str> {
    blocks("yaml")
        .map(|block| {
            let name = block.lines().next().and_then(|line| line.strip_prefix("# "));
            (name.expect("each document begins with its file name"), block)
        })
        .collect()
}

/// What a command line prints in a directory with the manual's files.
fn run(line: &str) -> String {
    let directory = tempfile::tempdir().unwrap();
    let prefix = format!("{}/", directory.path().display());
    let files = files();
    for (name, text) in &files {
        std::fs::write(directory.path().join(name), text).unwrap();
    }
    let arguments = line
        .split(' ')
        .map(|argument| match files.contains_key(argument) {
            true => format!("{prefix}{argument}"),
            false => argument.to_owned(),
        });
    let mut out = Vec::new();
    let command = Cli::try_parse_from(arguments).unwrap().command;
    if let Command::Check(args) = &command {
        super::check::check(args, &mut out).unwrap();
    }
    if let Command::Explain(args) = &command {
        super::explain::explain(args, &mut out).unwrap();
    }
    String::from_utf8(out).unwrap().replace(&prefix, "")
}

#[test]
fn every_document_of_the_manual_loads() {
    assert!(files().len() >= 5);
    for name in files().into_keys() {
        let printed = run(&format!("egress-agent check {name}"));
        assert_eq!(printed.contains(": OK, "), !name.starts_with("bad"), "{printed}");
    }
}

#[test]
fn every_command_of_the_manual_prints_what_stands_there() {
    let mut commands = 0;
    for block in blocks("console") {
        for command in block.split("$ ").skip(1) {
            let (line, expected) = command.split_once('\n').unwrap();
            assert_eq!(run(line).trim_end(), expected.trim_end(), "{line}");
            commands += 1;
        }
    }
    assert!(commands >= 6);
}
