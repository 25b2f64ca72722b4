//! From squid's lists to what is allowed: the hosts, ports and methods that the configuration tells apart are gone through
//! kind by kind, so that order, negation and defaults need no translation of their own.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::{
    access::{Asked, Concern, List, Verdict},
    acl::{Acls, Match, Test},
    address_set::{AddressSet, parse},
    domains::{Names, Tree},
};
use crate::policy::PortSet;

/// Methods that a rule lists where squid allows all but some, or all without CONNECT.
pub(super) const METHODS: [&str; 8] = [
    "GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE",
];

/// A longer range of ports is none of which each is meant.
const LONGEST_RANGE: u16 = 16;

/// What may be done at a kind of host.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub(super) struct Allowance {
    /// By port (its class's first one): `None` for everything, by CONNECT; else the methods.
    ports: BTreeMap<u16, Option<BTreeSet<String>>>,
}

/// Everything that is needed to tell what is allowed.
#[derive(Debug)]
pub(super) struct Question<'a> {
    /// squid's acls.
    pub acls: &'a Acls,
    /// The lists, all of which must allow a request.
    pub lists: &'a [List],
    /// Where the workloads are, if that is known.
    pub source: Option<&'a AddressSet>,
    /// Ports that policies are to name besides those that acls do.
    pub ports: &'a [u16],
}

/// What is allowed, and what could not be told.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// The names that occur.
    pub tree: Tree,
    /// What is allowed to each kind of name.
    pub names: BTreeMap<Names, Allowance>,
    /// The addresses to which the same is allowed.
    pub addresses: Vec<(AddressSet, Allowance)>,
    /// Addresses that no name may lead to, with the ports.
    pub denied: Vec<(AddressSet, PortSet)>,
    /// The ports of the policies.
    pub ports: PortSet,
    /// Rules of the lists (list, rule) whose effect is open, by what it depends on.
    pub open: BTreeMap<(usize, usize), Match>,
    /// The rules that allow something.
    pub used: BTreeSet<(usize, usize)>,
    /// Ports that squid lets through and the policies leave out.
    pub left_out: PortSet,
    /// Whether names that occur nowhere are allowed: no policy can say so.
    pub is_boundless: bool,
    /// The rules that allow them; none if it is for want of one that does not.
    pub boundless: BTreeSet<(usize, usize)>,
}

impl Allowance {
    /// Whether nothing is allowed.
    pub(super) fn is_empty(&self) -> bool {
        self.ports.is_empty()
    }

    /// The ports at which everything is allowed.
    pub(super) fn tunnels(&self) -> PortSet {
        let all = self.ports.iter().filter(|(_, methods)| methods.is_none());
        all.map(|(port, _)| *port..=*port).collect()
    }

    /// The ports at which some requests are allowed, by their methods.
    pub(super) fn requests(&self) -> BTreeMap<&BTreeSet<String>, PortSet> {
        let mut found: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for (port, methods) in &self.ports {
            if let Some(methods) = methods {
                found.entry(methods).or_default().push(*port..=*port);
            }
        }
        let sets = found.into_iter();
        sets.map(|(methods, ports)| (methods, ports.into_iter().collect()))
            .collect()
    }

    /// What is allowed by either.
    pub(super) fn union(&self, other: &Self) -> Self {
        let mut ports = self.ports.clone();
        for (port, methods) in &other.ports {
            let own = ports.entry(*port).or_insert_with(|| methods.clone());
            match (own.as_mut(), methods) {
                (Some(own), Some(more)) => own.extend(more.iter().cloned()),
                (None, _) | (_, None) => *own = None,
            }
        }
        Self { ports }
    }

    /// The ports at which this allows what `other` does not.
    pub(super) fn beyond(&self, other: &Self) -> PortSet {
        let more = self
            .ports
            .iter()
            .filter(|(port, methods)| match (methods, other.ports.get(port)) {
                (_, Some(None)) => false,
                (Some(methods), Some(Some(others))) => !methods.is_subset(others),
                (None, Some(Some(_))) | (_, None) => true,
            });
        more.map(|(port, _)| *port..=*port).collect()
    }

    /// The same without these ports.
    pub(super) fn without(&self, ports: &PortSet) -> Self {
        let left = self.ports.iter().filter(|(port, _)| !ports.contains(**port));
        Self {
            ports: left.map(|(port, methods)| (*port, methods.clone())).collect(),
        }
    }

    /// Whether anything is allowed at one of these ports.
    pub(super) fn has_any_of(&self, ports: &PortSet) -> bool {
        self.ports.keys().any(|port| ports.contains(*port))
    }
}

impl Question<'_> {
    /// The answer.
    pub(super) fn answer(&self) -> Plan {
        let mut plan = Plan {
            tree: self.tree(),
            ports: self.named_ports(),
            ..Plan::default()
        };
        let resolved = self.denied_addresses(&mut plan);
        let mut elsewhere = Plan {
            ports: plan.ports.clone(),
            ..Plan::default()
        };
        let hosts = self.of_name(&plan.tree, &Names::Elsewhere);
        if !self.allowance(&hosts, &resolved, &mut elsewhere).is_empty() {
            plan.is_boundless = true;
            plan.boundless = elsewhere.used;
        }
        let mut known = HashMap::new();
        let kinds: Vec<Names> = plan.tree.kinds().collect();
        for kind in kinds {
            let hosts = self.of_name(&plan.tree, &kind);
            let allowance = known
                .entry(hosts.clone())
                .or_insert_with(|| self.allowance(&hosts, &resolved, &mut plan))
                .clone();
            plan.names.insert(kind, allowance);
        }
        let mut by_allowance: BTreeMap<Allowance, Vec<(u128, u128)>> = BTreeMap::new();
        let mut known = HashMap::new();
        for interval in self.intervals() {
            let hosts = self.of_address(interval.0);
            let allowance = known
                .entry(hosts.clone())
                .or_insert_with(|| self.allowance(&hosts, &resolved, &mut plan));
            if !allowance.is_empty() {
                by_allowance.entry(allowance.clone()).or_default().push(interval);
            }
        }
        plan.addresses = by_allowance
            .into_iter()
            .map(|(allowance, intervals)| (intervals.into_iter().collect(), allowance))
            .collect();
        plan
    }

    fn tree(&self) -> Tree {
        Tree::new(self.acls.iter().flat_map(|acl| {
            if let Test::Domain { patterns, .. } = &acl.test {
                patterns.iter().map(|pattern| &pattern.name).collect()
            } else {
                Vec::new()
            }
        }))
    }

    /// Ports that are meant one by one: single ones, short ranges, those asked for.
    fn named_ports(&self) -> PortSet {
        let single = self.acls.iter().flat_map(|acl| {
            let ranges = if let Test::Port(ports) = &acl.test {
                ports.ranges()
            } else {
                &[]
            };
            ranges
                .iter()
                .filter(|range| range.end() - range.start() < LONGEST_RANGE)
                .cloned()
        });
        let asked = self.ports.iter().chain(&[80, 443]).map(|port| *port..=*port);
        let named: PortSet = single.chain(asked).collect();
        // No server has port 0.
        named.intersection(&[1..=u16::MAX].into_iter().collect())
    }

    /// Takes the rules that deny by where a name leads for what a cluster policy can deny. Loopback and link-local
    /// addresses need none: no name leads there.
    fn denied_addresses(&self, plan: &mut Plan) -> Vec<BTreeSet<usize>> {
        let refused = [
            "127.0.0.0/8",
            "0.0.0.0/8",
            "169.254.0.0/16",
            "fe80::/10",
            "::1",
            "::",
        ];
        let refused = refused
            .iter()
            .filter_map(|text| parse(text))
            .fold(AddressSet::default(), |all, more| all.union(&more));
        let mut resolved = Vec::new();
        for list in self.lists {
            let mut numbers = BTreeSet::new();
            for (number, rule) in list.rules.iter().enumerate() {
                if let Some((addresses, ports)) = rule.denied_addresses(self.acls) {
                    numbers.insert(number);
                    if refused.covers(&addresses) != Some(true) {
                        plan.denied.push((addresses, ports));
                    }
                }
            }
            resolved.push(numbers);
        }
        resolved
    }

    fn of_name(&self, tree: &Tree, kind: &Names) -> Vec<Match> {
        let of_acl = |test: &Test| {
            if let Test::Domain { patterns, .. } = test
                && tree.matched(patterns, kind)
            {
                return Match::Yes;
            }
            if let Test::Destination {
                looks_up: true,
                addresses,
            } = test
                && !addresses.is_empty()
            {
                return Match::Resolve;
            }
            Match::No
        };
        self.acls.iter().map(|acl| of_acl(&acl.test)).collect()
    }

    fn of_address(&self, address: u128) -> Vec<Match> {
        let of_acl = |test: &Test| {
            if let Test::Domain { addresses, .. } | Test::Destination { addresses, .. } = test
                && addresses.contains(address)
            {
                return Match::Yes;
            }
            if let Test::Domain {
                looks_up: true,
                patterns,
                ..
            } = test
                && !patterns.is_empty()
            {
                return Match::Reverse;
            }
            Match::No
        };
        self.acls.iter().map(|acl| of_acl(&acl.test)).collect()
    }

    /// The addresses cut where any acl begins or ends.
    fn intervals(&self) -> Vec<(u128, u128)> {
        // Where a policy's blocks end too: IPv4 and IPv6 are told apart.
        let mut starts = BTreeSet::from([0, 0xffff << 32, (0xffff << 32) + (1 << 32)]);
        for acl in self.acls.iter() {
            if let Test::Domain { addresses, .. } | Test::Destination { addresses, .. } = &acl.test {
                for (first, last) in addresses.intervals() {
                    starts.insert(*first);
                    starts.extend(last.checked_add(1));
                }
            }
        }
        let starts: Vec<u128> = starts.into_iter().collect();
        let ends = starts.iter().skip(1).map(|next| next - 1).chain([u128::MAX]);
        starts.iter().copied().zip(ends).collect()
    }

    /// What is allowed to hosts of a kind.
    fn allowance(&self, hosts: &[Match], resolved: &[BTreeSet<usize>], plan: &mut Plan) -> Allowance {
        let named: BTreeSet<&str> = self
            .acls
            .iter()
            .flat_map(|acl| {
                if let Test::Method(methods) = &acl.test {
                    methods.iter().map(String::as_str).collect()
                } else {
                    Vec::new()
                }
            })
            .chain(METHODS)
            .filter(|method| *method != "CONNECT")
            .collect();
        let mut ports = BTreeMap::new();
        for class in self.classes() {
            let Some(port) = class.iter().next() else { continue };
            let asked = |method| Asked {
                port,
                method,
                source: self.source,
                hosts,
            };
            let found = if self.is_allowed(&asked(Some("CONNECT")), resolved, plan) {
                Some(None)
            } else {
                let methods: BTreeSet<String> = named
                    .iter()
                    .filter(|method| self.is_allowed(&asked(Some(method)), resolved, plan))
                    .map(|method| (*method).to_owned())
                    .collect();
                (!methods.is_empty()).then_some(Some(methods))
            };
            let Some(found) = found else { continue };
            let meant = class.intersection(&plan.ports);
            ports.extend(meant.iter().map(|port| (port, found.clone())));
            plan.left_out = plan.left_out.union(&class.without(&plan.ports));
        }
        Allowance { ports }
    }

    /// Sets of ports that no acl tells apart.
    fn classes(&self) -> Vec<PortSet> {
        let mut classes = vec![[1..=u16::MAX].into_iter().collect::<PortSet>()];
        for acl in self.acls.iter() {
            if let Test::Port(ports) = &acl.test {
                classes = classes
                    .iter()
                    .flat_map(|class| [class.intersection(ports), class.without(ports)])
                    .filter(|class| !class.is_empty())
                    .collect();
            }
        }
        classes
    }

    fn is_allowed(&self, asked: &Asked<'_>, resolved: &[BTreeSet<usize>], plan: &mut Plan) -> bool {
        let mut open = Vec::new();
        for (number, list) in self.lists.iter().enumerate() {
            let is_tunnel = asked.method == Some("CONNECT");
            if (list.concern == Concern::Tunnels && !is_tunnel)
                || (list.concern == Concern::Requests && is_tunnel)
            {
                continue;
            }
            let none = BTreeSet::new();
            let resolved = resolved.get(number).unwrap_or(&none);
            match list.judge(self.acls, asked, resolved) {
                Verdict::Allowed(rule) => plan.used.extend(rule.map(|rule| (number, rule))),
                Verdict::Denied => return false,
                Verdict::Open(rules) => {
                    open.extend(rules.into_iter().map(|(rule, what)| ((number, rule), what)));
                }
            }
        }
        for (rule, what) in &open {
            let known = plan.open.entry(*rule).or_insert(*what);
            *known = (*known).max(*what);
        }
        open.is_empty()
    }
}
