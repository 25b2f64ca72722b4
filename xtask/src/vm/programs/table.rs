//! The table itself: read, compared, written.

use std::{collections::BTreeMap, fmt};

/// Figures of programs.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Table {
    /// Each column's kernel: as it was asked for, and its release.
    releases: BTreeMap<String, String>,
    rows: BTreeMap<String, Row>,
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Row {
    /// Bytes.
    stack: u32,
    /// By kernel, as it was asked for.
    sizes: BTreeMap<String, Size>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Size {
    translated: u64,
    verified: u64,
}

/// A kernel's name for a program ends after so many bytes (`BPF_OBJ_NAME_LEN`, less the zero).
const NAME: usize = 15;

/// What another compiler or another release of a kernel may make of the same source.
const SLACK_PERCENT: u64 = 10;
/// And more, for small programs.
const SLACK: u64 = 32;

/// Above the table in the file.
const HEAD: &str = "\
# The kernel programs' size

Written by `cargo xtask vm --table`, and compared with what every kernel of the matrix says by each `cargo xtask vm`: if
a program needs more than 10 % (and 32 instructions) more than is written here, or more stack, that run fails until the
table is written anew and the growth is thereby seen in review.

- **stack**: bytes, as the verifier adds them up (each frame in steps of 32, the deepest chain of calls). The kernel allows 512.
- **translated / verified**: instructions after the verifier has rewritten the program, and those that it walked in proving it
  safe. It gives up after a million; a test of its own fails above 250,000, on every kernel that it runs on.
- `newest` is the newest kernel that Debian has.
";

impl Table {
    pub(super) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Reads a line that the test has printed: `program NAME TRANSLATED VERIFIED`.
    pub(super) fn read_told(&mut self, kernel: &str, line: &str) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let ["program", name, translated, verified] = words[..] else {
            return;
        };
        if let (Ok(translated), Ok(verified)) = (translated.parse(), verified.parse()) {
            let row = self.rows.entry(name.to_owned()).or_default();
            row.sizes.insert(kernel.to_owned(), Size { translated, verified });
        }
    }

    /// Says which release a column's figures are of.
    pub(super) fn name(&mut self, kernel: &str, release: &str) {
        if self.rows.values().any(|row| row.sizes.contains_key(kernel)) {
            self.releases.insert(kernel.to_owned(), release.to_owned());
        }
    }

    /// Adds the stacks of the object's programs.
    pub(super) fn set_stacks(&mut self, stacks: &BTreeMap<String, u32>) {
        for (program, stack) in stacks {
            let name: String = program.chars().take(NAME).collect();
            self.rows.entry(name).or_default().stack = *stack;
        }
    }

    /// Takes the figures of `newer`. A kernel that is not among them keeps its column, a program that is not, goes.
    pub(super) fn replace_by(&mut self, newer: Self) {
        self.rows.retain(|name, _| newer.rows.contains_key(name));
        for (name, row) in newer.rows {
            let known = self.rows.entry(name).or_default();
            known.stack = row.stack;
            known.sizes.extend(row.sizes);
        }
        self.releases.extend(newer.releases);
    }

    /// What in `now` is larger than it is here.
    pub(super) fn growth(&self, now: &Self) -> Vec<String> {
        let mut found = Vec::new();
        for (name, row) in &now.rows {
            let Some(known) = self.rows.get(name) else {
                found.push(format!("{name} is not in the table"));
                continue;
            };
            if row.stack > known.stack {
                found.push(format!("{name}: stack {} instead of {}", row.stack, known.stack));
            }
            for (kernel, size) in &row.sizes {
                let Some(before) = known.sizes.get(kernel) else {
                    // A kernel beyond those of the matrix.
                    continue;
                };
                let figures = [
                    ("translated", size.translated, before.translated),
                    ("verified", size.verified, before.verified),
                ];
                let grown = figures
                    .into_iter()
                    .filter(|(_, now, before)| is_growth(*now, *before));
                found.extend(grown.map(|(what, now, before)| {
                    format!("{name} on {kernel}: {now} instructions {what} instead of {before}")
                }));
            }
        }
        found
    }

    /// Reads what [`fmt::Display`] has written.
    pub(super) fn parse(text: &str) -> Self {
        let mut table = Self::default();
        let mut lines = text.lines().filter_map(cells);
        let Some(head) = lines.next() else { return table };
        let kernels: Vec<String> = head
            .iter()
            .skip(2)
            .map(|cell| {
                let (kernel, release) = cell.split_once(' ').unwrap_or((cell, ""));
                let release = release.trim_matches(['(', ')']);
                table.releases.insert(kernel.to_owned(), release.to_owned());
                kernel.to_owned()
            })
            .collect();
        for line in lines.skip(1) {
            let [name, stack, sizes @ ..] = line.as_slice() else {
                continue;
            };
            let sizes = kernels.iter().zip(sizes).filter_map(|(kernel, cell)| {
                let (translated, verified) = cell.split_once('/')?;
                let size = Size {
                    translated: translated.trim().parse().ok()?,
                    verified: verified.trim().parse().ok()?,
                };
                Some((kernel.clone(), size))
            });
            let row = Row {
                stack: stack.parse().unwrap_or(0),
                sizes: sizes.collect(),
            };
            table.rows.insert(name.trim_matches('`').to_owned(), row);
        }
        table
    }
}

fn is_growth(now: u64, before: u64) -> bool {
    now > before + (before * SLACK_PERCENT / 100).max(SLACK)
}

/// The cells of a line of a table.
fn cells(line: &str) -> Option<Vec<&str>> {
    let inner = line.strip_prefix('|')?.strip_suffix('|')?;
    Some(inner.split('|').map(str::trim).collect())
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kernels = self.kernels();
        write!(f, "{HEAD}\n| program | stack |")?;
        for kernel in &kernels {
            let release = self.releases.get(*kernel).map_or("", String::as_str);
            write!(f, " {kernel} ({release}) |")?;
        }
        writeln!(f, "\n| --- | ---: |{}", " ---: |".repeat(kernels.len()))?;
        for (name, row) in &self.rows {
            write!(f, "| `{name}` | {} |", row.stack)?;
            for kernel in &kernels {
                match row.sizes.get(*kernel) {
                    Some(size) => write!(f, " {} / {} |", size.translated, size.verified)?,
                    None => write!(f, " - |")?,
                }
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

impl Table {
    /// In the order of their releases.
    fn kernels(&self) -> Vec<&str> {
        let mut kernels: Vec<&str> = self.releases.keys().map(String::as_str).collect();
        kernels.sort_by_key(|kernel| {
            let numbers = kernel.split('.').map(|part| part.parse().unwrap_or(u32::MAX));
            numbers.collect::<Vec<_>>()
        });
        kernels
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(verified: u64, stack: u32) -> Table {
        let mut table = Table::default();
        table.read_told("6.12", "program egress_connect4 1500 4300");
        table.read_told("6.1", &format!("program egress_connect4 1516 {verified}"));
        table.read_told("6.1", "test programs::x ... ok");
        table.name("6.1", "6.1.0-56-amd64");
        table.name("6.12", "6.12.117+deb13-amd64");
        table.name("newest", "7.3.4+deb13-amd64");
        table.set_stacks(&[("egress_connect4".to_owned(), stack)].into());
        table
    }

    #[test]
    fn what_is_written_is_read() {
        let table = table(4363, 96);
        let text = table.to_string();
        assert!(
            text.ends_with(
                "| program | stack | 6.1 (6.1.0-56-amd64) | 6.12 (6.12.117+deb13-amd64) |\n\
                 | --- | ---: | ---: | ---: |\n\
                 | `egress_connect4` | 96 | 1516 / 4363 | 1500 / 4300 |\n"
            ),
            "{text}"
        );
        assert_eq!(Table::parse(&text), table);
    }

    #[test]
    fn growth_beyond_the_slack_is_told() {
        let before = table(4000, 96);
        assert!(before.growth(&table(4400, 96)).is_empty());
        assert_eq!(
            before.growth(&table(4401, 128)),
            [
                "egress_connect4: stack 128 instead of 96",
                "egress_connect4 on 6.1: 4401 instructions verified instead of 4000"
            ]
        );
        assert_eq!(
            Table::default().growth(&table(1, 32)),
            ["egress_connect4 is not in the table"]
        );
    }

    #[test]
    fn a_kernel_that_did_not_run_keeps_its_column() {
        let mut committed = table(4000, 96);
        let mut newer = Table::default();
        newer.read_told("6.1", "program egress_connect4 1 2");
        newer.name("6.1", "6.1.0-57-amd64");
        newer.set_stacks(&[("egress_connect4".to_owned(), 64)].into());
        committed.replace_by(newer);
        let text = committed.to_string();
        assert!(
            text.ends_with("| `egress_connect4` | 64 | 1 / 2 | 1500 / 4300 |\n"),
            "{text}"
        );
    }
}
