//! Which pods the configuration leaves alone.

use std::collections::{BTreeMap, BTreeSet};

use super::pod::Pod;

/// Which pods are not enforced. What a pod says of itself counts only in the namespaces that are listed for it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Exemptions {
    /// All pods of these namespaces.
    pub namespaces: BTreeSet<String>,
    /// Pods of a namespace that have all of these labels.
    pub pods: Vec<(String, BTreeMap<String, String>)>,
    /// Namespaces whose pods may ask for it by [`super::EXEMPT_ANNOTATION`].
    pub opt_out: BTreeSet<String>,
}

impl Exemptions {
    pub(super) fn cover(&self, pod: &Pod) -> bool {
        self.namespaces.contains(&pod.namespace)
            || (pod.wants_exemption && self.opt_out.contains(&pod.namespace))
            || self.pods.iter().any(|(namespace, labels)| {
                // Nothing that is said of no label covers a pod: that would be the whole namespace.
                *namespace == pod.namespace
                    && !labels.is_empty()
                    && labels
                        .iter()
                        .all(|(key, value)| pod.labels.get(key) == Some(value))
            })
    }
}
