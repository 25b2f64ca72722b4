//! The attempts to get past the enforcement, as the tests tell them: a line each, of which one table is made.

use std::fmt;

/// What a line of an attempt begins with.
const PREFIX: &str = "attack | ";
/// Where what is said of an attempt goes on: its name, what it is, what is expected, what was seen, what that means.
const SEPARATOR: &str = " | ";
/// Columns are as wide as their widest word, but no wider.
const WIDEST: usize = 60;

/// All attempts of a run.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Attacks {
    rows: Vec<[String; 5]>,
}

impl Attacks {
    /// Reads a line of a test's output.
    pub(super) fn read(&mut self, line: &str) {
        let Some(rest) = line.strip_prefix(PREFIX) else {
            return;
        };
        let mut words = rest.splitn(5, SEPARATOR).map(str::to_owned);
        self.rows
            .push(std::array::from_fn(|_| words.next().unwrap_or_default()));
    }

    pub(super) fn extend(&mut self, other: Self) {
        self.rows.extend(other.rows);
    }

    fn count(&self, verdict: &str) -> usize {
        let alike = self
            .rows
            .iter()
            .filter(|[.., told]| told.split(':').next() == Some(verdict));
        alike.count()
    }
}

/// The table, and a line that sums it up; nothing if there was no attempt.
impl fmt::Display for Attacks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.rows.is_empty() {
            return Ok(());
        }
        let heads = ["", "attempt", "expected", "seen", ""].map(str::to_owned);
        let all = || std::iter::once(&heads).chain(&self.rows);
        let widths: [usize; 5] = std::array::from_fn(|column| {
            let widths = all()
                .filter_map(|row| row.get(column))
                .map(|word| word.chars().count());
            widths.max().unwrap_or(0).min(WIDEST)
        });
        for row in all() {
            let line: Vec<String> = row
                .iter()
                .zip(widths)
                .map(|(word, width)| format!("{word:width$}"))
                .collect();
            writeln!(f, "{}", line.join("  ").trim_end())?;
        }
        writeln!(
            f,
            "{} attempts: {} held, {} open, {} out of scope, {} not possible here, {} failed\n",
            self.rows.len(),
            self.count("held"),
            self.count("OPEN"),
            self.count("out of scope"),
            self.count("not here"),
            self.count("FAILED")
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_attempts_become_a_table_with_a_sum() {
        let mut attacks = Attacks::default();
        for line in [
            "attack | udp | a datagram | EPERM | EPERM | held",
            "test attacks::x ... ok",
            "attack | sctp | SCTP | EPERM | - | not here: the kernel has no SCTP",
        ] {
            attacks.read(line);
        }
        let text = attacks.to_string();
        assert!(
            text.contains("udp   a datagram  EPERM     EPERM  held\n"),
            "{text}"
        );
        assert!(
            text.contains("2 attempts: 1 held, 0 open, 0 out of scope, 1 not possible here, 0 failed"),
            "{text}"
        );
    }

    #[test]
    fn without_an_attempt_there_is_no_table() {
        assert_eq!(Attacks::default().to_string(), "");
    }
}
