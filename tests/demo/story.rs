//! What the spectator reads: numbered scenes, commands, what they print, and what was found to hold.

use std::{
    io::{self, IsTerminal, Write},
    process::ExitCode,
    time::Instant,
};

/// The telling.
#[derive(Debug)]
pub(crate) struct Story {
    colour: bool,
    scene: u32,
    checks: u32,
    failed: Vec<String>,
    begun: Instant,
}

/// SGR codes.
const BOLD: &str = "1";
const DIM: &str = "2";
const RED: &str = "31";
const GREEN: &str = "32";
const CYAN: &str = "36";

impl Story {
    pub(crate) fn begin() -> Self {
        let colour = io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        Self {
            colour,
            scene: 0,
            checks: 0,
            failed: Vec::new(),
            begun: Instant::now(),
        }
    }

    /// What it is all about.
    pub(crate) fn title(&self, title: &str) {
        self.print(&format!("\n{}\n\n", self.paint(BOLD, title)));
    }

    /// A new scene.
    pub(crate) fn scene(&mut self, title: &str) {
        self.scene += 1;
        self.print(&format!(
            "\n{}\n",
            self.paint(BOLD, &format!("{}. {title}", self.scene))
        ));
    }

    /// Some sentences.
    pub(crate) fn say(&self, text: &str) {
        self.print(&indent("   ", text));
    }

    /// A command as a person would type it.
    pub(crate) fn command(&self, line: &str) {
        self.print(&format!("\n   {}\n", self.paint(CYAN, &format!("$ {line}"))));
    }

    /// What a program has printed.
    pub(crate) fn output(&self, text: &str) {
        let lines: Vec<_> = text
            .trim_end()
            .lines()
            .map(|line| self.paint(DIM, line))
            .collect();
        self.print(&indent("     ", &lines.join("\n")));
    }

    /// Lines of a file, with its name.
    pub(crate) fn file(&self, name: &str, text: &str) {
        self.print(&format!("   {}\n", self.paint(BOLD, name)));
        self.print(&indent("     ", text));
    }

    /// States what holds, if it does.
    pub(crate) fn check(&mut self, holds: bool, what: &str) {
        self.checks += 1;
        let mark = if holds {
            self.paint(GREEN, "ok")
        } else {
            self.paint(RED, "NOT SO")
        };
        self.print(&format!("   {mark}  {what}\n"));
        if !holds {
            self.failed.push(format!("scene {}: {what}", self.scene));
        }
    }

    /// Closes, with the status that tells whether everything was as it was told.
    pub(crate) fn end(self) -> ExitCode {
        let seconds = self.begun.elapsed().as_secs_f32();
        if self.failed.is_empty() {
            let closing = format!("All {} statements held ({seconds:.1} s).", self.checks);
            self.print(&format!("\n{}\n", self.paint(GREEN, &closing)));
            return ExitCode::SUCCESS;
        }
        let closing = format!(
            "{} of {} statements did not hold:",
            self.failed.len(),
            self.checks
        );
        self.print(&format!("\n{}\n", self.paint(RED, &closing)));
        for failed in &self.failed {
            self.print(&format!("  {failed}\n"));
        }
        ExitCode::FAILURE
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.colour {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }

    fn print(&self, text: &str) {
        let mut out = io::stdout().lock();
        // A spectator who has closed the pipe (`| head`) has seen enough.
        if out.write_all(text.as_bytes()).and_then(|()| out.flush()).is_err() {
            std::process::exit(1);
        }
    }
}

fn indent(by: &str, text: &str) -> String {
    text.lines()
        .map(|line| format!("{by}{line}").trim_end().to_owned() + "\n")
        .collect()
}
