//! A node that starts again: the kubelet starts its pods beside the agent, and pins are gone.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use egress_tests::{
    cluster::{Cluster, Node, Pod, PodKind},
    promises,
    require::Need,
};

use crate::policies::{allowed_soon, policy};

promises![no_pod_escapes_when_its_node_starts_again: [Need::Nodes, alone]];

/// With the host's unit in place, which puts the kernel's part in force before the kubelet starts. The pod is a static one
/// and the API server is away: the kubelet starts it at once, and the agent's pod only later. Without the unit this pod
/// gets out some ten times a second.
async fn no_pod_escapes_when_its_node_starts_again() {
    let cluster = Cluster::get().await;
    cluster.namespace("reboot").await;
    cluster.apply(&policy("reboot", "p", "other.test")).await;
    let node = cluster.node(2);
    let pod = Pod::new("reboot", "first").on(2).start(cluster).await;
    allowed_soon(cluster, &pod, "https://other.test/").await;
    let line = "while true; do curl -sk --max-time 3 -o /dev/null https://evil.test/ --resolve evil.test:443:198.51.100.66; done";
    let escape = Pod::new("reboot", "escape").on(2).document(PodKind::Runs(line));
    fs::write(node.file("escape.yaml"), escape).expect("a static pod");
    let unit = install_unit(&node).await;
    let evil = cluster.https("evil.test").seen().await.len();

    cluster.api("stop").await;
    node.reboot().await;
    cluster
        .eventually("the static pod runs", async || {
            node.shell("ctr -n k8s.io tasks ls")
                .await
                .matches("RUNNING")
                .count()
                >= 2
        })
        .await;
    // Its connects are held: time enough for several.
    tokio::time::sleep(Duration::from_secs(10)).await;
    nothing_escaped(cluster, evil).await;

    // An agent leaves static pods alone. The kubelet does not end one before it has seen an API server.
    let end = "for task in $(ctr -n k8s.io tasks ls -q); do ctr -n k8s.io tasks kill -s SIGKILL $task || true; done";
    node.shell(end).await;
    fs::remove_file(node.file("manifests/escape.yaml")).expect("the static pod");
    cluster
        .eventually("the static pod has ended", async || {
            !node.shell("ctr -n k8s.io tasks ls").await.contains("RUNNING")
        })
        .await;
    cluster.api("start").await;
    cluster
        .eventually("the agent serves", async || {
            let status = node.shell("cat /run/egress-agent/run/traces.json || true").await;
            status.contains("\"generation\": 2")
        })
        .await;
    cluster.rolled_out().await;
    let words = [
        "-n",
        "reboot",
        "delete",
        "pod",
        "first",
        "--grace-period=0",
        "--force",
    ];
    cluster.kubectl(&words).await;
    let pod = Pod::new("reboot", "second").on(2).start(cluster).await;
    allowed_soon(cluster, &pod, "https://other.test/").await;
    nothing_escaped(cluster, evil).await;
    fs::remove_file(&unit).expect("the unit's script");
    cluster.forget("reboot").await;
}

/// Nobody has reached the evil since it had been reached `before` times.
async fn nothing_escaped(cluster: &Cluster, before: usize) {
    let seen = cluster.https("evil.test").seen().await;
    let since = seen.get(before..).unwrap_or_default();
    let peers: BTreeSet<_> = since.iter().map(|seen| seen.peer.ip()).collect();
    assert!(since.is_empty(), "{} escaped, from {peers:?}", since.len());
}

/// What deploy/host/install.sh puts on a machine; a script that the node's own runs before its kubelet is in the place of
/// the unit. It puts the static pod in its place too: the kubelet that ran before must not know it.
async fn install_unit(node: &Node<'_>) -> PathBuf {
    let agent = node.file("egress-agent");
    let pid = node.agent_pid().await;
    fs::copy(format!("/proc/{pid}/exe"), &agent).expect("the agent's program");
    let host = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/host");
    fs::copy(host.join("hold.yaml"), node.file("hold.yaml")).expect("the unit's configuration");
    let unit = node.file("before-kubelet");
    let script = format!(
        "#!/bin/sh\nset -e\n{make} {config}\ncp {escape} {manifests}\nexec {agent} run --hold --config {config}\n",
        escape = node.file("escape.yaml").display(),
        manifests = node.file("manifests").display(),
        make = host.join("make-cgroup").display(),
        agent = agent.display(),
        config = node.file("hold.yaml").display()
    );
    fs::write(&unit, script).expect("a script");
    fs::set_permissions(&unit, fs::Permissions::from_mode(0o755)).expect("chmod");
    unit
}
