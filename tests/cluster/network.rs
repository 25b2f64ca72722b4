//! What the cluster's own packet filters see.

use egress_tests::{
    cluster::{Cluster, Pod},
    promises,
    require::Need,
};

use crate::policies::{allowed_soon, policy};

promises![
    packet_filters_see_the_pod_and_its_true_destination: [Need::Nodes],
    services_and_other_pods_are_reached_as_without_an_agent: [Need::Nodes],
];

async fn packet_filters_see_the_pod_and_its_true_destination() {
    let cluster = Cluster::get().await;
    cluster.namespace("filtered").await;
    cluster.apply(&policy("filtered", "p", "other.test")).await;
    let pod = Pod::new("filtered", "a").on(2).start(cluster).await;
    allowed_soon(cluster, &pod, "https://other.test/").await;
    let ip = pod.ip(cluster).await;
    let seen = cluster.https("other.test").seen().await;
    assert!(
        seen.iter().any(|seen| seen.peer.ip().to_string() == ip),
        "{ip} in {seen:#?}"
    );
    // As a NetworkPolicy by iptables would: by the pod's address, and by the origin's.
    let node = cluster.node(2);
    let rule = format!("FORWARD -s {ip} -d 198.51.100.20 -p tcp --dport 443 -j REJECT");
    node.shell(&format!("iptables -I {rule}")).await;
    let told = pod.get(cluster, "https://other.test/").await;
    let counted = node.shell("iptables -nvxL FORWARD").await;
    node.shell(&format!("iptables -D {rule}")).await;
    assert!(told.is_err(), "{told:?}\n{counted}");
    let packets = counted
        .lines()
        .find(|line| line.contains("198.51.100.20") && line.contains("REJECT"))
        .and_then(|line| line.split_whitespace().next());
    assert!(packets.is_some_and(|packets| packets != "0"), "{counted}");
    assert_eq!(
        pod.get(cluster, "https://other.test/").await.as_deref(),
        Ok("200")
    );
    cluster.forget("filtered").await;
}

async fn services_and_other_pods_are_reached_as_without_an_agent() {
    let cluster = Cluster::get().await;
    cluster.namespace("inside").await;
    cluster.apply(&policy("inside", "p", "other.test")).await;
    let server = Pod::new("inside", "server").on(2).start(cluster).await;
    let client = Pod::new("inside", "client").start(cluster).await;
    server
        .run(
            cluster,
            "mkdir -p /tmp/www && echo inside >/tmp/www/index.html && httpd -p 80 -h /tmp/www",
        )
        .await
        .expect("httpd runs");
    let ip = server.ip(cluster).await;
    let direct = client
        .run(cluster, &format!("curl -sS --max-time 20 http://{ip}/"))
        .await;
    assert_eq!(direct.as_deref().map(str::trim), Ok("inside"));
    let api = client.get(cluster, "https://10.43.0.1/readyz").await;
    assert!(
        api.is_ok_and(|code| code == "200" || code == "401" || code == "403"),
        "the API server answers"
    );
    cluster.forget("inside").await;
}
