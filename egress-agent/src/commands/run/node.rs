//! What an agent on a node of a cluster has besides: the API server, and the pods that it tells of.

use std::{path::PathBuf, sync::Arc};

use anyhow::ensure;
use tokio::time;

use super::place::Place;
use crate::{
    cluster::Cluster,
    config::KubernetesEntries,
    enforcer::Node,
    identity::{PodDirectory, PodMemory, PodSource, PodWatch, cgroup_path},
    kernel,
};

/// The node's side of a cluster, followed as long as this lives.
#[derive(Debug)]
pub(super) struct Followed {
    pub(super) source: PodSource,
    pub(super) node: Node,
    _watch: PodWatch,
}

/// Begins to follow the pods of this node, and waits for the first list of them: what is exempt is to be known before
/// anything is enforced. Without an API server the wait is bounded; pods that are neither told nor remembered are refused then.
///
/// # Errors
/// What is missing, in a sentence.
pub(super) async fn follow(
    entries: &KubernetesEntries,
    instance: &str,
    place: &Place,
    root: PathBuf,
) -> anyhow::Result<Followed> {
    require_host_pids(place, &root)?;
    let cluster = Cluster::prepare(entries.kubeconfig.as_deref(), entries.node_name.as_deref()).await?;
    let directory = PodDirectory::new(entries.exemptions());
    let memory = PodMemory::in_directory(&entries.state_directory.join(instance));
    let watch = directory.follow(&cluster, Some(memory));
    if time::timeout(entries.identity_wait(), directory.listed())
        .await
        .is_err()
    {
        let error = cluster.contact().status().error;
        match directory.counts().recalled_from {
            Some(from) => tracing::warn!(
                error,
                %from,
                "the API server has not told the pods of this node yet: those that the last agent knew are judged as it \
                 knew them, and what others connect to is refused"
            ),
            None => tracing::warn!(
                error,
                "the API server has not told the pods of this node yet: what they connect to is refused until it does"
            ),
        }
    }
    let counts = directory.counts();
    tracing::info!(
        node = cluster.node(),
        pods = counts.pods,
        exempt = counts.exempt,
        "the pods of this node"
    );
    let source = PodSource {
        root,
        directory: Arc::clone(&directory),
        exempt_static: entries.exempt.static_pods,
        patience: entries.identity_wait(),
    };
    Ok(Followed {
        source,
        node: Node { cluster, directory },
        _watch: watch,
    })
}

/// Refuses to be in a pod with process ids of its own: the processes that connect could not be found.
fn require_host_pids(place: &Place, root: &std::path::Path) -> anyhow::Result<()> {
    let first = kernel::cgroup_of(&place.mount, "1").ok();
    let pod = first
        .as_deref()
        .and_then(|cgroup| cgroup_path::parse(cgroup.strip_prefix(root).ok()?));
    ensure!(
        pod.is_none(),
        "the agent's pod has process ids of its own, so that it cannot find the processes of others: set `hostPID: true`"
    );
    Ok(())
}
