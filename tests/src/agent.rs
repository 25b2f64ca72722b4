//! Runs the agent's program in a world, as a user would.

mod running;

pub use running::{Finished, Running, Start};

use std::{ffi::OsString, path::PathBuf};

use crate::{
    clients::Client,
    lab::{AGENT_DNS, Place, World},
};

/// The agent's program: `EGRESS_AGENT`, or the one built beside this test program.
///
/// # Panics
/// There is none.
#[must_use]
pub fn program() -> PathBuf {
    let path = std::env::var_os("EGRESS_AGENT").map_or_else(|| beside_us("egress-agent"), PathBuf::from);
    assert!(
        path.is_file(),
        "{} is missing: run `cargo build -p egress-agent` before",
        path.display()
    );
    path
}

/// A program of the same build as this one.
#[must_use]
pub fn beside_us(name: &str) -> PathBuf {
    let own = std::env::current_exe().expect("our own path");
    // target/debug/deps/promises-0123, or target/debug/lab-client.
    let directory = own
        .ancestors()
        .skip(1)
        .find(|directory| !directory.ends_with("deps"));
    directory.expect("a directory").join(name)
}

/// How an access log is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Apache's combined with squid's result, as squid's `combined`.
    Combined,
    /// Squid's native.
    Squid,
    /// Squid's `common`.
    Common,
    /// JSON lines.
    Json,
}

impl Format {
    /// The word on the command line.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Combined => "combined",
            Self::Squid => "squid",
            Self::Common => "common",
            Self::Json => "json",
        }
    }
}

/// An `egress-agent exec` to be run.
#[derive(Debug)]
pub struct Exec<'w> {
    start: Start<'w>,
    arguments: Vec<OsString>,
    has_nameserver: bool,
    world: &'w World,
}

impl<'w> Exec<'w> {
    pub(crate) fn new(world: &'w World) -> Self {
        let start = Start::new(world, &world.client);
        Self {
            start,
            arguments: Vec::new(),
            has_nameserver: false,
            world,
        }
    }

    /// In another namespace than the first client's.
    #[must_use]
    pub fn at(mut self, place: &Place) -> Self {
        self.start = Start::new(self.world, place);
        self
    }

    /// Any argument before `--`.
    #[must_use]
    pub fn arg(mut self, argument: impl Into<OsString>) -> Self {
        self.arguments.push(argument.into());
        self
    }

    /// Several of them.
    #[must_use]
    pub fn args(mut self, arguments: impl IntoIterator<Item = impl Into<OsString>>) -> Self {
        self.arguments.extend(arguments.into_iter().map(Into::into));
        self
    }

    /// `--allow PATTERN`.
    #[must_use]
    pub fn allow(self, pattern: &str) -> Self {
        self.arg("--allow").arg(pattern)
    }

    /// `--policy FILE` with this text.
    #[must_use]
    pub fn policy(self, yaml: &str) -> Self {
        let file = self
            .world
            .file(&format!("policy-{}.yaml", self.arguments.len()), yaml);
        self.arg("--policy").arg(file)
    }

    /// `--nameserver SERVER`; without it the world's own is told.
    #[must_use]
    pub fn nameserver(mut self, server: &str) -> Self {
        self.has_nameserver = true;
        self.arg("--nameserver").arg(server)
    }

    /// No `--nameserver`: the agent reads resolv.conf.
    #[must_use]
    pub fn system_resolver(mut self) -> Self {
        self.has_nameserver = true;
        self
    }

    /// `--access-log FILE --log-format FORMAT`: read by [`Finished::log`].
    #[must_use]
    pub fn log(mut self, format: Format) -> Self {
        let path = self.world.path("access.log");
        self.start.log = Some(path.clone());
        self.arg("--access-log")
            .arg(path)
            .arg("--log-format")
            .arg(format.word())
    }

    /// A variable of the agent's environment.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.start = self.start.env(name, value);
        self
    }

    /// Bytes for standard input, which then ends. Without it there is none.
    #[must_use]
    pub fn stdin(mut self, bytes: &[u8]) -> Self {
        self.start.stdin = Some(bytes.to_vec());
        self
    }

    /// Starts it with `client` as COMMAND.
    #[must_use]
    pub fn start(self, client: &Client) -> Running<'w> {
        let mut words = vec![program().into_os_string(), "exec".into()];
        words.extend(self.arguments);
        if !self.has_nameserver {
            words.extend(["--nameserver".into(), AGENT_DNS.into()]);
        }
        words.push("--".into());
        words.push(client.program.clone().into());
        words.extend(client.arguments.iter().cloned());
        let environment = client.environment.clone();
        self.start.command(words).environment(environment).start()
    }

    /// Starts it and waits for its end.
    pub async fn run(self, client: &Client) -> Finished {
        self.start(client).finish().await
    }
}

/// Any other verb of the agent, in the first client's namespace.
#[must_use]
pub fn verb<'w>(world: &'w World, place: &Place, words: &[&str]) -> Start<'w> {
    let mut command = vec![program().into_os_string()];
    command.extend(words.iter().map(OsString::from));
    Start::new(world, place).command(command)
}
