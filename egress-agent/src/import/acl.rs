//! squid's access control lists: what they match, and where that cannot be told from here.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    address_set::{self, AddressSet},
    conf::{Directive, Files, Spot, Value, values},
    domains::Pattern,
    regex,
};
use crate::policy::PortSet;

/// squid's own bound.
const LONGEST_NAME: usize = 32;

/// Whether an acl matches a kind of request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Match {
    /// No request of the kind.
    No,
    /// Every one.
    Yes,
    /// It depends on the name that an address has by reverse look-up.
    Reverse,
    /// It depends on the addresses that a name has.
    Resolve,
    /// It depends on what is not known here.
    Doubt,
}

/// One acl: all lines of one name.
#[derive(Debug, Clone)]
pub(super) struct Acl {
    /// As it is written.
    pub name: String,
    /// Where its lines are.
    pub spots: Vec<Spot>,
    /// What it looks at.
    pub test: Test,
    /// Why it may match more than is known, and where.
    pub doubts: Vec<(Spot, String)>,
    /// What squid never matches, though it is written there.
    pub idle: Vec<(Spot, String)>,
    /// What the command line says of it.
    pub assumed: Option<bool>,
}

/// What an acl looks at.
#[derive(Debug, Clone)]
pub(super) enum Test {
    /// The client's address.
    Source(AddressSet),
    /// The destination's address; looked up for a name, unless `-n` is given.
    Destination { addresses: AddressSet, looks_up: bool },
    /// The destination's name; looked up for an address, unless `-n` is given.
    Domain {
        patterns: BTreeSet<Pattern>,
        addresses: AddressSet,
        looks_up: bool,
    },
    /// The destination's port.
    Port(PortSet),
    /// The method.
    Method(BTreeSet<String>),
    /// The protocol, by its word in the URL.
    Protocol(BTreeSet<String>),
    /// `any-of` and `all-of`: one of the lines of which all entries match.
    Group(Vec<Vec<Literal>>),
    /// Something that is no business of this program.
    Other(String),
}

/// An acl in a line, perhaps negated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Literal {
    /// Its number.
    pub acl: usize,
    /// Without `!`.
    pub positive: bool,
}

/// All acls.
#[derive(Debug, Clone, Default)]
pub(super) struct Acls {
    list: Vec<Acl>,
    /// By their names in lower case: squid does not tell the cases apart.
    names: BTreeMap<String, usize>,
}

impl Acls {
    /// Those that squid has without being told.
    pub(super) fn predefined() -> Self {
        let mut acls = Self::default();
        let known = |text| address_set::parse(text).unwrap_or_default();
        acls.add("all", Test::Source(AddressSet::all()));
        acls.add(
            "localhost",
            Test::Source(known("127.0.0.0/8").union(&known("::1"))),
        );
        let local = known("127.0.0.0/8").union(&known("0.0.0.0")).union(&known("::1"));
        acls.add(
            "to_localhost",
            Test::Destination {
                addresses: local.union(&known("::")),
                looks_up: true,
            },
        );
        acls.add(
            "to_linklocal",
            Test::Destination {
                addresses: known("169.254.0.0/16").union(&known("fe80::/10")),
                looks_up: true,
            },
        );
        acls.add("CONNECT", Test::Method(["CONNECT".to_owned()].into()));
        // The pages of squid itself, which it has no more.
        acls.add("manager", Test::Protocol(["cache_object".to_owned()].into()));
        acls
    }

    fn add(&mut self, name: &str, test: Test) {
        self.names.insert(name.to_ascii_lowercase(), self.list.len());
        self.list.push(Acl {
            name: name.to_owned(),
            spots: Vec::new(),
            test,
            doubts: Vec::new(),
            idle: Vec::new(),
            assumed: None,
        });
    }

    /// The acl of this number.
    pub(super) fn get(&self, number: usize) -> Option<&Acl> {
        self.list.get(number)
    }

    /// All, in the order of their first lines.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Acl> {
        self.list.iter()
    }

    /// Says what an acl matches, whatever it looks at. False if there is none of that name.
    pub(super) fn assume(&mut self, name: &str, matches: bool) -> bool {
        let acl = self
            .names
            .get(&name.to_ascii_lowercase())
            .and_then(|number| self.list.get_mut(*number));
        acl.map(|acl| acl.assumed = Some(matches)).is_some()
    }

    /// Entries of an access line; in the error those that are not defined there.
    pub(super) fn literals(&self, words: &[String]) -> Result<Vec<Literal>, String> {
        words
            .iter()
            .map(|word| {
                let (positive, name) = match word.strip_prefix('!') {
                    Some(name) => (false, name),
                    None => (true, word.as_str()),
                };
                let acl = self.names.get(&name.to_ascii_lowercase());
                acl.map(|acl| Literal { acl: *acl, positive })
                    .ok_or_else(|| format!("acl {name} is not defined before this line"))
            })
            .collect()
    }

    /// Reads an `acl` line.
    pub(super) fn define(&mut self, line: &Directive, files: &dyn Files) {
        let [_, name, kind, rest @ ..] = line.words.as_slice() else {
            // squid does not start with it; whoever uses the name finds no acl.
            return;
        };
        let defined = Line::read(self, &line.spot, kind, rest, files);
        let key = name.to_ascii_lowercase();
        let number = match self.names.get(&key) {
            Some(number) => *number,
            None => {
                self.add(name, defined.test.empty());
                self.list.len() - 1
            }
        };
        let Some(acl) = self.list.get_mut(number) else {
            return;
        };
        acl.spots.push(line.spot.clone());
        acl.idle.extend(defined.idle);
        acl.doubts.extend(defined.doubts);
        if let Some(doubt) = line.doubt {
            acl.doubts.push((line.spot.clone(), doubt.to_owned()));
        }
        if name.len() > LONGEST_NAME {
            acl.doubts.push((
                line.spot.clone(),
                "its name has more than 32 characters".to_owned(),
            ));
        }
        if !acl.test.join(defined.test) {
            let doubt = "an earlier acl of this name is of another type".to_owned();
            acl.doubts.push((line.spot.clone(), doubt));
        }
    }
}

/// One `acl` line.
struct Line {
    test: Test,
    doubts: Vec<(Spot, String)>,
    idle: Vec<(Spot, String)>,
}

impl Line {
    fn read(acls: &Acls, spot: &Spot, kind: &str, rest: &[String], files: &dyn Files) -> Self {
        let mut line = Self {
            test: Test::Other(kind.to_owned()),
            doubts: Vec::new(),
            idle: Vec::new(),
        };
        let options = rest.iter().take_while(|word| is_option(word)).count();
        let (options, words) = rest.split_at_checked(options).unwrap_or((rest, &[]));
        let words = words.strip_prefix(&["--".to_owned()]).unwrap_or(words);
        if kind == "any-of" || kind == "all-of" {
            line.group(acls, spot, kind, words);
            return line;
        }
        let (found, problem) = values(spot, words, files);
        line.doubts.extend(problem.map(|problem| (spot.clone(), problem)));
        let looks_up = !options.iter().any(|option| option == "-n");
        for option in options {
            let is_known = match kind {
                "dst" | "dstdomain" | "domain" => option == "-n",
                "dstdom_regex" => option == "-n" || option == "-i",
                _ => false,
            };
            if !is_known {
                line.doubt(spot, format!("its option {option} is not understood"));
            }
        }
        let is_blind = options.iter().any(|option| option == "-i");
        match kind {
            "src" => {
                let set = line.addresses(found, "squid looks the host up once, when it starts");
                line.test = Test::Source(set);
            }
            "dst" => {
                let addresses = line.addresses(found, "squid looks the host up once, when it starts");
                line.test = Test::Destination { addresses, looks_up };
            }
            "dstdomain" | "domain" => line.domains(found, looks_up),
            // The name of the CONNECT or, where squid has looked, of the ClientHello: the same here.
            "ssl::server_name" => line.domains(found, false),
            "dstdom_regex" => line.patterns(found, is_blind, looks_up),
            "port" => line.ports(found),
            "method" => line.methods(found),
            "proto" => {
                let words = found.into_iter().map(|(_, word)| word.to_ascii_lowercase());
                line.test = Test::Protocol(words.collect());
            }
            _ => {
                let advice = advice(kind);
                line.doubt(spot, format!("{kind} has no counterpart: {advice}"));
            }
        }
        line
    }

    fn doubt(&mut self, spot: &Spot, why: impl Into<String>) {
        self.doubts.push((spot.clone(), why.into()));
    }

    fn group(&mut self, acls: &Acls, spot: &Spot, kind: &str, words: &[String]) {
        let is_group = |literal: &Literal| {
            acls.get(literal.acl)
                .is_some_and(|acl| matches!(acl.test, Test::Group(_)))
        };
        match acls.literals(words) {
            Ok(literals) if literals.iter().any(is_group) => {
                self.test = Test::Group(Vec::new());
                self.doubt(
                    spot,
                    "a group of groups is not understood: name the acls themselves",
                );
            }
            Ok(literals) if kind == "all-of" => self.test = Test::Group(vec![literals]),
            Ok(literals) => self.test = Test::Group(literals.into_iter().map(|one| vec![one]).collect()),
            Err(problem) => {
                self.test = Test::Group(Vec::new());
                self.doubt(spot, problem);
            }
        }
    }

    fn addresses(&mut self, found: Vec<Value>, otherwise: &str) -> AddressSet {
        let mut intervals = Vec::new();
        for (spot, text) in found {
            match address_set::parse(&text) {
                Some(set) => intervals.extend_from_slice(set.intervals()),
                None => self.doubt(
                    &spot,
                    format!("{text} is no address or network that is understood: {otherwise}"),
                ),
            }
        }
        intervals.into_iter().collect()
    }

    fn domains(&mut self, found: Vec<Value>, looks_up: bool) {
        let mut patterns = BTreeSet::new();
        let mut addresses = Vec::new();
        for (spot, text) in found {
            if let Ok(address) = text.parse() {
                let address = address_set::number(address);
                addresses.push((address, address));
            } else if text.contains('*') {
                let never = format!(
                    "{text} never matches: dstdomain has no `*`, `.name` is the name and all below it"
                );
                self.idle.push((spot, never));
            } else if let Some(pattern) = Pattern::parse(&text) {
                patterns.insert(pattern);
            } else {
                self.doubt(&spot, format!("{text} is no domain that is understood"));
            }
        }
        self.test = Test::Domain {
            patterns,
            addresses: addresses.into_iter().collect(),
            looks_up,
        };
    }

    fn patterns(&mut self, found: Vec<Value>, is_blind: bool, looks_up: bool) {
        let mut patterns = BTreeSet::new();
        for (spot, text) in found {
            match regex::as_pattern(&text, is_blind) {
                Some(pattern) => {
                    patterns.insert(pattern);
                }
                None => self.doubt(
                    &spot,
                    format!(
                        "the expression {text} is not one for a domain (`^name$`, `(^|\\.)name$` or `\\.name$`, dots with a \
                         backslash): use dstdomain"
                    ),
                ),
            }
        }
        self.test = Test::Domain {
            patterns,
            addresses: AddressSet::default(),
            looks_up,
        };
    }

    fn ports(&mut self, found: Vec<Value>) {
        let mut ranges = Vec::new();
        for (spot, text) in found {
            let (first, last) = text.split_once('-').unwrap_or((&text, &text));
            match (first.parse::<u16>(), last.parse::<u16>()) {
                (Ok(first), Ok(last)) if first <= last => ranges.push(first..=last),
                _ => self.doubt(&spot, format!("{text} is no port and no range of ports")),
            }
        }
        self.test = Test::Port(ranges.into_iter().collect());
    }

    fn methods(&mut self, found: Vec<Value>) {
        let mut methods = BTreeSet::new();
        for (spot, text) in found {
            // squid's reading of other letters depends on its version and settings.
            if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'-') {
                methods.insert(text);
            } else {
                self.doubt(&spot, format!("{text} is no method in capital letters"));
            }
        }
        self.test = Test::Method(methods);
    }
}

impl Test {
    /// The same without values.
    fn empty(&self) -> Self {
        match self {
            Self::Source(_) => Self::Source(AddressSet::default()),
            Self::Destination { looks_up, .. } => Self::Destination {
                addresses: AddressSet::default(),
                looks_up: *looks_up,
            },
            Self::Domain { looks_up, .. } => Self::Domain {
                patterns: BTreeSet::new(),
                addresses: AddressSet::default(),
                looks_up: *looks_up,
            },
            Self::Port(_) => Self::Port(PortSet::default()),
            Self::Method(_) => Self::Method(BTreeSet::new()),
            Self::Protocol(_) => Self::Protocol(BTreeSet::new()),
            Self::Group(_) => Self::Group(Vec::new()),
            Self::Other(kind) => Self::Other(kind.clone()),
        }
    }

    /// Adds the values of another line. False if it is of another type.
    fn join(&mut self, other: Self) -> bool {
        match (self, other) {
            (Self::Source(own), Self::Source(more)) => *own = own.union(&more),
            (
                Self::Destination { addresses, looks_up },
                Self::Destination {
                    addresses: more,
                    looks_up: also,
                },
            ) => {
                *addresses = addresses.union(&more);
                *looks_up |= also;
            }
            (
                Self::Domain {
                    patterns,
                    addresses,
                    looks_up,
                },
                Self::Domain {
                    patterns: more,
                    addresses: further,
                    looks_up: also,
                },
            ) => {
                patterns.extend(more);
                *addresses = addresses.union(&further);
                *looks_up |= also;
            }
            (Self::Port(own), Self::Port(more)) => *own = own.union(&more),
            (Self::Method(own), Self::Method(more)) | (Self::Protocol(own), Self::Protocol(more)) => {
                own.extend(more);
            }
            (Self::Group(own), Self::Group(more)) => own.extend(more),
            (Self::Other(own), Self::Other(more)) => return *own == more,
            _ => return false,
        }
        true
    }
}

fn is_option(word: &str) -> bool {
    word.len() > 1 && word.starts_with(['-', '+']) && word != "--" && !word.starts_with("-:")
}

/// What to do about acls of a type that policies do not know.
fn advice(kind: &str) -> &'static str {
    match kind {
        "time" => "no policy depends on the time of day",
        "proxy_auth" | "proxy_auth_regex" | "ident" | "ident_regex" | "ext_user" | "ext_user_regex" => {
            "nobody logs in; a workload is known by its cgroup, and a policy selects it by its labels"
        }
        "url_regex" | "urlpath_regex" => {
            "write the hosts as dstdomain; a policy's `http` has `path` for plain HTTP, and TLS is not opened"
        }
        "ssl::server_name_regex" => "write the hosts as ssl::server_name or dstdomain",
        "srcdomain" | "srcdom_regex" | "arp" | "eui64" => {
            "a workload is known by its cgroup, and a policy selects it by its labels"
        }
        "external" => "no program is asked",
        "browser" | "referer_regex" | "req_header" | "req_mime_type" => {
            "requests are not judged by their fields"
        }
        "rep_header" | "rep_mime_type" | "http_status" => "answers are not judged",
        "maxconn" | "max_user_ip" | "random" => "a verdict does not depend on what else is under way",
        "myip" | "localip" | "myport" | "localport" | "myportname" | "peername" | "hier_code" => {
            "there is one proxy, at whatever address"
        }
        _ => "no policy can say it",
    }
}
