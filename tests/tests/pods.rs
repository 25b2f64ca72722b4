//! A node of a cluster: pods known by their cgroups and the API server, exempt ones, pods that come late, an API server
//! that goes away, and a thousand pods that come and go.

use std::{fs, path::Path, time::Instant};

use egress_tests::{
    clients::{Client, curl, python, raw, shell},
    daemon::{both, policy},
    hello::Hello,
    kubernetes::{ApiServer, Node, Pod},
    lab::{Place, World},
    promises,
    raw_client::Script,
    require::Need,
};
use futures_util::stream::{self, StreamExt};
use serde_json::json;

promises![
    a_pod_is_judged_by_its_namespaces_policies_and_logged_by_name,
    a_pod_on_the_hosts_network_is_judged_too,
    a_pod_of_a_service_mesh_is_served_past_its_sidecar,
    a_pod_that_the_api_server_tells_late_waits_for_its_verdict,
    a_pod_that_nobody_knows_is_refused,
    a_connection_from_before_the_enforcement_is_closed_when_its_pod_becomes_known,
    exempt_pods_are_left_alone_and_others_cannot_exempt_themselves,
    a_pod_with_new_labels_is_judged_anew_while_its_tunnel_is_open,
    without_an_api_server_what_is_known_stays_and_status_says_since_when,
    an_agent_in_a_pod_is_exempt_by_its_own_container,
    a_kubelets_cgroup_that_is_not_there_yet_is_made,
    a_thousand_pods_come_and_go_and_leave_nothing: [Need::Time],
];

/// A world with an API server that knows two teams, one of which may reach good.test.
async fn cluster() -> (World, Place, ApiServer) {
    let world = World::new().await;
    let place = world.another_client("pod", 3).await;
    let server = ApiServer::start(&world).await;
    server.namespace("team-a", json!({"tier": "front"}));
    server.namespace("team-b", json!({}));
    server.namespace("kube-system", json!({}));
    world.file("policies/a.yaml", &policy("a", "team-a", "good.test"));
    world.file("policies/b.yaml", &policy("b", "team-b", "other.test"));
    (world, place, server)
}

async fn codes(node: &Node<'_>, world: &World, pod: &Pod, place: &Place) -> String {
    node.start_client(pod, place, &both(world)).finish().await.text()
}

async fn a_pod_is_judged_by_its_namespaces_policies_and_logged_by_name() {
    let (world, place, server) = cluster().await;
    let good = world.http("good.test").await;
    let other = world.http("other.test").await;
    let (a, b) = (Pod::new(1, "team-a", "web-0"), Pod::new(2, "team-b", "web-0"));
    server.pod(&a);
    server.pod(&b);
    let node = Node::start(&world, "").await;

    assert_eq!(codes(&node, &world, &a, &place).await, "200,403,");
    assert_eq!(codes(&node, &world, &b, &place).await, "403,200,");

    assert_eq!(good.requests().await.len(), 1);
    assert_eq!(other.requests().await.len(), 1);
    node.eventually("four records", async || node.log().len() == 4)
        .await;
    // Of two workers' records the one or the other is written first.
    let log = node.log();
    let record = log
        .iter()
        .find(|record| record["namespace"] == "team-a" && record["outcome"] == "allowed_by_rule")
        .expect("a record of the allowed request");
    let client = record["client"].as_str().unwrap_or_default();
    assert!(
        client.starts_with("198.18.3.2:"),
        "the pod's own address: {record}"
    );
    for (key, value) in [
        ("namespace", json!("team-a")),
        ("pod", json!("web-0")),
        ("container", json!("main")),
        ("service_account", json!("runner")),
        ("node", json!("node-1")),
        ("rule", json!("EgressPolicy team-a/a egress[0]")),
    ] {
        assert_eq!(record[key], value, "{key} in {record}");
    }
    let status = node.status().await.unwrap_or_default();
    assert_eq!(status["kubernetes"]["pods"], 2);
    assert_eq!(status["kubernetes"]["api_server"], true);
}

async fn a_pod_on_the_hosts_network_is_judged_too() {
    let (world, _place, server) = cluster().await;
    let good = world.http("good.test").await;
    let _other = world.http("other.test").await;
    let pod = Pod::new(1, "team-a", "host");
    server.pod(&pod);
    let node = Node::start(&world, "").await;

    // The agent's own namespace.
    assert_eq!(codes(&node, &world, &pod, &world.client).await, "200,403,");

    assert_eq!(good.requests().await.len(), 1);
}

/// The sidecar is sent all that leaves the pod, but for what it sends itself. Sent the agent's connections, it would connect
/// to where they go, which is redirected to the agent, and so on.
async fn a_pod_of_a_service_mesh_is_served_past_its_sidecar() {
    let (world, place, server) = cluster().await;
    let good = world.http("good.test").await;
    let _other = world.http("other.test").await;
    let mut pod = Pod::new(1, "team-a", "meshed");
    pod.containers =
        json!([{"name": "main"}, {"name": "istio-proxy", "securityContext": {"runAsUser": 4242}}]);
    server.pod(&pod);
    let node = Node::start(&world, "").await;
    let outside = world.cgroup.child("mesh");
    let rules = "iptables -t nat -A OUTPUT -p tcp -o lo -j RETURN && \
        iptables -t nat -A OUTPUT -p tcp -m owner --uid-owner 4242 -j RETURN && \
        iptables -t nat -A OUTPUT -p tcp -j REDIRECT --to-ports 15001";
    world
        .start_in(&place, &outside, &shell(rules))
        .finish()
        .await
        .succeeded();
    let sidecar = "
import socket
with socket.create_server(('0.0.0.0', 15001)) as server:
    print('serving', flush=True)
    while True:
        server.accept()[0].close()
        print('seen', flush=True)
";
    let sidecar = node.start_client(&pod, &place, &python(&world, "sidecar", sidecar));
    sidecar.says("serving").await;
    // The rules work: another connection of the machine's goes there.
    let visits = curl(&world).words("--ipv4 http://198.51.100.10/");
    world.start_in(&place, &outside, &visits).finish().await.failed();
    sidecar.says("seen").await;

    assert_eq!(codes(&node, &world, &pod, &place).await, "200,403,");

    assert_eq!(
        sidecar.stdout().matches("seen").count(),
        1,
        "{}",
        sidecar.stdout()
    );
    assert_eq!(good.requests().await.len(), 1);
}

async fn a_pod_that_the_api_server_tells_late_waits_for_its_verdict() {
    let (world, place, server) = cluster().await;
    let _good = world.http("good.test").await;
    let _other = world.http("other.test").await;
    let node = Node::start(&world, "  identityWaitMilliseconds: 60000").await;
    let pod = Pod::new(1, "team-a", "late");
    let client = curl(&world).words("--ipv4 --output /dev/null --write-out %{http_code} http://good.test/");

    let running = node.start_client(&pod, &place, &client);
    node.eventually("it is accepted", async || {
        let status = node.status().await.unwrap_or_default();
        status["connections"]["accepted"] == 1
    })
    .await;
    assert_eq!(
        node.log().len(),
        0,
        "nobody is judged before it is known who it is"
    );
    server.pod(&pod);

    assert_eq!(running.finish().await.text(), "200");
}

async fn a_pod_that_nobody_knows_is_refused() {
    let (world, place, _server) = cluster().await;
    let good = world.http("good.test").await;
    let node = Node::start(&world, "  identityWaitMilliseconds: 300").await;
    let pod = Pod::new(1, "team-a", "unknown");
    let client = curl(&world).words("--ipv4 http://good.test/");

    node.start_client(&pod, &place, &client).finish().await.failed();

    assert_eq!(good.requests().await.len(), 0);
    let status = node.status().await.unwrap_or_default();
    assert_eq!(status["connections"]["unknown_workload"], 1);
    node.eventually("it is logged", async || {
        let log = node.log();
        let told = log.iter().find(|record| record["outcome"] == "unknown_workload");
        told.is_some_and(|record| record["workload"] == pod.uid.as_str())
    })
    .await;
}

async fn a_connection_from_before_the_enforcement_is_closed_when_its_pod_becomes_known() {
    let (world, place, server) = cluster().await;
    let _origin = world
        .raw("good.test", 5432, async |connection| connection.stall().await)
        .await;
    let holds = "
import errno, socket
s = socket.create_connection(('198.51.100.10', 5432), 10)
s.settimeout(None)
print('open', flush=True)
try: print('ended', len(s.recv(10)), flush=True)
except OSError as e: print('ended', errno.errorcode[e.errno], flush=True)
";
    let pod = Pod::new(1, "team-a", "early");
    let cgroup = world.cgroup.child(&format!("kubepods/{}", pod.container()));
    let client = world.start_in(&place, &cgroup, &python(&world, "holds", holds));
    client.says("open").await;

    // The API server has not told the pod yet.
    let node = Node::start(&world, "  identityWaitMilliseconds: 300").await;
    assert_eq!(node.log().len(), 0, "nobody knows whose it is");
    server.pod(&pod);

    client.says("ended ECONNABORTED").await;
    node.eventually("it is logged", async || {
        node.log().iter().any(|record| {
            record["outcome"] == "opened_before"
                && record["original"] == "198.51.100.10:5432"
                && record["pod"] == "early"
        })
    })
    .await;
}

async fn exempt_pods_are_left_alone_and_others_cannot_exempt_themselves() {
    let (world, place, server) = cluster().await;
    let good = world.http("good.test").await;
    let _other = world.http("other.test").await;
    let system = Pod::new(1, "kube-system", "dns");
    let mut selfish = Pod::new(2, "team-b", "selfish");
    selfish.annotations = json!({"egress-enforcer.io/exempt": "true"});
    server.pod(&system);
    server.pod(&selfish);
    let node = Node::start(&world, "").await;

    // The first connects may be passed by the proxy; once the agent has told the kernel, they go by it alone.
    let request =
        "curl --silent --max-time 20 --output /dev/null --write-out %{http_code}, http://198.51.100.10/";
    let done = world.path("done");
    let line = format!("until test -e {}; do {request} || exit 1; done", done.display());
    let running = node.start_client(&system, &place, &shell(&line));
    running.says("200,").await;
    node.eventually("the kernel leaves it alone", async || {
        let status = node.status().await.unwrap_or_default();
        status["kernel"]["exempt"].as_u64() > Some(0)
    })
    .await;
    assert_eq!(codes(&node, &world, &selfish, &place).await, "403,200,");
    world.file("done", "");
    let printed = running.finish().await.succeeded().text();
    assert!(
        printed.split_terminator(',').all(|code| code == "200"),
        "{printed}"
    );
    assert!(good.requests().await.len() >= 2);
}

async fn a_pod_with_new_labels_is_judged_anew_while_its_tunnel_is_open() {
    let (world, place, server) = cluster().await;
    let _good = world
        .raw("good.test", 443, async |mut connection| {
            connection.read_record().await?;
            connection.send(b"ready").await?;
            while !connection.read_some().await?.is_empty() {}
            Ok(())
        })
        .await;
    let selecting = policy("a", "team-a", "good.test")
        .replace("spec:\n", "spec:\n  podSelector: {matchLabels: {app: web}}\n");
    world.file("policies/a.yaml", &selecting);
    world.file("policies/rest.yaml", &policy("rest", "team-a", "other.test"));
    let mut pod = Pod::new(1, "team-a", "web");
    server.pod(&pod);
    let node = Node::start(&world, "").await;
    let script = Script::to(world.sockets("good.test", 443)[0])
        .send(&Hello::new(Some("good.test")).bytes())
        .read_until(b"ready")
        .read_to_end();

    let tunnel = node.start_client(&pod, &place, &raw(&world, &script));
    node.eventually("the tunnel is open", async || {
        let status = node.status().await.unwrap_or_default();
        status["connections"]["open"] == 1
    })
    .await;
    pod.labels = json!({"app": "batch"});
    server.pod(&pod);

    tunnel.finish().await;
    node.eventually("it is logged", async || {
        node.log()
            .iter()
            .any(|record| record["ending"] == "policy_changed")
    })
    .await;
}

async fn without_an_api_server_what_is_known_stays_and_status_says_since_when() {
    let (world, place, mut server) = cluster().await;
    let _good = world.http("good.test").await;
    let _other = world.http("other.test").await;
    let pod = Pod::new(1, "team-a", "web");
    server.pod(&pod);
    let node = Node::start(&world, "").await;

    server.stop().await;
    node.eventually("status tells", async || {
        let status = node.status().await.unwrap_or_default();
        status["kubernetes"]["api_server"] == false
    })
    .await;
    assert_eq!(codes(&node, &world, &pod, &place).await, "200,403,");
    let status = node.status().await.unwrap_or_default();
    let why = status["kubernetes"]["api_server_error"]
        .as_str()
        .unwrap_or_default();
    assert!(why.contains("refused"), "{status}");

    // What happens meanwhile is learned when it is back.
    let late = Pod::new(2, "team-b", "late");
    server.pod(&late);
    server.begin(&world.origins).await;
    node.eventually("it is back", async || {
        let status = node.status().await.unwrap_or_default();
        status["kubernetes"]["api_server"] == true && status["kubernetes"]["pods"] == 2
    })
    .await;
    assert_eq!(codes(&node, &world, &late, &place).await, "403,200,");
}

async fn an_agent_in_a_pod_is_exempt_by_its_own_container() {
    let (world, place, server) = cluster().await;
    let _good = world.http("good.test").await;
    let _other = world.http("other.test").await;
    let (agent, pod) = (
        Pod::new(1, "egress-enforcer", "agent"),
        Pod::new(2, "team-a", "web"),
    );
    server.namespace("egress-enforcer", json!({}));
    server.pod(&agent);
    server.pod(&pod);
    let own = world.cgroup.child(&format!("kubepods/{}", agent.container()));
    // An exec probe shares the container with the agent.
    let probe = world.start_in(&world.client, &own, &shell("echo ready; exec sleep 1000"));

    let node = Node::start_in(&world, own, "").await;

    assert_eq!(codes(&node, &world, &pod, &place).await, "200,403,");
    drop(probe);
}

async fn a_kubelets_cgroup_that_is_not_there_yet_is_made() {
    let (world, place, server) = cluster().await;
    let _good = world.http("good.test").await;
    let _other = world.http("other.test").await;
    let pod = Pod::new(1, "team-a", "web");
    server.pod(&pod);
    let kubepods = world.cgroup.child("kubepods");
    fs::remove_dir(&kubepods).expect("it is empty");

    let node = Node::start_before_the_kubelet(&world).await;

    assert!(kubepods.is_dir());
    assert_eq!(codes(&node, &world, &pod, &place).await, "200,403,");
}

/// What the agent holds that a pod could leave behind.
#[derive(Debug, PartialEq, Eq)]
struct Held {
    descriptors: usize,
    namespaces: usize,
    listeners: usize,
    flows: usize,
    sites: u64,
}

impl Held {
    async fn by(node: &Node<'_>) -> Self {
        let pid = node.running.pid();
        let descriptors: Vec<_> = fs::read_dir(format!("/proc/{pid}/fd"))
            .expect("the agent lives")
            .filter_map(|entry| fs::read_link(entry.ok()?.path()).ok())
            .collect();
        let status = node.status().await.unwrap_or_default();
        Self {
            namespaces: descriptors
                .iter()
                .filter(|to| to.to_string_lossy().starts_with("net:"))
                .count(),
            descriptors: descriptors.len(),
            listeners: node.map_entries("LISTENERS").await,
            flows: node.map_entries("FLOWS").await,
            sites: status["namespaces"].as_u64().unwrap_or_default(),
        }
    }
}

/// Pods that come and go, twenty at a time, each with a network namespace and a cgroup of its own. The first thing that
/// each does is a connect.
async fn a_thousand_pods_come_and_go_and_leave_nothing() {
    const PODS: u32 = 1000;
    let (world, place, server) = cluster().await;
    let node = Node::start(&world, "").await;
    let staying = Pod::new(u32::MAX, "team-a", "staying");
    server.pod(&staying);
    assert_eq!(
        codes(&node, &world, &staying, &place).await,
        "503,403,",
        "nobody listens there"
    );
    let member = node.start_client(&staying, &place, &shell("echo here; exec sleep 1000"));
    member.says("here").await;
    let before = Held::by(&node).await;
    assert_eq!(
        (before.sites, before.listeners),
        (2, 2),
        "the agent's own, and that one"
    );

    let begun = Instant::now();
    let answers: Vec<String> = stream::iter(1..=PODS)
        .map(|number| short_lived(&node, &world, &server, number))
        .buffer_unordered(20)
        .collect()
        .await;
    let took = begun.elapsed();

    let refused = answers.iter().filter(|answer| *answer == "403").count();
    assert_eq!(refused, PODS as usize, "each is judged: {answers:?}");
    node.eventually("as before", async || Held::by(&node).await.sites == before.sites)
        .await;
    node.eventually("the records of their pods are gone", async || {
        node.status()
            .await
            .is_some_and(|status| status["kubernetes"]["pods"] == 1)
    })
    .await;
    assert_eq!(Held::by(&node).await, before, "{PODS} pods in {took:?}");
    drop(member);
}

/// A pod's whole life, in the order in which a runtime makes it: a network namespace of its own, the cgroup, and then a
/// program, which asks for what is denied. Tells the answer.
async fn short_lived(node: &Node<'_>, world: &World, server: &ApiServer, number: u32) -> String {
    let request = "curl --silent --max-time 30 --output /dev/null --write-out %{http_code} --header Host:evil.test http://198.51.100.66/";
    let pod = Pod::new(number, "team-a", "short");
    server.pod(&pod);
    let container = world.cgroup.child(&format!("kubepods/{}", pod.container()));
    let client = Client::new("unshare").words("--net sh -c").arg(format!(
        "ip link set lo up; ip route add default dev lo; echo $$ > {}/cgroup.procs; exec {request}",
        container.display()
    ));
    let answer = world.directly(&client).await.text();
    server.delete(&pod);
    remove(&node.kubepods.join(format!("burstable/pod{}", pod.uid)));
    answer
}

fn remove(pod: &Path) {
    for container in fs::read_dir(pod).into_iter().flatten().filter_map(Result::ok) {
        if container.path().is_dir() {
            fs::remove_dir(container.path()).expect("nothing is left in it");
        }
    }
    fs::remove_dir(pod).expect("nothing is left in it");
}
