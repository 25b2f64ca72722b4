//! Documents to policies: what the values mean, and whether they may stand where they stand.

mod rule;

use std::sync::Arc;

use super::{
    document::{
        API_VERSION, ClusterEgressPolicy, Document, EgressPolicy, Metadata, Mode, Rule as RuleDocument,
    },
    host_pattern::HostPattern,
    ports::PortSet,
    problem::{Place, Problem, Step, quoted},
    rule::{Ceiling, Policy, Rule, default_host_ports},
    selector::{Group, Selector, is_dns_label},
    verdict::{PolicyKind, RuleId},
};

/// Kubernetes' bound on a name (RFC 1123 subdomain).
const MAX_NAME: usize = 253;
/// The namespace of an EgressPolicy that names none.
const DEFAULT_NAMESPACE: &str = "default";

/// Compiles a document. `place` tells where the value at the end of a path stands, for documents from files.
///
/// # Errors
/// Every problem that the document has.
pub fn compile(
    document: &Document,
    place: &dyn Fn(&[Step]) -> Option<Place>,
) -> Result<Policy, Vec<Problem>> {
    let (kind, metadata) = match document {
        Document::EgressPolicy(policy) => (PolicyKind::EgressPolicy, &policy.metadata),
        Document::ClusterEgressPolicy(policy) => (PolicyKind::ClusterEgressPolicy, &policy.metadata),
    };
    let mut compiler = Compiler {
        problems: Vec::new(),
        path: Vec::new(),
        place,
        kind,
        namespace: String::new(),
        name: metadata.name.clone(),
    };
    compiler.metadata(metadata);
    let policy = match document {
        Document::EgressPolicy(policy) => compiler.egress_policy(policy),
        Document::ClusterEgressPolicy(policy) => compiler.cluster_egress_policy(policy),
    };
    if compiler.problems.is_empty() {
        Ok(policy)
    } else {
        Err(compiler.problems)
    }
}

/// Goes down a document, knows where it is, and gathers problems rather than stopping at one.
struct Compiler<'a> {
    problems: Vec<Problem>,
    path: Vec<Step>,
    place: &'a dyn Fn(&[Step]) -> Option<Place>,
    kind: PolicyKind,
    namespace: String,
    name: String,
}

/// The lists that rules stand in.
#[derive(Clone, Copy, PartialEq, Eq)]
enum List {
    Egress,
    Deny,
    Ceiling,
}

impl List {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Egress => "egress",
            Self::Deny => "deny",
            Self::Ceiling => "ceiling",
        }
    }

    /// What a rule without `ports` means for names. A denial that left ports open would be none.
    fn default_host_ports(self) -> PortSet {
        match self {
            Self::Egress | Self::Ceiling => default_host_ports(),
            Self::Deny => PortSet::all(),
        }
    }
}

impl Compiler<'_> {
    fn metadata(&mut self, metadata: &Metadata) {
        let good_name = |name: &str| name.len() <= MAX_NAME && name.split('.').all(is_dns_label);
        if !good_name(&metadata.name) {
            self.problem_at(&["metadata", "name"], |this| {
                if metadata.name.is_empty() {
                    return "`name` is missing; a policy needs a name of lower-case letters, digits, `-` and `.`".into();
                }
                format!(
                    "`{}` is not a name; allowed are lower-case letters, digits, `-` and `.`",
                    quoted(&this.name)
                )
            });
        }
        match (self.kind, metadata.namespace.as_deref()) {
            (PolicyKind::EgressPolicy, namespace) => {
                let namespace = namespace.unwrap_or(DEFAULT_NAMESPACE);
                if !is_dns_label(namespace) {
                    self.problem_at(&["metadata", "namespace"], |_| {
                        format!(
                            "`{}` is not a namespace; allowed are lower-case letters, digits and `-`",
                            quoted(namespace)
                        )
                    });
                }
                namespace.clone_into(&mut self.namespace);
            }
            (PolicyKind::ClusterEgressPolicy | PolicyKind::CommandLine, Some(_)) => {
                self.problem_at(&["metadata", "namespace"], |_| {
                    "a ClusterEgressPolicy has no namespace; select namespaces by `spec.namespaceSelector`"
                        .into()
                });
            }
            (PolicyKind::ClusterEgressPolicy | PolicyKind::CommandLine, None) => {}
        }
    }

    fn egress_policy(&mut self, policy: &EgressPolicy) -> Policy {
        self.api_version(&policy.api_version);
        let spec = &policy.spec;
        let selector = self.selector("podSelector", |problems| {
            Selector::compile(spec.pod_selector.as_ref(), problems)
        });
        Policy {
            egress: self.rules(List::Egress, spec.egress.as_deref()),
            private_answers: self.private_answers(spec.private_answers.as_deref()),
            deny: Vec::new(),
            ceiling: None,
            ..self.policy(selector, spec.mode)
        }
    }

    fn cluster_egress_policy(&mut self, policy: &ClusterEgressPolicy) -> Policy {
        self.api_version(&policy.api_version);
        let spec = &policy.spec;
        let pods = self.selector("podSelector", |problems| {
            Selector::compile(spec.pod_selector.as_ref(), problems)
        });
        let selector = self.selector("namespaceSelector", |problems| {
            pods.in_namespaces(spec.namespace_selector.as_ref(), problems)
        });
        let ceiling = spec.ceiling.as_deref().map(|rules| Ceiling {
            id: Arc::new(self.rule_id(List::Ceiling, None)),
            place: (self.place)(&[field("spec"), field("ceiling")]),
            rules: self.rules(List::Ceiling, Some(rules)),
        });
        Policy {
            egress: self.rules(List::Egress, spec.egress.as_deref()),
            deny: self.rules(List::Deny, spec.deny.as_deref()),
            ceiling,
            private_answers: self.private_answers(spec.private_answers.as_deref()),
            ..self.policy(selector, spec.mode)
        }
    }

    fn policy(&self, selector: Selector, mode: Mode) -> Policy {
        Policy {
            kind: self.kind,
            namespace: self.namespace.clone(),
            name: self.name.clone(),
            place: (self.place)(&[]),
            group: Group { selector, mode },
            egress: Vec::new(),
            deny: Vec::new(),
            ceiling: None,
            private_answers: Vec::new(),
        }
    }

    fn api_version(&mut self, api_version: &str) {
        if api_version != API_VERSION {
            self.problem_at(&["apiVersion"], |_| {
                format!(
                    "`{}` is not known; allowed is `{API_VERSION}`",
                    quoted(api_version)
                )
            });
        }
    }

    fn selector(
        &mut self,
        name: &str,
        compile: impl FnOnce(&mut Vec<(Vec<Step>, String)>) -> Selector,
    ) -> Selector {
        let mut problems = Vec::new();
        let selector = compile(&mut problems);
        self.problems
            .extend(problems.into_iter().map(|(below, message)| Problem {
                path: [vec![field("spec"), field(name)], below].concat(),
                message,
            }));
        selector
    }

    fn private_answers(&mut self, patterns: Option<&[String]>) -> Vec<HostPattern> {
        self.each("spec", "privateAnswers", patterns, |this, _, text| {
            this.host_pattern(text)
        })
    }

    fn rules(&mut self, list: List, rules: Option<&[RuleDocument]>) -> Vec<Rule> {
        self.each("spec", list.as_str(), rules, |this, index, rule| {
            Some(this.rule(list, index, rule))
        })
    }

    fn host_pattern(&mut self, text: &str) -> Option<HostPattern> {
        text.parse()
            .map_err(|error: super::PatternError| self.problem(error.to_string()))
            .ok()
    }

    fn rule_id(&self, list: List, index: Option<usize>) -> RuleId {
        RuleId {
            kind: self.kind,
            namespace: self.namespace.clone(),
            policy: self.name.clone(),
            list: list.as_str(),
            index,
        }
    }

    /// Compiles a list that must not be empty if it is there: Kubernetes would read an empty one as everything, other
    /// readers as nothing.
    fn list<T, C>(
        &mut self,
        name: &str,
        items: Option<&[T]>,
        mut compile: impl FnMut(&mut Self, &T) -> Option<C>,
    ) -> Vec<C> {
        if items.is_some_and(<[T]>::is_empty) {
            self.problem_at(&[name], |_| {
                format!("`{name}` is empty; give at least one entry, or leave the field or the rule out")
            });
        }
        self.each("", name, items, |this, _, item| compile(this, item))
    }

    fn each<T, C>(
        &mut self,
        parent: &str,
        name: &str,
        items: Option<&[T]>,
        mut compile: impl FnMut(&mut Self, usize, &T) -> Option<C>,
    ) -> Vec<C> {
        let depth = self.path.len();
        self.path.extend((!parent.is_empty()).then(|| field(parent)));
        self.path.push(field(name));
        let mut compiled = Vec::new();
        for (index, item) in items.into_iter().flatten().enumerate() {
            self.path.push(Step::Index(index));
            compiled.extend(compile(self, index, item));
            self.path.pop();
        }
        self.path.truncate(depth);
        compiled
    }

    fn within<C>(&mut self, name: &str, work: impl FnOnce(&mut Self) -> C) -> C {
        self.path.push(field(name));
        let result = work(self);
        self.path.pop();
        result
    }

    fn problem(&mut self, message: String) {
        self.problems.push(Problem {
            path: self.path.clone(),
            message,
        });
    }

    fn problem_at(&mut self, below: &[&str], message: impl FnOnce(&Self) -> String) {
        let message = message(self);
        let depth = self.path.len();
        self.path.extend(below.iter().map(|name| field(name)));
        self.problem(message);
        self.path.truncate(depth);
    }
}

fn field(name: &str) -> Step {
    Step::Field(name.to_owned())
}
