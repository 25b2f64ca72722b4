//! The part of the configuration that is about Kubernetes.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use serde::Deserialize;

use crate::identity::Exemptions;

/// The cluster, and which of its pods are left alone. Its presence, even empty, makes the agent a node's.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct KubernetesEntries {
    /// The node's name in the API server; NODE_NAME in the environment if absent.
    pub node_name: Option<String>,
    /// How to reach the API server; the pod's service account if absent.
    pub kubeconfig: Option<PathBuf>,
    /// How long a connection waits for a pod that is not known yet.
    identity_wait_milliseconds: u64,
    /// Pods that are not enforced.
    pub exempt: ExemptEntries,
    /// Namespaces whose pods may exempt themselves by an annotation.
    pub opt_out_namespaces: Vec<String>,
    /// Whether policies are the API server's, too.
    pub policies: bool,
    /// Where the API server's policies are kept for the next start.
    pub state_directory: PathBuf,
    /// The namespace of the agents, where their Leases are.
    pub namespace: Option<String>,
    /// Whether denials are told as Events on the pods.
    pub events: bool,
}

/// Pods that are not enforced.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct ExemptEntries {
    /// All pods of these namespaces.
    pub namespaces: Vec<String>,
    /// Some pods of a namespace.
    pub pods: Vec<ExemptPods>,
    /// The pods that the kubelet has from files of the node.
    pub static_pods: bool,
}

/// Some pods of a namespace.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct ExemptPods {
    /// The namespace.
    pub namespace: String,
    /// Labels that a pod must all have.
    pub labels: BTreeMap<String, String>,
}

impl Default for KubernetesEntries {
    fn default() -> Self {
        Self {
            node_name: None,
            kubeconfig: None,
            identity_wait_milliseconds: 5000,
            exempt: ExemptEntries::default(),
            opt_out_namespaces: Vec::new(),
            policies: true,
            state_directory: PathBuf::from("/var/lib/egress-agent"),
            namespace: None,
            events: true,
        }
    }
}

impl Default for ExemptEntries {
    /// The cluster's own services must run before anything can be judged: without name service there are no names.
    fn default() -> Self {
        Self {
            namespaces: vec!["kube-system".to_owned()],
            pods: Vec::new(),
            static_pods: true,
        }
    }
}

impl KubernetesEntries {
    /// What types alone cannot say.
    pub(super) fn check(&self) -> Result<(), String> {
        if !(1..=60_000).contains(&self.identity_wait_milliseconds) {
            return Err("kubernetes.identityWaitMilliseconds: 1 to 60000 are allowed".to_owned());
        }
        if !self.state_directory.is_absolute() {
            return Err("kubernetes.stateDirectory: an absolute path is needed".to_owned());
        }
        let pods = &self.exempt.pods;
        if pods.iter().any(|pods| pods.labels.is_empty()) {
            return Err(
                "kubernetes.exempt.pods: at least one label is needed; a whole namespace belongs in exempt.namespaces"
                    .to_owned(),
            );
        }
        let names = self.exempt.namespaces.iter().chain(&self.opt_out_namespaces);
        match names
            .chain(pods.iter().map(|pods| &pods.namespace))
            .chain(&self.namespace)
            .find(|name| !is_namespace(name))
        {
            Some(wrong) => Err(format!(
                "kubernetes: `{wrong}` is no namespace: 1 to 63 lower-case letters, digits and - are allowed, no pattern"
            )),
            None => Ok(()),
        }
    }

    /// Which pods are left alone.
    #[must_use]
    pub fn exemptions(&self) -> Exemptions {
        let pods = self.exempt.pods.iter();
        Exemptions {
            namespaces: self.exempt.namespaces.iter().cloned().collect(),
            pods: pods
                .map(|pods| (pods.namespace.clone(), pods.labels.clone()))
                .collect(),
            opt_out: self.opt_out_namespaces.iter().cloned().collect(),
        }
    }

    /// How long a connection waits for a pod that is not known yet.
    #[must_use]
    pub const fn identity_wait(&self) -> Duration {
        Duration::from_millis(self.identity_wait_milliseconds)
    }
}

fn is_namespace(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    (1..=63).contains(&name.len()) && name.chars().all(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clusters_own_services_are_exempt_unless_told_otherwise() {
        let entries: KubernetesEntries = serde_saphyr::from_str("{}").unwrap();
        assert_eq!(entries.exempt.namespaces, ["kube-system"]);
        assert!(entries.opt_out_namespaces.is_empty());
        let none: KubernetesEntries = serde_saphyr::from_str("exempt: {namespaces: []}").unwrap();
        assert!(none.exempt.namespaces.is_empty());
    }

    #[test]
    fn what_would_exempt_more_than_it_seems_to_is_refused() {
        for (text, word) in [
            (
                "exempt: {pods: [{namespace: a, labels: {}}]}",
                "at least one label",
            ),
            ("exempt: {namespaces: ['*']}", "no pattern"),
            ("optOutNamespaces: ['']", "no namespace"),
            ("identityWaitMilliseconds: 0", "60000"),
        ] {
            let entries: KubernetesEntries = serde_saphyr::from_str(text).unwrap();
            let told = entries.check().unwrap_err();
            assert!(told.contains(word), "{told}");
        }
        assert!(serde_saphyr::from_str::<KubernetesEntries>("exempt: {pods: [{namespace: a}]}").is_err());
    }
}
