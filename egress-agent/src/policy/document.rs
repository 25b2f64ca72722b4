//! The policy documents as they are written: plain serde types, the same for files and for Kubernetes objects.
//!
//! Only shapes are checked here. What a value means, and whether it may stand where it stands, is decided by
//! [`super::compile`], which tells the path of what is wrong; [`super::yaml`] turns paths into lines and columns.
//!
//! The `schemars` attributes become the schema of the custom resources, and the comments what `kubectl explain` tells.
//! The schema never refuses what `compile` accepts but for its bounds on lengths, which CEL's cost estimate needs. Rules
//! in CEL repeat checks of `compile`: an API server before 1.25 drops them in silence.

use std::{collections::BTreeMap, fmt};

use schemars::JsonSchema;
use serde::{
    Deserialize, Deserializer, Serialize,
    de::{Error, IgnoredAny, Unexpected, Visitor},
};

/// The `apiVersion` of every document.
pub const API_VERSION: &str = "egress-enforcer.io/v1alpha1";
/// The group in it.
pub const API_GROUP: &str = "egress-enforcer.io";
/// The version in it.
pub const VERSION: &str = "v1alpha1";

/// What every host pattern looks like; which of them are good is decided by [`super::HostPattern`].
const DOMAIN: &str = r"^(\*\*?\.|\.)?[^*.\s/:@\[\]]+(\.[^*.\s/:@\[\]]+)*\.?$";
/// What every address block looks like.
const CIDR: &str = r"^[0-9A-Fa-f:.]+/[0-9]{1,3}$";
/// What every method looks like.
const METHOD: &str = r"^[A-Z0-9_-]+$";
/// What every path glob looks like.
const PATH: &str = r"^/";
/// What a label's value may be.
const LABEL_VALUE: &str = r"^([A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9])?)?$";
/// What a label's key may be.
const LABEL_KEY: &str = concat!(
    r"^([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*/)?",
    r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?$"
);
/// The same for the keys of a map, which a structural schema cannot speak of.
const LABEL_KEYS: &str = concat!(
    r"self.all(key, key.matches('^([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*/)?",
    r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?$'))"
);

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
    #[serde(default, rename = "generateName")]
    _generate_name: IgnoredAny,
    #[serde(default, rename = "generation")]
    _generation: IgnoredAny,
    #[serde(default, rename = "managedFields")]
    _managed_fields: IgnoredAny,
    #[serde(default, rename = "ownerReferences")]
    _owner_references: IgnoredAny,
    #[serde(default, rename = "resourceVersion")]
    _resource_version: IgnoredAny,
    #[serde(default, rename = "selfLink")]
    _self_link: IgnoredAny,
    #[serde(default, rename = "uid")]
    _uid: IgnoredAny,
}

/// What pods of the policy's namespace may reach. A pod that no policy selects may reach everything, unless the agent is
/// told otherwise; one that a policy selects may reach what the policies allow, and nothing else.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
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
    #[schemars(length(max = 1000))]
    pub egress: Option<Vec<Rule>>,
    /// Host patterns of names that may resolve to private addresses.
    #[schemars(length(max = 1000), inner(length(min = 1, max = 257), regex(pattern = DOMAIN)))]
    pub private_answers: Option<Vec<String>>,
}

/// What pods of all namespaces may reach, and what no policy of a namespace can allow them.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
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
    #[schemars(length(max = 1000))]
    pub deny: Option<Vec<Rule>>,
    /// If there: what is not in it cannot be allowed to the selected pods. Empty: nothing can.
    #[schemars(length(max = 1000))]
    pub ceiling: Option<Vec<Rule>>,
    /// What the selected pods may reach.
    #[schemars(length(max = 1000))]
    pub egress: Option<Vec<Rule>>,
    /// Host patterns of names that may resolve to private addresses.
    #[schemars(length(max = 1000), inner(length(min = 1, max = 257), regex(pattern = DOMAIN)))]
    pub private_answers: Option<Vec<String>>,
}

/// What becomes of a would-be denial.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize, JsonSchema,
)]
pub enum Mode {
    /// It is carried out.
    #[default]
    Enforce,
    /// It passes, and is logged.
    Audit,
}

/// A label selector: all of its requirements must hold; none: everything is selected.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(
    deny_unknown_fields,
    rename_all = "camelCase",
    expecting = "a mapping with `matchLabels` or `matchExpressions`"
)]
pub struct LabelSelector {
    /// Labels that must be there with these values.
    #[schemars(extend(
        "maxProperties" = 64,
        "additionalProperties" = {"type": "string", "maxLength": 63, "pattern": LABEL_VALUE},
        "x-kubernetes-validations" = [{
            "rule": LABEL_KEYS,
            "message": "label keys are NAME or PREFIX/NAME, where NAME has at most 63 letters, digits, `-`, `_` and `.`",
        }]
    ))]
    pub match_labels: Option<BTreeMap<String, String>>,
    /// Further requirements.
    #[schemars(length(max = 64))]
    pub match_expressions: Option<Vec<LabelRequirement>>,
}

/// One requirement on a label.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(
    deny_unknown_fields,
    expecting = "a mapping with `key`, `operator` and, for In and NotIn, `values`"
)]
#[schemars(extend(
    "oneOf" = [
        {"properties": {"operator": {"enum": ["In", "NotIn"]}, "values": {"minItems": 1}}, "required": ["values"]},
        {"properties": {"operator": {"enum": ["Exists", "DoesNotExist"]}, "values": {"maxItems": 0}}},
    ],
    "x-kubernetes-validations" = [{
        "rule": "self.operator in ['In', 'NotIn'] == (has(self.values) && size(self.values) > 0)",
        "message": "In and NotIn need at least one value; Exists and DoesNotExist take no `values`",
    }]
))]
pub struct LabelRequirement {
    /// The label's key.
    #[schemars(length(min = 1, max = 317), regex(pattern = LABEL_KEY))]
    pub key: String,
    /// How it is compared.
    pub operator: LabelOperator,
    /// What it is compared with, for `In` and `NotIn`.
    #[schemars(length(max = 256), inner(length(max = 63), regex(pattern = LABEL_VALUE)))]
    pub values: Option<Vec<String>>,
}

/// How a label is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
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
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(
    deny_unknown_fields,
    expecting = "a rule: a mapping with `to`, `ports` or `http`"
)]
#[schemars(extend("x-kubernetes-validations" = [
    {
        "rule": "!has(self.ports) || !self.ports.exists(p, has(p.protocol) && p.protocol == 'UDP') \
            || !self.to.exists(t, has(t.domain))",
        "message": "names are told apart on TCP only; UDP is allowed by rules whose `to` has only `cidr`",
    },
    {
        "rule": "!has(self.http) || !has(self.ports) \
            || self.ports.exists(p, !(has(p.protocol) && p.protocol == 'UDP') \
                && !(p.port == 443 && (!has(p.endPort) || p.endPort == 443))) \
            || self.ports.all(p, has(p.protocol) && p.protocol == 'UDP')",
        "message": "the rule's only port is 443, where requests are encrypted; `http` needs a port with plain HTTP, such as 80",
    },
]))]
pub struct Rule {
    /// Names and address blocks.
    #[schemars(length(min = 1, max = 1000))]
    pub to: Vec<Peer>,
    /// Ports. If absent: all for address blocks; for names 80 and 443, but in `deny` all.
    #[schemars(length(min = 1, max = 100))]
    pub ports: Option<Vec<Port>>,
    /// Plain HTTP requests; if absent, all traffic. Does not cover TLS, which is never opened.
    #[schemars(length(min = 1, max = 100))]
    pub http: Option<Vec<HttpRequest>>,
}

/// One entry of `to`: exactly one of `domain` and `cidr`.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(
    deny_unknown_fields,
    expecting = "a mapping with either `domain`, or `cidr` and perhaps `except`"
)]
#[schemars(extend(
    "oneOf" = [
        {"required": ["domain"], "not": {"anyOf": [{"required": ["cidr"]}, {"required": ["except"]}]}},
        {"required": ["cidr"], "not": {"required": ["domain"]}},
    ],
    "x-kubernetes-validations" = [{
        "rule": "has(self.domain) ? !has(self.cidr) && !has(self.except) : has(self.cidr)",
        "message": "an entry of `to` is either `domain`, or `cidr` with or without `except`",
    }]
))]
pub struct Peer {
    /// A host pattern: `example.com` (that name), `*.example.com` (one label below it), `**.example.com` (any number of
    /// labels below it) or `.example.com` (the name and all below it).
    #[schemars(length(min = 1, max = 257), regex(pattern = DOMAIN))]
    pub domain: Option<String>,
    /// An address block, for targets that are addresses and not names: `203.0.113.0/24`.
    #[schemars(length(min = 1, max = 49), regex(pattern = CIDR))]
    pub cidr: Option<String>,
    /// Blocks within `cidr` that this entry leaves out.
    #[schemars(length(max = 256), inner(length(min = 1, max = 49), regex(pattern = CIDR)))]
    pub except: Option<Vec<String>>,
}

/// One entry of `ports`.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(
    deny_unknown_fields,
    rename_all = "camelCase",
    expecting = "a mapping with `port`, and perhaps `endPort` and `protocol`"
)]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "!has(self.endPort) || self.endPort >= self.port",
    "message": "`endPort` is below `port`; it must be the same or higher",
}]))]
pub struct Port {
    /// The port, or the first of a range.
    #[serde(deserialize_with = "port")]
    #[schemars(range(min = 1, max = 65535))]
    pub port: u16,
    /// The last port of the range.
    #[serde(default, deserialize_with = "optional_port")]
    #[schemars(range(min = 1, max = 65535))]
    pub end_port: Option<u16>,
    /// The transport; UDP for address blocks only.
    #[serde(default)]
    pub protocol: Protocol,
}

/// The transport of a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum Protocol {
    /// TCP.
    #[default]
    Tcp,
    /// UDP, for `cidr` only.
    Udp,
}

/// One entry of `http`.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "a mapping with `methods` or `path`")]
pub struct HttpRequest {
    /// Methods, upper case; if absent, all.
    #[schemars(length(min = 1, max = 32), inner(length(min = 1, max = 64), regex(pattern = METHOD)))]
    pub methods: Option<Vec<String>>,
    /// A glob over the whole path without the query: `*` within a segment, `**` across segments; if absent, all paths.
    #[schemars(length(min = 1, max = 256), regex(pattern = PATH))]
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
