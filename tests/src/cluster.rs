//! A real Kubernetes of two nodes with a world around it, for the tests of what is deployed. `cargo xtask cluster` starts
//! it and tells where it is; the world (name server, origins) is made here, on the nodes' network, and has no way out.
//!
//! ```text
//!   pods 10.42.1.0/24 -- node1 --.
//!                                  egress-cluster (bridge) -- outside: 10.123.0.2, 198.51.100.0/24, 203.0.113.0/24
//!   pods 10.42.2.0/24 -- node2 --'
//! ```

mod nodes;
mod pods;

pub use nodes::Node;
pub use pods::{Pod, PodKind};

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use serde_json::Value;
use tokio::{io::AsyncWriteExt, process::Command, sync::OnceCell};

use crate::{
    certificates::Authority,
    dns::{Answer, DnsServer, Zone},
    lab::{Place, address, ip},
    origins::Origin,
};

/// How long what must come about in a cluster may take on a busy machine.
pub const SOON: Duration = Duration::from_secs(90);

/// Where the agents are.
pub const NAMESPACE: &str = "egress-enforcer";

/// The names of the world. No policy of the tests allows `evil.test`.
const NAMES: [(&str, &str); 4] = [
    ("ssd.jpl.nasa.gov", "198.51.100.10"),
    ("www.nasa.gov", "198.51.100.11"),
    ("other.test", "198.51.100.20"),
    ("evil.test", "198.51.100.66"),
];

/// The cluster's own name server, as a Service in front of the world's.
const NAME_SERVICE: &str = "
apiVersion: v1
kind: Service
metadata: {name: kube-dns, namespace: kube-system}
spec:
  clusterIP: 10.43.0.10
  ports: [{name: udp, port: 53, protocol: UDP}, {name: tcp, port: 53, protocol: TCP}]
---
apiVersion: v1
kind: Endpoints
metadata: {name: kube-dns, namespace: kube-system}
subsets:
- addresses: [{ip: 198.51.100.53}]
  ports: [{name: udp, port: 53, protocol: UDP}, {name: tcp, port: 53, protocol: TCP}]
";

/// The cluster, with the agents on it.
#[derive(Debug)]
pub struct Cluster {
    /// The script that has started it.
    script: PathBuf,
    /// Its state.
    run: PathBuf,
    /// Where the origins are.
    pub outside: Place,
    /// What the name server tells.
    pub zone: Zone,
    /// The name server.
    pub dns: DnsServer,
    /// By name, in TLS on port 443 and in clear on port 80.
    origins: Vec<(&'static str, Origin, Origin)>,
}

/// Whether `cargo xtask cluster` has started a cluster of its own, whose nodes can be entered.
#[must_use]
pub fn has_nodes() -> bool {
    std::env::var_os("RUN").is_some_and(|run| Path::new(&run).join("pids").is_dir())
}

/// Whether its programs include a server that knows rules in CEL.
#[must_use]
pub fn has_rules() -> bool {
    std::env::var_os("BIN").is_some_and(|bin| Path::new(&bin).join("apiextensions-apiserver").is_file())
}

impl Cluster {
    /// The one of this test program, with its world and the agents in force, made at first use.
    pub async fn get() -> &'static Self {
        static CLUSTER: OnceCell<Cluster> = OnceCell::const_new();
        CLUSTER
            .get_or_init(|| async {
                let cluster = Self::connect().await;
                cluster.install().await;
                cluster
            })
            .await
    }

    async fn connect() -> Self {
        let outside = Place::new("outside");
        let run = PathBuf::from(std::env::var_os("RUN").expect("RUN: started by `cargo xtask cluster test`"));
        let peer = outside.net();
        for line in [
            format!(
                "link add outside type veth peer name eth0 netns {}",
                peer.display()
            ),
            "link set outside master egress0 up".to_owned(),
        ] {
            let output = Command::new("ip")
                .args(["-n", "egress-cluster"])
                .args(line.split_whitespace())
                .output()
                .await
                .expect("ip runs");
            assert!(
                output.status.success(),
                "ip {line}: {}",
                String::from_utf8_lossy(&output.stderr)
            );
        }
        outside
            .ip("addr add 10.123.0.2/24 dev eth0
                 link set eth0 up
                 route add 10.42.1.0/24 via 10.123.0.11
                 route add 10.42.2.0/24 via 10.123.0.12
                 route add local 198.51.100.0/24 dev lo
                 route add local 203.0.113.0/24 dev lo")
            .await;
        let zone = Zone::default();
        let mut origins = Vec::new();
        for (name, at) in NAMES {
            zone.set(name, Answer::Addresses(vec![ip(at)]));
            let tls = Authority::get().server(name, &["h2", "http/1.1"]);
            let https = Origin::web(&outside, vec![address(&format!("{at}:443"))], name, Some(tls)).await;
            let http = Origin::web(&outside, vec![address(&format!("{at}:80"))], name, None).await;
            origins.push((name, https, http));
        }
        let dns = DnsServer::start(&outside, address("198.51.100.53:53"), zone.clone()).await;
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("cluster/machine/cluster.sh");
        let cluster = Self {
            script,
            run,
            outside,
            zone,
            dns,
            origins,
        };
        cluster.apply(NAME_SERVICE).await;
        cluster
    }

    /// Installs as a person would, but for the cluster's own addresses and a second log; waits for every node.
    pub async fn install(&self) {
        let overlay = Path::new(env!("CARGO_MANIFEST_DIR")).join("cluster/deploy");
        self.kubectl(&["apply", "-k", &overlay.display().to_string()])
            .await;
        self.rolled_out().await;
    }

    /// Waits until every node runs what was applied last.
    pub async fn rolled_out(&self) {
        self.kubectl(&[
            "-n",
            NAMESPACE,
            "rollout",
            "status",
            "daemonset/egress-agent",
            "--timeout=120s",
        ])
        .await;
    }

    /// A node.
    #[must_use]
    pub fn node(&self, number: u8) -> Node<'_> {
        Node {
            cluster: self,
            number,
        }
    }

    /// The origin in TLS of `name`.
    ///
    /// # Panics
    /// The world has none.
    #[must_use]
    pub fn https(&self, name: &str) -> &Origin {
        &self.origin(name).1
    }

    /// The origin in clear of `name`.
    ///
    /// # Panics
    /// The world has none.
    #[must_use]
    pub fn http(&self, name: &str) -> &Origin {
        &self.origin(name).2
    }

    fn origin(&self, name: &str) -> &(&'static str, Origin, Origin) {
        self.origins
            .iter()
            .find(|(known, _, _)| *known == name)
            .unwrap_or_else(|| panic!("no origin is {name}"))
    }

    /// Runs kubectl and returns what it prints.
    ///
    /// # Panics
    /// It fails.
    pub async fn kubectl(&self, words: &[&str]) -> String {
        match self.try_kubectl(words).await {
            Ok(text) => text,
            Err(text) => panic!("kubectl {}: {text}", words.join(" ")),
        }
    }

    /// Runs kubectl.
    ///
    /// # Errors
    /// What it printed before it failed.
    pub async fn try_kubectl(&self, words: &[&str]) -> Result<String, String> {
        let output = Command::new("kubectl")
            .args(words)
            .output()
            .await
            .expect("kubectl runs");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        if output.status.success() {
            return Ok(text);
        }
        Err(format!("{text}{}", String::from_utf8_lossy(&output.stderr)))
    }

    /// The same as a JSON document.
    pub async fn json(&self, words: &[&str]) -> Value {
        let text = self.kubectl(&[words, &["-o", "json"]].concat()).await;
        serde_json::from_str(&text).expect("kubectl prints JSON")
    }

    /// Applies documents.
    ///
    /// # Panics
    /// The API server refuses one.
    pub async fn apply(&self, documents: &str) {
        let mut kubectl = Command::new("kubectl")
            .args(["apply", "-f", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("kubectl runs");
        let mut input = kubectl.stdin.take().expect("a pipe");
        input
            .write_all(documents.as_bytes())
            .await
            .expect("kubectl reads");
        drop(input);
        let output = kubectl.wait_with_output().await.expect("kubectl ends");
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{told}\nof:\n{documents}");
    }

    /// A namespace of a test, empty at its begin.
    pub async fn namespace(&self, name: &str) {
        self.try_kubectl(&["delete", "namespace", name, "--ignore-not-found"])
            .await
            .unwrap_or_else(|told| panic!("{told}"));
        self.apply(&format!(
            "apiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}}}\n"
        ))
        .await;
        // The controller manager makes it, and no pod is admitted before; after the API server was away it takes a while.
        self.eventually("the namespace has its service account", async || {
            let words = ["-n", name, "get", "serviceaccount", "default"];
            self.try_kubectl(&words).await.is_ok()
        })
        .await;
    }

    /// Ends a test's namespace; nobody waits for it.
    pub async fn forget(&self, namespace: &str) {
        self.kubectl(&["delete", "namespace", namespace, "--wait=false"])
            .await;
    }

    /// The records of the access log that `is_wanted` of all nodes' agents, present ones and those that were replaced last.
    pub async fn records(&self, is_wanted: impl Fn(&Value) -> bool) -> Vec<Value> {
        let mut records = Vec::new();
        for line in self.agents_output().await.lines() {
            if let Ok(record) = serde_json::from_str::<Value>(line)
                && is_wanted(&record)
            {
                records.push(record);
            }
        }
        records
    }

    /// What all agents have printed.
    pub async fn agents_output(&self) -> String {
        let selector = "app.kubernetes.io/name=egress-agent";
        self.kubectl(&["-n", NAMESPACE, "logs", "-l", selector, "--tail=-1"])
            .await
    }

    /// Waits for what no event tells.
    ///
    /// # Panics
    /// It does not come about soon.
    pub async fn eventually(&self, what: &str, is_so: impl AsyncFn() -> bool) -> Duration {
        let begun = Instant::now();
        while begun.elapsed() < SOON {
            if is_so().await {
                return begun.elapsed();
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("never: {what}\n{}", self.story().await);
    }

    /// Stops or starts the API server.
    pub async fn api(&self, verb: &str) {
        self.run_script(&["api", verb]).await;
    }

    /// Starts a later Kubernetes' server of custom resources, and tells by which kubeconfig it is asked.
    pub async fn start_rules(&self) -> PathBuf {
        self.run_script(&["rules", "start"]).await;
        self.run.join("rules.kubeconfig")
    }

    /// Ends it.
    pub async fn stop_rules(&self) {
        self.run_script(&["rules", "stop"]).await;
    }

    /// What is printed when a test fails.
    pub async fn story(&self) -> String {
        let pods = self
            .try_kubectl(&["get", "pods", "--all-namespaces", "-o", "wide"])
            .await;
        let events = self.try_kubectl(&["get", "events", "--all-namespaces"]).await;
        let logs = self
            .try_kubectl(&[
                "-n",
                NAMESPACE,
                "logs",
                "-l",
                "app.kubernetes.io/name=egress-agent",
                "--tail=60",
            ])
            .await;
        [pods, events, logs]
            .map(|told| told.unwrap_or_else(|told| told))
            .join("\n")
    }

    async fn run_script(&self, words: &[&str]) {
        let output = Command::new("bash")
            .arg(&self.script)
            .args(words)
            .output()
            .await
            .expect("bash runs");
        assert!(
            output.status.success(),
            "cluster.sh {}: {}{}",
            words.join(" "),
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
}
