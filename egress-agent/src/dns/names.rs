//! Which names an address has had in the DNS answers of one workload.
//!
//! For connections in which the server speaks first and so no name is on the wire. An entry says that this workload was
//! told, by a resolver that we trust, that `name` lives at `address`; what another workload was told is never looked at.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use crate::{identity::Workload, policy::DomainName};

/// Bounds of a [`NameTable`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NameLimits {
    /// Pairs of name and address that one workload can have.
    pub per_workload: usize,
    /// Pairs of all workloads together.
    pub total: usize,
    /// An entry is kept at least so long, whatever its time to live says: programs keep addresses longer than that.
    pub floor: Duration,
    /// An entry is kept at most so long without being learned anew or used.
    pub ceiling: Duration,
}

/// Names by workload and address. Shared by all threads.
#[derive(Debug)]
pub struct NameTable {
    limits: NameLimits,
    state: Mutex<State>,
}

/// Keeps an entry of the table for as long as a connection uses it. Afterwards it is kept for the floor once more,
/// because whoever was connected will reconnect without asking again.
#[derive(Debug)]
pub struct Held {
    table: Arc<NameTable>,
    key: Key,
    address: IpAddr,
    name: DomainName,
}

/// How full the table is, and what it had to leave out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct NameCounts {
    /// Pairs of name and address.
    pub entries: u64,
    /// Pairs that made room for others before their time.
    pub evicted: u64,
    /// Pairs that could not be taken in because all others are in use.
    pub refused: u64,
}

/// What makes two cgroups one workload, see [`Workload::is_same_as`].
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    namespace: String,
    name: String,
    labels: BTreeMap<String, String>,
}

#[derive(Debug, Default)]
struct State {
    workloads: HashMap<Key, Names>,
    counts: NameCounts,
}

/// The names of one workload.
#[derive(Debug, Default)]
struct Names {
    /// Newest last.
    by_address: HashMap<IpAddr, Vec<Entry>>,
    entries: usize,
}

#[derive(Debug)]
struct Entry {
    name: DomainName,
    expires: Instant,
    users: u32,
}

impl Default for NameLimits {
    fn default() -> Self {
        Self {
            // A crawler's; an ordinary service knows some tens.
            per_workload: 4096,
            total: 65_536,
            floor: Duration::from_secs(60),
            ceiling: Duration::from_secs(86_400),
        }
    }
}

impl NameTable {
    /// An empty table.
    #[must_use]
    pub fn new(limits: NameLimits) -> Self {
        Self {
            limits,
            state: Mutex::default(),
        }
    }

    /// The names under which `workload` was told `address`, the one it was told last first; none if it was told none, or
    /// too long ago.
    ///
    /// Several names may share an address (a CDN's). Each of them was allowed to be looked up and does live there, so a
    /// connection may pass if the policy allows it for any one of them: nothing else could be reached by it than under
    /// that name.
    #[must_use]
    pub fn names_of(&self, workload: &Workload, address: IpAddr, now: Instant) -> Vec<DomainName> {
        let state = self.lock();
        let entries = state
            .workloads
            .get(&Key::of(workload))
            .and_then(|names| names.by_address.get(&address.to_canonical()));
        entries
            .into_iter()
            .flatten()
            .rev()
            .filter(|entry| entry.is_alive(now))
            .map(|entry| entry.name.clone())
            .collect()
    }

    /// The name under which `workload` was told `address` last.
    #[must_use]
    pub fn name_of(&self, workload: &Workload, address: IpAddr, now: Instant) -> Option<DomainName> {
        self.names_of(workload, address, now).into_iter().next()
    }

    /// Keeps the entry until the returned value is dropped; `None` if there is no such entry.
    #[must_use]
    pub fn hold(
        self: &Arc<Self>,
        workload: &Workload,
        address: IpAddr,
        name: &DomainName,
        now: Instant,
    ) -> Option<Held> {
        let (key, address) = (Key::of(workload), address.to_canonical());
        let mut state = self.lock();
        let entry = state.entry(&key, address, name)?;
        if !entry.is_alive(now) {
            return None;
        }
        entry.users = entry.users.saturating_add(1);
        drop(state);
        Some(Held {
            table: Arc::clone(self),
            key,
            address,
            name: name.clone(),
        })
    }

    /// Notes an answer that `workload` was given: each address with its time to live. In a workload that is full, or if
    /// all are, the entries that would go first make room for it: in the second case those of the workload that has
    /// most.
    pub fn learn(
        &self,
        workload: &Workload,
        name: &DomainName,
        addresses: impl IntoIterator<Item = (IpAddr, Duration)>,
        now: Instant,
    ) {
        let key = Key::of(workload);
        let mut state = self.lock();
        for (address, lifetime) in addresses {
            let expires = now + lifetime.clamp(self.limits.floor, self.limits.ceiling);
            let address = address.to_canonical();
            if let Some(names) = state.workloads.get_mut(&key)
                && names.renew(address, name, expires)
            {
                continue;
            }
            if !state.make_room(&key, &self.limits, now) {
                state.counts.refused += 1;
                continue;
            }
            let names = state.workloads.entry(key.clone()).or_default();
            names.by_address.entry(address).or_default().push(Entry {
                name: name.clone(),
                expires,
                users: 0,
            });
            names.entries += 1;
            state.counts.entries += 1;
        }
    }

    /// Removes what has expired: to be called now and then.
    pub fn sweep(&self, now: Instant) {
        let mut state = self.lock();
        let mut removed = 0;
        for names in state.workloads.values_mut() {
            removed += names.remove_expired(now);
        }
        state.forget(removed);
    }

    /// How full it is.
    #[must_use]
    pub fn counts(&self) -> NameCounts {
        self.lock().counts
    }

    /// Every operation leaves the table whole at each point where it could panic.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let after = Instant::now() + self.table.limits.floor;
        if let Some(entry) = self.table.lock().entry(&self.key, self.address, &self.name) {
            entry.users = entry.users.saturating_sub(1);
            entry.expires = entry.expires.max(after);
        }
    }
}

impl Key {
    fn of(workload: &Workload) -> Self {
        Self {
            namespace: workload.namespace.clone(),
            name: workload.name.clone(),
            labels: workload.labels.clone(),
        }
    }
}

impl State {
    fn entry(&mut self, key: &Key, address: IpAddr, name: &DomainName) -> Option<&mut Entry> {
        self.workloads
            .get_mut(key)?
            .by_address
            .get_mut(&address)?
            .iter_mut()
            .find(|entry| entry.name == *name)
    }

    /// Whether there is room for one entry more of this workload, if need be at the price of others.
    fn make_room(&mut self, key: &Key, limits: &NameLimits, now: Instant) -> bool {
        let full = |names: &Names| names.entries >= limits.per_workload;
        if self.workloads.get(key).is_some_and(full) && !self.evict_from(&key.clone(), now) {
            return false;
        }
        if self.counts.entries < limits.total as u64 {
            return true;
        }
        let largest = self
            .workloads
            .iter()
            .max_by_key(|(_, names)| names.entries)
            .map(|(key, _)| key.clone());
        largest.is_some_and(|largest| self.evict_from(&largest, now))
    }

    /// Removes what has expired of a workload, or an eighth of its entries if nothing has: those that would expire first.
    /// An eighth, so that a workload that asks for ever new names does not cost a walk for each.
    fn evict_from(&mut self, key: &Key, now: Instant) -> bool {
        let Some(names) = self.workloads.get_mut(key) else {
            return false;
        };
        let mut removed = names.remove_expired(now);
        if removed == 0 {
            removed = names.remove_oldest((names.entries / 8).max(1));
            self.counts.evicted += removed as u64;
        }
        self.forget(removed);
        removed > 0
    }

    /// Takes removed entries off the count, and workloads without entries out of the table.
    fn forget(&mut self, removed: usize) {
        self.counts.entries = self.counts.entries.saturating_sub(removed as u64);
        if removed > 0 {
            self.workloads.retain(|_, names| names.entries > 0);
        }
    }
}

impl Names {
    /// Whether the pair was there; it then becomes the newest.
    fn renew(&mut self, address: IpAddr, name: &DomainName, expires: Instant) -> bool {
        let Some(entries) = self.by_address.get_mut(&address) else {
            return false;
        };
        let Some(at) = entries.iter().position(|entry| entry.name == *name) else {
            return false;
        };
        let mut entry = entries.remove(at);
        entry.expires = entry.expires.max(expires);
        entries.push(entry);
        true
    }

    fn remove_expired(&mut self, now: Instant) -> usize {
        self.retain(|entry| entry.is_alive(now))
    }

    /// Removes up to `count` entries that nobody uses.
    fn remove_oldest(&mut self, count: usize) -> usize {
        let mut expiries: Vec<Instant> = self
            .by_address
            .values()
            .flatten()
            .filter(|entry| entry.users == 0)
            .map(|entry| entry.expires)
            .collect();
        if expiries.is_empty() {
            return 0;
        }
        let last = count.min(expiries.len()) - 1;
        let (_, limit, _) = expiries.select_nth_unstable(last);
        let limit = *limit;
        let mut left = count;
        self.retain(|entry| {
            let goes = entry.users == 0 && entry.expires <= limit && left > 0;
            left -= usize::from(goes);
            !goes
        })
    }

    fn retain(&mut self, mut keep: impl FnMut(&Entry) -> bool) -> usize {
        let before = self.entries;
        self.by_address.retain(|_, entries| {
            entries.retain(&mut keep);
            !entries.is_empty()
        });
        self.entries = self.by_address.values().map(Vec::len).sum();
        before - self.entries
    }
}

impl Entry {
    fn is_alive(&self, now: Instant) -> bool {
        self.users > 0 || now < self.expires
    }
}

#[cfg(test)]
mod tests;
