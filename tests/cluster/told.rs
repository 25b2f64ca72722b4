//! What the agents tell the people: the status of the policies, Events on pods, `explain`.

use std::{fs, time::Duration};

use egress_tests::{
    agent,
    cluster::{Cluster, NAMESPACE, Pod},
    promises,
    require::Need,
};
use serde_json::{Value, json};
use tokio::process::Command;

use crate::policies::{allowed_soon, policy};

promises![
    kubectl_shows_what_a_policy_selects_and_where_it_is_in_force: [Need::Nodes],
    a_broken_policy_says_what_is_wrong_and_what_holds_instead: [Need::Nodes],
    a_new_policy_that_is_broken_allows_its_pods_nothing: [Need::Nodes],
    a_denial_is_an_event_of_the_pod: [Need::Nodes],
    explain_asks_the_cluster: [Need::Nodes],
    a_team_asks_as_far_as_its_roles_go: [Need::Nodes],
    another_agent_takes_the_lead: [Need::Nodes, alone],
];

/// The line of a policy as `kubectl get egp` prints it, without its age.
async fn line(cluster: &Cluster, namespace: &str, name: &str) -> Vec<String> {
    let printed = cluster
        .kubectl(&["-n", namespace, "get", "egp", name, "--no-headers"])
        .await;
    let mut words: Vec<String> = printed.split_whitespace().map(str::to_owned).collect();
    words.pop();
    words
}

async fn kubectl_shows_what_a_policy_selects_and_where_it_is_in_force() {
    let cluster = Cluster::get().await;
    cluster.namespace("shown").await;
    cluster.apply(&policy("shown", "p", "other.test")).await;
    let _pods = [
        Pod::new("shown", "one").start(cluster).await,
        Pod::new("shown", "two").on(2).start(cluster).await,
    ];
    cluster
        .eventually("two pods on two nodes", async || {
            line(cluster, "shown", "p").await == ["p", "Enforce", "2", "2/2", "True"]
        })
        .await;
    let heads = cluster.kubectl(&["-n", "shown", "get", "egp"]).await;
    let heads: Vec<&str> = heads
        .lines()
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .collect();
    assert_eq!(heads, ["NAME", "MODE", "PODS", "NODES", "ACCEPTED", "AGE"]);
    let explained = cluster.kubectl(&["explain", "egp.spec.egress.to.domain"]).await;
    assert!(explained.contains("**.example.com"), "{explained}");
    cluster.forget("shown").await;
}

async fn accepted(cluster: &Cluster, namespace: &str, name: &str) -> Value {
    let policy = cluster.json(&["-n", namespace, "get", "egp", name]).await;
    let conditions = policy["status"]["conditions"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    conditions
        .into_iter()
        .find(|condition| condition["type"] == "Accepted")
        .unwrap_or_default()
}

async fn a_broken_policy_says_what_is_wrong_and_what_holds_instead() {
    let cluster = Cluster::get().await;
    cluster.namespace("told").await;
    cluster.apply(&policy("told", "p", "other.test")).await;
    cluster
        .eventually("it is accepted", async || {
            accepted(cluster, "told", "p").await["status"] == "True"
        })
        .await;
    cluster.apply(&policy("told", "p", "'**.com'")).await;
    cluster
        .eventually("it is not", async || {
            accepted(cluster, "told", "p").await["status"] == "False"
        })
        .await;
    let condition = accepted(cluster, "told", "p").await;
    let message = condition["message"].as_str().unwrap_or_default();
    assert!(
        message.starts_with("spec.egress[0].to[0].domain: `**.com` would match"),
        "{message}"
    );
    assert!(message.ends_with("; generation 1 stays in force"), "{message}");
    assert_eq!(
        (&condition["reason"], &condition["observedGeneration"]),
        (&"Invalid".into(), &2.into())
    );
    cluster
        .eventually("no node has this generation", async || {
            line(cluster, "told", "p").await == ["p", "Enforce", "0", "0/2", "False"]
        })
        .await;
    let status = cluster.node(1).status().await;
    let told = status["policy_source"]["list"].to_string();
    assert!(told.contains("EgressPolicy told/p"), "{told}");
    // What the schema can see does not come so far.
    let refused = cluster
        .try_kubectl(&[
            "-n",
            "told",
            "patch",
            "egp",
            "p",
            "--type=merge",
            "-p",
            r#"{"spec":{"mode":"audit"}}"#,
        ])
        .await;
    assert!(refused.is_err_and(|told| told.contains("Enforce")));
    cluster.forget("told").await;
}

async fn a_new_policy_that_is_broken_allows_its_pods_nothing() {
    let cluster = Cluster::get().await;
    cluster.namespace("closed").await;
    let pod = Pod::new("closed", "a").start(cluster).await;
    allowed_soon(cluster, &pod, "https://other.test/").await;
    cluster.apply(&policy("closed", "p", "'**.com'")).await;
    cluster
        .eventually("nothing is allowed", async || {
            pod.get(cluster, "https://other.test/").await.is_err()
        })
        .await;
    cluster.apply(&policy("closed", "p", "other.test")).await;
    allowed_soon(cluster, &pod, "https://other.test/").await;
    cluster.forget("closed").await;
}

async fn a_denial_is_an_event_of_the_pod() {
    let cluster = Cluster::get().await;
    cluster.namespace("events").await;
    cluster.apply(&policy("events", "p", "other.test")).await;
    let pod = Pod::new("events", "a").on(2).start(cluster).await;
    allowed_soon(cluster, &pod, "https://other.test/").await;
    let refused = pod
        .get(
            cluster,
            "https://evil.test/ --resolve evil.test:443:198.51.100.66",
        )
        .await;
    assert!(refused.is_err(), "{refused:?}");
    cluster
        .eventually("kubectl describe shows it", async || {
            let described = cluster.kubectl(&["-n", "events", "describe", "pod", "a"]).await;
            described.contains("EgressDenied")
                && described.contains("Egress to evil.test:443 denied")
                && described.contains("- {to: [{domain: evil.test}], ports: [{port: 443}]}")
        })
        .await;
    // A name is looked up with each entry of the pod's search list behind it first. Nobody has asked for those.
    let resolver = pod.run(cluster, "cat /etc/resolv.conf").await;
    assert!(
        resolver.is_ok_and(|text| text.contains("svc.cluster.local") && text.contains("corp.example")),
        "the pod has a search list"
    );
    for url in ["https://www.nasa.gov/", "https://intranet.corp.example/"] {
        assert!(pod.get(cluster, url).await.is_err(), "{url}");
    }
    let looked_up = async || {
        let line = "jsonpath={range .items[?(@.involvedObject.name=='a')]}{.message}{'\\n'}{end}";
        let messages = cluster
            .kubectl(&["-n", "events", "get", "events", "-o", line])
            .await;
        let names = messages
            .lines()
            .filter_map(|message| message.strip_prefix("Looking up "))
            .filter_map(|rest| rest.split_once(' '))
            .map(|(name, _)| name.to_owned());
        names.collect::<Vec<_>>()
    };
    cluster
        .eventually("the names are told", async || {
            let told = looked_up().await;
            ["www.nasa.gov", "intranet.corp.example"]
                .iter()
                .all(|name| told.iter().any(|other| other == name))
        })
        .await;
    let told = looked_up().await;
    assert_eq!(told.len(), 2, "{told:?}");
    cluster.forget("events").await;
}

async fn explain_asks_the_cluster() {
    let cluster = Cluster::get().await;
    cluster.namespace("asked").await;
    cluster.apply(&policy("asked", "p", "other.test")).await;
    let pod = Pod::new("asked", "a").start(cluster).await;
    allowed_soon(cluster, &pod, "https://other.test/").await;
    let agent = cluster.node(1).agent().await;
    let explain = async |target: &str| {
        let words = [
            "-n",
            NAMESPACE,
            "exec",
            &agent,
            "--",
            "/egress-agent",
            "explain",
            "--pod",
            "asked/a",
            target,
        ];
        cluster.try_kubectl(&words).await
    };
    let allowed = explain("https://other.test/").await.expect("it is allowed");
    assert!(
        allowed.contains("rule:     EgressPolicy asked/p egress[0]\n"),
        "{allowed}"
    );
    assert!(
        allowed.contains("workload: enforced, in namespace asked (pod a)\n"),
        "{allowed}"
    );
    let denied = explain("https://evil.test/").await.expect_err("it is denied");
    assert!(denied.contains("outcome:  no_rule\n"), "{denied}");
    let missing = async || {
        let words = [
            "-n",
            NAMESPACE,
            "exec",
            &agent,
            "--",
            "/egress-agent",
            "explain",
            "--pod",
            "asked/b",
            "x.test:1",
        ];
        cluster.try_kubectl(&words).await
    };
    assert!(
        missing()
            .await
            .is_err_and(|told| told.contains("there is no pod asked/b"))
    );
    cluster.forget("asked").await;
}

/// By the roles of the manual: `view` of a namespace, and the one for the cluster's policies.
async fn a_team_asks_as_far_as_its_roles_go() {
    let cluster = Cluster::get().await;
    for namespace in ["team", "foreign"] {
        cluster.namespace(namespace).await;
        cluster.apply(&policy(namespace, "p", "other.test")).await;
    }
    let pod = Pod::new("team", "a").start(cluster).await;
    let _foreign = Pod::new("foreign", "a").start(cluster).await;
    allowed_soon(cluster, &pod, "https://other.test/").await;
    cluster
        .kubectl(&[
            "-n",
            "team",
            "create",
            "rolebinding",
            "looks",
            "--clusterrole=view",
            "--serviceaccount=team:default",
        ])
        .await;
    let directory = tempfile::tempdir().expect("a directory");
    let kubeconfig = directory.path().join("kubeconfig");
    fs::write(&kubeconfig, as_service_account(cluster, "team").await).expect("a file");
    let explain = async |pod: &str| {
        let output = Command::new(agent::program())
            .args(["explain", "--pod", pod, "https://other.test/"])
            .env("KUBECONFIG", &kubeconfig)
            .output()
            .await
            .expect("the agent runs");
        let told = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
        if output.status.success() {
            Ok(told.concat())
        } else {
            Err(told.concat())
        }
    };
    let refused = explain("team/a")
        .await
        .expect_err("the cluster's policies are not its to see");
    assert!(refused.contains("clusteregresspolicies"), "{refused}");

    let binding = "egress-tests-explain";
    cluster
        .kubectl(&[
            "create",
            "clusterrolebinding",
            binding,
            "--clusterrole=egress-enforcer-explain",
            "--serviceaccount=team:default",
        ])
        .await;
    cluster
        .eventually("the role is known", async || explain("team/a").await.is_ok())
        .await;
    let allowed = explain("team/a").await.expect("it is allowed");
    assert!(
        allowed.contains("rule:     EgressPolicy team/p egress[0]\n"),
        "{allowed}"
    );
    let foreign = explain("foreign/a").await.expect_err("another team's");
    assert!(foreign.contains("forbidden"), "{foreign}");
    cluster.kubectl(&["delete", "clusterrolebinding", binding]).await;
    for namespace in ["team", "foreign"] {
        cluster.forget(namespace).await;
    }
}

/// A kubeconfig for a namespace's default service account.
async fn as_service_account(cluster: &Cluster, namespace: &str) -> String {
    let account = cluster
        .json(&["-n", namespace, "get", "serviceaccount", "default"])
        .await;
    let secret = account["secrets"][0]["name"].as_str().expect("a token's secret");
    let template = "go-template={{.data.token | base64decode}}";
    let token = cluster
        .kubectl(&["-n", namespace, "get", "secret", secret, "-o", template])
        .await;
    let mut config = cluster.json(&["config", "view", "--raw"]).await;
    config["users"][0]["user"] = json!({"token": token.trim()});
    config.to_string()
}

async fn leader(cluster: &Cluster) -> String {
    let lease = cluster
        .json(&["-n", NAMESPACE, "get", "lease", "egress-enforcer.leader"])
        .await;
    lease["spec"]["holderIdentity"]
        .as_str()
        .unwrap_or_default()
        .to_owned()
}

/// The leader's Lease is given to a node that is not there: somebody takes it when it is not renewed, and writes on.
async fn another_agent_takes_the_lead() {
    let cluster = Cluster::get().await;
    cluster.namespace("lead").await;
    cluster
        .eventually("somebody leads", async || {
            leader(cluster).await.starts_with("node")
        })
        .await;
    let gone = r#"{"spec":{"holderIdentity":"gone"}}"#;
    let patched = [
        "-n",
        NAMESPACE,
        "patch",
        "lease",
        "egress-enforcer.leader",
        "--type=merge",
        "-p",
        gone,
    ];
    cluster.kubectl(&patched).await;
    let took = cluster
        .eventually("another leads", async || {
            leader(cluster).await.starts_with("node")
        })
        .await;
    assert!(
        took > Duration::from_secs(5),
        "a leader that is only slow keeps the lead: {took:?}"
    );
    cluster.apply(&policy("lead", "p", "other.test")).await;
    cluster
        .eventually("statuses are written", async || {
            line(cluster, "lead", "p").await == ["p", "Enforce", "0", "2/2", "True"]
        })
        .await;
    cluster.forget("lead").await;
}
