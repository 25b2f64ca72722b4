//! The attempts of `attacks.yaml`: each is made without any agent and under enforcement, with the far end of the
//! workload's network cable as the witness.

mod stage;
mod table;
mod wire;

pub use stage::attempt;
pub use table::{markdown, print};

use std::{fs, path::PathBuf};

use serde::Deserialize;

use crate::require::Need;

/// One attempt to get past the enforcement. The head of `attacks.yaml` says what the fields mean.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Attack {
    /// Its name.
    pub id: String,
    /// The group that it is tried in.
    pub class: Class,
    /// The attempt in words.
    pub what: String,
    /// Python that runs before there is any enforcement, outside the enforced cgroup.
    #[serde(default)]
    pub early: String,
    /// Python that runs during it, still outside.
    #[serde(default)]
    pub before: String,
    /// The attempt itself.
    pub run: String,
    /// What it sees under enforcement: alternatives separated by ` or `, or `-`.
    pub expect: String,
    /// The outcome in the access log, or (`dns:`) in the dns log, or `-`.
    pub log: String,
    /// What shuts the door.
    pub shut: String,
    /// What it has beyond an ordinary container.
    #[serde(default)]
    pub capabilities: Vec<String>,
    /// What the kernel may lack.
    #[serde(default)]
    pub needs: Option<Need>,
    /// What it sees without an agent, if nothing could arrive even then.
    #[serde(default)]
    pub without: Option<String>,
    /// It ends its agent.
    #[serde(default)]
    pub fatal: bool,
    /// Why the door is open.
    #[serde(default)]
    pub open: Option<String>,
    /// Why it is not to be shut.
    #[serde(default)]
    pub out: Option<String>,
}

/// The groups of attempts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Class {
    /// TCP connects.
    Tcp,
    /// Datagrams.
    Udp,
    /// Sockets without ports.
    Raw,
    /// Addresses that mean something special.
    Address,
    /// Server names in TLS.
    Name,
    /// Hosts in HTTP.
    Http,
    /// Name service.
    Dns,
    /// Sockets from elsewhere and from before, and the agent's own.
    Socket,
    /// Packets that no socket's hook sees.
    Packet,
    /// Leaving the cgroup, and harming the agent; under `exec`.
    Leaving,
    /// SCTP.
    Sctp,
    /// DCCP.
    Dccp,
    /// SMC.
    Smc,
    /// RxRPC.
    Rxrpc,
}

/// What came of an attempt.
#[derive(Debug, Clone)]
pub struct Told {
    /// The attempt.
    pub attack: Attack,
    /// What it saw under enforcement, or `-` if it was not made.
    pub seen: String,
    /// What that means.
    pub verdict: Verdict,
}

/// What came of an attempt, in the end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing arrived, the client and the log were told so, and without an agent it would have arrived.
    Held,
    /// It is known to be open.
    Open,
    /// It is not ours to hold.
    OutOfScope,
    /// This kernel cannot even try.
    NotHere(&'static str),
    /// It got out, or was told wrongly, or proves nothing.
    Failed(String),
}

/// All attempts, in the order of the file.
///
/// # Panics
/// The file is wrong.
#[must_use]
pub fn all() -> Vec<Attack> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("attacks.yaml");
    let text = fs::read_to_string(&path).expect("tests/attacks.yaml");
    serde_saphyr::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

impl Attack {
    /// Whether `seen` is one of the alternatives.
    fn is_expected(expected: &str, seen: &str) -> bool {
        expected == "-" || expected.split(" or ").any(|alternative| alternative == seen)
    }

    /// Whether nothing got out and the one who tried was told so.
    fn is_told(&self, with: &Seen) -> bool {
        with.arrived.is_empty() && Self::is_expected(&self.expect, &with.text)
    }

    /// What the attempt under enforcement means, after the one without (`before`).
    fn judge(&self, without: &Seen, with: &Seen, logged: bool) -> Verdict {
        let works = match &self.without {
            Some(expected) => Self::is_expected(expected, &without.text),
            None => !without.arrived.is_empty(),
        };
        if !works {
            return Verdict::Failed(format!(
                "proves nothing: without an agent it saw {} and sent {:?}",
                without.text, without.arrived
            ));
        }
        if self.out.is_some() {
            return Verdict::OutOfScope;
        }
        let failure = if let Some(packet) = with.arrived.first() {
            format!("got out: {packet}")
        } else if !Self::is_expected(&self.expect, &with.text) {
            format!("saw {}", with.text)
        } else if !logged {
            format!("no record of {}", self.log)
        } else {
            return Verdict::Held;
        };
        if self.open.is_some() {
            return Verdict::Open;
        }
        Verdict::Failed(failure)
    }
}

/// What an attempt saw, and what the witness did.
#[derive(Debug, Clone)]
struct Seen {
    text: String,
    arrived: Vec<String>,
}
