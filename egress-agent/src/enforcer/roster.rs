//! Whose cgroup is whose, and what is enforced on it, as the kernel is told.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    io,
    path::Path,
    sync::Arc,
};

use crate::{
    identity::{Identities, Workload},
    kernel::{Fence, FenceCounts, FenceTables, Fenced, TableError},
    policy::{PolicySet, PortSet},
};

/// Keeps the kernel's tables of members and policies.
#[derive(Debug)]
pub(super) struct Roster {
    tables: FenceTables,
    identities: Arc<Identities>,
    /// The ports on which every connection goes to the proxy.
    web: PortSet,
    /// The workloads' numbers.
    numbers: HashMap<Key, u32>,
    /// What the kernel enforces now, by cgroup.
    members: HashMap<u64, Enrolled>,
    /// What the policies come to for workloads that are alike: cgroups come and go more often than policies, and ten
    /// thousand rules take a while.
    compiled: HashMap<Traits, Arc<Fence>>,
    /// The policies that `compiled` is made from.
    compiled_from: Option<Arc<PolicySet>>,
}

/// A cgroup that the kernel knows.
#[derive(Debug, Clone)]
pub(super) struct Enrolled {
    /// Whose it is.
    pub(super) workload: Arc<Workload>,
    /// What is enforced.
    pub(super) fence: Arc<Fence>,
}

/// Namespace and name: as cgroups below a workload's own are parts of it.
type Key = (String, String);

/// What policies can depend on: workloads that are alike share what is enforced on them.
type Traits = (String, BTreeMap<String, String>, BTreeMap<String, String>, bool);

impl Roster {
    /// Opens the tables.
    ///
    /// # Errors
    /// See [`TableError`].
    pub(super) fn open(pins: &Path, identities: Arc<Identities>, web: &[u16]) -> Result<Self, TableError> {
        Ok(Self {
            tables: FenceTables::open(pins)?,
            identities,
            web: web.iter().map(|port| *port..=*port).collect(),
            numbers: HashMap::new(),
            members: HashMap::new(),
            compiled: HashMap::new(),
            compiled_from: None,
        })
    }

    /// Tells the kernel what `set` says of every cgroup that there is now. Whether anything is enforced that was not
    /// before.
    ///
    /// # Errors
    /// A table is full, or the enforced cgroup is gone; what was in force stays so.
    pub(super) fn enrol(&mut self, set: &Arc<PolicySet>) -> io::Result<bool> {
        self.compile_from(set);
        let mut compiled = HashMap::new();
        let mut members = HashMap::new();
        for (cgroup, workload) in self.identities.refresh()? {
            let traits = traits(&workload);
            let known = self.compiled.remove(&traits);
            let fence = compiled
                .entry(traits)
                .or_insert_with(|| known.unwrap_or_else(|| Arc::new(set.view(&workload).fence(&self.web))));
            let fence = Arc::clone(fence);
            members.insert(cgroup, Enrolled { workload, fence });
        }
        self.compiled = compiled;
        let wanted = members
            .iter()
            .map(|(cgroup, enrolled)| (*cgroup, self.fenced(enrolled)))
            .collect();
        self.tables.replace(&wanted)?;
        let has_news = members.iter().any(|(cgroup, enrolled)| {
            let before = self.members.get(cgroup).map(|before| &before.fence);
            enrolled.fence.enforce && before != Some(&enrolled.fence)
        });
        self.members = members;
        let present: HashSet<Key> = self
            .members
            .values()
            .map(|enrolled| key(&enrolled.workload))
            .collect();
        self.numbers.retain(|key, _| present.contains(key));
        Ok(has_news)
    }

    /// The same for these cgroups alone: pods come and go by the hundred, and to walk the whole tree for each would take
    /// longer the more there are. Cgroups that have gone, or that are nobody's any more, are left to [`Self::enrol`].
    ///
    /// # Errors
    /// A table is full.
    pub(super) fn enrol_those(
        &mut self,
        set: &Arc<PolicySet>,
        cgroups: impl IntoIterator<Item = u64>,
    ) -> io::Result<()> {
        self.compile_from(set);
        for cgroup in cgroups {
            let Some(workload) = self.identities.of(cgroup) else {
                continue;
            };
            let fence = self
                .compiled
                .entry(traits(&workload))
                .or_insert_with(|| Arc::new(set.view(&workload).fence(&self.web)));
            let enrolled = Enrolled {
                fence: Arc::clone(fence),
                workload,
            };
            let fenced = self.fenced(&enrolled);
            self.tables.add(cgroup, &fenced)?;
            self.members.insert(cgroup, enrolled);
        }
        Ok(())
    }

    fn compile_from(&mut self, set: &Arc<PolicySet>) {
        if !self
            .compiled_from
            .as_ref()
            .is_some_and(|from| Arc::ptr_eq(from, set))
        {
            self.compiled.clear();
            self.compiled_from = Some(Arc::clone(set));
        }
    }

    fn fenced(&mut self, enrolled: &Enrolled) -> Fenced {
        let tables = &mut self.tables;
        let number = self.numbers.entry(key(&enrolled.workload));
        Fenced {
            workload: *number.or_insert_with(|| tables.number_workload()),
            fence: Arc::clone(&enrolled.fence),
        }
    }

    /// Opens the tables anew: somebody else may have written them.
    ///
    /// # Errors
    /// See [`TableError`].
    pub(super) fn reopen(&mut self, pins: &Path) -> Result<(), TableError> {
        self.tables = FenceTables::open(pins)?;
        self.numbers.clear();
        Ok(())
    }

    /// Whether the kernel knows the cgroup.
    pub(super) fn knows(&self, cgroup: u64) -> bool {
        self.members.contains_key(&cgroup)
    }

    /// A cgroup that the kernel knows.
    pub(super) fn member(&self, cgroup: u64) -> Option<&Enrolled> {
        self.members.get(&cgroup)
    }

    /// How much the kernel knows.
    pub(super) fn counts(&self) -> FenceCounts {
        self.tables.counts()
    }

    /// Removes what nobody points to any more.
    ///
    /// # Errors
    /// The kernel refuses.
    pub(super) fn sweep(&mut self) -> Result<(), TableError> {
        self.tables.sweep()
    }

    /// Whether there is as much room as there will be.
    pub(super) fn is_swept(&self) -> bool {
        self.tables.is_swept()
    }

    /// Whose cgroups they are.
    pub(super) fn identities(&self) -> &Identities {
        &self.identities
    }
}

fn key(workload: &Workload) -> Key {
    (workload.namespace.clone(), workload.name.clone())
}

fn traits(workload: &Workload) -> Traits {
    (
        workload.namespace.clone(),
        workload.namespace_labels.clone(),
        workload.labels.clone(),
        workload.is_exempt(),
    )
}
