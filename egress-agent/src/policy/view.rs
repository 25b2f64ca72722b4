//! The policies of one workload, and the verdicts they give.

use std::{net::IpAddr, sync::Arc};

use egress_common::outcome::Outcome;

use super::{
    Posture, Target,
    address::{canonical, is_metadata},
    document::Mode,
    name::DomainName,
    ports::PortSet,
    rule::{Asked, Miss, Rule},
    set::{PolicySet, Reach, Scope, Unselected},
    verdict::{RuleId, Verdict},
};
use crate::identity::Workload;

/// The part of a [`PolicySet`] that concerns one workload.
///
/// Cluster denials come first, then cluster ceilings, then what the namespace or the cluster allows. If a policy in mode
/// Enforce selects the workload, those in mode Audit are left aside altogether: their rules do not allow.
#[derive(Debug, Clone)]
pub struct PolicyView {
    set: Arc<PolicySet>,
    posture: Posture,
    /// The number of the workload's namespace, if it has policies.
    namespace: Option<usize>,
    /// The groups of the namespace's policies that select the workload and are in force.
    namespace_groups: Vec<usize>,
    /// The same of the cluster policies.
    cluster_groups: Vec<usize>,
}

impl PolicyView {
    pub(super) fn new(set: Arc<PolicySet>, workload: &Workload) -> Self {
        let namespace = set.namespace_number(&workload.namespace);
        let scope = namespace.and_then(|number| set.namespace(number));
        let mut namespace_groups = scope
            .map(|scope| scope.groups.select(workload))
            .unwrap_or_default();
        let mut cluster_groups = set.cluster().groups.select(workload);
        let enforced = |scope: &Scope, groups: &[usize]| {
            groups
                .iter()
                .any(|group| scope.mode(*group) == Some(Mode::Enforce))
        };
        let any_enforces = enforced(set.cluster(), &cluster_groups)
            || scope.is_some_and(|scope| enforced(scope, &namespace_groups));
        if any_enforces {
            cluster_groups.retain(|group| set.cluster().mode(*group) == Some(Mode::Enforce));
            namespace_groups
                .retain(|group| scope.and_then(|scope| scope.mode(*group)) == Some(Mode::Enforce));
        }
        let selected = !(cluster_groups.is_empty() && namespace_groups.is_empty());
        let settings = set.settings();
        let posture = match (settings.audit, any_enforces, selected, settings.unselected) {
            (true, ..) => Posture::Audit,
            (false, true, ..) => Posture::Enforce,
            (false, false, true, _) => Posture::Audit,
            (false, false, false, Unselected::Enforce) => Posture::Enforce,
            (false, false, false, Unselected::Observe) => Posture::Observe,
        };
        // The kernel leaves it alone as soon as the agent has told it; until then its connections come here.
        let posture = if workload.is_exempt() {
            Posture::Observe
        } else {
            posture
        };
        Self {
            posture,
            namespace,
            namespace_groups,
            cluster_groups,
            set,
        }
    }

    /// How the workload is treated.
    #[must_use]
    pub const fn posture(&self) -> Posture {
        self.posture
    }

    /// Whether any policy selects the workload.
    #[must_use]
    pub const fn is_selected(&self) -> bool {
        !(self.cluster_groups.is_empty() && self.namespace_groups.is_empty())
    }

    /// The verdict on `target`, with its evidence. In [`Posture::Audit`] it is what would happen in Enforce.
    ///
    /// A name is judged by `domain` rules, an address by `cidr` rules; an address that differs from the dialled one is
    /// allowed only by a rule that has both. `cidr` denials hold against the dialled address of a name as well.
    #[must_use]
    pub fn judge(&self, target: &Target<'_>) -> Verdict {
        self.decide(&Asked::new(target))
    }

    /// As [`Self::judge`], for a name of which nobody has dialled an address yet.
    #[must_use]
    pub fn judge_undialled(&self, target: &Target<'_>) -> Verdict {
        self.decide(&Asked::new(target).undialled())
    }

    /// As [`Self::judge`], for datagrams to an address.
    #[must_use]
    pub fn judge_datagram(&self, address: IpAddr, port: u16) -> Verdict {
        self.decide(&Asked::of_datagram(address, port))
    }

    /// Whether there is any connection or request to `name` that the policies allow, with the rule: the verdict on looking
    /// it up. A name about which that can never be so need not be looked up, and a query for it would only tell it to
    /// whoever answers.
    #[must_use]
    pub fn could_allow(&self, name: &DomainName) -> Verdict {
        if !self.is_selected() {
            return self.unselected();
        }
        let cluster = self.set.cluster();
        let (denied, denial) = cluster
            .deny
            .ports_of_name(&self.cluster_groups, name, Reach::Certain);
        let (mut allowed, mut rule) = (PortSet::default(), None);
        for (scope, groups) in self.scopes() {
            let (ports, first) = scope.egress.ports_of_name(groups, name, Reach::Possible);
            allowed = allowed.union(&ports);
            rule = rule.or(first);
        }
        let left = allowed.without(&denied);
        match (rule, denial) {
            (_, Some(denial)) if denied == PortSet::all() || (left.is_empty() && !allowed.is_empty()) => {
                by_rule(Outcome::ClusterDeny, &denial.id)
            }
            (None, _) => Verdict::without_rule(Outcome::NoRule),
            (Some(rule), _) => match cluster.lower_to_ceilings(&self.cluster_groups, name, &left) {
                Ok(()) => by_rule(Outcome::AllowedByRule, &rule.id),
                Err(ceiling) => by_rule(Outcome::OutsideCeiling, ceiling),
            },
        }
    }

    /// Whether `name` may resolve to private addresses, which are otherwise refused as DNS rebinding.
    #[must_use]
    pub fn private_answers_allowed(&self, name: &DomainName) -> bool {
        self.scopes().any(|(scope, groups)| {
            let listed = |group: usize| groups.binary_search(&group).ok();
            scope.private_answers.find(name, listed).is_some()
        })
    }

    /// The verdict against dialling `address`, which an allowed name resolved to: a cluster denial has it, or it is a
    /// cloud's metadata service and no rule allows that very address. `None`: nothing is against it. To be asked of every
    /// answer before it is dialled, because whoever owns the name chooses its answers.
    #[must_use]
    pub fn refused_answer(&self, address: IpAddr, port: u16) -> Option<Verdict> {
        let denial = self
            .set
            .cluster()
            .deny
            .denying_address(&self.cluster_groups, address, |rule| {
                rule.block_ports.contains(port)
            });
        if let Some(rule) = denial {
            return Some(by_rule(Outcome::ClusterDeny, &rule.id));
        }
        let address = canonical(address);
        let is_named = || {
            self.scopes()
                .any(|(scope, groups)| scope.egress.naming_address(groups, address, port).is_some())
        };
        (is_metadata(address) && !is_named()).then(|| Verdict::without_rule(Outcome::PrivateAnswer))
    }

    /// Rules that have the target's name or address and still do not allow it, with the reason: for `explain`.
    #[must_use]
    pub fn near_misses(&self, target: &Target<'_>) -> Vec<(Arc<RuleId>, Miss)> {
        let asked = Asked::new(target);
        let mut misses = Vec::new();
        for (scope, groups) in self.scopes() {
            let note = |rule: &Rule| {
                misses.extend(rule.allows(&asked).err().map(|miss| (Arc::clone(&rule.id), miss)));
                None::<()>
            };
            scope.egress.find(groups, &asked, note);
        }
        misses
    }

    /// The policies that select the workload and are in force: their titles (`EgressPolicy NAMESPACE/NAME`), with the
    /// places where they stand and the numbers of their rules.
    #[must_use]
    pub fn policies(&self) -> Vec<String> {
        let mut titles = Vec::new();
        for (scope, groups) in self.scopes() {
            for fact in &scope.policies {
                if groups.binary_search(&fact.group).is_ok() {
                    let place = fact
                        .place
                        .as_ref()
                        .map(|place| format!(" ({place})"))
                        .unwrap_or_default();
                    titles.push(format!("{}{place}, {} rules", fact.key, fact.rules));
                }
            }
        }
        titles
    }

    /// The cluster's policies, with the groups that select the workload.
    pub(super) fn cluster(&self) -> (&Scope, &[usize]) {
        (self.set.cluster(), &self.cluster_groups)
    }

    /// The set that the view is of.
    #[must_use]
    pub const fn set(&self) -> &Arc<PolicySet> {
        &self.set
    }

    fn decide(&self, asked: &Asked<'_>) -> Verdict {
        if !self.is_selected() {
            return self.unselected();
        }
        let cluster = self.set.cluster();
        if let Some(rule) = cluster.deny.denying(&self.cluster_groups, asked) {
            return by_rule(Outcome::ClusterDeny, &rule.id);
        }
        if let Some(id) = cluster.exceeded_ceiling(&self.cluster_groups, asked) {
            return by_rule(Outcome::OutsideCeiling, id);
        }
        let allowing = self
            .scopes()
            .find_map(|(scope, groups)| scope.egress.allowing(groups, asked));
        match allowing {
            Some(rule) => by_rule(Outcome::AllowedByRule, &rule.id),
            None => Verdict::without_rule(Outcome::NoRule),
        }
    }

    fn unselected(&self) -> Verdict {
        Verdict::without_rule(match self.set.settings().unselected {
            Unselected::Observe => Outcome::Unselected,
            Unselected::Enforce => Outcome::UnselectedDenied,
        })
    }

    /// The namespace's policies and the cluster's, each with the groups that select the workload.
    pub(super) fn scopes(&self) -> impl Iterator<Item = (&Scope, &[usize])> {
        let namespace = self.namespace.and_then(|number| self.set.namespace(number));
        namespace
            .map(|scope| (scope, &self.namespace_groups[..]))
            .into_iter()
            .chain([(self.set.cluster(), &self.cluster_groups[..])])
    }
}

fn by_rule(outcome: Outcome, id: &Arc<RuleId>) -> Verdict {
    Verdict {
        outcome,
        rule: Some(Arc::clone(id)),
    }
}
