//! The explicit proxy, for pods that are told of one: at a Service's address, where squid was.

use egress_tests::{
    cluster::{Cluster, Pod},
    promises,
    require::Need,
};

use crate::policies::{allowed_soon, policy};

promises![pods_that_are_told_of_a_proxy_are_served_by_their_own_policies: [Need::Nodes]];

/// In `explicitProxy` of deploy/config.yaml. The Service has no endpoints: squid is gone.
const SERVICE: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: squid, namespace: migrating}\n\
                       spec:\n  clusterIP: 10.43.0.31\n  selector: {app: squid}\n  ports: [{port: 3128}]\n";
const PROXY: &str = "--proxy http://10.43.0.31:3128";

async fn pods_that_are_told_of_a_proxy_are_served_by_their_own_policies() {
    let cluster = Cluster::get().await;
    for namespace in ["migrating", "neighbours"] {
        cluster.namespace(namespace).await;
    }
    cluster.apply(SERVICE).await;
    cluster.apply(&policy("migrating", "p", "other.test")).await;
    cluster
        .apply(&policy("neighbours", "p", "ssd.jpl.nasa.gov"))
        .await;
    let pod = Pod::new("migrating", "a").on(2).start(cluster).await;
    let hosted = Pod::new("migrating", "b").host_network().start(cluster).await;
    let neighbour = Pod::new("neighbours", "a").on(2).start(cluster).await;
    for (pod, allowed, denied) in [
        (&pod, "other.test", "ssd.jpl.nasa.gov"),
        (&hosted, "other.test", "ssd.jpl.nasa.gov"),
        (&neighbour, "ssd.jpl.nasa.gov", "other.test"),
    ] {
        allowed_soon(cluster, pod, &format!("https://{allowed}/")).await;
        for scheme in ["http", "https"] {
            let told = pod.get(cluster, &format!("{scheme}://{allowed}/ {PROXY}")).await;
            assert_eq!(told.as_deref(), Ok("200"), "{} {scheme}", pod.name());
        }
        let told = pod.get(cluster, &format!("http://{denied}/ {PROXY}")).await;
        assert_eq!(told.as_deref(), Ok("403"), "{}", pod.name());
        let told = pod.get(cluster, &format!("https://{denied}/ {PROXY}")).await;
        assert!(told.is_err(), "{} {told:?}", pod.name());
    }
    let ip = pod.ip(cluster).await;
    cluster
        .eventually("the requests are logged as the pod's", async || {
            let records = cluster.records(|record| record["namespace"] == "migrating").await;
            ["other.test", "ssd.jpl.nasa.gov"].iter().all(|host| {
                records.iter().any(|record| {
                    record["url"] == format!("http://{host}/")
                        && record["original"] == "10.43.0.31:3128"
                        && record["pod"] == "a"
                        && record["client"]
                            .as_str()
                            .is_some_and(|client| client.starts_with(&ip))
                })
            })
        })
        .await;
    for namespace in ["migrating", "neighbours"] {
        cluster.forget(namespace).await;
    }
}
