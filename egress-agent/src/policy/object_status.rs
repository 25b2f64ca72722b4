//! The `status` of the custom resources: what the cluster's agents make of an object.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The condition that tells whether the newest version could be read.
pub const ACCEPTED: &str = "Accepted";

/// What the agents make of the policy. Written by one of them.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ObjectStatus {
    /// The generation of the policy that all of this is about.
    pub observed_generation: i64,
    /// How many pods it selects, on nodes that have an agent.
    pub pods: u64,
    /// On how many nodes this generation is in force, of how many that have an agent: `2/3`.
    pub nodes: String,
    /// On how many nodes this generation is in force.
    pub nodes_in_force: u64,
    /// How many nodes have an agent.
    pub nodes_total: u64,
    /// `Accepted`: the policy could be read; if not, its message says what is wrong, where, and what is in force instead.
    #[schemars(extend(
        "x-kubernetes-list-type" = "map",
        "x-kubernetes-list-map-keys" = ["type"],
    ))]
    pub conditions: Vec<Condition>,
}

/// A condition as Kubernetes has them (`metav1.Condition`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// `Accepted`.
    #[serde(rename = "type")]
    #[schemars(length(min = 1, max = 316))]
    pub kind: String,
    /// `True`, `False` or `Unknown`.
    #[schemars(extend("enum" = ["True", "False", "Unknown"]))]
    pub status: String,
    /// The reason in one word.
    #[schemars(length(min = 1, max = 1024))]
    pub reason: String,
    /// The reason in words.
    #[schemars(length(max = 32768))]
    pub message: String,
    /// When `status` changed last.
    #[schemars(extend("format" = "date-time"))]
    pub last_transition_time: String,
    /// The generation of the policy that it is about.
    #[serde(default)]
    pub observed_generation: i64,
}

impl ObjectStatus {
    /// A condition, if it is there.
    #[must_use]
    pub fn condition(&self, kind: &str) -> Option<&Condition> {
        self.conditions.iter().find(|condition| condition.kind == kind)
    }
}
