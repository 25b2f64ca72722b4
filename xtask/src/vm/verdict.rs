//! What came of it on each kernel.

use std::collections::BTreeMap;

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
    passed: Vec<String>,
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

    /// Shows the table.
    pub(super) fn print(&self) {
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
                row.passed.len(),
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
    }

    /// Every test with its kernel.
    pub(super) fn tally(&self) -> Tally {
        let mut tally = Tally::default();
        for row in &self.rows {
            let skipped = row.skipped.iter().map(|(name, _)| name);
            let all = (row.passed.iter().map(|name| (name, Ending::Passed)))
                .chain(row.failed.iter().map(|name| (name, Ending::Failed)))
                .chain(skipped.map(|name| (name, Ending::Skipped)));
            for (name, ending) in all {
                tally.add(format!("Linux {} {name}", row.kernel), ending);
            }
        }
        tally
    }

    /// What is wrong with the runs, beside the tests that failed. Of the `whole` matrix those for guests must have run on
    /// one kernel at least.
    pub(super) fn complaints(&self, whole: bool) -> Vec<String> {
        let of_rows = self.rows.iter().flat_map(|row| {
            row.complaints
                .iter()
                .map(|complaint| format!("Linux {}: {complaint}", row.kernel))
        });
        let run_nowhere = if whole { self.run_nowhere() } else { Vec::new() };
        let run_nowhere = run_nowhere
            .iter()
            .map(|name| format!("required of one kernel at least, and skipped on all: {name}"));
        of_rows.chain(run_nowhere).collect()
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
            passed: Vec::new(),
            failed: Vec::new(),
            skipped: Vec::new(),
            complaints: ran.failure.iter().cloned().collect(),
            seconds: ran.took.as_secs(),
        };
        for name in wanted {
            match tally.ending(name) {
                Some(Ending::Passed) => row.passed.push(name.clone()),
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

    fn print_details(&self) {
        for name in &self.failed {
            println!("{}: failed: {name}", self.kernel);
        }
        for (name, reason) in &self.skipped {
            println!("{}: skipped: {name}: {reason}", self.kernel);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn is_good(row: Row) -> bool {
        let mut verdicts = Verdicts::new(Required::parse(""));
        verdicts.rows.push(row);
        verdicts.tally().is_success() && verdicts.complaints(false).is_empty()
    }

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
        assert_eq!(row.passed.len(), 2);
        assert!(is_good(row));
    }

    #[test]
    fn a_test_that_did_not_run_or_was_skipped_without_a_reason_is_no_success() {
        assert!(!is_good(row("test a::x ... ok\n", None)));
        assert!(!is_good(row("test a::x ... ok\ntest a::y ... ignored\n", None)));
        let skipped = row(
            "a::y is ignored: no MPTCP\ntest a::x ... ok\ntest a::y ... ignored\n",
            None,
        );
        assert_eq!(skipped.skipped, [("a::y".to_owned(), "no MPTCP".to_owned())]);
        assert!(is_good(skipped));
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
        assert!(!is_good(row(
            "test a::x ... ok\ntest a::y ... ok\n",
            Some("panic")
        )));
        assert!(!is_good(row("test a::x ... ok\ntest a::y ... FAILED\n", None)));
    }
}
