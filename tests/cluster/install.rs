//! What is installed, and what is left when it is taken away.

use std::{fs, path::Path};

use egress_tests::{
    cluster::{Cluster, NAMESPACE, Pod},
    promises,
    require::Need,
};

use crate::policies::{allowed_soon, policy};

promises![
    the_manifests_are_what_the_api_server_takes,
    every_node_has_an_agent_in_force: [Need::Nodes],
    the_agent_has_no_more_privileges_than_it_is_given: [Need::Nodes],
    uninstalling_leaves_nothing: [Need::Nodes, alone],
];

/// Asks the API server for a dry run, which checks all that it would check.
async fn the_manifests_are_what_the_api_server_takes() {
    let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy");
    // The namespace first: in a dry run it does not come about for what belongs in it.
    kubectl(&[
        "apply",
        "-f",
        &deploy.join("base/namespace.yaml").display().to_string(),
    ])
    .await;
    for overlay in ["base", "k3s", "uninstall"] {
        let told = kubectl(&[
            "apply",
            "--dry-run=server",
            "-k",
            &deploy.join(overlay).display().to_string(),
        ])
        .await;
        assert!(told.contains("daemonset.apps/egress-agent"), "{overlay}: {told}");
    }
}

async fn kubectl(words: &[&str]) -> String {
    let output = tokio::process::Command::new("kubectl")
        .args(words)
        .output()
        .await
        .expect("kubectl runs");
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "kubectl {}: {told}", words.join(" "));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

async fn every_node_has_an_agent_in_force() {
    let cluster = Cluster::get().await;
    for number in [1, 2] {
        let node = cluster.node(number);
        let status = node.status().await;
        assert!(
            status["programs"]
                .as_array()
                .is_some_and(|programs| programs.len() > 10),
            "{status:#}"
        );
        assert_eq!(status["instance"], "run", "{status:#}");
        assert!(status["repair_error"].is_null(), "{status:#}");
        assert!(node.has_pins().await, "the pins are the node's own");
    }
}

async fn the_agent_has_no_more_privileges_than_it_is_given() {
    let cluster = Cluster::get().await;
    let pid = cluster.node(1).agent_pid().await;
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the agent runs");
    let field = |name: &str| {
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .expect("a field");
        line.trim().to_owned()
    };
    let has = u64::from_str_radix(&field("CapEff:"), 16).expect("a mask");
    // SETUID 7, NET_ADMIN 12, SYS_PTRACE 19, SYS_ADMIN 21, PERFMON 38, BPF 39: capability.h.
    let given = [7, 12, 19, 21, 38, 39]
        .iter()
        .fold(0, |mask, bit| mask | 1_u64 << bit);
    assert_eq!(has & !given, 0, "{has:x}");
    assert_eq!(field("Seccomp:"), "2", "its system calls are filtered");
    assert_eq!(field("NoNewPrivs:"), "1");
    let mounts = fs::read_to_string(format!("/proc/{pid}/mountinfo")).expect("the agent runs");
    let root = mounts
        .lines()
        .find(|line| line.split(' ').nth(4) == Some("/"))
        .expect("a root");
    assert!(
        root.split(' ')
            .nth(5)
            .is_some_and(|options| options.starts_with("ro")),
        "{root}"
    );
}

async fn uninstalling_leaves_nothing() {
    let cluster = Cluster::get().await;
    cluster.namespace("uninstall").await;
    let pod = Pod::new("uninstall", "bystander").start(cluster).await;
    let path = |overlay: &str| {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(overlay);
        path.display().to_string()
    };
    cluster
        .kubectl(&["apply", "-k", &path("../deploy/uninstall")])
        .await;
    cluster.rolled_out().await;
    for number in [1, 2] {
        assert!(
            !cluster.node(number).has_pins().await,
            "node{number} has pins still"
        );
    }
    cluster
        .kubectl(&["delete", "--ignore-not-found", "-k", &path("cluster/deploy")])
        .await;
    for number in [1, 2] {
        let node = cluster.node(number);
        let left = node
            .shell("ls /run/egress-agent; bpftool cgroup tree | grep egress_ || true; ss -Hlnt | grep 127.69. || true")
            .await;
        assert_eq!(left.trim(), "", "on node{number}");
        let listeners = pod
            .run(cluster, "netstat -lnt | grep -c 127.69. || true")
            .await
            .expect("netstat runs");
        assert_eq!(listeners.trim(), "0", "in the pod");
    }
    let left = cluster
        .try_kubectl(&["get", "clusterroles,clusterrolebindings,crd", "-o", "name"])
        .await
        .expect("kubectl get");
    assert!(!left.contains("egress"), "{left}");
    // Free, and by no grace of a proxy.
    assert_eq!(
        pod.get(cluster, "https://other.test/").await.as_deref(),
        Ok("200")
    );
    cluster
        .eventually("the namespace is gone", async || {
            cluster
                .try_kubectl(&["get", "namespace", NAMESPACE])
                .await
                .is_err()
        })
        .await;
    // And again, by the very line of the manual; the pod has never been restarted.
    cluster.kubectl(&["apply", "-k", &path("../deploy/k3s")]).await;
    cluster.rolled_out().await;
    cluster.apply(&policy("uninstall", "p", "ssd.jpl.nasa.gov")).await;
    allowed_soon(cluster, &pod, "https://ssd.jpl.nasa.gov/").await;
    assert!(pod.get(cluster, "https://other.test/").await.is_err());
    let records = cluster.records(|record| record["namespace"] == "uninstall").await;
    let is_told = records.iter().any(|record| {
        record["workload"] == "bystander" && record["rule"] == "EgressPolicy uninstall/p egress[0]"
    });
    assert!(is_told, "{records:#?}");
    cluster.forget("uninstall").await;
    cluster.install().await;
}
