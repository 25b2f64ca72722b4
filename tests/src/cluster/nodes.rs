//! A node from inside: what an administrator who has logged in would see and do.

use std::{fs, path::PathBuf};

use serde_json::Value;
use tokio::process::Command;

use super::{Cluster, NAMESPACE};

/// One of the nodes, 1 or 2.
#[derive(Debug, Clone, Copy)]
pub struct Node<'c> {
    pub(super) cluster: &'c Cluster,
    /// Its number.
    pub number: u8,
}

impl Node<'_> {
    /// Its name in Kubernetes.
    #[must_use]
    pub fn name(&self) -> String {
        format!("node{}", self.number)
    }

    /// Runs a shell line on it, and returns what it prints.
    ///
    /// # Panics
    /// The line fails.
    pub async fn shell(&self, line: &str) -> String {
        let output = Command::new("bash")
            .arg(&self.cluster.script)
            .args(["enter", &self.number.to_string(), "sh", "-c", line])
            .output()
            .await
            .expect("bash runs");
        assert!(
            output.status.success(),
            "on {}: {line}: {}",
            self.name(),
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// A file or directory that the node's script looks for when it starts.
    #[must_use]
    pub fn file(&self, name: &str) -> PathBuf {
        self.cluster.run.join(self.name()).join(name)
    }

    /// Ends everything on it and starts it again, as a reboot does: only its files stay.
    pub async fn reboot(&self) {
        self.cluster
            .run_script(&["reboot", &self.number.to_string()])
            .await;
    }

    /// The name of the agent's pod on it.
    ///
    /// # Panics
    /// There is none.
    pub async fn agent(&self) -> String {
        let pods = self
            .cluster
            .json(&[
                "-n",
                NAMESPACE,
                "get",
                "pods",
                "-l",
                "app.kubernetes.io/name=egress-agent",
                "--field-selector",
                &format!("spec.nodeName={}", self.name()),
            ])
            .await;
        pods["items"]
            .as_array()
            .into_iter()
            .flatten()
            .find(|pod| pod["metadata"]["deletionTimestamp"].is_null())
            .and_then(|pod| pod["metadata"]["name"].as_str())
            .unwrap_or_else(|| panic!("no agent on {}", self.name()))
            .to_owned()
    }

    /// What the agent on it says of itself.
    pub async fn status(&self) -> Value {
        let agent = self.agent().await;
        let text = self
            .cluster
            .kubectl(&[
                "-n",
                NAMESPACE,
                "exec",
                &agent,
                "--",
                "/egress-agent",
                "status",
                "--output",
                "json",
            ])
            .await;
        let all: Value = serde_json::from_str(&text).expect("status prints JSON");
        all[0].clone()
    }

    /// The same for a person, asked of the agent's own socket: `kubectl exec` needs an API server.
    pub async fn status_without_an_api_server(&self) -> String {
        let pid = self.agent_pid().await;
        self.shell(&format!("/proc/{pid}/exe status")).await
    }

    /// The process of the agent on it, by the machine's number.
    pub async fn agent_pid(&self) -> i32 {
        // All processes share the machine's numbers; the node's state directory tells whose it is.
        let text = self.shell("cat /run/egress-agent/run/traces.json").await;
        let traces: Value = serde_json::from_str(&text).expect("JSON");
        traces["pid"]
            .as_i64()
            .and_then(|pid| i32::try_from(pid).ok())
            .expect("a process")
    }

    /// Whether the directory of pins is there.
    pub async fn has_pins(&self) -> bool {
        self.shell("ls /sys/fs/bpf").await.contains("egress")
    }

    /// Its kubelet's own log, for a person.
    #[must_use]
    pub fn kubelet_log(&self) -> String {
        fs::read_to_string(self.cluster.run.join(format!("log/{}.kubelet.log", self.name())))
            .unwrap_or_default()
    }
}
