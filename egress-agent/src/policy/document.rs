//! The policy documents as they are written: plain serde types, the same for files and for Kubernetes objects.
//!
//! Only shapes are checked here. What a value means, and whether it may stand where it stands, is decided by
//! [`super::compile`], which tells the path of what is wrong; [`super::yaml`] turns paths into lines and columns.

use std::{collections::BTreeMap, fmt};

use serde::{
    Deserialize, Deserializer,
    de::{Error, IgnoredAny, Unexpected, Visitor},
};

/// The `apiVersion` of every document.
pub const API_VERSION: &str = "egress-enforcer.io/v1alpha1";

/// A document of either kind.
#[derive(Debug, Clone)]
pub enum Document {
    /// Holds in one namespace.
    EgressPolicy(EgressPolicy),
    /// Holds in every namespace that it selects.
    ClusterEgressPolicy(ClusterEgressPolicy),
}

/// `kind: EgressPolicy`.
#[derive(Debug, Clone, Deserialize)]
#[serde(
    deny_unknown_fields,
    rename_all = "camelCase",
    expecting = "a mapping: an EgressPolicy"
)]
pub struct EgressPolicy {
    /// [`API_VERSION`].
    pub api_version: String,
    /// `EgressPolicy`.
    pub kind: String,
    /// Name and namespace.
    pub metadata: Metadata,
    /// What it says.
    pub spec: EgressPolicySpec,
    /// Kubernetes' own; not read.
    #[serde(default, rename = "status")]
    _status: IgnoredAny,
}

/// `kind: ClusterEgressPolicy`.
#[derive(Debug, Clone, Deserialize)]
#[serde(
    deny_unknown_fields,
    rename_all = "camelCase",
    expecting = "a mapping: a ClusterEgressPolicy"
)]
pub struct ClusterEgressPolicy {
    /// [`API_VERSION`].
    pub api_version: String,
    /// `ClusterEgressPolicy`.
    pub kind: String,
    /// Name; no namespace.
    pub metadata: Metadata,
    /// What it says.
    pub spec: ClusterEgressPolicySpec,
    /// Kubernetes' own; not read.
    #[serde(default, rename = "status")]
    _status: IgnoredAny,
}

/// Kubernetes' object metadata. Name and namespace are read; the other fields are there because the API server writes
/// them, and a misspelt `namespace` must still be an error.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(
    deny_unknown_fields,
    rename_all = "camelCase",
    expecting = "a mapping with `name`, and `namespace` for an EgressPolicy"
)]
pub struct Metadata {
    /// The policy's name, a DNS subdomain as all Kubernetes names.
    #[serde(default)]
    pub name: String,
    /// The namespace; `default` if absent, as kubectl does it.
    #[serde(default)]
    pub namespace: Option<String>,
    #[serde(default, rename = "labels")]
    _labels: IgnoredAny,
    #[serde(default, rename = "annotations")]
    _annotations: IgnoredAny,
    #[serde(default, rename = "creationTimestamp")]
    _creation_timestamp: IgnoredAny,
    #[serde(default, rename = "deletionTimestamp")]
    _deletion_timestamp: IgnoredAny,
    #[serde(default, rename = "deletionGracePeriodSeconds")]
    _deletion_grace_period_seconds: IgnoredAny,
    #[serde(default, rename = "finalizers")]
    _finalizers: IgnoredAny,
    #[serde(default, rename = "generation")]
    _generation: IgnoredAny,
    #[serde(default, rename = "managedFields")]
    _managed_fields: IgnoredAny,
    #[serde(default, rename = "ownerReferences")]
    _owner_references: IgnoredAny,
    #[serde(default, rename = "resourceVersion")]
    _resource_version: IgnoredAny,
    #[serde(default, rename = "uid")]
    _uid: IgnoredAny,
}

/// The `spec` of an [`EgressPolicy`].
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(
    deny_unknown_fields,
    rename_all = "camelCase",
    expecting = "a mapping with `podSelector`, `mode`, `egress` or `privateAnswers`"
)]
pub struct EgressPolicySpec {
    /// The pods that it selects; absent or `{}`: every pod of the namespace.
    pub pod_selector: Option<LabelSelector>,
    /// Whether its verdicts are carried out.
    #[serde(default)]
    pub mode: Mode,
    /// What the selected pods may reach.
    pub egress: Option<Vec<Rule>>,
    /// Host patterns of names that may resolve to private addresses.
    pub private_answers: Option<Vec<String>>,
}

/// The `spec` of a [`ClusterEgressPolicy`].
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(
    deny_unknown_fields,
    rename_all = "camelCase",
    expecting = "a mapping with `namespaceSelector`, `podSelector`, `mode`, `deny`, `ceiling`, `egress` or `privateAnswers`"
)]
pub struct ClusterEgressPolicySpec {
    /// The namespaces that it selects, by their labels; absent or `{}`: every namespace.
    pub namespace_selector: Option<LabelSelector>,
    /// The pods in them; absent or `{}`: every pod.
    pub pod_selector: Option<LabelSelector>,
    /// Whether its verdicts are carried out.
    #[serde(default)]
    pub mode: Mode,
    /// What no rule of any policy can allow to the selected pods.
    pub deny: Option<Vec<Rule>>,
    /// If there: what is not in it cannot be allowed to the selected pods.
    pub ceiling: Option<Vec<Rule>>,
    /// What the selected pods may reach.
    pub egress: Option<Vec<Rule>>,
    /// Host patterns of names that may resolve to private addresses.
    pub private_answers: Option<Vec<String>>,
}

/// What becomes of a would-be denial.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Deserialize)]
pub enum Mode {
    /// It is carried out.
    #[default]
    Enforce,
    /// It passes, and is logged.
    Audit,
}

/// Kubernetes' label selector: all of its requirements must hold.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(
    deny_unknown_fields,
    rename_all = "camelCase",
    expecting = "a mapping with `matchLabels` or `matchExpressions`"
)]
pub struct LabelSelector {
    /// Labels that must be there with these values.
    pub match_labels: Option<BTreeMap<String, String>>,
    /// Further requirements.
    pub match_expressions: Option<Vec<LabelRequirement>>,
}

/// One requirement of a [`LabelSelector`].
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(
    deny_unknown_fields,
    expecting = "a mapping with `key`, `operator` and, for In and NotIn, `values`"
)]
pub struct LabelRequirement {
    /// The label's key.
    pub key: String,
    /// How it is compared.
    pub operator: LabelOperator,
    /// What it is compared with, for `In` and `NotIn`.
    pub values: Option<Vec<String>>,
}

/// How a label is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum LabelOperator {
    /// The label is there with one of the values.
    In,
    /// The label is absent, or has none of the values.
    NotIn,
    /// The label is there.
    Exists,
    /// The label is absent.
    DoesNotExist,
}

/// One rule: it covers what matches one of `to`, one of `ports`, and one of `http` if that is there.
#[derive(Debug, Clone, Deserialize)]
#[serde(
    deny_unknown_fields,
    expecting = "a rule: a mapping with `to`, `ports` or `http`"
)]
pub struct Rule {
    /// Names and address blocks.
    pub to: Vec<Peer>,
    /// Ports; what is meant if absent depends on the list, see the manual.
    pub ports: Option<Vec<Port>>,
    /// Requests, for plain HTTP.
    pub http: Option<Vec<HttpRequest>>,
}

/// One entry of `to`: exactly one of `domain` and `cidr`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(
    deny_unknown_fields,
    expecting = "a mapping with either `domain`, or `cidr` and perhaps `except`"
)]
pub struct Peer {
    /// A host pattern.
    pub domain: Option<String>,
    /// An address block, for targets that are addresses and not names.
    pub cidr: Option<String>,
    /// Blocks within `cidr` that this entry leaves out.
    pub except: Option<Vec<String>>,
}

/// One entry of `ports`.
#[derive(Debug, Clone, Deserialize)]
#[serde(
    deny_unknown_fields,
    rename_all = "camelCase",
    expecting = "a mapping with `port`, and perhaps `endPort` and `protocol`"
)]
pub struct Port {
    /// The port, or the first of a range.
    #[serde(deserialize_with = "port")]
    pub port: u16,
    /// The last port of the range.
    #[serde(default, deserialize_with = "optional_port")]
    pub end_port: Option<u16>,
    /// TCP if absent.
    #[serde(default)]
    pub protocol: Protocol,
}

/// The transport of a [`Port`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Protocol {
    /// TCP.
    #[default]
    Tcp,
    /// UDP, for `cidr` only.
    Udp,
}

/// One entry of `http`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a mapping with `methods` or `path`")]
pub struct HttpRequest {
    /// Methods, upper case; absent: all.
    pub methods: Option<Vec<String>>,
    /// A path glob; absent: all paths.
    pub path: Option<String>,
}

struct PortVisitor;

impl Visitor<'_> for PortVisitor {
    type Value = u16;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a port number from 1 to 65535")
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<u16, E> {
        match u16::try_from(number) {
            Ok(port @ 1..) => Ok(port),
            Ok(0) | Err(_) => Err(E::invalid_value(Unexpected::Unsigned(number), &self)),
        }
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<u16, E> {
        match u64::try_from(number) {
            Ok(number) => self.visit_u64(number),
            Err(_) => Err(E::invalid_value(Unexpected::Signed(number), &self)),
        }
    }
}

fn port<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u16, D::Error> {
    deserializer.deserialize_u16(PortVisitor)
}

fn optional_port<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u16>, D::Error> {
    #[derive(Deserialize)]
    struct Number(#[serde(deserialize_with = "port")] u16);
    Ok(Option::<Number>::deserialize(deserializer)?.map(|Number(port)| port))
}
