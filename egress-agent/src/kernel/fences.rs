//! What the kernel enforces on each cgroup: members, blocks of addresses and sets of ports, as tables.
//!
//! Nothing that a member points to is ever changed: a new policy is written under a new number, the members are pointed to
//! it one store each, and what nobody points to any more is removed some seconds later, when no program that has read the
//! old member can still be running. Numbers are not used again.

use std::{
    collections::{HashMap, HashSet},
    ops::RangeInclusive,
    path::Path,
    sync::Arc,
};

use aya::maps::{HashMap as KernelHashMap, LpmTrie, Map, MapData, MapError, lpm_trie::Key};
use egress_common::{
    member::{
        ALL_PORTS, Allowance, BlockKey, DOUBTS_NAT64, ENFORCE, Member, NO_PORTS, PASS, POLICY_BITS,
        PortChunk, Ports,
    },
    names::map,
};
use ipnet::IpNet;

use super::tables::{TableError, at, hash, open, prefix_key};

/// Ports as ascending ranges that neither overlap nor touch.
pub type PortRanges = Arc<[RangeInclusive<u16>]>;

/// What is enforced on a workload.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Fence {
    /// Whether anything is refused at all.
    pub enforce: bool,
    /// TCP ports whose connects go to the proxy, whatever the address.
    pub redirected: PortRanges,
    /// TCP ports on which the proxy judges also what is allowed by its address.
    pub named: PortRanges,
    /// An address of NAT64's prefix that is allowed goes to the proxy.
    pub doubts_nat64: bool,
    /// What is allowed, by prefix; the longest one decides alone.
    pub openings: Vec<(IpNet, Opening)>,
}

/// What is allowed to the addresses of a prefix.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Opening {
    /// On these TCP ports.
    pub tcp: PortRanges,
    /// On these UDP ports.
    pub udp: PortRanges,
}

/// A cgroup's workload, by a number of the caller's that is never given to another one, and what is enforced on it.
#[derive(Debug, Clone)]
pub struct Fenced {
    /// Number of the workload.
    pub workload: u32,
    /// What is enforced.
    pub fence: Arc<Fence>,
}

/// The tables.
#[derive(Debug)]
pub struct FenceTables {
    members: KernelHashMap<MapData, u64, Member>,
    blocks: LpmTrie<MapData, BlockKey, Allowance>,
    ports: KernelHashMap<MapData, PortChunk, Ports>,
    /// What the members say now.
    written: HashMap<u64, Member>,
    policies: HashMap<Arc<Fence>, Policy>,
    sets: HashMap<PortRanges, u32>,
    /// Found at the start, or replaced: to be removed by the next sweep but one.
    leaving: Leftovers,
    /// To be removed by the next sweep.
    left: Leftovers,
    next_policy: u32,
    next_set: u32,
    next_workload: u32,
}

/// How much is in the tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FenceCounts {
    /// Cgroups.
    pub members: usize,
    /// What is enforced on them, each thing once.
    pub policies: usize,
    /// Blocks of addresses.
    pub blocks: usize,
    /// Sets of ports, in chunks of 512.
    pub ports: usize,
}

/// A policy that is in place.
#[derive(Debug, Clone)]
struct Policy {
    number: u32,
    redirected: u32,
    named: u32,
    keys: Vec<(u32, BlockKey)>,
    sets: HashSet<PortRanges>,
}

/// Keys that nobody needs.
#[derive(Debug, Default)]
struct Leftovers {
    blocks: Vec<(u32, BlockKey)>,
    chunks: Vec<PortChunk>,
}

impl Fence {
    /// Everything passes, and connects to `redirected` by way of the proxy.
    #[must_use]
    pub fn pass(redirected: PortRanges) -> Self {
        Self {
            enforce: false,
            named: Arc::clone(&redirected),
            redirected,
            doubts_nat64: false,
            openings: Vec::new(),
        }
    }
}

impl FenceTables {
    /// Opens the pinned maps. What an earlier agent has written stays in force until [`Self::replace`].
    ///
    /// # Errors
    /// See [`TableError`].
    pub fn open(pins: &Path) -> Result<Self, TableError> {
        let members: KernelHashMap<_, u64, Member> = hash(pins, map::MEMBERS)?;
        let blocks = open(pins, map::BLOCKS)
            .map(Map::LpmTrie)
            .and_then(|opened| LpmTrie::try_from(opened).map_err(at(map::BLOCKS)))?;
        let ports: KernelHashMap<_, PortChunk, Ports> = hash(pins, map::PORTS)?;
        let written: HashMap<u64, Member> = members
            .iter()
            .collect::<Result<_, _>>()
            .map_err(at(map::MEMBERS))?;
        let found: Vec<Key<BlockKey>> = blocks.keys().collect::<Result<_, _>>().map_err(at(map::BLOCKS))?;
        let leaving = Leftovers {
            blocks: found.iter().map(|key| (key.prefix_len(), key.data())).collect(),
            chunks: ports.keys().collect::<Result<_, _>>().map_err(at(map::PORTS))?,
        };
        // Also of what is not pointed to any more: it is removed under its number later.
        let policies = leaving.blocks.iter().map(|(_, key)| key.policy);
        let last_policy = policies.chain(written.values().map(|member| member.policy)).max();
        let last_set = leaving.chunks.iter().map(|chunk| chunk.set).max();
        let last_workload = written.values().map(|member| member.workload).max();
        Ok(Self {
            members,
            blocks,
            ports,
            policies: HashMap::new(),
            sets: HashMap::new(),
            next_policy: last_policy.unwrap_or(0) + 1,
            next_set: last_set.unwrap_or(NO_PORTS) + 1,
            next_workload: last_workload.unwrap_or(0) + 1,
            leaving,
            left: Leftovers::default(),
            written,
        })
    }

    /// How many cgroups, blocks and chunks of ports are in the tables, with what is about to be removed.
    #[must_use]
    pub fn counts(&self) -> FenceCounts {
        let leaving = [&self.leaving, &self.left];
        let blocks = self.policies.values().map(|policy| policy.keys.len());
        let chunks = self.sets.keys().map(|ranges| chunk_count(ranges));
        FenceCounts {
            members: self.written.len(),
            policies: self.policies.len(),
            blocks: blocks.chain(leaving.map(|leaving| leaving.blocks.len())).sum(),
            ports: chunks.chain(leaving.map(|leaving| leaving.chunks.len())).sum(),
        }
    }

    /// A number that no workload has had.
    pub fn number_workload(&mut self) -> u32 {
        let number = self.next_workload;
        self.next_workload += 1;
        number
    }

    /// Enforces exactly this: on the cgroups that are named, and on the others what is enforced on unknown ones.
    ///
    /// # Errors
    /// A table is full. What was in force stays so, but for the members that were changed before a table of members was
    /// found full; cgroups beyond it are unknown.
    pub fn replace(&mut self, wanted: &HashMap<u64, Fenced>) -> Result<(), TableError> {
        let mut new = HashMap::new();
        for fenced in wanted.values() {
            if new.contains_key(&fenced.fence) {
                continue;
            }
            let policy = match self.policies.get(&fenced.fence) {
                Some(policy) => policy.clone(),
                None => self.install(&fenced.fence)?,
            };
            new.insert(Arc::clone(&fenced.fence), policy);
        }
        for (cgroup, fenced) in wanted {
            if let Some(policy) = new.get(&fenced.fence) {
                self.point(*cgroup, member(fenced, policy))?;
            }
        }
        let gone: Vec<u64> = self
            .written
            .keys()
            .filter(|cgroup| !wanted.contains_key(cgroup))
            .copied()
            .collect();
        for cgroup in gone {
            match self.members.remove(&cgroup) {
                Ok(()) | Err(MapError::KeyNotFound) => {}
                Err(error) => return Err(at(map::MEMBERS)(error)),
            }
            self.written.remove(&cgroup);
        }
        self.retire(new);
        Ok(())
    }

    /// Enforces this on one cgroup more, or anew; the others stay as they are.
    ///
    /// # Errors
    /// A table is full; what was in force stays so.
    pub fn add(&mut self, cgroup: u64, fenced: &Fenced) -> Result<(), TableError> {
        let member = match self.policies.get(&fenced.fence) {
            Some(policy) => member(fenced, policy),
            None => member(fenced, &self.install(&fenced.fence)?),
        };
        self.point(cgroup, member)
    }

    /// Removes what nobody has pointed to since the last sweep.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn sweep(&mut self) -> Result<(), TableError> {
        let leaving = std::mem::take(&mut self.leaving);
        let Leftovers { blocks, chunks } = std::mem::replace(&mut self.left, leaving);
        let mut refused = Ok(());
        for (length, key) in blocks {
            match self.blocks.remove(&Key::new(length, key)) {
                Ok(()) | Err(MapError::KeyNotFound) => {}
                Err(MapError::SyscallError(error)) if is_missing(&error.io_error) => {}
                // Tried again with the next sweep.
                Err(error) => {
                    self.left.blocks.push((length, key));
                    refused = Err(at(map::BLOCKS)(error));
                }
            }
        }
        for chunk in chunks {
            match self.ports.remove(&chunk) {
                Ok(()) | Err(MapError::KeyNotFound) => {}
                Err(error) => {
                    self.left.chunks.push(chunk);
                    refused = Err(at(map::PORTS)(error));
                }
            }
        }
        refused
    }

    /// Whether everything has been removed that nobody points to: there will not be more room than now.
    #[must_use]
    pub fn is_swept(&self) -> bool {
        [&self.left, &self.leaving]
            .iter()
            .all(|rest| rest.blocks.is_empty() && rest.chunks.is_empty())
    }

    fn point(&mut self, cgroup: u64, member: Member) -> Result<(), TableError> {
        if self.written.get(&cgroup) == Some(&member) {
            return Ok(());
        }
        self.members.insert(cgroup, member, 0).map_err(at(map::MEMBERS))?;
        self.written.insert(cgroup, member);
        Ok(())
    }

    fn install(&mut self, fence: &Arc<Fence>) -> Result<Policy, TableError> {
        let number = self.next_policy;
        self.next_policy += 1;
        let mut policy = Policy {
            number,
            redirected: 0,
            named: 0,
            keys: Vec::new(),
            sets: HashSet::new(),
        };
        match self.write(fence, &mut policy) {
            Ok(()) => {
                self.policies.insert(Arc::clone(fence), policy.clone());
                Ok(policy)
            }
            Err(error) => {
                self.leaving.blocks.append(&mut policy.keys);
                Err(error)
            }
        }
    }

    fn write(&mut self, fence: &Fence, policy: &mut Policy) -> Result<(), TableError> {
        policy.redirected = self.set(&fence.redirected, policy)?;
        policy.named = self.set(&fence.named, policy)?;
        for (net, opening) in &fence.openings {
            let allowance = Allowance {
                tcp: self.set(&opening.tcp, policy)?,
                udp: self.set(&opening.udp, policy)?,
            };
            let (length, address) = prefix_key(net);
            let key = BlockKey {
                policy: policy.number,
                address,
            };
            let length = POLICY_BITS + length;
            self.blocks
                .insert(&Key::new(length, key), allowance, 0)
                .map_err(at(map::BLOCKS))?;
            policy.keys.push((length, key));
        }
        Ok(())
    }

    /// The number of a set of ports, which is put in place if it is not.
    fn set(&mut self, ranges: &PortRanges, policy: &mut Policy) -> Result<u32, TableError> {
        if ranges.is_empty() {
            return Ok(NO_PORTS);
        }
        if ranges[..] == [0..=u16::MAX] {
            return Ok(ALL_PORTS);
        }
        policy.sets.insert(Arc::clone(ranges));
        if let Some(number) = self.sets.get(ranges) {
            return Ok(*number);
        }
        let number = self.next_set;
        self.next_set += 1;
        let mut inserted = Vec::new();
        for (chunk, ports) in chunks(number, ranges) {
            if let Err(error) = self.ports.insert(chunk, ports, 0) {
                // A part of a set is nobody's.
                self.leaving.chunks.append(&mut inserted);
                return Err(at(map::PORTS)(error));
            }
            inserted.push(chunk);
        }
        self.sets.insert(Arc::clone(ranges), number);
        Ok(number)
    }

    /// Lets go of the policies that are not among `new`, and of the sets that only they had.
    fn retire(&mut self, new: HashMap<Arc<Fence>, Policy>) {
        for (fence, policy) in &mut self.policies {
            if !new.contains_key(fence) {
                self.leaving.blocks.append(&mut policy.keys);
            }
        }
        self.policies = new;
        let used: HashSet<&PortRanges> = self.policies.values().flat_map(|policy| &policy.sets).collect();
        let leaving = &mut self.leaving;
        self.sets.retain(|ranges, number| {
            let is_used = used.contains(ranges);
            if !is_used {
                leaving.chunks.extend(chunks(*number, ranges).into_keys());
            }
            is_used
        });
    }
}

fn member(fenced: &Fenced, policy: &Policy) -> Member {
    Member {
        policy: policy.number,
        workload: fenced.workload,
        posture: if fenced.fence.enforce { ENFORCE } else { PASS },
        redirected: policy.redirected,
        named: policy.named,
        flags: if fenced.fence.doubts_nat64 {
            DOUBTS_NAT64
        } else {
            0
        },
    }
}

/// The bits of a set, by chunks.
fn chunks(set: u32, ranges: &[RangeInclusive<u16>]) -> HashMap<PortChunk, Ports> {
    let mut chunks: HashMap<PortChunk, Ports> = HashMap::new();
    for port in ranges.iter().flat_map(Clone::clone) {
        let (chunk, word, bit) = PortChunk::of(set, port);
        if let Some(word) = chunks.entry(chunk).or_default().get_mut(word) {
            *word |= 1 << bit;
        }
    }
    chunks
}

fn chunk_count(ranges: &[RangeInclusive<u16>]) -> usize {
    let each = ranges.iter().flat_map(|range| {
        let (first, last) = (
            PortChunk::of(0, *range.start()).0,
            PortChunk::of(0, *range.end()).0,
        );
        first.chunk..=last.chunk
    });
    each.collect::<HashSet<_>>().len()
}

fn is_missing(error: &std::io::Error) -> bool {
    error.raw_os_error() == Some(libc::ENOENT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_has_the_bits_of_its_ports_and_no_others() {
        let ranges = [1..=1, 443..=443, 511..=513, 65535..=65535];
        let chunks = chunks(7, &ranges);
        assert!(chunks.keys().all(|chunk| chunk.set == 7));
        for port in 0..=u16::MAX {
            let (chunk, word, bit) = PortChunk::of(7, port);
            let is_set = chunks
                .get(&chunk)
                .is_some_and(|ports| ports[word] >> bit & 1 == 1);
            assert_eq!(is_set, ranges.iter().any(|range| range.contains(&port)), "{port}");
        }
        assert_eq!((chunks.len(), chunk_count(&ranges)), (3, 3));
    }
}
