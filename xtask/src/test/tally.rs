//! What ran and how it ended, read from what the test runners print.

use std::fmt;

use super::attacks::Attacks;

/// How one test ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    Passed,
    Failed,
    Skipped,
}

/// The tests of one or more runs, in the order in which they ended.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    tests: Vec<(String, Ending)>,
    /// What the tests of attacks.yaml have told on the way.
    attacks: Attacks,
}

impl Tally {
    /// Reads a line that libtest, or a harness that prints as it does, has printed: `test NAME ... ok`.
    pub(crate) fn read_libtest(&mut self, line: &str) {
        self.attacks.read(line);
        let Some((name, ending)) = line
            .strip_prefix("test ")
            .and_then(|rest| rest.rsplit_once(" ... "))
        else {
            return;
        };
        let ending = match ending.split([',', ' ', '(']).next() {
            Some("ok") => Ending::Passed,
            Some("FAILED") => Ending::Failed,
            Some("ignored") => Ending::Skipped,
            Some(_) | None => return,
        };
        let name = name.trim().trim_end_matches(" - should panic");
        self.tests.push((name.to_owned(), ending));
    }

    /// Reads a line of nextest: `PASS [   0.012s] (1/3) PACKAGE NAME`. After its summary it repeats the
    /// failures.
    pub(super) fn read_nextest(&mut self, line: &str) {
        let Some((word, rest)) = line.trim_start().split_once(" [") else {
            return;
        };
        let ending = match word.trim() {
            "PASS" | "LEAK" => Ending::Passed,
            "SKIP" => Ending::Skipped,
            "FAIL" | "TIMEOUT" | "ABORT" | "LEAK-FAIL" => Ending::Failed,
            word if word.starts_with("SIG") => Ending::Failed,
            _ => return,
        };
        let Some((_, name)) = rest.split_once("] ") else {
            return;
        };
        let name = name.trim_start();
        let name = name
            .strip_prefix('(')
            .and_then(|rest| rest.split_once(") "))
            .map_or(name, |(_, name)| name)
            .trim();
        if !self.tests.iter().any(|(known, _)| known == name) {
            self.tests.push((name.to_owned(), ending));
        }
    }

    /// One that ended elsewhere.
    pub(crate) fn add(&mut self, name: String, ending: Ending) {
        self.tests.push((name, ending));
    }

    /// These and the other's.
    pub(super) fn with(mut self, other: Self) -> Self {
        self.tests.extend(other.tests);
        self.attacks.extend(other.attacks);
        self
    }

    /// The attempts to get past the enforcement.
    pub(crate) fn attacks(&self) -> &Attacks {
        &self.attacks
    }

    /// The end of the test of that name.
    pub(crate) fn ending(&self, name: &str) -> Option<Ending> {
        self.tests
            .iter()
            .find(|(known, _)| known == name)
            .map(|(_, ending)| *ending)
    }

    /// All names.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.tests.iter().map(|(name, _)| name.as_str())
    }

    /// The tests that a person must look at, with the reason.
    pub(super) fn not_passed(&self) -> impl Iterator<Item = (&str, &'static str)> {
        self.tests.iter().filter_map(|(name, ending)| match ending {
            Ending::Passed => None,
            Ending::Failed => Some((name.as_str(), "failed")),
            Ending::Skipped => Some((name.as_str(), "skipped")),
        })
    }

    /// Something ran, and nothing failed.
    pub(crate) fn is_success(&self) -> bool {
        self.count(Ending::Passed) > 0 && self.count(Ending::Failed) == 0
    }

    /// How many ended so.
    pub(super) fn count(&self, ending: Ending) -> usize {
        self.tests.iter().filter(|(_, other)| *other == ending).count()
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [passed, failed, skipped] =
            [Ending::Passed, Ending::Failed, Ending::Skipped].map(|ending| self.count(ending));
        write!(f, "{passed} passed, {failed} failed, {skipped} skipped")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_ending_that_libtest_prints_is_counted() {
        let mut tally = Tally::default();
        let printed = "\nrunning 5 tests\n\
            test policy::name::tests::dots ... ok\n\
            test tls::sni_decides     ... FAILED\n\
            test tcp::fast_open ... ignored, the kernel has none\n\
            test a::b - should panic ... ok\n\
            test slow ... ok (1.20s)\n\
            test result: FAILED. 3 passed; 1 failed; 1 ignored; 0 measured; 0 filtered out\n";
        printed.lines().for_each(|line| tally.read_libtest(line));
        assert_eq!(tally.to_string(), "3 passed, 1 failed, 1 skipped");
        assert_eq!(tally.ending("tls::sni_decides"), Some(Ending::Failed));
        assert_eq!(tally.ending("a::b"), Some(Ending::Passed));
        assert!(!tally.is_success());
    }

    #[test]
    fn a_failure_that_nextest_repeats_counts_once() {
        let mut tally = Tally::default();
        let printed = "    Starting 4 tests across 2 binaries (1 test skipped)\n\
            \x20       PASS [   0.004s] (1/4) egress-common decide::tests::unknown_family_is_denied\n\
            \x20       FAIL [   0.010s] (2/4) egress-agent policy::tests::x\n\
            \x20    SIGABRT [   0.010s] (3/4) egress-agent policy::tests::y\n\
            \x20       SLOW [> 60.000s] (4/4) egress-agent policy::tests::z\n\
            \x20       PASS [  61.000s] (4/4) egress-agent policy::tests::z\n\
            ────────────\n\
            \x20    Summary [   0.015s] 4 tests run: 2 passed, 2 failed, 1 skipped\n\
            \x20       FAIL [   0.010s] (2/4) egress-agent policy::tests::x\n\
            error: test run failed\n";
        printed.lines().for_each(|line| tally.read_nextest(line));
        assert_eq!(tally.to_string(), "2 passed, 2 failed, 0 skipped");
        assert_eq!(
            tally.ending("egress-agent policy::tests::x"),
            Some(Ending::Failed)
        );
    }

    #[test]
    fn a_run_without_a_test_is_no_success() {
        assert!(!Tally::default().is_success());
    }
}
