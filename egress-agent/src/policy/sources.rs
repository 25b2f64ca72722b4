//! All that policies come from, as one stream of sets: files and the API server, each with its own last good state.

use std::{collections::BTreeSet, time::Duration};

use tokio::time::timeout;

use super::{
    object::ObjectKey,
    objects::ObjectFact,
    problem::LoadErrors,
    published::{Knowledge, PublishedPolicies},
    rule::Policy,
    set::{Origin, PolicySet, Settings},
    source::PolicySource,
    watch::{PolicyWatch, ReloadHandle},
};

/// How long a start waits for the API server when nothing is remembered: until then everything would be denied.
const PATIENCE: Duration = Duration::from_secs(10);
/// The same when something is: it is better than nothing, and may be old.
const PATIENCE_WITH_MEMORY: Duration = Duration::from_secs(2);

/// Files, and the API server if there is one.
#[derive(Debug)]
pub struct Sources {
    settings: Settings,
    watch: PolicyWatch,
    files: Vec<Policy>,
    file_errors: Option<String>,
    published: Option<PublishedPolicies>,
    /// The broken versions that have been logged: uid and generation.
    told: BTreeSet<(String, i64, u64)>,
}

impl Sources {
    /// Begins to follow, and reads the files a first time.
    ///
    /// # Errors
    /// A file is broken, or none can be followed.
    pub fn start(source: &PolicySource, published: Option<PublishedPolicies>) -> anyhow::Result<Self> {
        // Before the first look at the files, so that no change falls between the two.
        let watch = PolicyWatch::start(source.clone())
            .map_err(|error| anyhow::Error::from(error).context("cannot follow the policy directory"))?;
        Ok(Self {
            settings: source.settings(),
            watch,
            files: source.load_policies()?,
            file_errors: None,
            published,
            told: BTreeSet::new(),
        })
    }

    /// The way to have the files read again.
    #[must_use]
    pub fn reload_handle(&self) -> ReloadHandle {
        self.watch.reload_handle()
    }

    /// The set to begin with: waits a little for an API server that has not told its policies yet.
    pub async fn first(&mut self) -> PolicySet {
        if let Some(published) = &mut self.published {
            let patience = match published.knowledge() {
                Knowledge::Followed | Knowledge::NotAsked => Duration::ZERO,
                Knowledge::Recalled(_) => PATIENCE_WITH_MEMORY,
                Knowledge::Unknown => PATIENCE,
            };
            if timeout(patience, published.next()).await.is_err() {
                tracing::warn!(knowledge = ?published.knowledge(), "the API server has not told its policies yet");
            }
        }
        self.set()
    }

    /// Waits for a change of either. Cancelling loses nothing.
    ///
    /// # Errors
    /// The files are broken now, and how; what was good of them stays.
    pub async fn next(&mut self) -> Result<PolicySet, LoadErrors> {
        let published = async {
            match &mut self.published {
                Some(published) => published.next().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            loaded = self.watch.next() => match loaded {
                Ok(files) => {
                    self.files = files;
                    self.file_errors = None;
                }
                Err(errors) => {
                    self.file_errors = Some(errors.to_string());
                    return Err(errors);
                }
            },
            () = published => {}
        }
        Ok(self.set())
    }

    fn set(&mut self) -> PolicySet {
        let knowledge = self
            .published
            .as_ref()
            .map_or(Knowledge::NotAsked, PublishedPolicies::knowledge);
        let origin = Origin {
            files: self.files.len(),
            file_errors: self.file_errors.clone(),
            knowledge,
            objects: Vec::new(),
        };
        if knowledge == Knowledge::Unknown {
            // What files allow, a cluster policy may deny.
            return PolicySet::denying(self.settings).with_origin(origin);
        }
        let names: BTreeSet<ObjectKey> = self.files.iter().map(Policy::key).collect();
        let objects = self.published.as_ref().map(PublishedPolicies::objects);
        let policies = objects.into_iter().flat_map(|objects| objects.policies(&names));
        let facts = objects.into_iter().flat_map(|objects| objects.facts(&names));
        let origin = Origin {
            objects: facts.collect(),
            ..origin
        };
        let built = PolicySet::build(policies.chain(self.files.iter().cloned()), self.settings);
        self.tell_broken(&origin.objects);
        match built {
            Ok(set) => set.with_origin(origin),
            // Names are unique in files as in objects, and no object has a file's.
            Err(duplicates) => {
                tracing::error!(?duplicates, "policies of one name: everything is denied");
                PolicySet::denying(self.settings).with_origin(origin)
            }
        }
    }

    /// Once for each version.
    fn tell_broken(&mut self, facts: &[ObjectFact]) {
        let mut broken = BTreeSet::new();
        for fact in facts {
            let Some(error) = &fact.error else {
                continue;
            };
            let version = (fact.uid.clone(), fact.generation, fact.digest);
            if !self.told.contains(&version) {
                tracing::error!(policy = %fact.key, generation = fact.generation, error, "{}", fact.in_force);
            }
            broken.insert(version);
        }
        self.told = broken;
    }
}

#[cfg(test)]
mod tests;
