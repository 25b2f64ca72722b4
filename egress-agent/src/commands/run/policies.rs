//! Policies of the API server, and what is told to it.

use std::sync::Arc;

use tokio::{sync::mpsc, task::JoinSet};

use crate::{
    cluster::Cluster,
    config::Config,
    enforcer::Node,
    policy::{Denial, DenialFeed, PolicyMemory, PublishedPolicies},
    proxy::Services,
    publish::{self, Publisher},
};

/// What a node of a cluster has besides files.
#[derive(Debug, Default)]
pub(super) struct Policies {
    /// The API server's policies.
    pub(super) published: Option<PublishedPolicies>,
    /// Where denials are told.
    pub(super) denials: DenialFeed,
    publisher: Option<Publisher>,
    denied: Option<(Cluster, mpsc::Receiver<Denial>)>,
}

impl Policies {
    /// Begins to follow the API server's policies, with what is remembered of them. Nothing is told to it yet.
    ///
    /// # Errors
    /// What is missing in the configuration.
    pub(super) fn prepare(config: &Config, node: Option<&Node>) -> anyhow::Result<Self> {
        let mut policies = Self::default();
        let (Some(entries), Some(node)) = (&config.kubernetes, node) else {
            return Ok(policies);
        };
        if entries.policies {
            let namespace = publish::own_namespace(entries.namespace.as_deref())?;
            let memory = PolicyMemory::in_directory(&entries.state_directory.join(&config.instance));
            policies.published = Some(PublishedPolicies::follow(&node.cluster, Some(memory)));
            let directory = Arc::clone(&node.directory);
            let pods = move || directory.workloads();
            policies.publisher = Some(Publisher::new(node.cluster.clone(), &namespace, pods));
        }
        if entries.events {
            let (denials, denied) = DenialFeed::open();
            policies.denials = denials;
            policies.denied = Some((node.cluster.clone(), denied));
        }
        Ok(policies)
    }

    /// Tells the API server what happens here, until what is returned is dropped.
    pub(super) fn tell(self, services: Arc<Services>) -> JoinSet<()> {
        let mut told = JoinSet::new();
        if let Some(publisher) = self.publisher {
            let (leader, of_leader) = (publisher.clone(), Arc::clone(&services));
            told.spawn(async move { publisher.report(&services.policy).await });
            told.spawn(async move { leader.lead(&of_leader.policy).await });
        }
        if let Some((cluster, denied)) = self.denied {
            told.spawn(publish::tell_denials(cluster, denied));
        }
        told
    }
}
