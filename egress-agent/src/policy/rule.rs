//! Compiled policies: documents checked and turned into values that can be matched.

use std::{net::IpAddr, sync::Arc};

use egress_common::member::Transport;

use super::{
    Target,
    address::{Block, canonical},
    host_pattern::HostPattern,
    name::{DomainName, Host},
    object::ObjectKey,
    ports::PortSet,
    problem::Place,
    request::{PathDoubt, RequestPattern, normal_path},
    selector::Group,
    verdict::{PolicyKind, RuleId},
};
use crate::identity::Workload;

/// A document that was found good, or the patterns of the command line.
#[derive(Debug, Clone)]
pub struct Policy {
    pub(super) kind: PolicyKind,
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) place: Option<Place>,
    pub(super) group: Group,
    pub(super) egress: Vec<Rule>,
    pub(super) deny: Vec<Rule>,
    pub(super) ceiling: Option<Ceiling>,
    pub(super) private_answers: Vec<HostPattern>,
}

/// The `ceiling` of a cluster policy; without rules nothing is below it.
#[derive(Debug, Clone)]
pub(super) struct Ceiling {
    pub(super) id: Arc<RuleId>,
    pub(super) place: Option<Place>,
    pub(super) rules: Vec<Rule>,
}

/// One rule.
#[derive(Debug, Clone)]
pub(super) struct Rule {
    pub(super) id: Arc<RuleId>,
    pub(super) place: Option<Place>,
    pub(super) hosts: Vec<HostPattern>,
    pub(super) blocks: Vec<Block>,
    /// TCP ports for `hosts`.
    pub(super) host_ports: PortSet,
    /// TCP ports for `blocks`.
    pub(super) block_ports: PortSet,
    /// UDP ports for `blocks`; none where the rule has `requests`.
    pub(super) datagram_ports: PortSet,
    /// Plain HTTP requests that it covers; empty: all traffic.
    pub(super) requests: Vec<RequestPattern>,
}

/// Why a rule that has a target's name or address still does not cover it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Miss {
    /// The port is not among these.
    Port(PortSet),
    /// The rule has `http`, and what is asked is not known to be plain HTTP.
    NotHttp,
    /// Neither of its `http` entries has the method and path.
    Request,
    /// It has `http` with a path, and the path is in doubt.
    Path(PathDoubt),
}

/// A target with what several rules need to know of it worked out once.
#[derive(Debug)]
pub(super) struct Asked<'a> {
    pub(super) subject: Subject<'a>,
    /// The address that was dialled, if it is known, and the one that is asked for, if it is one: as they stand, for
    /// denials.
    pub(super) addresses: [Option<IpAddr>; 2],
    transport: Transport,
    port: u16,
    request: Option<(&'a str, Result<std::borrow::Cow<'a, str>, PathDoubt>)>,
}

/// What a target is judged by.
#[derive(Debug, Clone, Copy)]
pub(super) enum Subject<'a> {
    /// A name.
    Name(&'a DomainName),
    /// Addresses: the one that is asked for and the one that was dialled, canonical. They are the same unless a `Host`
    /// header names another address than the dialled one; then both must be allowed.
    Address { asked: IpAddr, dialled: IpAddr },
}

impl<'a> Asked<'a> {
    pub(super) fn new(target: &Target<'a>) -> Self {
        Self {
            subject: match target.host {
                Host::Name(name) => Subject::Name(name),
                Host::Address(address) => Subject::Address {
                    asked: canonical(*address),
                    dialled: canonical(target.address),
                },
            },
            addresses: [
                Some(target.address),
                match target.host {
                    Host::Address(address) => Some(*address),
                    Host::Name(_) => None,
                },
            ],
            transport: Transport::Tcp,
            port: target.port,
            request: target
                .request
                .map(|request| (request.method, normal_path(request.path))),
        }
    }
}

impl Asked<'_> {
    /// Datagrams to an address.
    pub(super) fn of_datagram(address: IpAddr, port: u16) -> Self {
        Self {
            subject: Subject::Address {
                asked: canonical(address),
                dialled: canonical(address),
            },
            addresses: [Some(address), None],
            transport: Transport::Udp,
            port,
            request: None,
        }
    }

    /// The same, with no address known to be dialled for a name.
    pub(super) fn undialled(mut self) -> Self {
        if let Subject::Name(_) = self.subject {
            self.addresses = [None, None];
        }
        self
    }
}

impl Policy {
    /// The policy of `--allow`: the patterns, on the default ports, for every workload.
    #[must_use]
    pub fn of_command_line(patterns: Vec<HostPattern>) -> Self {
        let kind = PolicyKind::CommandLine;
        let name = "--allow".to_owned();
        let rules = patterns.into_iter().enumerate().map(|(index, pattern)| Rule {
            id: Arc::new(RuleId {
                kind,
                namespace: String::new(),
                policy: name.clone(),
                list: "egress",
                index: Some(index),
            }),
            place: None,
            hosts: vec![pattern],
            blocks: Vec::new(),
            host_ports: default_host_ports(),
            block_ports: PortSet::default(),
            datagram_ports: PortSet::default(),
            requests: Vec::new(),
        });
        Self {
            egress: rules.collect(),
            kind,
            namespace: String::new(),
            name,
            place: None,
            group: Group::everything(),
            deny: Vec::new(),
            ceiling: None,
            private_answers: Vec::new(),
        }
    }

    /// The policy of an object that cannot be read: it allows nothing to whom it selects, and if it `forbids`, no other
    /// policy does.
    pub(super) fn closed(key: &ObjectKey, group: Group, forbids: bool) -> Self {
        let ceiling = forbids.then(|| Ceiling {
            id: Arc::new(RuleId {
                kind: key.kind,
                namespace: key.namespace.clone(),
                policy: key.name.clone(),
                list: "ceiling",
                index: None,
            }),
            place: None,
            rules: Vec::new(),
        });
        Self {
            kind: key.kind,
            namespace: key.namespace.clone(),
            name: key.name.clone(),
            place: None,
            group,
            egress: Vec::new(),
            deny: Vec::new(),
            ceiling,
            private_answers: Vec::new(),
        }
    }

    /// Which policy it is.
    #[must_use]
    pub fn key(&self) -> ObjectKey {
        ObjectKey {
            kind: self.kind,
            namespace: self.namespace.clone(),
            name: self.name.clone(),
        }
    }

    /// Whether it selects the workload.
    #[must_use]
    pub fn selects(&self, workload: &Workload) -> bool {
        let is_here = match self.kind {
            PolicyKind::EgressPolicy => self.namespace == workload.namespace,
            PolicyKind::ClusterEgressPolicy | PolicyKind::CommandLine => true,
        };
        is_here && self.group.selector.selects(workload)
    }

    /// How many rules it has, in all its lists.
    #[must_use]
    pub fn rule_count(&self) -> usize {
        self.egress.len() + self.deny.len() + self.ceiling.as_ref().map_or(0, |ceiling| ceiling.rules.len())
    }
}

impl Rule {
    /// Whether the rule allows what is asked, its name or addresses having been found in the rule.
    pub(super) fn allows(&self, asked: &Asked<'_>) -> Result<(), Miss> {
        let ports = match asked.subject {
            Subject::Name(_) => &self.host_ports,
            Subject::Address { .. } => self.ports_of_blocks(asked.transport),
        };
        self.covers(ports, asked, false)
    }

    /// Whether the rule denies what is asked, its name having been found in the rule.
    pub(super) fn denies_name(&self, asked: &Asked<'_>) -> bool {
        self.covers(&self.host_ports, asked, true).is_ok()
    }

    /// Whether the rule denies what is asked, one of the addresses involved having been found in the rule.
    pub(super) fn denies_address(&self, asked: &Asked<'_>) -> bool {
        self.covers(self.ports_of_blocks(asked.transport), asked, true)
            .is_ok()
    }

    /// The ports of its blocks.
    pub(super) const fn ports_of_blocks(&self, transport: Transport) -> &PortSet {
        match transport {
            Transport::Tcp => &self.block_ports,
            Transport::Udp => &self.datagram_ports,
        }
    }

    /// Whether its blocks allow the address.
    pub(super) fn allows_address(&self, address: IpAddr) -> bool {
        self.blocks.iter().any(|block| block.allows(address))
    }

    fn covers(&self, ports: &PortSet, asked: &Asked<'_>, if_in_doubt: bool) -> Result<(), Miss> {
        if !ports.contains(asked.port) {
            return Err(Miss::Port(ports.clone()));
        }
        if self.requests.is_empty() {
            return Ok(());
        }
        let Some((method, path)) = &asked.request else {
            return Err(Miss::NotHttp);
        };
        let path = path.as_deref().map_err(|doubt| *doubt);
        if self
            .requests
            .iter()
            .any(|request| request.matches(method, path, if_in_doubt))
        {
            return Ok(());
        }
        Err(path.err().map_or(Miss::Request, Miss::Path))
    }
}

/// The ports of names where a rule has none.
pub(super) fn default_host_ports() -> PortSet {
    [80..=80, 443..=443].into_iter().collect()
}
