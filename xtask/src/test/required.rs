//! `tests/required.txt`: which tests on the real kernel must have run, so that a skip never reads as a pass.

use std::{collections::BTreeSet, fs};

use anyhow::{Context, Result};

use super::tally::{Ending, Tally};
use crate::workspace;

/// The list: one name a line. A test of the kernel's tests sees to it that every one of them is in it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Required {
    names: BTreeSet<String>,
    /// Those that want what the machine's own kernel need not have: `cargo xtask vm` must run them.
    guests: BTreeSet<String>,
    /// Those that take long: `cargo xtask soak` runs them.
    long: BTreeSet<String>,
    /// Those on a cluster that want a program which only a kit of programs has, and no build of ours.
    of_kits: BTreeSet<String>,
}

/// What follows the name of a test for other kernels.
const IN_GUESTS: &str = "@vm";
/// What follows the name of a long one.
const LONG: &str = "@soak";
/// What follows the name of one that wants a kit.
const OF_KITS: &str = "@kit";

impl Required {
    pub(crate) fn read() -> Result<Self> {
        Self::in_file("tests/required.txt")
    }

    /// The tests on Kubernetes.
    pub(crate) fn of_cluster() -> Result<Self> {
        Self::in_file("tests/cluster/required.txt")
    }

    fn in_file(name: &str) -> Result<Self> {
        let path = workspace::root().join(name);
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(Self::parse(&text))
    }

    /// What is wrong with a run of all tests. A person's kernel may rightly lack what a test needs, and the skip is
    /// reported; CI's has everything, so there (`strict`) a skip is a failure.
    pub(crate) fn complaints(&self, ran: &Tally, strict: bool) -> Vec<String> {
        let not_run = self.names.iter().filter_map(|name| match ran.ending(name) {
            Some(Ending::Passed | Ending::Failed) => None,
            Some(Ending::Skipped)
                if [&self.guests, &self.long, &self.of_kits]
                    .iter()
                    .any(|others| others.contains(name)) =>
            {
                None
            }
            Some(Ending::Skipped) => strict.then(|| format!("required, but skipped: {name}")),
            None => Some(format!("required, but did not run: {name}")),
        });
        let unknown = ran.names().filter(|name| !self.names.contains(*name));
        not_run
            .chain(unknown.map(|name| format!("not in the list of required tests: {name}")))
            .collect()
    }

    /// Whether a kernel of the matrix has what the test `name` wants, whatever the machine's own has.
    pub(crate) fn is_for_guests(&self, name: &str) -> bool {
        self.guests.contains(name)
    }

    /// The long ones.
    pub(crate) fn long(&self) -> impl Iterator<Item = &str> {
        self.long.iter().map(String::as_str)
    }

    pub(crate) fn parse(text: &str) -> Self {
        let lines = text
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty() && !line.starts_with('#'));
        let mut required = Self {
            names: BTreeSet::new(),
            guests: BTreeSet::new(),
            long: BTreeSet::new(),
            of_kits: BTreeSet::new(),
        };
        for line in lines {
            let (name, mark) = line.split_once(' ').unwrap_or((line, ""));
            required.names.insert(name.to_owned());
            match mark.trim() {
                IN_GUESTS => _ = required.guests.insert(name.to_owned()),
                LONG => _ = required.long.insert(name.to_owned()),
                OF_KITS => _ = required.of_kits.insert(name.to_owned()),
                _ => {}
            }
        }
        required
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ran(printed: &str) -> Tally {
        let mut tally = Tally::default();
        printed.lines().for_each(|line| tally.read_libtest(line));
        tally
    }

    #[test]
    fn a_required_test_that_was_skipped_or_is_gone_is_a_complaint() {
        let list = Required::parse("# words\n\ntls::a\ntls::b\n");
        let ran = ran("test tls::a ... ignored\n");
        assert_eq!(
            list.complaints(&ran, true),
            [
                "required, but skipped: tls::a",
                "required, but did not run: tls::b"
            ]
        );
        assert_eq!(
            list.complaints(&ran, false),
            ["required, but did not run: tls::b"]
        );
    }

    #[test]
    fn a_test_for_guests_may_be_skipped_on_the_machine_itself() {
        let list = Required::parse("a::sctp  @vm\n");
        assert!(
            list.complaints(&ran("test a::sctp ... ignored\n"), true)
                .is_empty()
        );
        assert_eq!(
            list.complaints(&ran(""), true),
            ["required, but did not run: a::sctp"]
        );
        assert!(list.is_for_guests("a::sctp"));
    }

    #[test]
    fn a_long_test_may_be_skipped_in_an_ordinary_run() {
        let list = Required::parse("soak::a  @soak\ntls::a\n");
        assert!(
            list.complaints(&ran("test soak::a ... ignored\ntest tls::a ... ok\n"), true)
                .is_empty()
        );
        assert_eq!(list.long().collect::<Vec<_>>(), ["soak::a"]);
    }

    #[test]
    fn a_test_that_the_list_does_not_name_is_a_complaint() {
        let complaints =
            Required::parse("tls::a\n").complaints(&ran("test tls::a ... ok\ntest tls::b ... ok\n"), false);
        assert_eq!(complaints, ["not in the list of required tests: tls::b"]);
    }
}
