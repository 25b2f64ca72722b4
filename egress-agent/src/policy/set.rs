//! All policies, indexed, immutable.

use std::{
    collections::{BTreeMap, HashMap, btree_map::Entry},
    net::IpAddr,
    sync::Arc,
};

use super::{
    address::canonical,
    document::Mode,
    index::{GroupIndex, NameIndex, NetIndex},
    name::DomainName,
    object::ObjectKey,
    objects::ObjectFact,
    ports::PortSet,
    problem::Place,
    published::Knowledge,
    rule::{Asked, Policy, Rule, Subject},
    verdict::{PolicyKind, RuleId},
    view::PolicyView,
};
use crate::identity::Workload;

/// All policies, compiled, immutable. The default has none and denies everything: it stands until a first set is loaded.
#[derive(Debug)]
pub struct PolicySet {
    settings: Settings,
    cluster: Scope,
    namespaces: Vec<Scope>,
    namespace_numbers: HashMap<String, usize>,
    counts: Counts,
    origin: Origin,
}

/// Where a set comes from, and what could not be taken into it.
#[derive(Debug, Clone, Default)]
pub struct Origin {
    /// How many policies are from files and the command line.
    pub files: usize,
    /// Why the newest files are not in it.
    pub file_errors: Option<String>,
    /// How much is known of the API server's policies.
    pub knowledge: Knowledge,
    /// The objects of the API server.
    pub objects: Vec<ObjectFact>,
}

/// What holds for a whole set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Settings {
    /// How workloads are treated that no policy selects.
    pub unselected: Unselected,
    /// Makes every posture [`super::Posture::Audit`]: the agent's `--audit`.
    pub audit: bool,
}

/// How a workload is treated that no policy selects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Deserialize)]
pub enum Unselected {
    /// It may reach everything, and is logged: NetworkPolicy's habit.
    #[default]
    Observe,
    /// It may reach nothing.
    Enforce,
}

/// How much a set holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Documents, and one for `--allow`.
    pub policies: usize,
    /// Rules in all their lists.
    pub rules: usize,
}

/// Two documents of one kind, namespace and name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Duplicate {
    /// Which policy: kind, namespace and name.
    pub policy: String,
    /// Where the first one stands.
    pub first: Option<Place>,
    /// Where the second one stands.
    pub second: Option<Place>,
}

/// The policies of one namespace, or the cluster policies.
#[derive(Debug, Default)]
pub(super) struct Scope {
    pub(super) groups: GroupIndex,
    pub(super) egress: RuleIndex,
    pub(super) deny: RuleIndex,
    pub(super) private_answers: NameIndex<usize>,
    /// By the number of their group.
    ceilings: HashMap<usize, Vec<IndexedCeiling>>,
    /// For `explain`: name, place and group of every policy.
    pub(super) policies: Vec<PolicyFact>,
}

/// What `explain` tells of a policy.
#[derive(Debug)]
pub(super) struct PolicyFact {
    pub(super) key: ObjectKey,
    pub(super) place: Option<Place>,
    pub(super) group: usize,
    pub(super) rules: usize,
}

/// Rules in the order of their ids, found by name and address.
#[derive(Debug, Default)]
pub(super) struct RuleIndex {
    rules: Vec<(usize, Rule)>,
    names: NameIndex<usize>,
    nets: NetIndex<usize>,
}

/// Which rules count when nothing but a name is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reach {
    /// Those that may cover some request.
    Possible,
    /// Those that cover every request.
    Certain,
}

#[derive(Debug)]
struct IndexedCeiling {
    id: Arc<RuleId>,
    place: Option<Place>,
    rules: RuleIndex,
}

impl Default for PolicySet {
    fn default() -> Self {
        Self::denying(Settings::default())
    }
}

impl PolicySet {
    /// Indexes policies. Their order never matters.
    ///
    /// # Errors
    /// Every policy that is there twice.
    pub fn build(
        policies: impl IntoIterator<Item = Policy>,
        settings: Settings,
    ) -> Result<Self, Vec<Duplicate>> {
        let policies: Vec<Policy> = policies.into_iter().collect();
        let duplicates = duplicates(&policies);
        if !duplicates.is_empty() {
            return Err(duplicates);
        }
        let distinct = policies.into_iter().map(|policy| (policy.key(), policy));
        Ok(Self::of_distinct(distinct.collect(), settings))
    }

    /// A set without policies that denies everything, but in audit.
    #[must_use]
    pub fn denying(settings: Settings) -> Self {
        let settings = Settings {
            unselected: Unselected::Enforce,
            ..settings
        };
        Self::of_distinct(BTreeMap::new(), settings)
    }

    /// The same with word of where it comes from.
    #[must_use]
    pub fn with_origin(mut self, origin: Origin) -> Self {
        self.origin = origin;
        self
    }

    /// Where it comes from.
    #[must_use]
    pub const fn origin(&self) -> &Origin {
        &self.origin
    }

    fn of_distinct(policies: BTreeMap<ObjectKey, Policy>, settings: Settings) -> Self {
        let counts = Counts {
            policies: policies.len(),
            rules: policies.values().map(Policy::rule_count).sum(),
        };
        let mut cluster = Vec::new();
        let mut by_namespace = BTreeMap::<String, Vec<Policy>>::new();
        for (key, policy) in policies {
            match key.kind {
                PolicyKind::EgressPolicy => by_namespace.entry(key.namespace).or_default().push(policy),
                PolicyKind::ClusterEgressPolicy | PolicyKind::CommandLine => cluster.push(policy),
            }
        }
        let namespace_numbers = by_namespace.keys().cloned().zip(0..).collect();
        Self {
            settings,
            cluster: Scope::new(cluster),
            namespaces: by_namespace.into_values().map(Scope::new).collect(),
            namespace_numbers,
            counts,
            origin: Origin::default(),
        }
    }

    /// The part that concerns `workload`.
    #[must_use]
    pub fn view(self: &Arc<Self>, workload: &Workload) -> PolicyView {
        PolicyView::new(Arc::clone(self), workload)
    }

    /// What holds for the whole set.
    #[must_use]
    pub const fn settings(&self) -> Settings {
        self.settings
    }

    /// How much it holds.
    #[must_use]
    pub const fn counts(&self) -> Counts {
        self.counts
    }

    /// Where a rule stands, if it is of this set and from a file.
    #[must_use]
    pub fn place(&self, id: &RuleId) -> Option<&Place> {
        self.namespaces
            .iter()
            .chain([&self.cluster])
            .find_map(|scope| scope.place(id))
    }

    /// The policies that select the workload, also those that are set aside for it.
    pub fn selecting(&self, workload: &Workload) -> impl Iterator<Item = &ObjectKey> {
        let namespace = self
            .namespace_number(&workload.namespace)
            .and_then(|number| self.namespace(number));
        namespace.into_iter().chain([&self.cluster]).flat_map(|scope| {
            let groups = scope.groups.select(workload);
            let selected = move |fact: &&PolicyFact| groups.binary_search(&fact.group).is_ok();
            scope.policies.iter().filter(selected).map(|fact| &fact.key)
        })
    }

    pub(super) const fn cluster(&self) -> &Scope {
        &self.cluster
    }

    pub(super) fn namespace_number(&self, namespace: &str) -> Option<usize> {
        self.namespace_numbers.get(namespace).copied()
    }

    pub(super) fn namespace(&self, number: usize) -> Option<&Scope> {
        self.namespaces.get(number)
    }
}

impl Scope {
    fn new(policies: Vec<Policy>) -> Self {
        let groups = GroupIndex::new(policies.iter().map(|policy| policy.group.clone()));
        let mut scope = Self::default();
        let (mut egress, mut deny) = (Vec::new(), Vec::new());
        for policy in policies {
            let Some(group) = groups.number(&policy.group) else {
                continue;
            };
            scope.policies.push(PolicyFact {
                key: policy.key(),
                place: policy.place.clone(),
                group,
                rules: policy.rule_count(),
            });
            egress.extend(policy.egress.into_iter().map(|rule| (group, rule)));
            deny.extend(policy.deny.into_iter().map(|rule| (group, rule)));
            for pattern in &policy.private_answers {
                scope.private_answers.insert(pattern, group);
            }
            scope
                .ceilings
                .entry(group)
                .or_default()
                .extend(policy.ceiling.map(|ceiling| IndexedCeiling {
                    id: ceiling.id,
                    place: ceiling.place,
                    rules: RuleIndex::new(ceiling.rules.into_iter().map(|rule| (group, rule)).collect()),
                }));
        }
        Self {
            groups,
            egress: RuleIndex::new(egress),
            deny: RuleIndex::new(deny),
            ..scope
        }
    }

    /// The mode of a group of this scope.
    pub(super) fn mode(&self, group: usize) -> Option<Mode> {
        self.groups.get(group).map(|group| group.mode)
    }

    /// The ceiling of one of the groups that does not allow what is asked; the first one by name, if several.
    pub(super) fn exceeded_ceiling(&self, groups: &[usize], asked: &Asked<'_>) -> Option<&Arc<RuleId>> {
        groups
            .iter()
            .filter_map(|group| self.ceilings.get(group))
            .flatten()
            .filter(|ceiling| ceiling.rules.allowing(groups, asked).is_none())
            .map(|ceiling| &ceiling.id)
            .min()
    }

    /// The rules of each ceiling of the groups.
    pub(super) fn ceilings(&self, groups: &[usize]) -> impl Iterator<Item = &RuleIndex> {
        let ceilings = groups.iter().filter_map(|group| self.ceilings.get(group));
        ceilings.flatten().map(|ceiling| &ceiling.rules)
    }

    /// Takes from `ports` what the ceilings of the groups do not leave to `name`: the first one by name that leaves
    /// nothing.
    pub(super) fn lower_to_ceilings(
        &self,
        groups: &[usize],
        name: &DomainName,
        ports: &PortSet,
    ) -> Result<(), &Arc<RuleId>> {
        let mut ceilings: Vec<&IndexedCeiling> = groups
            .iter()
            .filter_map(|group| self.ceilings.get(group))
            .flatten()
            .collect();
        ceilings.sort_by_key(|ceiling| &ceiling.id);
        let mut left = ports.clone();
        for ceiling in ceilings {
            let (below, _) = ceiling.rules.ports_of_name(groups, name, Reach::Possible);
            left = left.intersection(&below);
            if left.is_empty() {
                return Err(&ceiling.id);
            }
        }
        Ok(())
    }

    fn place(&self, id: &RuleId) -> Option<&Place> {
        let ceilings = || self.ceilings.values().flatten();
        let rules = [&self.egress, &self.deny]
            .into_iter()
            .chain(ceilings().map(|ceiling| &ceiling.rules))
            .flat_map(|index| &index.rules)
            .map(|(_, rule)| (&rule.id, &rule.place));
        rules
            .chain(ceilings().map(|ceiling| (&ceiling.id, &ceiling.place)))
            .find(|(candidate, _)| ***candidate == *id)
            .and_then(|(_, place)| place.as_ref())
    }
}

impl RuleIndex {
    fn new(mut rules: Vec<(usize, Rule)>) -> Self {
        // Of several rules that match, the same one is told whatever the order of the files.
        rules.sort_by(|(_, left), (_, right)| left.id.cmp(&right.id));
        let (mut names, mut nets) = (NameIndex::default(), NetIndex::default());
        for (number, (_, rule)) in rules.iter().enumerate() {
            for pattern in &rule.hosts {
                names.insert(pattern, number);
            }
            for block in &rule.blocks {
                nets.insert(block.net(), number);
            }
        }
        Self { rules, names, nets }
    }

    /// A rule of one of the groups that allows what is asked.
    pub(super) fn allowing(&self, groups: &[usize], asked: &Asked<'_>) -> Option<&Rule> {
        self.find(groups, asked, |rule| rule.allows(asked).is_ok().then_some(rule))
    }

    /// A rule of one of the groups that denies what is asked: by its name, or by any address that is involved.
    pub(super) fn denying(&self, groups: &[usize], asked: &Asked<'_>) -> Option<&Rule> {
        let by_name = match asked.subject {
            Subject::Name(name) => self.names.find(name, |number| {
                self.rule(number, groups).filter(|rule| rule.denies_name(asked))
            }),
            Subject::Address { .. } => None,
        };
        by_name.or_else(|| {
            asked
                .addresses
                .into_iter()
                .flatten()
                .find_map(|address| self.denying_address(groups, address, |rule| rule.denies_address(asked)))
        })
    }

    /// A rule of one of the groups that has the address and is `wanted`. A NAT64 address is found by its IPv6 form as well
    /// as by the IPv4 address inside.
    pub(super) fn denying_address(
        &self,
        groups: &[usize],
        address: IpAddr,
        wanted: impl Fn(&Rule) -> bool,
    ) -> Option<&Rule> {
        [address.to_canonical(), canonical(address)]
            .into_iter()
            .find_map(|address| {
                self.nets.find(address, |number| {
                    self.rule(number, groups).filter(|rule| {
                        rule.blocks.iter().any(|block| block.contains(address)) && wanted(rule)
                    })
                })
            })
    }

    /// The first answer that `visit` gives on the rules of the groups that have the name, or all the addresses, asked.
    pub(super) fn find<'a, R>(
        &'a self,
        groups: &[usize],
        asked: &Asked<'_>,
        mut visit: impl FnMut(&'a Rule) -> Option<R>,
    ) -> Option<R> {
        match asked.subject {
            Subject::Name(name) => self
                .names
                .find(name, |number| self.rule(number, groups).and_then(&mut visit)),
            Subject::Address { asked, dialled } => self.nets.find(dialled, |number| {
                self.rule(number, groups)
                    .filter(|rule| rule.allows_address(dialled) && rule.allows_address(asked))
                    .and_then(&mut visit)
            }),
        }
    }

    /// The ports on which rules of the groups reach `name`, and the first of those rules.
    pub(super) fn ports_of_name(
        &self,
        groups: &[usize],
        name: &DomainName,
        reach: Reach,
    ) -> (PortSet, Option<&Rule>) {
        let (mut ports, mut first) = (PortSet::default(), None);
        self.names.find(name, |number| {
            let rule = self.rule(number, groups)?;
            if reach == Reach::Possible || rule.requests.is_empty() {
                ports = ports.union(&rule.host_ports);
                first = first.or(Some(rule));
            }
            None::<()>
        });
        (ports, first)
    }

    /// A rule of one of the groups that allows the address itself on the port, for whatever is asked there.
    pub(super) fn naming_address(&self, groups: &[usize], address: IpAddr, port: u16) -> Option<&Rule> {
        self.nets.find(address, |number| {
            self.rule(number, groups)
                .filter(|rule| rule.allows_address(address) && rule.block_ports.contains(port))
        })
    }

    /// Every rule of the groups.
    pub(super) fn of_groups(&self, groups: &[usize]) -> impl Iterator<Item = &Rule> {
        let rules = self.rules.iter();
        rules
            .filter(|(group, _)| groups.binary_search(group).is_ok())
            .map(|(_, rule)| rule)
    }

    fn rule(&self, number: usize, groups: &[usize]) -> Option<&Rule> {
        let (group, rule) = self.rules.get(number)?;
        groups.binary_search(group).is_ok().then_some(rule)
    }
}

/// `EgressPolicy horizons/allow`.
fn title(policy: &Policy) -> String {
    policy.key().to_string()
}

/// Every policy that is there twice.
pub(super) fn duplicates(policies: &[Policy]) -> Vec<Duplicate> {
    let mut first = BTreeMap::<ObjectKey, &Policy>::new();
    let mut duplicates = Vec::new();
    for policy in policies {
        match first.entry(policy.key()) {
            Entry::Occupied(known) => duplicates.push(Duplicate {
                policy: title(policy),
                first: known.get().place.clone(),
                second: policy.place.clone(),
            }),
            Entry::Vacant(free) => {
                free.insert(policy);
            }
        }
    }
    duplicates
}

#[cfg(test)]
mod tests;
