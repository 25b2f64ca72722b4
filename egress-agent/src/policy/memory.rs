//! The API server's policies on disk, so that an agent that starts while the server is away judges by the last ones known.
//!
//! What is kept are the objects as they were written, and they are compiled anew when they are read: a file from another
//! version of the agent, or one that was tampered with, is no more than a set of policies, and one that cannot be read is
//! none at all.

use std::{io, path::Path};

use super::{object::PolicyObject, objects::PolicyObjects};
use crate::cluster::Kept;

/// Where they are kept.
#[derive(Debug, Clone)]
pub struct PolicyMemory {
    kept: Kept,
}

impl PolicyMemory {
    /// In `policies.json` of a directory.
    #[must_use]
    pub fn in_directory(directory: &Path) -> Self {
        Self {
            kept: Kept::in_directory(directory, "policies.json"),
        }
    }

    /// What was saved last, and when.
    #[must_use]
    pub fn recall(&self) -> Option<(PolicyObjects, jiff::Timestamp)> {
        let (recalled, saved) = self.kept.recall::<Vec<PolicyObject>>()?;
        let mut objects = PolicyObjects::default();
        for object in recalled {
            objects.apply(object);
        }
        Some((objects, saved))
    }

    /// Replaces what was saved, as a whole or not at all. Blocks.
    ///
    /// # Errors
    /// It cannot be written, or is too large; the old one is left then.
    pub fn save(&self, objects: &PolicyObjects) -> io::Result<()> {
        self.kept.save(objects.versions().collect::<Vec<_>>())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::policy::{object::ObjectKey, objects::InForce, verdict::PolicyKind};

    fn object(generation: i64, domain: &str) -> PolicyObject {
        PolicyObject {
            key: ObjectKey {
                kind: PolicyKind::EgressPolicy,
                namespace: "a".to_owned(),
                name: "p".to_owned(),
            },
            uid: "u".to_owned(),
            generation,
            spec: json!({"egress": [{"to": [{"domain": domain}]}]}),
        }
    }

    #[test]
    fn the_last_good_version_and_the_broken_one_after_it_are_kept() {
        let directory = tempfile::tempdir().unwrap();
        let memory = PolicyMemory::in_directory(&directory.path().join("state/one"));
        assert!(memory.recall().is_none());
        let mut objects = PolicyObjects::default();
        objects.apply(object(1, "x.test"));
        objects.apply(object(2, "*.com"));
        memory.save(&objects).unwrap();
        let none = std::collections::BTreeSet::new();
        let (recalled, _) = memory.recall().unwrap();
        assert!(recalled.facts(&none).eq(objects.facts(&none)));
        assert_eq!(recalled.facts(&none).next().unwrap().in_force, InForce::Older(1));
    }

    #[test]
    fn what_was_told_last_is_the_newest_whatever_its_generation() {
        let directory = tempfile::tempdir().unwrap();
        let memory = PolicyMemory::in_directory(directory.path());
        let mut objects = PolicyObjects::default();
        objects.apply(object(5, "x.test"));
        objects.apply(object(4, "*.com"));
        memory.save(&objects).unwrap();
        let none = std::collections::BTreeSet::new();
        let (recalled, _) = memory.recall().unwrap();
        assert!(recalled.facts(&none).eq(objects.facts(&none)));
        assert_eq!(recalled.facts(&none).next().unwrap().in_force, InForce::Older(5));
    }
}
