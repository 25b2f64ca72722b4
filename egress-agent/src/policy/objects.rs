//! What the API server has of policies: a pure index, fed by its events and read as a set of policies.
//!
//! The order in which versions and objects arrive never matters: of each object the newest version and the newest good one
//! are known, and the good one is in force.

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
    /// What is wrong with the newest version.
    problem: Option<String>,
    good: Option<(PolicyObject, Policy)>,
}

/// What is in force of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InForce {
    /// Its newest version.
    Newest,
    /// An older generation, because the newest one is broken.
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
    /// What is in force of it.
    pub in_force: InForce,
    /// What is wrong with the newest generation.
    pub error: Option<String>,
}

impl PolicyObjects {
    /// Takes a version in. Tells whether anything has changed.
    pub fn apply(&mut self, object: PolicyObject) -> bool {
        let Some(entry) = self
            .entries
            .get_mut(&object.key)
            .filter(|entry| entry.newest.uid == object.uid)
        else {
            self.entries.insert(object.key.clone(), Entry::of(object));
            return true;
        };
        if entry.knows(object.generation) {
            return false;
        }
        let is_newer = object.generation > entry.newest.generation;
        let read = object.compile();
        if is_newer {
            entry.newest = object.clone();
            entry.problem = read.as_ref().err().map(|problems| in_one_line(problems));
        }
        match read {
            Ok(policy) if entry.good_generation() < Some(object.generation) => {
                entry.good = Some((object, policy));
                true
            }
            Ok(_) | Err(_) => is_newer,
        }
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
            in_force: if files.contains(key) {
                InForce::FileInstead
            } else {
                entry.in_force()
            },
            error: entry.problem.clone(),
        })
    }

    /// The versions that make this index when they are taken in again.
    pub fn versions(&self) -> impl Iterator<Item = &PolicyObject> {
        self.entries.values().flat_map(|entry| {
            let good = entry.good.as_ref().map(|(object, _)| object);
            let is_another = good.is_none_or(|good| good.generation != entry.newest.generation);
            good.into_iter().chain(is_another.then_some(&entry.newest))
        })
    }
}

impl Entry {
    fn of(newest: PolicyObject) -> Self {
        let (problem, good) = match newest.compile() {
            Ok(policy) => (None, Some((newest.clone(), policy))),
            Err(problems) => (Some(in_one_line(&problems)), None),
        };
        Self {
            newest,
            problem,
            good,
        }
    }

    fn good_generation(&self) -> Option<i64> {
        self.good.as_ref().map(|(object, _)| object.generation)
    }

    /// Whether a version of this generation would tell nothing new.
    fn knows(&self, generation: i64) -> bool {
        generation == self.newest.generation || self.good_generation() >= Some(generation)
    }

    fn policy(&self) -> Policy {
        match &self.good {
            Some((_, policy)) => policy.clone(),
            None => self.newest.closed(),
        }
    }

    fn in_force(&self) -> InForce {
        match self.good_generation() {
            Some(generation) if generation == self.newest.generation => InForce::Newest,
            Some(generation) => InForce::Older(generation),
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
