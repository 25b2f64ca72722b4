//! A node that starts again: the kubelet starts its pods beside the agent, and pins are gone.

use std::{fs, os::unix::fs::PermissionsExt};

use egress_tests::{
    cluster::{Cluster, Pod, PodKind},
    promises,
    require::Need,
};

use crate::policies::{allowed_soon, policy};

promises![no_pod_escapes_when_its_node_starts_again: [Need::Nodes, alone]];

/// With the host's unit in place, which puts the kernel's part in force before the kubelet starts.
async fn no_pod_escapes_when_its_node_starts_again() {
    let cluster = Cluster::get().await;
    cluster.namespace("reboot").await;
    cluster.apply(&policy("reboot", "p", "other.test")).await;
    let pod = Pod::new("reboot", "first").on(2).start(cluster).await;
    allowed_soon(cluster, &pod, "https://other.test/").await;
    let node = cluster.node(2);
    // What deploy/host/install.sh puts on a machine; here a script in the place of the unit runs it.
    let agent = node.file("egress-agent");
    let pid = node.agent_pid().await;
    fs::copy(format!("/proc/{pid}/exe"), &agent).expect("the agent's program");
    let config = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/host/hold.yaml"));
    let internal = "internal: [10.42.0.0/16, 10.43.0.0/16]";
    let config = config.expect("the unit's configuration");
    assert!(config.contains(internal), "{config}");
    let config = config.replace(internal, "internal: [10.124.0.0/16, 10.96.0.0/24]");
    fs::write(node.file("hold.yaml"), config).expect("the node's");
    let unit = node.file("before-kubelet");
    let hold = format!(
        "#!/bin/sh\nset -e\n{make} {config}\nexec {agent} run --hold --config {config}\n",
        make = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/host/make-cgroup"),
        agent = agent.display(),
        config = node.file("hold.yaml").display()
    );
    fs::write(&unit, hold).expect("a script");
    fs::set_permissions(&unit, fs::Permissions::from_mode(0o755)).expect("chmod");
    let evil = cluster.https("evil.test").seen().await.len();
    // Bound pods that the kubelet starts at once, and whose first act is a connect.
    let mut documents = String::new();
    for number in 0..10 {
        let name = format!("again-{number}");
        let line = "while true; do curl -sk --max-time 2 -o /dev/null https://evil.test/ --resolve evil.test:443:198.51.100.66; done";
        let document = Pod::new("reboot", &name).on(2).document(PodKind::Runs(line));
        documents.push_str(&document.replace("restartPolicy: Never", "restartPolicy: Always"));
        documents.push_str("---\n");
    }
    cluster.apply(&documents).await;
    cluster
        .kubectl(&[
            "-n",
            "reboot",
            "wait",
            "--for=condition=Ready",
            "pod",
            "--all",
            "--timeout=90s",
        ])
        .await;
    node.reboot().await;
    cluster
        .eventually("the node serves again", async || {
            cluster
                .try_kubectl(&[
                    "-n",
                    "reboot",
                    "delete",
                    "pod",
                    "first",
                    "--ignore-not-found",
                    "--grace-period=0",
                    "--force",
                ])
                .await
                .is_ok()
                && node.has_pins().await
                && cluster.json(&["get", "node", "node2"]).await["status"]["conditions"]
                    .as_array()
                    .is_some_and(|all| {
                        all.iter()
                            .any(|one| one["type"] == "Ready" && one["status"] == "True")
                    })
        })
        .await;
    cluster.rolled_out().await;
    let pod = Pod::new("reboot", "second").on(2).start(cluster).await;
    allowed_soon(cluster, &pod, "https://other.test/").await;
    assert_eq!(cluster.https("evil.test").seen().await.len(), evil, "escaped");
    fs::remove_file(&unit).expect("the script");
    cluster.forget("reboot").await;
}
