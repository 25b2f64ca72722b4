//! Pods of the tests: a shell and curl.

use super::{Cluster, SOON};

/// A pod to be made.
#[derive(Debug, Clone)]
pub struct Pod {
    namespace: String,
    name: String,
    node: u8,
    labels: String,
    host_network: bool,
}

/// What a pod does.
#[derive(Debug, Clone, Copy)]
pub enum PodKind<'a> {
    /// It waits to be told.
    Idle,
    /// It runs this and ends.
    Runs(&'a str),
}

impl Pod {
    /// `name` in `namespace`, on node 1.
    #[must_use]
    pub fn new(namespace: &str, name: &str) -> Self {
        Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            node: 1,
            labels: format!("app: {name}"),
            host_network: false,
        }
    }

    /// On another node.
    #[must_use]
    pub const fn on(mut self, node: u8) -> Self {
        self.node = node;
        self
    }

    /// In the node's network.
    #[must_use]
    pub const fn host_network(mut self) -> Self {
        self.host_network = true;
        self
    }

    /// As a document.
    #[must_use]
    pub fn document(&self, kind: PodKind<'_>) -> String {
        let Self {
            namespace,
            name,
            labels,
            ..
        } = self;
        let line = match kind {
            PodKind::Idle => "trap 'exit 0' TERM; sleep 1000000 & wait".to_owned(),
            PodKind::Runs(line) => line.to_owned(),
        };
        let spec = self.spec(&line);
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: {namespace}, labels: {{{labels}}}}}\nspec:\n{spec}"
        )
    }

    /// As a Job that runs a line once.
    #[must_use]
    pub fn job(&self, line: &str) -> String {
        let Self {
            namespace,
            name,
            labels,
            ..
        } = self;
        let spec = self.spec(line).replace("\n  ", "\n      ");
        format!(
            "apiVersion: batch/v1\nkind: Job\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec:\n  backoffLimit: 0\n  \
             template:\n    metadata: {{labels: {{{labels}}}}}\n    spec:\n    {spec}"
        )
    }

    /// What both have, indented by two.
    fn spec(&self, line: &str) -> String {
        format!(
            "  nodeName: node{}\n  hostNetwork: {}\n  dnsPolicy: ClusterFirstWithHostNet\n  \
             restartPolicy: Never\n  terminationGracePeriodSeconds: 0\n  automountServiceAccountToken: false\n  \
             containers:\n  - name: c\n    image: localhost/tools:1\n    imagePullPolicy: Never\n    \
             command: [sh, -c, {}]\n",
            self.node,
            self.host_network,
            serde_json::Value::from(line)
        )
    }

    /// Makes it, and waits until it runs.
    pub async fn start(self, cluster: &Cluster) -> Self {
        cluster.apply(&self.document(PodKind::Idle)).await;
        let seconds = SOON.as_secs();
        cluster
            .kubectl(&[
                "-n",
                &self.namespace,
                "wait",
                "--for=condition=Ready",
                &format!("pod/{}", self.name),
                &format!("--timeout={seconds}s"),
            ])
            .await;
        self
    }

    /// Runs a shell line in it.
    ///
    /// # Errors
    /// What it printed before it failed.
    pub async fn run(&self, cluster: &Cluster, line: &str) -> Result<String, String> {
        cluster
            .try_kubectl(&["-n", &self.namespace, "exec", &self.name, "--", "sh", "-c", line])
            .await
    }

    /// Asks for a URL with curl: the status code, or curl's complaint.
    ///
    /// # Errors
    /// curl's own message.
    pub async fn get(&self, cluster: &Cluster, url: &str) -> Result<String, String> {
        self.run(
            cluster,
            &format!("curl -sS -k --max-time 30 -o /dev/null -w '%{{http_code}}' {url}"),
        )
        .await
    }

    /// Ends it, and waits for that. Where a namespace goes its policies may go first: what goes on in a pod then is not
    /// denied any more, and would be seen by the next test.
    pub async fn end(self, cluster: &Cluster) {
        let words = ["-n", &self.namespace, "delete", "pod", &self.name];
        cluster
            .kubectl(&[&words[..], &["--grace-period=1", "--wait=true", "--timeout=120s"]].concat())
            .await;
    }

    /// Its address.
    ///
    /// # Panics
    /// It has none yet.
    pub async fn ip(&self, cluster: &Cluster) -> String {
        cluster
            .kubectl(&[
                "-n",
                &self.namespace,
                "get",
                "pod",
                &self.name,
                "-o",
                "jsonpath={.status.podIP}",
            ])
            .await
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }
}
