//! How the agent speaks to a Kubernetes API server: the client, whether it is answered, and watches that never give up.

mod contact;
mod follow;
mod kept;
mod wait;

pub use contact::{Contact, ContactStatus};
pub use follow::{follow, watching};
pub use kept::Kept;

use std::{
    env,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, bail};
use kube::{
    Client,
    client::ClientBuilder,
    config::{Config, KubeConfigOptions, Kubeconfig},
};

/// The environment variable in which a DaemonSet tells its pods the node's name (downward API, `spec.nodeName`).
pub const NODE_NAME: &str = "NODE_NAME";

/// How long a connection to the API server may take. A watch that has been lost is begun again, so that a server that is
/// gone is noticed within this time.
const CONNECT_PATIENCE: Duration = Duration::from_secs(5);

/// A Kubernetes cluster, by its API server. Cloning shares the connection.
#[derive(Clone)]
pub struct Cluster {
    client: Client,
    contact: Arc<Contact>,
    node: Arc<str>,
}

impl Cluster {
    /// Prepares to speak to the API server, by a kubeconfig file or as the service account of this pod. Nothing is sent
    /// yet: a server that does not answer must not keep the agent from its work. Must be called inside a runtime.
    ///
    /// # Errors
    /// There is neither file nor service account, one of them is broken, or nobody has said which node this is.
    pub async fn prepare(kubeconfig: Option<&Path>, node: Option<&str>) -> anyhow::Result<Self> {
        let node = node_name(node, env::var(NODE_NAME).ok())?;
        let mut config = match kubeconfig {
            Some(path) => of_file(path).await?,
            None => Config::incluster().context(
                "no API server: this is no pod with a service account (mount its token, or give `kubernetes.kubeconfig`)",
            )?,
        };
        config.connect_timeout = Some(CONNECT_PATIENCE);
        let contact = Arc::new(Contact::default());
        let client = ClientBuilder::try_from(config)
            .context("cannot speak to the API server")?
            .with_layer(&contact::ContactLayer::new(Arc::clone(&contact)))
            .build();
        Ok(Self {
            client,
            contact,
            node: node.into(),
        })
    }

    /// A cluster behind a client of any kind, as tests have it.
    #[must_use]
    pub fn with_client(client: Client, node: &str) -> Self {
        Self {
            client,
            contact: Arc::default(),
            node: node.into(),
        }
    }

    /// The client.
    #[must_use]
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// The node that this agent is on.
    #[must_use]
    pub fn node(&self) -> &str {
        &self.node
    }

    /// Whether the server answers, and since when.
    #[must_use]
    pub fn contact(&self) -> &Contact {
        &self.contact
    }
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cluster")
            .field("node", &self.node)
            .finish_non_exhaustive()
    }
}

async fn of_file(path: &Path) -> anyhow::Result<Config> {
    let read =
        Kubeconfig::read_from(path).with_context(|| format!("kubernetes.kubeconfig: {}", path.display()))?;
    Config::from_custom_kubeconfig(read, &KubeConfigOptions::default())
        .await
        .with_context(|| format!("kubernetes.kubeconfig: {}", path.display()))
}

fn node_name(configured: Option<&str>, environment: Option<String>) -> anyhow::Result<String> {
    let Some(name) = configured.map(str::to_owned).or(environment) else {
        bail!(
            "which node is this? give `kubernetes.nodeName`, or {NODE_NAME} in the environment (downward API: spec.nodeName)"
        );
    };
    // It becomes part of a field selector: a comma would add a condition of its own.
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
    if name.is_empty() || name.len() > 253 || !name.chars().all(plain) {
        bail!("the node's name `{name}` is none: 1 to 253 lower-case letters, digits, - and . are allowed");
    }
    Ok(name)
}

/// The kubeconfig that a person's kubectl would use.
#[must_use]
pub fn usual_kubeconfig() -> Option<PathBuf> {
    let named = env::var_os("KUBECONFIG").map(PathBuf::from);
    named
        .or_else(|| Some(Path::new(&env::var_os("HOME")?).join(".kube/config")))
        .filter(|path| path.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_has_a_name_that_can_be_selected_by() {
        assert_eq!(
            node_name(Some("worker-1.example"), None).unwrap(),
            "worker-1.example"
        );
        assert_eq!(node_name(None, Some("n2".to_owned())).unwrap(), "n2");
        assert!(node_name(None, None).unwrap_err().to_string().contains(NODE_NAME));
        for wrong in ["", "a,spec.nodeName=b", "UPPER", "a=b"] {
            assert!(node_name(Some(wrong), None).is_err(), "{wrong}");
        }
    }

    #[tokio::test]
    async fn a_broken_kubeconfig_is_named() {
        let missing = Cluster::prepare(Some(Path::new("/nonexistent/kubeconfig")), Some("n1")).await;
        let told = format!("{:#}", missing.unwrap_err());
        assert!(
            told.starts_with("kubernetes.kubeconfig: /nonexistent/kubeconfig: "),
            "{told}"
        );
    }
}
