//! Who a connection is said to be from.

use egress_tests::{
    cluster::{Cluster, Pod},
    promises,
    require::Need,
};

use crate::policies::{allowed_soon, policy};

promises![
    records_tell_the_pod_its_namespace_and_the_rule: [Need::Nodes],
    a_pod_in_the_nodes_network_is_judged_as_itself: [Need::Nodes],
];

async fn records_tell_the_pod_its_namespace_and_the_rule() {
    let cluster = Cluster::get().await;
    cluster.namespace("logged").await;
    cluster.apply(&policy("logged", "p", "other.test")).await;
    let pod = Pod::new("logged", "teller").on(2).start(cluster).await;
    allowed_soon(cluster, &pod, "https://other.test/").await;
    assert!(
        pod.get(
            cluster,
            "https://evil.test/ --resolve evil.test:443:198.51.100.66"
        )
        .await
        .is_err()
    );
    let ip = pod.ip(cluster).await;
    cluster
        .eventually("both are logged", async || {
            let records = cluster.records(|record| record["namespace"] == "logged").await;
            let (allowed, denied): (Vec<_>, Vec<_>) =
                records.iter().partition(|record| record["host"] == "other.test");
            let is_told = |record: &serde_json::Value| {
                record["client"]
                    .as_str()
                    .is_some_and(|client| client.starts_with(&ip))
                    && record["workload"] == "teller"
            };
            allowed
                .iter()
                .any(|record| is_told(record) && record["rule"] == "EgressPolicy logged/p egress[0]")
                && denied
                    .iter()
                    .any(|record| is_told(record) && record["host"] == "evil.test")
        })
        .await;
    // The article's line: the pod's address, the name, squid's result.
    let output = cluster.agents_output().await;
    let lines: Vec<&str> = output
        .lines()
        .filter(|line| line.starts_with(&format!("{ip} - - [")))
        .collect();
    for wanted in [
        [
            "\"CONNECT other.test:443 HTTP/1.1\" 200",
            "TCP_TUNNEL:HIER_DIRECT",
        ],
        ["\"CONNECT evil.test:443 HTTP/1.1\" 403", "TCP_DENIED:HIER_NONE"],
    ] {
        let has = lines
            .iter()
            .any(|line| wanted.iter().all(|part| line.contains(part)));
        assert!(has, "{wanted:?} in {lines:#?}");
    }
    cluster.forget("logged").await;
}

async fn a_pod_in_the_nodes_network_is_judged_as_itself() {
    let cluster = Cluster::get().await;
    cluster.namespace("hosted").await;
    cluster.apply(&policy("hosted", "p", "other.test")).await;
    let pod = Pod::new("hosted", "hosted").host_network().start(cluster).await;
    allowed_soon(cluster, &pod, "https://other.test/").await;
    for url in [
        "https://ssd.jpl.nasa.gov/",
        "https://evil.test/ --resolve evil.test:443:198.51.100.66",
    ] {
        assert!(pod.get(cluster, url).await.is_err(), "{url}");
    }
    // The node's own processes are nobody's workload.
    let node = cluster.node(1);
    let code = node
        .shell("curl -sS -k --max-time 20 -o /dev/null -w '%{http_code}' https://evil.test/ --resolve evil.test:443:198.51.100.66")
        .await;
    assert_eq!(code, "200");
    cluster.forget("hosted").await;
}
