//! From what is allowed to policy documents.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    domains::Names,
    plan::{Allowance, Plan},
};
use crate::policy::{DomainName, HostPattern, PortSet};

/// Entries of one rule, and of one document: what a person still reads, and what etcd still takes.
const MOST_HOSTS: usize = 500;
const MOST_OF_DOCUMENT: usize = 5000;

/// Documents, and what they do not say.
#[derive(Debug, Default)]
pub(super) struct Documents {
    /// YAML.
    pub text: String,
    /// Names that are denied though squid allows something of them, with the ports.
    pub narrowed: Vec<(String, PortSet)>,
    /// Patterns that no policy may have, and why.
    pub refused: Vec<(String, String)>,
    /// Whether requests over port 443 alone, without CONNECT, were left out: no rule can say that.
    pub left_out_443: bool,
}

/// Who is selected, and how the documents are called.
#[derive(Debug, Clone, Copy)]
pub(super) struct Labels<'a> {
    /// The namespace; as kubectl has it if absent.
    pub namespace: Option<&'a str>,
    /// The name of the policies.
    pub name: &'a str,
}

/// Hosts by what is allowed to them, and what must be denied.
#[derive(Debug, Default)]
struct Rules {
    allowed: BTreeMap<Allowance, BTreeSet<String>>,
    denied: BTreeMap<Vec<(u16, u16)>, BTreeSet<String>>,
}

/// Writes the documents.
pub(super) fn documents(plan: &Plan, labels: Labels<'_>) -> Documents {
    // Each round finds at least one more name; there are seldom any.
    let mut unsafe_below = BTreeSet::new();
    let (mut rules, mut documents) = loop {
        let mut rules = Rules::default();
        let mut documents = Documents::default();
        match names(plan, &unsafe_below, &mut rules, &mut documents) {
            Ok(()) => break (rules, documents),
            Err(more) => unsafe_below.extend(more),
        }
    };
    for name in &unsafe_below {
        let why = "squid denies something below it that no policy can deny".to_owned();
        documents.refused.push((format!("**.{name}"), why));
    }
    for (set, allowance) in &plan.addresses {
        let blocks = set.blocks().into_iter().map(|block| format!("cidr: \"{block}\""));
        rules.allowed.entry(allowance.clone()).or_default().extend(blocks);
    }
    for (set, ports) in &plan.denied {
        let blocks = set.blocks().into_iter().map(|block| format!("cidr: \"{block}\""));
        rules.denied.entry(key(ports)).or_default().extend(blocks);
    }
    write_denied(&rules.denied, labels, &mut documents.text);
    write_allowed(&rules.allowed, labels, &mut documents);
    documents
}

/// Goes down the tree of names: what is allowed below a name holds for all names further down, unless it is denied to them.
/// Nothing is allowed to all that is below one of `unsafe_below`.
///
/// # Errors
/// A denial cannot be written: the names above it, to which nothing may be allowed as a whole.
fn names(
    plan: &Plan,
    unsafe_below: &BTreeSet<DomainName>,
    rules: &mut Rules,
    documents: &mut Documents,
) -> Result<(), Vec<DomainName>> {
    // What holds for the names below each name, by patterns of its own or of those above it.
    let mut held: BTreeMap<&DomainName, Allowance> = BTreeMap::new();
    let mut shut: BTreeMap<&DomainName, PortSet> = BTreeMap::new();
    let mut order: Vec<&DomainName> = plan.tree.names().collect();
    order.sort_by_key(|name| name.as_str().matches('.').count());
    let nothing = Allowance::default();
    for name in order {
        let nearest = plan.tree.ancestors(name).next();
        let above = nearest
            .and_then(|above| held.get(above))
            .unwrap_or(&nothing)
            .clone();
        let mut closed = nearest
            .and_then(|above| shut.get(above))
            .cloned()
            .unwrap_or_default();
        let allowance = |kind: &Names| plan.names.get(kind).unwrap_or(&nothing);
        let itself = allowance(&Names::Exactly(name.clone()));
        let below = allowance(&Names::Below(name.clone()));

        if itself.has_any_of(&closed) {
            documents.narrowed.push((name.to_string(), closed.clone()));
        }
        let excess = above.beyond(itself);
        if !excess.is_empty() {
            rules.deny(&excess, format!("domain: {}", quoted(name.as_str())));
            if itself.has_any_of(&excess) {
                documents.narrowed.push((name.to_string(), excess));
            }
        }
        let excess = above.beyond(below);
        let pattern = format!("**.{name}");
        if !excess.is_empty() {
            if below.has_any_of(&excess) {
                documents.narrowed.push((pattern.clone(), excess.clone()));
            }
            if pattern.parse::<HostPattern>().is_err() {
                return Err(plan.tree.ancestors(name).cloned().collect());
            }
            rules.deny(&excess, format!("domain: {}", quoted(&pattern)));
            closed = closed.union(&excess);
        }
        let wanted = if unsafe_below.contains(name) {
            Allowance::default()
        } else {
            below.without(&closed)
        };
        let may_stand = wanted.is_empty() || pattern.parse::<HostPattern>().is_ok();
        let needs_itself = !itself.beyond(&above).is_empty();
        let needs_below = !wanted.beyond(&above).is_empty();
        if needs_below && !may_stand {
            documents.refused.push((
                pattern.clone(),
                "no policy may have a wildcard over a public suffix".to_owned(),
            ));
        }
        let has_below = needs_below && may_stand;
        if needs_itself && has_below && *itself == wanted {
            rules.allow(itself, format!("domain: {}", quoted(&format!(".{name}"))));
        } else {
            if needs_itself {
                rules.allow(itself, format!("domain: {}", quoted(name.as_str())));
            }
            if has_below {
                rules.allow(&wanted, format!("domain: {}", quoted(&pattern)));
            }
        }
        let mut holds = above.without(&closed);
        if has_below {
            holds = holds.union(&wanted);
        }
        held.insert(name, holds);
        shut.insert(name, closed);
    }
    Ok(())
}

impl Rules {
    fn allow(&mut self, allowance: &Allowance, host: String) {
        self.allowed.entry(allowance.clone()).or_default().insert(host);
    }

    fn deny(&mut self, ports: &PortSet, host: String) {
        self.denied.entry(key(ports)).or_default().insert(host);
    }
}

fn key(ports: &PortSet) -> Vec<(u16, u16)> {
    let ranges = ports.ranges().iter();
    ranges.map(|range| (*range.start(), *range.end())).collect()
}

fn write_denied(denied: &BTreeMap<Vec<(u16, u16)>, BTreeSet<String>>, labels: Labels<'_>, text: &mut String) {
    if denied.is_empty() {
        return;
    }
    let namespace = labels.namespace.unwrap_or("default");
    let name = quoted(&format!("{}-{namespace}", labels.name));
    text.push_str(&format!(
        "apiVersion: egress-enforcer.io/v1alpha1\nkind: ClusterEgressPolicy\nmetadata:\n  name: {name}\nspec:\n  \
         namespaceSelector:\n    matchLabels:\n      kubernetes.io/metadata.name: {}\n  deny:\n",
        quoted(namespace)
    ));
    for (ports, hosts) in denied {
        let hosts: Vec<&String> = hosts.iter().collect();
        for chunk in hosts.chunks(MOST_HOSTS) {
            write_to(text, chunk);
            if ports.as_slice() != [(0, u16::MAX)] {
                write_ports(text, ports);
            }
        }
    }
    text.push_str("---\n");
}

/// A rule of a document, still without its hosts.
struct Shape {
    ports: Vec<(u16, u16)>,
    methods: Option<BTreeSet<String>>,
}

fn write_allowed(
    allowed: &BTreeMap<Allowance, BTreeSet<String>>,
    labels: Labels<'_>,
    documents: &mut Documents,
) {
    let mut written: Vec<(usize, String)> = Vec::new();
    for (allowance, hosts) in allowed {
        let hosts: Vec<&String> = hosts.iter().collect();
        for shape in shapes(allowance, documents) {
            for chunk in hosts.chunks(MOST_HOSTS) {
                let mut rule = String::new();
                write_to(&mut rule, chunk);
                write_ports(&mut rule, &shape.ports);
                if let Some(methods) = &shape.methods {
                    let methods: Vec<&str> = methods.iter().map(String::as_str).collect();
                    rule.push_str(&format!("    http: [{{methods: [{}]}}]\n", methods.join(", ")));
                }
                written.push((chunk.len(), rule));
            }
        }
    }
    let mut bundles: Vec<Vec<String>> = vec![Vec::new()];
    let mut size = 0;
    for (hosts, rule) in written {
        if size + hosts > MOST_OF_DOCUMENT {
            bundles.push(Vec::new());
            size = 0;
        }
        size += hosts;
        if let Some(bundle) = bundles.last_mut() {
            bundle.push(rule);
        }
    }
    let is_single = bundles.len() == 1;
    for (index, bundle) in bundles.iter().enumerate() {
        let name = if is_single {
            labels.name.to_owned()
        } else {
            format!("{}-{}", labels.name, index + 1)
        };
        let text = &mut documents.text;
        if index > 0 {
            text.push_str("---\n");
        }
        text.push_str("apiVersion: egress-enforcer.io/v1alpha1\nkind: EgressPolicy\nmetadata:\n");
        text.push_str(&format!("  name: {}\n", quoted(&name)));
        if let Some(namespace) = labels.namespace {
            text.push_str(&format!("  namespace: {}\n", quoted(namespace)));
        }
        if bundle.is_empty() {
            text.push_str("spec:\n  egress: []\n");
            continue;
        }
        text.push_str("spec:\n  egress:\n");
        bundle.iter().for_each(|rule| text.push_str(rule));
    }
}

fn shapes(allowance: &Allowance, documents: &mut Documents) -> Vec<Shape> {
    let mut shapes = Vec::new();
    let tunnels = allowance.tunnels();
    if !tunnels.is_empty() {
        shapes.push(Shape {
            ports: key(&tunnels),
            methods: None,
        });
    }
    for (methods, ports) in allowance.requests() {
        if key(&ports) == [(443, 443)] {
            documents.left_out_443 = true;
        } else {
            shapes.push(Shape {
                ports: key(&ports),
                methods: Some(methods.clone()),
            });
        }
    }
    shapes
}

fn write_to(text: &mut String, hosts: &[&String]) {
    text.push_str("  - to:\n");
    for host in hosts {
        text.push_str(&format!("    - {host}\n"));
    }
}

fn write_ports(text: &mut String, ports: &[(u16, u16)]) {
    let ports: Vec<String> = ports
        .iter()
        // Port 0 is none that a policy can name.
        .map(|(first, last)| match ((*first).max(1), *last) {
            (first, last) if first == last => format!("{{port: {first}}}"),
            (first, last) => format!("{{port: {first}, endPort: {last}}}"),
        })
        .collect();
    text.push_str(&format!("    ports: [{}]\n", ports.join(", ")));
}

/// A YAML string, as JSON writes it.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}
