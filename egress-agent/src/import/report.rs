//! What is told of an import, line by line.

use std::{collections::BTreeSet, fmt};

use super::{
    access::Rule,
    acl::{Acl, Match, Test},
    address_set::AddressSet,
    conf::Spot,
    directives::Configuration,
    emit::Documents,
    plan::Plan,
};
use crate::policy::PortSet;

/// Policies, and what they do not say.
#[derive(Debug)]
pub struct Import {
    /// YAML documents.
    pub policies: String,
    /// What there is to say, in the order of the lines.
    pub findings: Vec<Finding>,
    /// Lines for the agent's own configuration.
    pub hints: Vec<String>,
    /// The ports that the policies name where squid allows them; others are left out.
    pub ports: PortSet,
}

/// One thing to say.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    /// Where, if it is about a line.
    pub spot: Option<Spot>,
    /// How much it matters.
    pub weight: Weight,
    /// What it is, and what to do.
    pub text: String,
}

/// How much a finding matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Weight {
    /// Squid allows something that the policies do not.
    Untranslated,
    /// Good to know; nothing that squid allows to names is denied.
    Note,
}

impl Import {
    /// Whether the policies give squid's verdicts, for names and the ports that are named.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.findings.iter().all(|finding| finding.weight == Weight::Note)
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.spot {
            Some(spot) => write!(f, "{spot}: {}", self.text),
            None => f.write_str(&self.text),
        }
    }
}

pub(super) fn report(
    configuration: Configuration,
    plan: &Plan,
    documents: Documents,
    source: Option<&AddressSet>,
) -> Import {
    let Configuration {
        acls,
        lists,
        findings,
        hints,
        ..
    } = configuration;
    let mut report = Report {
        findings: findings.into_iter().collect(),
    };
    let rule = |&(list, number): &(usize, usize)| -> Option<&Rule> { lists.get(list)?.rules.get(number) };
    let mut to_blame = BTreeSet::new();
    let mut reverse = Vec::new();
    for (place, what) in &plan.open {
        let Some(rule) = rule(place) else { continue };
        if *what == Match::Reverse {
            reverse.push(rule.spot.to_string());
            continue;
        }
        let mut why: Vec<String> = rule.doubt.iter().cloned().collect();
        for literal in &rule.literals {
            let Some(acl) = acls.get(literal.acl) else {
                continue;
            };
            if let Some(reason) = reason(acl, source) {
                why.push(reason);
                to_blame.insert(literal.acl);
            }
        }
        let text = format!(
            "{}: not translated: {}; what depends on it is denied",
            rule.text,
            why.join("; ")
        );
        report.add(Weight::Untranslated, &rule.spot, text);
    }
    if !reverse.is_empty() {
        report.general(format!(
            "requests that name an address are denied where squid looks up the address's own name (dstdomain without -n, in {}): \
             allow addresses by dst",
            reverse.join(", ")
        ));
    }
    for (number, acl) in acls.iter().enumerate() {
        let used = acl.assumed.is_none() && is_used(&lists, &acls, number);
        for (spot, doubt) in &acl.doubts {
            // Of an acl that decides nothing there is nothing to lose.
            let weight = if used && to_blame.contains(&number) {
                Weight::Untranslated
            } else {
                Weight::Note
            };
            report.add(weight, spot, format!("acl {}: not translated: {doubt}", acl.name));
        }
        for (spot, never) in &acl.idle {
            report.add(Weight::Note, spot, format!("acl {}: {never}", acl.name));
        }
    }
    for place in &plan.boundless {
        let Some(rule) = rule(place) else { continue };
        report.add(
            Weight::Untranslated,
            &rule.spot,
            format!(
                "{}: not translated: it allows every name that no acl names, and no policy does; name the hosts, for which \
                 the access log has those that are used",
                rule.text
            ),
        );
    }
    if plan.is_boundless && plan.boundless.is_empty() {
        report.lost(
            "squid allows what no line of http_access is about, which is the opposite of its last line, and no policy allows \
             every name; name the hosts, for which the access log has those that are used"
                .to_owned(),
        );
    }
    documents_findings(&documents, plan, &mut report);
    for (addresses, _) in &plan.denied {
        let blocks: Vec<String> = addresses.blocks().iter().map(ToString::to_string).collect();
        report.general(format!(
            "names may not lead to {}: squid refuses such a name, here it is dialled at its other addresses if it has any, \
             and no earlier line is an exception",
            blocks.join(", ")
        ));
    }
    Import {
        policies: documents.text,
        findings: report.findings.into_iter().collect(),
        hints,
        ports: plan.ports.clone(),
    }
}

fn documents_findings(documents: &Documents, plan: &Plan, report: &mut Report) {
    for (pattern, why) in &documents.refused {
        report.lost(format!("{pattern} is not allowed: {why}; name the hosts"));
    }
    for (host, ports) in &documents.narrowed {
        report.lost(format!(
            "{host} is denied on port {ports}, though squid allows some of it: a denial further up cannot have this exception"
        ));
    }
    if documents.left_out_443 {
        report
            .general("plain HTTP on port 443 alone is left out: without CONNECT nothing uses it".to_owned());
    }
    if !plan.left_out.is_empty() {
        report.general(format!(
            "ports {} are let through by squid and left out here, because each port of a policy is redirected: name those \
             that are used with --port",
            plan.left_out
        ));
    }
}

/// Sorted, and each thing once.
struct Report {
    findings: BTreeSet<Finding>,
}

impl Report {
    fn add(&mut self, weight: Weight, spot: &Spot, text: String) {
        self.findings.insert(Finding {
            spot: Some(spot.clone()),
            weight,
            text,
        });
    }

    fn general(&mut self, text: String) {
        self.findings.insert(Finding {
            spot: None,
            weight: Weight::Note,
            text,
        });
    }

    fn lost(&mut self, text: String) {
        self.findings.insert(Finding {
            spot: None,
            weight: Weight::Untranslated,
            text,
        });
    }
}

/// Why it is not known what an acl matches.
fn reason(acl: &Acl, source: Option<&AddressSet>) -> Option<String> {
    if acl.assumed.is_some() {
        return None;
    }
    let name = &acl.name;
    if let Some((_, doubt)) = acl.doubts.first() {
        return Some(format!("acl {name}: {doubt} (--assume {name}=always|never)"));
    }
    match &acl.test {
        Test::Source(set) if *set == AddressSet::all() || set.is_empty() => None,
        Test::Source(set) => match source.map(|source| set.covers(source)) {
            Some(Some(_)) => None,
            Some(None) => Some(format!(
                "acl {name} has some of the addresses of --source and not all: import once for each"
            )),
            None => Some(format!(
                "acl {name} is about where a request comes from: say so with --source CIDR, or --assume {name}=always|never"
            )),
        },
        Test::Destination { looks_up: true, .. } => Some(format!(
            "acl {name} depends on the addresses that a name has, of which only `deny` of the acl alone is understood"
        )),
        Test::Protocol(_) => Some(format!(
            "acl {name}: what protocol a CONNECT has depends on squid's version"
        )),
        Test::Group(_) => Some(format!("acl {name} may be made of such acls")),
        Test::Domain { .. } | Test::Destination { .. } | Test::Port(_) | Test::Method(_) | Test::Other(_) => {
            None
        }
    }
}

/// Whether any rule has the acl, or a group that has it.
fn is_used(lists: &[super::access::List], acls: &super::acl::Acls, number: usize) -> bool {
    let has = |literals: &[super::acl::Literal]| literals.iter().any(|literal| literal.acl == number);
    let in_group = |literal: &super::acl::Literal| {
        matches!(
            acls.get(literal.acl).map(|acl| &acl.test),
            Some(Test::Group(lines)) if lines.iter().any(|line| has(line))
        )
    };
    lists
        .iter()
        .flat_map(|list| &list.rules)
        .any(|rule| has(&rule.literals) || rule.literals.iter().any(in_group))
}
