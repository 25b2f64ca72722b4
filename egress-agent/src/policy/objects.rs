//! What the API server has of policies: a pure index, fed by its events and read as a set of policies.
//!
//! Of each object the version that was told last and the last good one are known, and the good one is in force. Lists and
//! watches are ordered by the API server, so what comes last is what it has; the generation does not say that: it goes
//! back when the server is restored from a backup, and then grows over numbers that other contents had before.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use super::{
    object::{ObjectKey, PolicyObject, in_one_line},
    rule::Policy,
    verdict::PolicyKind,
};

/// Every object by its name.
#[derive(Debug, Clone, Default)]
pub struct PolicyObjects {
    entries: BTreeMap<ObjectKey, Entry>,
}

#[derive(Debug, Clone)]
struct Entry {
    newest: PolicyObject,
    /// Of the newest version.
    digest: u64,
    /// What is wrong with the newest version; without a problem it is the good one.
    problem: Option<String>,
    good: Option<(PolicyObject, Policy)>,
}

/// What is in force of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InForce {
    /// Its newest version.
    Newest,
    /// An older version, of this generation, because the newest one is broken.
    Older(i64),
    /// No version is good: the pods that it selects may reach nothing by it.
    Closed,
    /// A file has a policy of that name, which comes first.
    FileInstead,
}

/// What is known of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectFact {
    /// Which object.
    pub key: ObjectKey,
    /// Its identity, whatever its name.
    pub uid: String,
    /// The newest generation.
    pub generation: i64,
    /// [`PolicyObject::digest`] of it.
    pub digest: u64,
    /// What is in force of it.
    pub in_force: InForce,
    /// What is wrong with the newest generation.
    pub error: Option<String>,
}

impl PolicyObjects {
    /// Takes a version in, which is what the API server has now. Tells whether anything has changed.
    pub fn apply(&mut self, object: PolicyObject) -> bool {
        let Some(entry) = self
            .entries
            .get_mut(&object.key)
            .filter(|entry| entry.newest.uid == object.uid)
        else {
            self.entries.insert(object.key.clone(), Entry::of(object));
            return true;
        };
        if entry.newest == object {
            return false;
        }
        entry.take(object);
        true
    }

    /// Forgets an object. Tells whether it was known.
    pub fn remove(&mut self, key: &ObjectKey) -> bool {
        self.entries.remove(key).is_some()
    }

    /// Takes in a whole list of one kind: what is not in it is gone. Tells whether anything has changed.
    pub fn replace(&mut self, kind: PolicyKind, objects: Vec<PolicyObject>) -> bool {
        let there: BTreeSet<ObjectKey> = objects.iter().map(|object| object.key.clone()).collect();
        let before = self.entries.len();
        self.entries
            .retain(|key, _| key.kind != kind || there.contains(key));
        let mut changed = self.entries.len() != before;
        for object in objects {
            changed |= self.apply(object);
        }
        changed
    }

    /// What is in force, without the objects in whose place files stand.
    pub fn policies<'a>(&'a self, files: &'a BTreeSet<ObjectKey>) -> impl Iterator<Item = Policy> {
        self.entries
            .iter()
            .filter(|(key, _)| !files.contains(key))
            .map(|(_, entry)| entry.policy())
    }

    /// What is known of each.
    pub fn facts<'a>(&'a self, files: &'a BTreeSet<ObjectKey>) -> impl Iterator<Item = ObjectFact> {
        self.entries.iter().map(|(key, entry)| ObjectFact {
            key: key.clone(),
            uid: entry.newest.uid.clone(),
            generation: entry.newest.generation,
            digest: entry.digest,
            in_force: if files.contains(key) {
                InForce::FileInstead
            } else {
                entry.in_force()
            },
            error: entry.problem.clone(),
        })
    }

    /// The versions that make this index when they are taken in again, in this order.
    pub fn versions(&self) -> impl Iterator<Item = &PolicyObject> {
        self.entries.values().flat_map(|entry| {
            let good = entry.good.as_ref().map(|(object, _)| object);
            let broken = entry.problem.is_some().then_some(&entry.newest);
            good.into_iter().chain(broken)
        })
    }
}

impl Entry {
    fn of(newest: PolicyObject) -> Self {
        let mut entry = Self {
            newest: newest.clone(),
            digest: 0,
            problem: None,
            good: None,
        };
        entry.take(newest);
        entry
    }

    /// Takes the place of the newest version, and of the good one if it is good.
    fn take(&mut self, object: PolicyObject) {
        match object.compile() {
            Ok(policy) => {
                self.problem = None;
                self.good = Some((object.clone(), policy));
            }
            Err(problems) => self.problem = Some(in_one_line(&problems)),
        }
        self.digest = object.digest();
        self.newest = object;
    }

    fn policy(&self) -> Policy {
        match &self.good {
            Some((_, policy)) => policy.clone(),
            None => self.newest.closed(),
        }
    }

    fn in_force(&self) -> InForce {
        match &self.good {
            Some(_) if self.problem.is_none() => InForce::Newest,
            Some((object, _)) => InForce::Older(object.generation),
            None => InForce::Closed,
        }
    }
}

impl fmt::Display for InForce {
    /// What follows from it, in words.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Newest => f.write_str("it is in force"),
            Self::Older(generation) => write!(f, "generation {generation} stays in force"),
            Self::Closed => f.write_str("until it is mended, it allows nothing to the pods that it selects"),
            Self::FileInstead => f.write_str("a file has a policy of that name, which is in force instead"),
        }
    }
}

#[cfg(test)]
mod tests;
