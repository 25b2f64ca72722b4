//! What came of it on each kernel.

use std::{collections::BTreeMap, process::ExitCode};

use super::{guest::Ran, kernels::Kernel};
use crate::test::{
    required::Required,
    tally::{Ending, Tally},
};

/// The rows of the table.
#[derive(Debug)]
pub(super) struct Verdicts {
    required: Required,
    rows: Vec<Row>,
}

#[derive(Debug)]
struct Row {
    kernel: String,
    passed: usize,
    failed: Vec<String>,
    /// Test and reason.
    skipped: Vec<(String, String)>,
    /// What is wrong with the run.
    complaints: Vec<String>,
    seconds: u64,
}

impl Verdicts {
    /// No row yet.
    pub(super) fn new(required: Required) -> Self {
        Self {
            required,
            rows: Vec::new(),
        }
    }

    /// Adds what `ran` on `kernel`, where the tests `wanted` were to run.
    pub(super) fn add(&mut self, kernel: &Kernel, ran: &Ran, wanted: &[String]) {
        self.rows.push(Row::new(kernel.release.clone(), ran, wanted));
    }

    fn sum(&self, count: impl Fn(&Row) -> usize) -> usize {
        self.rows.iter().map(count).sum()
    }

    /// The tests that the machine's own kernel may leave to the guests, and that no guest has run.
    fn run_nowhere(&self) -> Vec<&str> {
        let Some(first) = self.rows.first() else {
            return Vec::new();
        };
        first
            .skipped
            .iter()
            .map(|(name, _)| name.as_str())
            .filter(|name| self.required.is_for_guests(name))
            .filter(|name| {
                let skips = |row: &Row| row.skipped.iter().any(|(other, _)| other == name);
                self.rows.iter().all(skips)
            })
            .collect()
    }

    /// Shows the table; success is that all ran (if this was the `whole` matrix: those for guests on one kernel at
    /// least), none failed, and no program has grown.
    pub(super) fn print(&self, grown: &[String], whole: bool) -> ExitCode {
        println!();
        for row in &self.rows {
            row.print_details();
        }
        println!(
            "{:<26} {:>6} {:>6} {:>7} {:>6}",
            "kernel", "passed", "failed", "skipped", "s"
        );
        for row in &self.rows {
            println!(
                "{:<26} {:>6} {:>6} {:>7} {:>6}{}",
                row.kernel,
                row.passed,
                row.failed.len(),
                row.skipped.len(),
                row.seconds,
                if row.complaints.is_empty() {
                    ""
                } else {
                    "  (incomplete)"
                }
            );
        }
        for growth in grown {
            println!("error: {growth}");
        }
        if !grown.is_empty() {
            println!("If that is meant, run `cargo xtask vm --table` and commit docs/programs.md.");
        }
        let run_nowhere = if whole { self.run_nowhere() } else { Vec::new() };
        for name in &run_nowhere {
            println!("error: required of one kernel at least, and skipped on all: {name}");
        }
        println!(
            "{} passed, {} failed, {} skipped",
            self.sum(|row| row.passed),
            self.sum(|row| row.failed.len() + row.complaints.len()) + run_nowhere.len() + grown.len(),
            self.sum(|row| row.skipped.len())
        );
        if grown.is_empty()
            && run_nowhere.is_empty()
            && !self.rows.is_empty()
            && self.rows.iter().all(Row::is_good)
        {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        }
    }
}

impl Row {
    fn new(kernel: String, ran: &Ran, wanted: &[String]) -> Self {
        let mut tally = Tally::default();
        let mut reasons = BTreeMap::new();
        for line in &ran.lines {
            tally.read_libtest(line);
            if let Some((name, reason)) = line.split_once(" is ignored: ") {
                reasons.insert(name.to_owned(), reason.to_owned());
            }
        }
        let mut row = Self {
            kernel,
            passed: 0,
            failed: Vec::new(),
            skipped: Vec::new(),
            complaints: ran.failure.iter().cloned().collect(),
            seconds: ran.took.as_secs(),
        };
        for name in wanted {
            match tally.ending(name) {
                Some(Ending::Passed) => row.passed += 1,
                Some(Ending::Failed) => row.failed.push(name.clone()),
                Some(Ending::Skipped) => match reasons.remove(name) {
                    Some(reason) => row.skipped.push((name.clone(), reason)),
                    None => row.complaints.push(format!("skipped without a reason: {name}")),
                },
                None => row.complaints.push(format!("did not run: {name}")),
            }
        }
        row
    }

    fn is_good(&self) -> bool {
        self.passed > 0 && self.failed.is_empty() && self.complaints.is_empty()
    }

    fn print_details(&self) {
        for name in &self.failed {
            println!("{}: failed: {name}", self.kernel);
        }
        for (name, reason) in &self.skipped {
            println!("{}: skipped: {name}: {reason}", self.kernel);
        }
        for complaint in &self.complaints {
            println!("{}: error: {complaint}", self.kernel);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn row(printed: &str, failure: Option<&str>) -> Row {
        let ran = Ran {
            lines: printed.lines().map(str::to_owned).collect(),
            failure: failure.map(str::to_owned),
            took: Duration::from_secs(3),
        };
        Row::new("6.1".to_owned(), &ran, &["a::x".to_owned(), "a::y".to_owned()])
    }

    #[test]
    fn all_that_was_wanted_passed() {
        let row = row("test a::x ... ok\ntest a::y ... ok\n", None);
        assert!(row.is_good());
        assert_eq!(row.passed, 2);
    }

    #[test]
    fn a_test_that_did_not_run_or_was_skipped_without_a_reason_is_no_success() {
        assert!(!row("test a::x ... ok\n", None).is_good());
        assert!(!row("test a::x ... ok\ntest a::y ... ignored\n", None).is_good());
        let skipped = row(
            "a::y is ignored: no MPTCP\ntest a::x ... ok\ntest a::y ... ignored\n",
            None,
        );
        assert!(skipped.is_good());
        assert_eq!(skipped.skipped, [("a::y".to_owned(), "no MPTCP".to_owned())]);
    }

    #[test]
    fn a_test_for_guests_must_run_on_one_of_them() {
        let skipped = "a::y is ignored: no DCCP\ntest a::x ... ok\ntest a::y ... ignored\n";
        let mut verdicts = Verdicts::new(Required::parse("a::x\na::y @vm\n"));
        verdicts.rows.push(row(skipped, None));
        assert_eq!(verdicts.run_nowhere(), ["a::y"]);
        verdicts
            .rows
            .push(row("test a::x ... ok\ntest a::y ... ok\n", None));
        assert!(verdicts.run_nowhere().is_empty());
    }

    #[test]
    fn a_guest_that_ends_early_is_no_success() {
        assert!(!row("test a::x ... ok\ntest a::y ... ok\n", Some("panic")).is_good());
        assert!(!row("test a::x ... ok\ntest a::y ... FAILED\n", None).is_good());
    }
}
