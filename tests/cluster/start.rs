//! The moment in which a pod starts: its first act may be a connect, and nobody knows it yet.

use egress_tests::{
    cluster::{Cluster, Pod},
    promises,
    require::Need,
};

use crate::policies::{allowed_soon, policy};

promises![no_pod_escapes_when_it_starts_and_none_is_refused_what_it_may: [Need::Nodes, alone]];

/// Of each kind; a node's kubelet starts a few at a time.
const PODS: usize = 50;

/// Jobs whose first act is a connect: to an allowed name, and to a refused one whose address they know.
async fn no_pod_escapes_when_it_starts_and_none_is_refused_what_it_may() {
    let cluster = Cluster::get().await;
    cluster.namespace("window").await;
    cluster.apply(&policy("window", "p", "other.test")).await;
    let first = Pod::new("window", "first").start(cluster).await;
    allowed_soon(cluster, &first, "https://other.test/").await;
    let before = cluster.https("evil.test").seen().await.len();
    let mut documents = String::new();
    for number in 0..PODS {
        let on = if number % 2 == 0 { 1 } else { 2 };
        let allowed = Pod::new("window", &format!("allowed-{number}")).on(on);
        let line = "exec curl -sS -k --max-time 60 -o /dev/null https://other.test/ --resolve other.test:443:198.51.100.20";
        documents.push_str(&allowed.job(line));
        documents.push_str("---\n");
        let denied = Pod::new("window", &format!("denied-{number}")).on(on);
        let line = "exec curl -sS -k --max-time 60 -o /dev/null https://evil.test/ --resolve evil.test:443:198.51.100.66";
        documents.push_str(&denied.job(line));
        documents.push_str("---\n");
    }
    cluster.apply(&documents).await;
    let phases = async || {
        let line = "jsonpath={range .items[*]}{.metadata.name} {.status.phase}{\"\\n\"}{end}";
        cluster
            .kubectl(&["-n", "window", "get", "pods", "-o", line])
            .await
    };
    let mut last = String::new();
    let begun = std::time::Instant::now();
    while begun.elapsed().as_secs() < 300 {
        last = phases().await;
        let ended = last
            .lines()
            .filter(|line| line.ends_with("Succeeded") || line.ends_with("Failed"))
            .count();
        if ended == 2 * PODS {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    }
    let count = |prefix: &str, phase: &str| {
        last.lines()
            .filter(|line| line.starts_with(prefix) && line.ends_with(phase))
            .count()
    };
    let escaped = cluster.https("evil.test").seen().await.len() - before;
    assert_eq!(escaped, 0, "escaped");
    assert_eq!(count("denied-", "Failed"), PODS, "refused:\n{last}");
    assert_eq!(count("allowed-", "Succeeded"), PODS, "allowed:\n{last}");
    cluster.forget("window").await;
}
