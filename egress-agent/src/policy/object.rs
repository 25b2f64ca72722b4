//! A policy as the API server holds it: compiled by the code that compiles files, with paths for places.

use std::fmt;

use serde::de::DeserializeOwned;
use serde_json::{Value as Json, json};

use super::{
    compile::compile,
    document::{API_VERSION, ClusterEgressPolicy, Document, EgressPolicy, LabelSelector, Mode},
    fnv,
    problem::{Problem, shortened},
    rule::Policy,
    selector::{Group, Selector},
    verdict::PolicyKind,
    yaml,
};

/// Most that is told of what is wrong with an object. It goes into `status`, a condition and the log.
const MOST_BYTES: usize = 1000;

/// Which object: kind, namespace and name. Displayed as its rules are: `EgressPolicy horizons/allow`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub struct ObjectKey {
    /// The kind.
    pub kind: PolicyKind,
    /// The namespace; empty for a cluster policy.
    pub namespace: String,
    /// The name.
    pub name: String,
}

/// One version of an object.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct PolicyObject {
    /// Which object.
    pub key: ObjectKey,
    /// Of an object that was deleted and made again it is another.
    pub uid: String,
    /// Grows with each change of `spec`, and with nothing else; goes back when the API server is restored from a backup.
    pub generation: i64,
    /// `spec` as it was written.
    pub spec: Json,
}

impl PolicyObject {
    /// The policy in it.
    ///
    /// # Errors
    /// Everything that is wrong with it, with the path.
    pub fn compile(&self) -> Result<Policy, Vec<Problem>> {
        let document = match self.key.kind {
            PolicyKind::EgressPolicy => Document::EgressPolicy(self.decode::<EgressPolicy>()?),
            PolicyKind::ClusterEgressPolicy | PolicyKind::CommandLine => {
                Document::ClusterEgressPolicy(self.decode::<ClusterEgressPolicy>()?)
            }
        };
        compile(&document, &|_| None)
    }

    /// A number for `spec`, whatever the order in which its fields were written: what a generation does not tell for
    /// sure, whether two agents have the same.
    #[must_use]
    pub fn digest(&self) -> u64 {
        fnv::hash(self.spec.to_string().as_bytes(), fnv::BASIS)
    }

    /// What stands in for a version that cannot be read where no good one is known: it selects the same pods, as far as
    /// that can be read, and allows nothing. A policy that denies or sets a ceiling lets nobody else allow anything
    /// either, because what it would have forbidden is not known.
    #[must_use]
    pub fn closed(&self) -> Policy {
        let mode = match self.spec.get("mode").and_then(Json::as_str) {
            Some("Audit") => Mode::Audit,
            Some(_) | None => Mode::Enforce,
        };
        let forbids = ["deny", "ceiling"]
            .into_iter()
            .any(|list| self.spec.get(list).is_some_and(|list| !list.is_null()));
        // A selector with anything wrong in it selects everything, as an absent one does.
        let selector = self.selector().unwrap_or_default();
        Policy::closed(&self.key, Group { selector, mode }, forbids)
    }

    fn selector(&self) -> Option<Selector> {
        let read = |name: &str| -> Option<Option<LabelSelector>> {
            match self.spec.get(name) {
                None | Some(Json::Null) => Some(None),
                Some(selector) => serde_json::from_value(selector.clone()).ok().map(Some),
            }
        };
        let mut problems = Vec::new();
        let selector = Selector::compile(read("podSelector")?.as_ref(), &mut problems)
            .in_namespaces(read("namespaceSelector")?.as_ref(), &mut problems);
        problems.is_empty().then_some(selector)
    }

    fn namespace(&self) -> Option<&str> {
        (self.key.kind == PolicyKind::EgressPolicy).then_some(self.key.namespace.as_str())
    }

    fn decode<T: DeserializeOwned>(&self) -> Result<T, Vec<Problem>> {
        let document = json!({
            "apiVersion": API_VERSION,
            "kind": self.key.kind.as_str(),
            "metadata": {"name": self.key.name, "namespace": self.namespace()},
            "spec": self.spec,
        });
        serde_path_to_error::deserialize(document).map_err(|error| {
            vec![Problem {
                path: yaml::steps(error.path()),
                // It names what it has met.
                message: shortened(&error.into_inner().to_string(), MOST_BYTES / 2).into_owned(),
            }]
        })
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.kind.as_str())?;
        f.write_str(" ")?;
        if !self.namespace.is_empty() {
            write!(f, "{}/", self.namespace)?;
        }
        f.write_str(&self.name)
    }
}

/// Problems as one sentence: what a condition's message has. Some 1,000 bytes at most.
#[must_use]
pub fn in_one_line(problems: &[Problem]) -> String {
    /// A person mends a few at a time.
    const MOST: usize = 8;
    let mut line = String::new();
    for (told, problem) in problems.iter().take(MOST).enumerate() {
        let problem = problem.to_string();
        if told > 0 {
            if line.len() + problem.len() > MOST_BYTES {
                return format!("{line}; and {} more", problems.len() - told);
            }
            line.push_str("; ");
        }
        line.push_str(&shortened(&problem, MOST_BYTES));
    }
    if problems.len() > MOST {
        line = format!("{line}; and {} more", problems.len() - MOST);
    }
    line
}

#[cfg(test)]
mod tests;
