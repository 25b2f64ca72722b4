//! Which workload may reach which name: documents, compiled rules, verdicts.

mod host_pattern;
mod name;
mod verdict;

pub use host_pattern::{Breadth, HostPattern, PatternError};
pub use name::{DomainName, Host, NameError};
pub use verdict::{PolicyKind, RuleId, Verdict};

use std::sync::Arc;

use arc_swap::ArcSwap;

use crate::identity::Workload;

/// How a workload is treated, known before the first byte is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Posture {
    /// Verdicts are carried out.
    Enforce,
    /// Everything passes to where it was dialled; the record says what would have happened.
    Audit,
    /// No policy selects the workload: everything passes and is logged.
    Observe,
}

/// What a workload wants to reach.
#[derive(Debug, Clone, Copy)]
pub struct Target<'a> {
    /// The name (or literal address) in the SNI or the request.
    pub host: &'a Host,
    /// The port that was dialled; never the one in a Host header.
    pub port: u16,
    /// The address that was dialled, for `cidr` rules of connections that carry no name.
    pub address: std::net::IpAddr,
    /// For plain HTTP: what is asked.
    pub request: Option<RequestFacts<'a>>,
}

/// The parts of an HTTP request that rules can name.
#[derive(Debug, Clone, Copy)]
pub struct RequestFacts<'a> {
    /// The method as sent (case-sensitive, RFC 9110 section 9.1).
    pub method: &'a str,
    /// The path without query, normalised as the policy's documentation says.
    pub path: &'a str,
}

/// All policies, compiled, immutable.
#[derive(Debug, Default)]
pub struct PolicySet {}

/// The part of a [`PolicySet`] that concerns one workload.
#[derive(Debug, Clone)]
pub struct PolicyView {
    _set: Arc<PolicySet>,
}

/// The current [`PolicySet`], replaced atomically.
#[derive(Debug, Default)]
pub struct PolicyStore {
    current: ArcSwap<PolicySet>,
}

impl PolicyStore {
    /// The policies in force now.
    #[must_use]
    pub fn load(&self) -> Arc<PolicySet> {
        self.current.load_full()
    }

    /// Puts a new set in force; connections judged from now on see it.
    pub fn replace(&self, set: Arc<PolicySet>) {
        self.current.store(set);
    }
}

impl PolicySet {
    /// The part that concerns `workload`.
    #[must_use]
    pub fn view(self: &Arc<Self>, _workload: &Workload) -> PolicyView {
        PolicyView {
            _set: Arc::clone(self),
        }
    }
}

impl PolicyView {
    /// How the workload is treated.
    #[must_use]
    pub fn posture(&self) -> Posture {
        Posture::Enforce
    }

    /// The verdict on `target`, with its evidence.
    #[must_use]
    pub fn judge(&self, _target: &Target<'_>) -> Verdict {
        Verdict::without_rule(egress_common::outcome::Outcome::NoRule)
    }
}
