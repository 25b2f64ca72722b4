//! A line that moves while something takes long; plain lines where nobody watches.

use std::{
    fs::{self, File},
    io::{BufRead, BufReader, IsTerminal, Write},
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};

use crate::workspace;

/// How many lines of a failed command's output are shown.
const SHOWN: usize = 25;

/// Runs `command` out of sight. `what` is what it does, `how_long` what a person should expect; its output
/// goes to a log, whose end is shown if the command fails.
///
/// # Errors
///
/// The command cannot be started, or fails.
pub(crate) fn run(what: &str, how_long: &str, command: &mut Command) -> Result<()> {
    let logs = workspace::target()?.join("xtask");
    fs::create_dir_all(&logs).with_context(|| format!("cannot make {}", logs.display()))?;
    let slug: String = what
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
        .collect();
    let log = logs.join(format!("{slug}.log"));
    let begin = Instant::now();
    let line = Line::begin(what, how_long);
    let (reader, writer) = std::io::pipe().context("a pipe")?;
    command
        .stdin(Stdio::null())
        .stdout(writer.try_clone()?)
        .stderr(writer);
    let mut child = command
        .spawn()
        .with_context(|| format!("cannot run {}", workspace::describe(command)))?;
    // The command holds our ends of the pipe: it would never end otherwise.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let copied = copy(reader, &log, &line);
    let status = child
        .wait()
        .with_context(|| format!("cannot wait for {}", workspace::describe(command)))?;
    let last = copied?;
    if status.success() {
        line.end(&format!("{what}: done in {:.0} s", begin.elapsed().as_secs_f32()));
        return Ok(());
    }
    line.end(&format!("{what}: failed ({status}); {} ends with", log.display()));
    for line in last {
        eprintln!("    {line}");
    }
    bail!("{} failed ({status})", workspace::describe(command))
}

fn copy(reader: impl std::io::Read, log: &Path, line: &Line) -> Result<Vec<String>> {
    let mut log = File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
    let mut last = Vec::new();
    // Tools print what is not UTF-8, too.
    for text in BufReader::new(reader).split(b'\n') {
        let text = String::from_utf8_lossy(&text?).trim_end().to_owned();
        writeln!(log, "{text}")?;
        line.say(&text);
        last.push(text);
        if last.len() > SHOWN {
            last.remove(0);
        }
    }
    Ok(last)
}

/// The line of one step.
struct Line {
    bar: Option<ProgressBar>,
}

impl Line {
    fn begin(what: &str, how_long: &str) -> Self {
        let watched = std::io::stderr().is_terminal();
        if !watched {
            eprintln!("{what} ({how_long}) ...");
            return Self { bar: None };
        }
        let bar = ProgressBar::new_spinner();
        if let Ok(style) = ProgressStyle::with_template("{spinner} {prefix} {elapsed}  {wide_msg:.dim}") {
            bar.set_style(style);
        }
        bar.set_prefix(format!("{what} ({how_long})"));
        bar.enable_steady_tick(Duration::from_millis(120));
        Self { bar: Some(bar) }
    }

    fn say(&self, text: &str) {
        if let Some(bar) = &self.bar {
            bar.set_message(text.to_owned());
        }
    }

    fn end(&self, text: &str) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        eprintln!("{text}");
    }
}
