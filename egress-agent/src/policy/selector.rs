//! Which workloads a policy selects: Kubernetes' label selectors, checked and ready to evaluate.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    document::{LabelOperator, LabelSelector, Mode},
    problem::{Step, quoted},
};
use crate::identity::Workload;

/// The label that Kubernetes gives every namespace; supplied here where the workload's source did not.
const NAMESPACE_NAME: &str = "kubernetes.io/metadata.name";
/// Longest label value, and longest name part of a label key.
const MAX_LABEL: usize = 63;
/// Longest prefix part of a label key.
const MAX_PREFIX: usize = 253;

/// Selects workloads by their own labels and their namespace's.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub(super) struct Selector {
    pod: Requirements,
    namespace: Requirements,
}

/// A group of policies that always apply together: same selector, same mode.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Group {
    pub(super) selector: Selector,
    pub(super) mode: Mode,
}

/// Requirements that must all hold; none: everything is selected. Sorted, so that equal selectors are equal values.
type Requirements = BTreeSet<(String, Requirement)>;

#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Requirement {
    In(BTreeSet<String>),
    NotIn(BTreeSet<String>),
    Exists,
    DoesNotExist,
}

/// What is wrong with a selector, with the way to it from the selector's own field.
type Problems = Vec<(Vec<Step>, String)>;

impl Selector {
    /// Compiles the two selectors of a policy; an absent one selects everything. Problems are appended for the caller to
    /// put below the right field.
    pub(super) fn compile(pod: Option<&LabelSelector>, problems: &mut Problems) -> Self {
        Self {
            pod: pod
                .map(|selector| requirements(selector, problems))
                .unwrap_or_default(),
            namespace: Requirements::default(),
        }
    }

    /// Narrows the selector to namespaces whose labels match.
    pub(super) fn in_namespaces(
        mut self,
        namespace: Option<&LabelSelector>,
        problems: &mut Problems,
    ) -> Self {
        self.namespace = namespace
            .map(|selector| requirements(selector, problems))
            .unwrap_or_default();
        self
    }

    /// Whether the workload is selected.
    pub(super) fn selects(&self, workload: &Workload) -> bool {
        self.pod
            .iter()
            .all(|(key, requirement)| requirement.holds(workload.labels.get(key).map(String::as_str)))
            && self
                .namespace
                .iter()
                .all(|(key, requirement)| requirement.holds(namespace_label(workload, key)))
    }

    /// A pod label that every selected workload has with this value, if the selector demands one: the key of an index.
    pub(super) fn demanded_pod_label(&self) -> Option<(&str, &str)> {
        demanded(&self.pod)
    }

    /// The same of the namespace's labels.
    pub(super) fn demanded_namespace_label(&self) -> Option<(&str, &str)> {
        demanded(&self.namespace)
    }
}

impl Group {
    /// Selects every workload and enforces.
    pub(super) fn everything() -> Self {
        Self {
            selector: Selector::default(),
            mode: Mode::Enforce,
        }
    }
}

impl Requirement {
    fn holds(&self, label: Option<&str>) -> bool {
        match self {
            Self::In(values) => label.is_some_and(|value| values.contains(value)),
            Self::NotIn(values) => label.is_none_or(|value| !values.contains(value)),
            Self::Exists => label.is_some(),
            Self::DoesNotExist => label.is_none(),
        }
    }
}

/// A label of the workload's namespace. Its name always counts as one, and cannot be overridden.
pub(super) fn namespace_label<'a>(workload: &'a Workload, key: &str) -> Option<&'a str> {
    if key == NAMESPACE_NAME {
        return Some(&workload.namespace);
    }
    workload.namespace_labels.get(key).map(String::as_str)
}

/// Every label of the workload's namespace, as [`namespace_label`] tells them.
pub(super) fn namespace_labels(workload: &Workload) -> impl Iterator<Item = (&str, &str)> {
    workload
        .namespace_labels
        .iter()
        .map(|(key, value)| (key.as_str(), value.as_str()))
        .filter(|(key, _)| *key != NAMESPACE_NAME)
        .chain([(NAMESPACE_NAME, workload.namespace.as_str())])
}

fn demanded(requirements: &Requirements) -> Option<(&str, &str)> {
    requirements
        .iter()
        .find_map(|(key, requirement)| match requirement {
            Requirement::In(values) if values.len() == 1 => {
                values.first().map(|value| (key.as_str(), value.as_str()))
            }
            Requirement::In(_) | Requirement::NotIn(_) | Requirement::Exists | Requirement::DoesNotExist => {
                None
            }
        })
}

fn requirements(selector: &LabelSelector, problems: &mut Problems) -> Requirements {
    let mut compiled = Requirements::new();
    let none = BTreeMap::new();
    for (key, value) in selector.match_labels.as_ref().unwrap_or(&none) {
        let path = || vec![field("matchLabels"), field(key)];
        problems.extend(key_problem(key).map(|message| (path(), message)));
        problems.extend(value_problem(value).map(|message| (path(), message)));
        compiled.insert((key.clone(), Requirement::In(BTreeSet::from([value.clone()]))));
    }
    for (index, expression) in selector.match_expressions.iter().flatten().enumerate() {
        let path = |last: &str| vec![field("matchExpressions"), Step::Index(index), field(last)];
        problems.extend(key_problem(&expression.key).map(|message| (path("key"), message)));
        let values: BTreeSet<_> = expression.values.iter().flatten().cloned().collect();
        for value in &values {
            problems.extend(value_problem(value).map(|message| (path("values"), message)));
        }
        let takes_values = matches!(expression.operator, LabelOperator::In | LabelOperator::NotIn);
        if takes_values && values.is_empty() {
            let message = "`values` is empty; In and NotIn need at least one value";
            problems.push((path("values"), message.to_owned()));
        }
        if !takes_values && !values.is_empty() {
            let message = "Exists and DoesNotExist take no `values`";
            problems.push((path("values"), message.to_owned()));
        }
        let requirement = match expression.operator {
            LabelOperator::In => Requirement::In(values),
            LabelOperator::NotIn => Requirement::NotIn(values),
            LabelOperator::Exists => Requirement::Exists,
            LabelOperator::DoesNotExist => Requirement::DoesNotExist,
        };
        compiled.insert((expression.key.clone(), requirement));
    }
    compiled
}

/// Why `key` cannot be a label's key. A selector by a label that no pod can have would select nothing, and leave the
/// pods unrestricted that it was meant for.
fn key_problem(key: &str) -> Option<String> {
    let (prefix, name) = key.rsplit_once('/').unwrap_or(("x", key));
    let good_prefix = prefix.len() <= MAX_PREFIX && prefix.split('.').all(is_dns_label);
    if good_prefix && !name.is_empty() && is_label_text(name) {
        return None;
    }
    Some(format!(
        "`{}` is not a label key; allowed are NAME and PREFIX/NAME, where NAME has at most 63 letters, digits, `-`, \
         `_` and `.`, and PREFIX is a DNS name",
        quoted(key)
    ))
}

fn value_problem(value: &str) -> Option<String> {
    if is_label_text(value) {
        return None;
    }
    Some(format!(
        "`{}` is not a label value; allowed are at most 63 letters, digits, `-`, `_` and `.`, with a letter or \
         digit at both ends, or nothing",
        quoted(value)
    ))
}

fn is_label_text(text: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    let ends = [text.bytes().next(), text.bytes().next_back()];
    text.len() <= MAX_LABEL
        && text.bytes().all(inner)
        && ends
            .into_iter()
            .flatten()
            .all(|byte| byte.is_ascii_alphanumeric())
}

/// Whether the text is a DNS label as Kubernetes demands it of names (RFC 1123).
pub(super) fn is_dns_label(text: &str) -> bool {
    let ends = [text.bytes().next(), text.bytes().next_back()];
    (1..=MAX_LABEL).contains(&text.len())
        && text
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
        && ends.into_iter().flatten().all(|byte| byte != b'-')
}

fn field(name: &str) -> Step {
    Step::Field(name.to_owned())
}

#[cfg(test)]
mod tests;
