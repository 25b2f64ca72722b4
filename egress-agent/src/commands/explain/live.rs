//! Who a pod is and which policies there are, as the API server tells.

use std::{collections::BTreeSet, path::Path};

use anyhow::{Context, bail};
use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::{
    Api, Client,
    api::{DynamicObject, ListParams},
};
use tokio::runtime;

use super::Asked;
use crate::{
    cli::PodName,
    cluster::{self, Cluster},
    identity::Workload,
    policy::{
        Policy, PolicyKind, PolicyObjects,
        crd::{CLUSTER_EGRESS_POLICY, EGRESS_POLICY, Names},
        policy_object, resource,
    },
};

/// Asks, by a kubeconfig or as the service account of this pod. `files` come in addition, and in the place of objects of
/// their names.
///
/// # Errors
/// There is no such pod, or the server refuses or does not answer.
pub(super) fn ask(kubeconfig: Option<&Path>, pod: &PodName, files: Vec<Policy>) -> anyhow::Result<Asked> {
    let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let usual = cluster::usual_kubeconfig();
        // Which node this is does not matter to a question.
        let cluster = Cluster::prepare(kubeconfig.or(usual.as_deref()), Some("none")).await?;
        gather(&cluster.client(), pod, files).await
    })
}

async fn gather(client: &Client, pod: &PodName, files: Vec<Policy>) -> anyhow::Result<Asked> {
    let (namespace, name) = (pod.namespace.as_str(), pod.name.as_str());
    let found = Api::<Pod>::namespaced(client.clone(), namespace)
        .get_opt(name)
        .await
        .context("cannot ask the API server for the pod")?;
    let Some(found) = found else {
        bail!("there is no pod {namespace}/{name}");
    };
    let labels = Api::<Namespace>::all(client.clone())
        .get(namespace)
        .await
        .context("cannot ask the API server for the labels of the namespace")?
        .metadata
        .labels;
    let mut objects = PolicyObjects::default();
    let here = Api::namespaced_with(client.clone(), namespace, &resource(EGRESS_POLICY));
    list(&mut objects, PolicyKind::EgressPolicy, EGRESS_POLICY, &here).await?;
    let all = Api::all_with(client.clone(), &resource(CLUSTER_EGRESS_POLICY));
    list(
        &mut objects,
        PolicyKind::ClusterEgressPolicy,
        CLUSTER_EGRESS_POLICY,
        &all,
    )
    .await?;

    let names: BTreeSet<_> = files.iter().map(Policy::key).collect();
    let broken = objects
        .facts(&names)
        .filter_map(|fact| Some(format!("{}: {}", fact.key, fact.error?)));
    Ok(Asked {
        workload: Workload {
            namespace: namespace.to_owned(),
            namespace_labels: labels.unwrap_or_default(),
            name: name.to_owned(),
            labels: found.metadata.labels.unwrap_or_default(),
            ..Workload::default()
        },
        broken: broken.collect(),
        policies: objects.policies(&names).chain(files.iter().cloned()).collect(),
    })
}

async fn list(
    objects: &mut PolicyObjects,
    kind: PolicyKind,
    names: Names,
    api: &Api<DynamicObject>,
) -> anyhow::Result<()> {
    let listed = match api.list(&ListParams::default()).await {
        Ok(listed) => listed,
        Err(kube::Error::Api(status)) if status.code == 404 => {
            bail!(
                "the API server knows no {}: are the custom resources installed?",
                names.kind
            )
        }
        Err(error) => {
            return Err(error).with_context(|| format!("cannot ask the API server for {}", names.plural));
        }
    };
    for object in listed {
        if let Some(object) = policy_object(kind, object) {
            objects.apply(object);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
