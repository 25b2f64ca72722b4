//! Tables that find the few rules that can concern a target among many, by name suffix and by address prefix.

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
};

use ipnet::IpNet;

use super::{
    host_pattern::{Breadth, HostPattern},
    name::DomainName,
    selector::{Group, namespace_labels},
};
use crate::identity::Workload;

/// Host patterns with something attached, found by the names that they match.
#[derive(Debug)]
pub(super) struct NameIndex<T> {
    by_name: HashMap<Box<str>, Slots<T>>,
    /// The most labels that a key has: a name's longer suffixes need no look-up. Without it a client could make a
    /// verdict cost 127 look-ups by a name of that many labels.
    most_labels: usize,
}

/// What is attached to the patterns over one name.
#[derive(Debug)]
struct Slots<T> {
    exact: Vec<T>,
    one_label: Vec<T>,
    below: Vec<T>,
}

/// Address blocks with something attached, found by the addresses in them.
#[derive(Debug)]
pub(super) struct NetIndex<T> {
    by_net: HashMap<IpNet, Vec<T>>,
    /// The prefix lengths that occur, longest first, as (is IPv6, length).
    lengths: BTreeSet<(bool, u8)>,
}

/// The distinct groups of policies, found by the workloads that they select.
#[derive(Debug, Default)]
pub(super) struct GroupIndex {
    groups: Vec<Group>,
    by_pod_label: LabelIndex,
    by_namespace_label: LabelIndex,
    /// Groups whose selector demands no particular label.
    others: Vec<usize>,
}

type LabelIndex = HashMap<String, HashMap<String, Vec<usize>>>;

impl<T> Default for NameIndex<T> {
    fn default() -> Self {
        Self {
            by_name: HashMap::new(),
            most_labels: 0,
        }
    }
}

impl<T> Default for Slots<T> {
    fn default() -> Self {
        Self {
            exact: Vec::new(),
            one_label: Vec::new(),
            below: Vec::new(),
        }
    }
}

impl<T> Default for NetIndex<T> {
    fn default() -> Self {
        Self {
            by_net: HashMap::new(),
            lengths: BTreeSet::new(),
        }
    }
}

impl<T: Copy> NameIndex<T> {
    pub(super) fn insert(&mut self, pattern: &HostPattern, item: T) {
        let name = pattern.name().as_str();
        let slots = self.by_name.entry(name.into()).or_default();
        match pattern.breadth() {
            Breadth::Exact => slots.exact.push(item),
            Breadth::OneLabel => slots.one_label.push(item),
            Breadth::Below => slots.below.push(item),
            Breadth::SelfAndBelow => {
                slots.exact.push(item);
                slots.below.push(item);
            }
        }
        self.most_labels = self.most_labels.max(name.split('.').count());
    }

    /// The first answer that `visit` gives on the items whose patterns match `name`: the narrowest patterns first, those
    /// of one pattern in the order of their insertion.
    pub(super) fn find<R>(&self, name: &DomainName, mut visit: impl FnMut(T) -> Option<R>) -> Option<R> {
        let name = name.as_str();
        let longest = self.most_labels.checked_sub(1)?;
        let mut start = name
            .rmatch_indices('.')
            .nth(longest)
            .map_or(0, |(dot, _)| dot + 1);
        while let Some((above, suffix)) = name.split_at_checked(start) {
            if let Some(slots) = self.by_name.get(suffix) {
                let lists: &[&[T]] = match above.strip_suffix('.') {
                    None => &[&slots.exact],
                    Some(above) if !above.contains('.') => &[&slots.one_label, &slots.below],
                    Some(_) => &[&slots.below],
                };
                if let Some(found) = lists.iter().copied().flatten().find_map(|item| visit(*item)) {
                    return Some(found);
                }
            }
            start += suffix.find('.')? + 1;
        }
        None
    }
}

impl<T: Copy> NetIndex<T> {
    pub(super) fn insert(&mut self, net: IpNet, item: T) {
        self.by_net.entry(net).or_default().push(item);
        self.lengths.insert((net.addr().is_ipv6(), net.prefix_len()));
    }

    /// The first answer that `visit` gives on the items whose blocks have `address`: the smallest blocks first.
    pub(super) fn find<R>(&self, address: IpAddr, mut visit: impl FnMut(T) -> Option<R>) -> Option<R> {
        let family = address.is_ipv6();
        let lengths = self.lengths.range((family, 0)..=(family, u8::MAX)).rev();
        lengths
            .filter_map(|(_, length)| IpNet::new(address, *length).ok())
            .filter_map(|net| self.by_net.get(&net.trunc()))
            .flatten()
            .find_map(|item| visit(*item))
    }
}

impl GroupIndex {
    /// Takes in the groups; equal ones become one. Numbers are positions in sorted order.
    pub(super) fn new(groups: impl IntoIterator<Item = Group>) -> Self {
        let distinct: BTreeSet<_> = groups.into_iter().collect();
        let mut index = Self {
            groups: distinct.into_iter().collect(),
            ..Self::default()
        };
        for (number, group) in index.groups.iter().enumerate() {
            let pod = group.selector.demanded_pod_label();
            let (table, demanded) = match (pod, group.selector.demanded_namespace_label()) {
                (Some(label), _) => (&mut index.by_pod_label, label),
                (None, Some(label)) => (&mut index.by_namespace_label, label),
                (None, None) => {
                    index.others.push(number);
                    continue;
                }
            };
            let (key, value) = demanded;
            let values = table.entry(key.to_owned()).or_default();
            values.entry(value.to_owned()).or_default().push(number);
        }
        index
    }

    /// The number of a group that was taken in.
    pub(super) fn number(&self, group: &Group) -> Option<usize> {
        self.groups.binary_search(group).ok()
    }

    /// The group with this number.
    pub(super) fn get(&self, number: usize) -> Option<&Group> {
        self.groups.get(number)
    }

    /// The groups that select the workload, ascending.
    pub(super) fn select(&self, workload: &Workload) -> Vec<usize> {
        let by_label = |table: &LabelIndex, key: &str, value: &str| -> Vec<usize> {
            let found = table.get(key).and_then(|values| values.get(value));
            found.cloned().unwrap_or_default()
        };
        let pod_labels = workload.labels.iter();
        let mut candidates = self.others.clone();
        candidates.extend(pod_labels.flat_map(|(key, value)| by_label(&self.by_pod_label, key, value)));
        candidates.extend(
            namespace_labels(workload)
                .flat_map(|(key, value)| by_label(&self.by_namespace_label, key, value)),
        );
        candidates.retain(|number| {
            self.get(*number)
                .is_some_and(|group| group.selector.selects(workload))
        });
        candidates.sort_unstable();
        candidates
    }
}
