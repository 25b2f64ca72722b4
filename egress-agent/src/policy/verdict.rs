//! A verdict and its evidence.

use std::{fmt, sync::Arc};

use egress_common::outcome::Outcome;

/// What was decided, and by which rule. The same value feeds the answer to the client, the access log and `explain`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// The decision and its reason in one word of the closed list.
    pub outcome: Outcome,
    /// The rule that decided, if one did.
    pub rule: Option<Arc<RuleId>>,
}

/// Names one rule of one policy.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RuleId {
    /// Which kind of document.
    pub kind: PolicyKind,
    /// The policy's namespace; empty for a cluster policy.
    pub namespace: String,
    /// The policy's name.
    pub policy: String,
    /// The list the rule stands in: `egress`, `deny` or `ceiling`.
    pub list: &'static str,
    /// Position in that list, from 0; `None` where the list as a whole decided (nothing in a ceiling matched).
    pub index: Option<usize>,
}

/// The kinds of policy document.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub enum PolicyKind {
    /// Namespaced.
    EgressPolicy,
    /// Cluster-wide.
    ClusterEgressPolicy,
    /// No document: the patterns of `--allow`.
    CommandLine,
}

impl Verdict {
    /// A verdict that no single rule gave.
    #[must_use]
    pub const fn without_rule(outcome: Outcome) -> Self {
        Self { outcome, rule: None }
    }

    /// Whether the bytes may flow.
    #[must_use]
    pub const fn is_allow(&self) -> bool {
        self.outcome.is_allow()
    }
}

impl PolicyKind {
    /// The `kind:` of the document; `CommandLine` where there is none.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::CommandLine => "CommandLine",
            Self::EgressPolicy => "EgressPolicy",
            Self::ClusterEgressPolicy => "ClusterEgressPolicy",
        }
    }
}

impl fmt::Display for RuleId {
    /// `EgressPolicy horizons/allow egress[0]`, `ClusterEgressPolicy base deny[2]`, `ClusterEgressPolicy base ceiling`,
    /// `CommandLine --allow egress[1]`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.kind.as_str())?;
        f.write_str(" ")?;
        if !self.namespace.is_empty() {
            write!(f, "{}/", self.namespace)?;
        }
        write!(f, "{} {}", self.policy, self.list)?;
        match self.index {
            Some(index) => write!(f, "[{index}]"),
            None => Ok(()),
        }
    }
}
