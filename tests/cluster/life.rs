//! The agent's life: replaced, killed, without an API server.

use std::time::Duration;

use egress_tests::{
    cluster::{Cluster, NAMESPACE, Pod},
    promises,
    require::Need,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::policies::{allowed_soon, policy};

promises![
    a_rolling_update_fails_no_request: [Need::Nodes, alone],
    an_agent_beside_the_old_one_takes_over: [Need::Nodes, alone],
    a_killed_agent_lets_nothing_pass_and_comes_back: [Need::Nodes, alone],
    without_an_api_server_the_last_policies_stay: [Need::Nodes, alone],
    an_agent_that_starts_without_an_api_server_knows_the_pods_and_their_policies: [Need::Nodes, alone],
];

/// A loop of requests in a pod, each with a lookup by glibc: each must succeed, each is counted. Between two agents a
/// connect waits for its SYN to be sent again: after 1, 3, 7, 15, 31 seconds.
const REQUESTS: &str = "rm -f /tmp/log /tmp/stop; (while [ ! -f /tmp/stop ]; do \
    curl -sS -k --max-time 120 -o /dev/null -w '%{http_code} %{time_total}\\n' https://other.test/ >>/tmp/log 2>&1; \
    done; echo end >>/tmp/log) >/dev/null 2>&1 &";

async fn begin_loop(cluster: &Cluster, pod: &Pod) {
    pod.run(cluster, REQUESTS)
        .await
        .expect("a loop in the background");
}

/// Ends the loop and returns how many requests there were, and how long the longest took.
async fn end_loop(cluster: &Cluster, pod: &Pod) -> (usize, f64) {
    pod.run(cluster, "touch /tmp/stop").await.expect("touch");
    cluster
        .eventually("the loop ends", async || {
            pod.run(cluster, "tail -n 1 /tmp/log")
                .await
                .is_ok_and(|line| line.trim() == "end")
        })
        .await;
    let log = pod.run(cluster, "cat /tmp/log").await.expect("cat");
    let mut longest = 0.0_f64;
    let mut count = 0;
    for line in log.lines().filter(|line| *line != "end") {
        let (code, took) = line.split_once(' ').unwrap_or((line, "0"));
        assert_eq!(code, "200", "a request failed: {line}\n{log}");
        longest = longest.max(took.parse().unwrap_or(0.0));
        count += 1;
    }
    (count, longest)
}

async fn a_rolling_update_fails_no_request() {
    let cluster = Cluster::get().await;
    cluster.namespace("rolling").await;
    cluster.apply(&policy("rolling", "p", "other.test")).await;
    let pods = [
        Pod::new("rolling", "one").start(cluster).await,
        Pod::new("rolling", "two").on(2).start(cluster).await,
    ];
    let evil = cluster.https("evil.test").seen().await.len();
    for pod in &pods {
        allowed_soon(cluster, pod, "https://other.test/").await;
        begin_loop(cluster, pod).await;
        // And one that tries what it may not.
        let line = "(while [ ! -f /tmp/stop ]; do curl -sk --max-time 5 -o /dev/null https://evil.test/ \
            --resolve evil.test:443:198.51.100.66; done) >/dev/null 2>&1 &";
        pod.run(cluster, line).await.expect("a loop in the background");
    }
    let before = [cluster.node(1).agent().await, cluster.node(2).agent().await];
    cluster
        .kubectl(&["-n", NAMESPACE, "rollout", "restart", "daemonset/egress-agent"])
        .await;
    cluster.rolled_out().await;
    let after = [cluster.node(1).agent().await, cluster.node(2).agent().await];
    assert!(
        before[0] != after[0] && before[1] != after[1],
        "{before:?} {after:?}"
    );
    for pod in &pods {
        let (count, longest) = end_loop(cluster, pod).await;
        println!(
            "{}: {count} requests over the update, the longest took {longest} s",
            pod.name()
        );
        assert!(count > 5, "{count}");
    }
    assert_eq!(cluster.https("evil.test").seen().await.len(), evil, "escaped");
    let status = cluster.node(1).status().await;
    assert!(
        status["generation"].as_u64() > Some(1),
        "the pins were taken over: {status:#}"
    );
    cluster.forget("rolling").await;
}

/// What maxSurge does where the API server knows it: the new pod starts while the old one serves.
async fn an_agent_beside_the_old_one_takes_over() {
    let cluster = Cluster::get().await;
    cluster.namespace("surge").await;
    cluster.apply(&policy("surge", "p", "other.test")).await;
    let pod = Pod::new("surge", "one").start(cluster).await;
    allowed_soon(cluster, &pod, "https://other.test/").await;
    let node = cluster.node(1);
    let generation = node.status().await["generation"].as_u64().expect("a number");
    let old = node.agent_pid().await;
    begin_loop(cluster, &pod).await;
    // The DaemonSet's own pod, by another name.
    let daemonset = cluster
        .json(&["-n", NAMESPACE, "get", "daemonset", "egress-agent"])
        .await;
    let mut template = daemonset["spec"]["template"].clone();
    template["apiVersion"] = "v1".into();
    template["kind"] = "Pod".into();
    template["metadata"] = serde_json::json!({"name": "beside", "namespace": NAMESPACE});
    template["spec"]["nodeName"] = node.name().into();
    cluster.apply(&template.to_string()).await;
    cluster
        .kubectl(&[
            "-n",
            NAMESPACE,
            "wait",
            "--for=condition=Ready",
            "pod/beside",
            "--timeout=60s",
        ])
        .await;
    let new = node.agent_pid().await;
    assert_ne!(old, new, "it serves");
    let (count, longest) = end_loop(cluster, &pod).await;
    println!("{count} requests over the hand-over, the longest took {longest} s");
    assert!(longest < 5.0, "no connect was held: {longest}");
    // The old pod has nothing to do any more, and must not take its place back until it is deleted.
    let old = node.agent().await;
    assert_eq!(node.agent_pid().await, new, "it serves still");
    cluster.kubectl(&["-n", NAMESPACE, "delete", "pod", &old]).await;
    cluster.rolled_out().await;
    cluster
        .eventually("the DaemonSet's own serves", async || {
            node.shell("cat /run/egress-agent/run/traces.json")
                .await
                .contains(&format!("\"generation\": {}", generation + 2))
        })
        .await;
    cluster
        .kubectl(&["-n", NAMESPACE, "delete", "pod", "beside"])
        .await;
    allowed_soon(cluster, &pod, "https://other.test/").await;
    cluster.forget("surge").await;
}

async fn a_killed_agent_lets_nothing_pass_and_comes_back() {
    let cluster = Cluster::get().await;
    cluster.namespace("killed").await;
    cluster.apply(&policy("killed", "p", "other.test")).await;
    let pod = Pod::new("killed", "one").start(cluster).await;
    allowed_soon(cluster, &pod, "https://other.test/").await;
    let evil = cluster.https("evil.test").seen().await.len();
    let line = "rm -f /tmp/stop; (while [ ! -f /tmp/stop ]; do curl -sk --max-time 2 -o /dev/null https://evil.test/ \
        --resolve evil.test:443:198.51.100.66; done) >/dev/null 2>&1 &";
    pod.run(cluster, line).await.expect("a loop in the background");
    let node = cluster.node(1);
    let pid = node.agent_pid().await;
    kill(Pid::from_raw(pid), Signal::SIGKILL).expect("the agent runs");
    cluster
        .eventually("another process serves", async || {
            node.agent_pid().await != pid
                && pod.get(cluster, "https://other.test/").await.as_deref() == Ok("200")
        })
        .await;
    pod.run(cluster, "touch /tmp/stop").await.expect("touch");
    assert_eq!(cluster.https("evil.test").seen().await.len(), evil, "escaped");
    cluster.forget("killed").await;
}

/// Lines of `URL CODE` that a pod on node 1 writes by itself: `kubectl exec` goes by the API server, so its file is read from
/// the node.
async fn begin_asking(cluster: &Cluster, pod: &Pod) {
    let line = "(while true; do for url in https://other.test/ https://evil.test/; do \
        curl -sk --max-time 5 -o /dev/null -w \"$url %{http_code}\\n\" $url --resolve evil.test:443:198.51.100.66 \
        >>/tmp/headless; done; sleep 0.2; done) >/dev/null 2>&1 &";
    pod.run(cluster, line).await.expect("a loop in the background");
}

async fn codes(cluster: &Cluster) -> Vec<String> {
    let find = "cat $(find /run/containerd -path '*rootfs/tmp/headless' 2>/dev/null | head -n 1)";
    let told = cluster.node(1).shell(find).await;
    told.lines().map(str::to_owned).collect()
}

fn as_the_policy_says(line: &str) -> bool {
    line.ends_with(if line.contains("other.test") {
        " 200"
    } else {
        " 000"
    })
}

async fn without_an_api_server_the_last_policies_stay() {
    let cluster = Cluster::get().await;
    cluster.namespace("headless").await;
    cluster.apply(&policy("headless", "p", "other.test")).await;
    let pod = Pod::new("headless", "one").start(cluster).await;
    allowed_soon(cluster, &pod, "https://other.test/").await;
    begin_asking(cluster, &pod).await;
    cluster.api("stop").await;
    let before = codes(cluster).await.len();
    // Long enough for the agents to notice.
    tokio::time::sleep(Duration::from_secs(15)).await;
    let told = codes(cluster).await;
    let status = cluster.node(1).status_without_an_api_server().await;
    cluster.api("start").await;
    let later = told.get(before..).unwrap_or_default();
    assert!(later.len() > 10, "{told:#?}");
    assert!(later.iter().all(|line| as_the_policy_says(line)), "{later:#?}");
    assert!(
        status.contains("API SERVER   does not answer, for "),
        "it says since when:\n{status}"
    );
    cluster.apply(&policy("headless", "p", "ssd.jpl.nasa.gov")).await;
    allowed_soon(cluster, &pod, "https://ssd.jpl.nasa.gov/").await;
    pod.end(cluster).await;
    cluster.forget("headless").await;
}

/// The kubelet starts a dead agent again without asking anybody: it judges by what the last one has known.
async fn an_agent_that_starts_without_an_api_server_knows_the_pods_and_their_policies() {
    let cluster = Cluster::get().await;
    cluster.namespace("remembered").await;
    cluster.apply(&policy("remembered", "p", "other.test")).await;
    let pod = Pod::new("remembered", "one").start(cluster).await;
    allowed_soon(cluster, &pod, "https://other.test/").await;
    let node = cluster.node(1);
    cluster
        .eventually("the pod is kept", async || {
            node.shell("cat /var/lib/egress-agent/run/pods.json")
                .await
                .contains("\"namespace\":\"remembered\"")
        })
        .await;
    begin_asking(cluster, &pod).await;
    let evil = cluster.https("evil.test").seen().await.len();
    cluster.api("stop").await;
    let pid = node.agent_pid().await;
    kill(Pid::from_raw(pid), Signal::SIGKILL).expect("the agent runs");
    cluster
        .eventually("another process serves", async || node.agent_pid().await != pid)
        .await;
    let before = codes(cluster).await.len();
    let served = async || {
        let told = codes(cluster).await;
        told.get(before..)
            .unwrap_or_default()
            .iter()
            .any(|line| line == "https://other.test/ 200")
    };
    cluster.eventually("the pod reaches its name", served).await;
    let status = node.status_without_an_api_server().await;
    cluster.api("start").await;
    for word in ["OLD PODS     as of ", "OLD POLICIES as of "] {
        assert!(status.contains(word), "{status}");
    }
    assert_eq!(cluster.https("evil.test").seen().await.len(), evil, "escaped");
    cluster
        .eventually("what is known is no longer from memory", async || {
            let status = node.status_without_an_api_server().await;
            !status.contains("OLD ") && status.contains("api server   answers")
        })
        .await;
    pod.end(cluster).await;
    cluster.forget("remembered").await;
}
