//! Which network namespaces are fenced at the host's end of their veth pair: those whose members are all enforced.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fs, io,
    sync::Arc,
};

use egress_common::event::ListenerWanted;

use super::census::{Census, namespace_inode, namespace_of};
use crate::{
    identity::Identities,
    kernel::Attachment,
    netns::{Exit, Netns},
    policy::{PolicySet, PolicyStore, Posture},
    status::{FenceStatus, NotFenced},
};

/// Of what cannot be fenced so much is shown.
const MOST_SHOWN: usize = 20;

/// Decides where fences stand.
#[derive(Debug)]
pub(super) struct Fences {
    /// Switched off: nothing is fenced.
    is_off: bool,
    identities: Arc<Identities>,
    home: Netns,
    /// Inodes of namespaces that are never fenced: the agent's own and the machine's.
    shared: HashSet<u64>,
    /// Namespaces with members that are not in the enforced cgroup, as they were at the last review.
    foreign: HashSet<u64>,
    known: HashMap<u64, Known>,
}

/// A namespace of enforced workloads.
#[derive(Debug, Default)]
struct Known {
    /// Cookie, and the interfaces of the agent's namespace that its pairs end at.
    cookie: u64,
    fences: Vec<u32>,
    /// Why not everything that leaves it passes a fence.
    open: Option<NotFenced>,
}

/// Who lives in a namespace.
#[derive(Debug)]
struct Members {
    /// One of them, by which the namespace is found.
    pid: String,
    cgroup: u64,
    all_enforced: bool,
}

impl Fences {
    /// No fence yet.
    ///
    /// # Errors
    /// The agent's own namespace cannot be told.
    pub(super) fn new(is_off: bool, identities: Arc<Identities>) -> io::Result<Self> {
        let home = Netns::current()?;
        let mut shared = HashSet::from([home.inode()?]);
        shared.extend(namespace_inode("1"));
        Ok(Self {
            is_off,
            identities,
            home,
            shared,
            foreign: HashSet::new(),
            known: HashMap::new(),
        })
    }

    /// Fences the namespaces of programs that have just begun, before their first packet if we are quick. Where strangers
    /// are is known from the last review.
    pub(super) fn announced(
        &mut self,
        wanted: &[ListenerWanted],
        attachment: &mut Attachment,
        policy: &PolicyStore,
    ) {
        if self.is_off {
            return;
        }
        for wanted in wanted {
            let pid = wanted.pid.to_string();
            let Ok(inode) = namespace_inode(&pid) else {
                continue;
            };
            // Without an interface the namespace is still being built: it is looked at again.
            let is_fenced = self
                .known
                .get(&inode)
                .is_some_and(|known| !known.fences.is_empty() || known.open.is_some());
            if is_fenced || self.foreign.contains(&inode) {
                continue;
            }
            let members = Members {
                pid,
                cgroup: wanted.cgroup,
                all_enforced: self.is_enforced(wanted.cgroup, &policy.load()),
            };
            self.look_at(inode, &members, attachment);
        }
    }

    /// Looks at every namespace in which a member of the enforced cgroup lives, and fences those that are to be, and no
    /// others.
    pub(super) fn review(&mut self, census: &Census, attachment: &mut Attachment, policy: &PolicyStore) {
        if !self.is_off {
            let namespaces = self.inhabited(census, &policy.load());
            let strangers = strangers(&namespaces, census);
            let foreign = strangers.keys().copied().collect();
            let foreign_before = std::mem::replace(&mut self.foreign, foreign);
            self.known.retain(|inode, _| namespaces.contains_key(inode));
            for (inode, members) in &namespaces {
                let is_shared = self.shared.contains(inode);
                // Somebody who looks around in there for a moment takes no fence away.
                let is_passing = !foreign_before.contains(inode)
                    && self
                        .known
                        .get(inode)
                        .is_some_and(|known| !known.fences.is_empty());
                match strangers.get(inode) {
                    Some(_) if is_passing || is_shared => self.look_at(*inode, members, attachment),
                    Some(stranger) if members.all_enforced => {
                        let why = format!("it is shared with process {stranger}, which is not enforced");
                        self.leave_open(*inode, members, why);
                    }
                    Some(_) => drop(self.known.remove(inode)),
                    None => self.look_at(*inode, members, attachment),
                }
            }
        }
        let wanted: BTreeMap<u32, u64> = self
            .known
            .values()
            .flat_map(|known| known.fences.iter().map(|index| (*index, known.cookie)))
            .collect();
        let others: Vec<u32> = attachment
            .fences()
            .filter(|(index, cookie)| wanted.get(index) != Some(cookie))
            .map(|(index, _)| index)
            .collect();
        for index in others {
            attachment.lower_fence(index);
        }
    }

    /// What `status` tells.
    pub(super) fn status(&self) -> FenceStatus {
        let open = self.known.values().filter_map(|known| known.open.clone());
        let mut not_fenced: Vec<NotFenced> = open.collect();
        not_fenced.sort_by_key(|open| open.pid);
        not_fenced.truncate(MOST_SHOWN);
        FenceStatus {
            off: self.is_off,
            namespaces: self
                .known
                .values()
                .filter(|known| !known.fences.is_empty())
                .count() as u64,
            not_fenced,
        }
    }

    fn look_at(&mut self, inode: u64, members: &Members, attachment: &mut Attachment) {
        if !members.all_enforced {
            self.known.remove(&inode);
            return;
        }
        if self.shared.contains(&inode) {
            return self.leave_open(
                inode,
                members,
                "it uses the machine's network namespace".to_owned(),
            );
        }
        let exits = Netns::open(&namespace_of(&members.pid))
            .and_then(|netns| Ok((netns.cookie(), netns.exits(&self.home)?)));
        let (cookie, exits) = match exits {
            Ok(found) => found,
            // Its process has ended meanwhile, or it is being built.
            Err(error) => {
                tracing::debug!(%error, pid = members.pid, "cannot look at a network namespace");
                return;
            }
        };
        let (mut fences, mut open) = (Vec::new(), Vec::new());
        for exit in exits {
            match exit {
                Exit::Pair(index) => match attachment.raise_fence(index, cookie, members.cgroup) {
                    Ok(()) => fences.push(index),
                    Err(error) => open.push(error.to_string()),
                },
                Exit::Other(other) => open.push(other.to_string()),
            }
        }
        if !open.is_empty() {
            self.leave_open(inode, members, open.join("; "));
        } else if let Some(known) = self.known.get_mut(&inode) {
            known.open = None;
        }
        let known = self.known.entry(inode).or_default();
        known.cookie = cookie;
        known.fences = fences;
    }

    /// Notes that a namespace is not fenced (any more), and says so once.
    fn leave_open(&mut self, inode: u64, members: &Members, why: String) {
        let known = self.known.entry(inode).or_default();
        known.fences.clear();
        let pid = members.pid.parse().unwrap_or_default();
        if known.open.as_ref().is_none_or(|open| open.why != why) {
            tracing::warn!(
                pid,
                why,
                "an enforced workload's network namespace is not fenced: what has no socket can leave it"
            );
        }
        known.open = Some(NotFenced { pid, why });
    }

    /// What the agent does not know is held or refused, so it is enforced.
    fn is_enforced(&self, cgroup: u64, set: &Arc<PolicySet>) -> bool {
        let workload = self.identities.of(cgroup);
        workload.is_none_or(|workload| set.view(&workload).posture() == Posture::Enforce)
    }

    /// The namespaces of the enforced cgroup's processes.
    fn inhabited(&self, census: &Census, set: &Arc<PolicySet>) -> HashMap<u64, Members> {
        let mut namespaces = HashMap::new();
        let mut enforced = HashMap::new();
        for resident in census.residents() {
            let Some(namespace) = resident.namespace else {
                continue;
            };
            let is_enforced = *enforced
                .entry(resident.cgroup)
                .or_insert_with(|| self.is_enforced(resident.cgroup, set));
            let members = namespaces.entry(namespace).or_insert_with(|| Members {
                pid: resident.pid.clone(),
                cgroup: resident.cgroup,
                all_enforced: true,
            });
            members.all_enforced &= is_enforced;
        }
        namespaces
    }
}

/// Of the namespaces those in which another process than the enforced cgroup's lives, with one of these. Costs 2 us for
/// each process of the machine.
fn strangers(namespaces: &HashMap<u64, Members>, census: &Census) -> HashMap<u64, String> {
    let own = std::process::id().to_string();
    let residents = census.residents().iter();
    let members: HashSet<&str> = residents.map(|resident| resident.pid.as_str()).collect();
    let processes = fs::read_dir("/proc").into_iter().flatten().filter_map(Result::ok);
    processes
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name.bytes().all(|byte| byte.is_ascii_digit()) && *name != own)
        .filter(|pid| !members.contains(pid.as_str()))
        .filter_map(|pid| {
            let inode = namespace_inode(&pid).ok()?;
            namespaces.contains_key(&inode).then_some((inode, pid))
        })
        .collect()
}
