//! Which workload may reach which name: documents, compiled rules, verdicts.

mod address;
mod compile;
pub mod crd;
mod denial;
pub mod document;
pub mod explain;
mod fence;
pub mod fnv;
#[doc(hidden)]
pub mod fuzz;
mod host_pattern;
mod index;
mod memory;
mod name;
mod object;
pub mod object_status;
mod objects;
mod ports;
mod problem;
mod published;
mod request;
mod rule;
mod selector;
mod set;
mod source;
mod sources;
mod verdict;
mod view;
mod watch;
mod yaml;

pub use compile::compile;
pub use denial::{Denial, DenialFeed};
pub use host_pattern::{Breadth, HostPattern, PatternError};
pub use memory::PolicyMemory;
pub use name::{DomainName, Host, NameError};
pub use object::{ObjectKey, PolicyObject, in_one_line};
pub use objects::{InForce, ObjectFact, PolicyObjects};
pub use ports::PortSet;
pub use problem::{LoadError, LoadErrors, Place, Position, Problem, Step, shortened};
pub use published::{Knowledge, PublishedPolicies, policy_object, resource};
pub use request::{PathDoubt, normal_path};
pub use rule::{Miss, Policy};
pub use set::{Counts, Duplicate, Origin, PolicySet, Settings, Unselected};
pub use source::{LoadedFile, PolicySource, read_text};
pub use sources::Sources;
pub use verdict::{PolicyKind, RuleId, Verdict};
pub use view::PolicyView;
pub use watch::{PolicyWatch, ReloadHandle};

use std::sync::Arc;

use arc_swap::ArcSwap;

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
    /// The path as sent, without query. [`PolicyView::judge`] normalises it by [`normal_path`].
    pub path: &'a str,
}

/// The current [`PolicySet`], replaced atomically.
#[derive(Debug, Default)]
pub struct PolicyStore {
    current: ArcSwap<PolicySet>,
    changed: tokio::sync::watch::Sender<()>,
}

/// Tells of new policy sets.
#[derive(Debug)]
pub struct PolicyChanges {
    changed: tokio::sync::watch::Receiver<()>,
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
        self.changed.send_replace(());
    }

    /// Has everything judged again that is open: workloads are not what they were.
    pub fn judge_again(&self) {
        self.changed.send_replace(());
    }

    /// To be told of every set that is put in force from now on.
    #[must_use]
    pub fn changes(&self) -> PolicyChanges {
        PolicyChanges {
            changed: self.changed.subscribe(),
        }
    }
}

impl PolicyChanges {
    /// Waits for the next set. Without a store there is none.
    pub async fn next(&mut self) {
        if self.changed.changed().await.is_err() {
            std::future::pending().await
        }
    }
}
