//! Who may reach what, and when.

use std::time::{Duration, Instant};

use egress_tests::{
    cluster::{Cluster, Pod},
    promises,
    require::Need,
};

promises![
    horizons_reaches_its_one_name_and_nothing_else: [Need::Nodes],
    another_namespaces_allow_list_helps_nobody_else: [Need::Nodes],
    a_policy_is_in_force_on_every_node_within_a_second: [Need::Nodes],
    what_is_open_ends_with_the_policy_that_allowed_it: [Need::Nodes],
    an_invalid_policy_is_refused_or_told_and_the_last_good_one_stays: [Need::Nodes],
];

const HORIZONS: &str = include_str!("../../deploy/examples/horizons.yaml");

async fn horizons_reaches_its_one_name_and_nothing_else() {
    let cluster = Cluster::get().await;
    cluster.namespace("horizons").await;
    cluster.apply(HORIZONS).await;
    let pod = Pod::new("horizons", "horizons").start(cluster).await;
    allowed_soon(cluster, &pod, "https://ssd.jpl.nasa.gov/").await;
    for url in [
        "https://www.nasa.gov/",
        "https://other.test/",
        "http://other.test/",
        "https://evil.test/ --resolve evil.test:443:198.51.100.66",
        // The allowed name's address under another name.
        "https://evil.test/ --resolve evil.test:443:198.51.100.10",
    ] {
        let told = pod.get(cluster, url).await;
        assert!(told.is_err() || told.as_deref() == Ok("403"), "{url}: {told:?}");
    }
    for name in ["www.nasa.gov", "evil.test"] {
        let seen = cluster.https(name).seen().await;
        let ip = pod.ip(cluster).await;
        assert!(
            !seen.iter().any(|seen| seen.peer.ip().to_string() == ip),
            "{name} was reached"
        );
    }
    cluster.forget("horizons").await;
}

async fn another_namespaces_allow_list_helps_nobody_else() {
    let cluster = Cluster::get().await;
    for namespace in ["generous", "strict"] {
        cluster.namespace(namespace).await;
    }
    cluster.apply(&policy("generous", "all", "other.test")).await;
    cluster.apply(&policy("strict", "one", "ssd.jpl.nasa.gov")).await;
    let generous = Pod::new("generous", "a").start(cluster).await;
    let strict = Pod::new("strict", "a").start(cluster).await;
    allowed_soon(cluster, &strict, "https://ssd.jpl.nasa.gov/").await;
    allowed_soon(cluster, &generous, "https://other.test/").await;
    let (ours, theirs) = (strict.ip(cluster).await, generous.ip(cluster).await);
    for url in [
        "https://other.test/",
        "https://other.test/ --resolve other.test:443:198.51.100.20",
    ] {
        assert!(strict.get(cluster, url).await.is_err(), "{url}");
    }
    let peers: Vec<String> = cluster
        .https("other.test")
        .seen()
        .await
        .iter()
        .map(|seen| seen.peer.ip().to_string())
        .collect();
    assert!(peers.contains(&theirs) && !peers.contains(&ours), "{peers:?}");
    for namespace in ["generous", "strict"] {
        cluster.forget(namespace).await;
    }
}

async fn a_policy_is_in_force_on_every_node_within_a_second() {
    let cluster = Cluster::get().await;
    cluster.namespace("changing").await;
    cluster.apply(&policy("changing", "p", "ssd.jpl.nasa.gov")).await;
    let pods = [
        Pod::new("changing", "one").start(cluster).await,
        Pod::new("changing", "two").on(2).start(cluster).await,
    ];
    for pod in &pods {
        allowed_soon(cluster, pod, "https://ssd.jpl.nasa.gov/").await;
        // A loop in the pod itself: `kubectl exec` alone takes a third of a second.
        let line = "rm -f /tmp/*; (while true; do \
            curl -sk --max-time 5 -o /dev/null http://other.test/ --resolve other.test:80:198.51.100.20 -w '%{http_code} ' \
            >>/tmp/codes; cut -d' ' -f1 /proc/uptime >>/tmp/codes; done) >/dev/null 2>&1 &";
        pod.run(cluster, line).await.expect("a loop in the background");
    }
    for (name, expected) in [("other.test", "200"), ("ssd.jpl.nasa.gov", "403")] {
        cluster.apply(&policy("changing", "p", name)).await;
        let applied = Instant::now();
        let since = now();
        for pod in &pods {
            cluster
                .eventually("the policy is in force", async || {
                    let codes = pod.run(cluster, "tail -n 3 /tmp/codes").await.unwrap_or_default();
                    codes.lines().filter(|line| line.starts_with(expected)).count() == 3
                })
                .await;
            let codes = pod
                .run(cluster, "cat /tmp/codes")
                .await
                .expect("the loop's codes");
            let first = codes
                .lines()
                .filter_map(|line| line.split_once(' '))
                .filter(|(code, _)| *code == expected)
                .filter_map(|(_, at)| at.parse::<f64>().ok())
                .find(|at| *at >= since)
                .expect("a first one");
            let took = first - since;
            assert!(took < 1.0, "{} took {took} s to see {name}", pod.name());
        }
        assert!(applied.elapsed() < Duration::from_secs(60));
    }
    cluster.forget("changing").await;
}

async fn what_is_open_ends_with_the_policy_that_allowed_it() {
    let cluster = Cluster::get().await;
    cluster.namespace("open").await;
    cluster.apply(&policy("open", "p", "other.test")).await;
    let pod = Pod::new("open", "a").on(2).start(cluster).await;
    allowed_soon(cluster, &pod, "https://other.test/").await;
    // It would take an hour. The client reads what its socket has before it hears of the reset: some 3 MB, 8 s at this rate.
    let line = "(curl -sk --limit-rate 400k -o /tmp/part https://other.test/bytes/1440000000; echo $? >/tmp/ended) >/dev/null 2>&1 &";
    pod.run(cluster, line)
        .await
        .expect("a download in the background");
    let is_so = async |condition: &str| pod.run(cluster, condition).await.is_ok();
    cluster
        .eventually("the download has begun", async || {
            is_so("test -s /tmp/part").await
        })
        .await;
    assert!(!is_so("test -e /tmp/ended").await, "it goes on");
    // Another rule that allows it is as good.
    cluster.apply(&policy("open", "q", "other.test")).await;
    cluster.apply(&policy("open", "p", "ssd.jpl.nasa.gov")).await;
    allowed_soon(cluster, &pod, "https://ssd.jpl.nasa.gov/").await;
    assert!(!is_so("test -e /tmp/ended").await, "it goes on");
    cluster
        .kubectl(&["-n", "open", "delete", "egresspolicy", "q"])
        .await;
    cluster
        .eventually("the download is cut", async || is_so("test -s /tmp/ended").await)
        .await;
    let code = pod.run(cluster, "cat /tmp/ended").await;
    assert!(code.as_ref().is_ok_and(|code| code.trim() != "0"), "{code:?}");
    cluster.forget("open").await;
}

async fn an_invalid_policy_is_refused_or_told_and_the_last_good_one_stays() {
    let cluster = Cluster::get().await;
    cluster.namespace("broken").await;
    cluster.apply(&policy("broken", "p", "other.test")).await;
    let pod = Pod::new("broken", "a").start(cluster).await;
    allowed_soon(cluster, &pod, "https://other.test/").await;
    // The API server's schema does not know public suffixes; the agents do.
    let told = cluster
        .try_kubectl(&[
            "-n",
            "broken",
            "patch",
            "egresspolicy",
            "p",
            "--type=merge",
            "-p",
            r#"{"spec":{"egress":[{"to":[{"domain":"**.com"}]}]}}"#,
        ])
        .await;
    if told.is_ok() {
        cluster
            .eventually("the status tells why", async || {
                let policy = cluster.json(&["-n", "broken", "get", "egresspolicy", "p"]).await;
                policy["status"]["conditions"]
                    .as_array()
                    .is_some_and(|conditions| {
                        conditions.iter().any(|condition| {
                            condition["type"] == "Accepted" && condition["status"] == "False"
                        })
                    })
            })
            .await;
    }
    assert_eq!(
        pod.get(cluster, "https://other.test/").await.as_deref(),
        Ok("200")
    );
    cluster.forget("broken").await;
}

/// Waits until a pod may reach `url`: its policy has to have come to its node.
pub(crate) async fn allowed_soon(cluster: &Cluster, pod: &Pod, url: &str) {
    cluster
        .eventually(&format!("{} reaches {url}", pod.name()), async || {
            pod.get(cluster, url).await.as_deref() == Ok("200")
        })
        .await;
}

/// A policy by which every pod of a namespace may reach one name.
pub(crate) fn policy(namespace: &str, name: &str, domain: &str) -> String {
    format!(
        "apiVersion: egress-enforcer.io/v1alpha1\nkind: EgressPolicy\n\
         metadata: {{name: {name}, namespace: {namespace}}}\nspec:\n  egress:\n  - to: [{{domain: {domain}}}]\n"
    )
}

/// Seconds since the machine's start, as its pods read them: busybox's date knows no part of a second.
pub(crate) fn now() -> f64 {
    let text = std::fs::read_to_string("/proc/uptime").expect("/proc/uptime");
    let seconds = text.split(' ').next().unwrap_or_default();
    seconds.parse().expect("a number")
}
