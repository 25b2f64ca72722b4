//! Lists of rules such as `http_access`: the first one that matches decides. Where it cannot be told whether a rule
//! matches, neither outcome is taken for granted.

use std::collections::BTreeSet;

use super::{
    acl::{Acls, Literal, Match, Test},
    address_set::AddressSet,
    conf::{Directive, Spot},
};
use crate::policy::PortSet;

/// A rule of a list.
#[derive(Debug, Clone)]
pub(super) struct Rule {
    /// Where it stands.
    pub spot: Spot,
    /// The line, for people.
    pub text: String,
    /// What it does.
    pub allows: bool,
    /// All of these must match.
    pub literals: Vec<Literal>,
    /// Why it may mean something else.
    pub doubt: Option<String>,
}

/// Which requests a list is asked about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Concern {
    /// All.
    #[default]
    All,
    /// CONNECT.
    Tunnels,
    /// All but CONNECT.
    Requests,
}

/// A list of rules, all of which concern one directive.
#[derive(Debug, Clone, Default)]
pub(super) struct List {
    /// In their order.
    pub rules: Vec<Rule>,
    /// What happens if there is no rule at all.
    pub empty_allows: bool,
    /// Which requests it is asked about.
    pub concern: Concern,
    /// What happens if no rule matches; the opposite of what the last one does, if nothing else is said.
    pub end_allows: Option<bool>,
}

/// A kind of request, but for its host.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked<'a> {
    /// Any port of its class.
    pub port: u16,
    /// The method; none for one that no acl names.
    pub method: Option<&'a str>,
    /// Where the policies' workloads are, if that is known.
    pub source: Option<&'a AddressSet>,
    /// What the acls that look at hosts match, by their numbers.
    pub hosts: &'a [Match],
}

/// What a list says of a kind of request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is allowed, by the rule of this number, or for want of any.
    Allowed(Option<usize>),
    /// It is denied.
    Denied,
    /// It depends on these rules, and on what is not known of their acls.
    Open(Vec<(usize, Match)>),
}

impl Rule {
    /// Reads `NAME allow|deny [!]ACL...`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn read(
        line: &Directive,
        acls: &Acls,
        allowing: &[&str],
        denying: &[&str],
    ) -> Result<Self, String> {
        let [_, action, words @ ..] = line.words.as_slice() else {
            return Err("it has no action".to_owned());
        };
        let allows = if allowing.contains(&action.as_str()) {
            true
        } else if denying.contains(&action.as_str()) {
            false
        } else {
            return Err(format!("{action} is no action that is understood"));
        };
        let (literals, problem) = match acls.literals(words) {
            Ok(literals) if literals.is_empty() => (literals, Some("it names no acl".to_owned())),
            Ok(literals) => (literals, None),
            Err(problem) => (Vec::new(), Some(problem)),
        };
        Ok(Self {
            spot: line.spot.clone(),
            text: line.words.join(" "),
            allows,
            literals,
            doubt: problem.or_else(|| line.doubt.map(str::to_owned)),
        })
    }

    /// Whether it matches a kind of request.
    fn matches(&self, acls: &Acls, asked: &Asked<'_>) -> Match {
        if self.doubt.is_some() {
            return Match::Doubt;
        }
        all_of(&self.literals, acls, asked)
    }

    /// The addresses that it is about, and the ports, if it denies by where a name leads and by nothing else.
    pub(super) fn denied_addresses(&self, acls: &Acls) -> Option<(AddressSet, PortSet)> {
        if self.allows || self.doubt.is_some() {
            return None;
        }
        let mut found: Option<AddressSet> = None;
        let mut ports = PortSet::all();
        for literal in &self.literals {
            let acl = acls.get(literal.acl).filter(|acl| acl.doubts.is_empty())?;
            match (&acl.test, acl.assumed) {
                (
                    Test::Destination {
                        addresses,
                        looks_up: true,
                    },
                    None,
                ) if literal.positive && found.is_none() => {
                    found = Some(addresses.clone());
                }
                (Test::Port(own), None) if literal.positive => ports = ports.intersection(own),
                (Test::Source(own), None) if literal.positive && *own == AddressSet::all() => {}
                _ => return None,
            }
        }
        found.map(|addresses| (addresses, ports))
    }
}

impl List {
    /// What it says of a kind of request. `resolved`: the numbers of rules that are taken care of in another way where
    /// they depend on what a name resolves to.
    pub(super) fn judge(&self, acls: &Acls, asked: &Asked<'_>, resolved: &BTreeSet<usize>) -> Verdict {
        let mut open = Vec::new();
        let mut decided = None;
        for (number, rule) in self.rules.iter().enumerate() {
            match rule.matches(acls, asked) {
                Match::No => {}
                Match::Resolve if resolved.contains(&number) => {}
                Match::Yes => {
                    decided = Some((rule.allows, Some(number)));
                    break;
                }
                unknown @ (Match::Reverse | Match::Resolve | Match::Doubt) => open.push((number, unknown)),
            }
        }
        let opposite = self.rules.last().map_or(self.empty_allows, |last| !last.allows);
        let at_end = self.end_allows.unwrap_or(opposite);
        let (allows, by) = decided.unwrap_or((at_end, None));
        open.retain(|(number, _)| self.rules.get(*number).is_none_or(|rule| rule.allows != allows));
        match (open.is_empty(), allows) {
            (false, _) => Verdict::Open(open),
            (true, true) => Verdict::Allowed(by),
            (true, false) => Verdict::Denied,
        }
    }
}

/// Whether all of `literals` match.
fn all_of(literals: &[Literal], acls: &Acls, asked: &Asked<'_>) -> Match {
    let matches = literals.iter().map(|literal| {
        let found = of_acl(literal.acl, acls, asked);
        match (found, literal.positive) {
            (Match::Yes, false) => Match::No,
            (Match::No, false) => Match::Yes,
            (other, _) => other,
        }
    });
    // One that does not match is enough, whatever the others do.
    let mut worst = Match::Yes;
    for found in matches {
        match found {
            Match::No => return Match::No,
            Match::Yes | Match::Reverse | Match::Resolve | Match::Doubt => worst = worst.max(found),
        }
    }
    worst
}

fn of_acl(number: usize, acls: &Acls, asked: &Asked<'_>) -> Match {
    let Some(acl) = acls.get(number) else {
        return Match::Doubt;
    };
    if let Some(assumed) = acl.assumed {
        return if assumed { Match::Yes } else { Match::No };
    }
    let known = match &acl.test {
        Test::Domain { .. } | Test::Destination { .. } => {
            asked.hosts.get(number).copied().unwrap_or(Match::Doubt)
        }
        Test::Source(set) => match asked.source {
            _ if *set == AddressSet::all() => Match::Yes,
            _ if set.is_empty() => Match::No,
            None => Match::Doubt,
            Some(source) => match set.covers(source) {
                Some(true) => Match::Yes,
                Some(false) => Match::No,
                None => Match::Doubt,
            },
        },
        Test::Port(ports) => told(ports.contains(asked.port)),
        Test::Method(methods) => told(asked.method.is_some_and(|method| methods.contains(method))),
        Test::Protocol(words) => protocol(words, asked.method == Some("CONNECT")),
        Test::Group(lines) => {
            let mut found = Match::No;
            for line in lines {
                let of_line = all_of(line, acls, asked);
                if of_line == Match::Yes {
                    found = Match::Yes;
                    break;
                }
                // `No` is the least.
                found = found.max(of_line);
            }
            found
        }
        Test::Other(_) => Match::Doubt,
    };
    if acl.doubts.is_empty() || known == Match::Yes {
        known
    } else {
        Match::Doubt
    }
}

const fn told(matches: bool) -> Match {
    if matches { Match::Yes } else { Match::No }
}

/// `proto`. What a CONNECT has for a protocol differs from version to version.
fn protocol(words: &BTreeSet<String>, is_connect: bool) -> Match {
    let other = ["cache_object", "ftp", "gopher", "wais", "urn", "whois"];
    if words.iter().all(|word| other.contains(&word.as_str())) {
        Match::No
    } else if is_connect {
        Match::Doubt
    } else {
        told(words.contains("http"))
    }
}
