//! The rules in CEL of the policies' definitions, by a server that knows such rules.

use std::{fs, path::Path};

use egress_tests::{cluster::Cluster, promises, require::Need};
use serde::Deserialize;
use serde_json::{Value, json};

promises![an_api_server_with_rules_refuses_what_the_agents_refuse_and_says_why: [Need::Rules]];

const CASES: &str = include_str!("rules.yaml");

#[derive(Debug, Deserialize)]
struct Case {
    spec: String,
    says: Option<String>,
}

/// kubectl's usual verbs ask for lists of groups that this server has none of.
async fn create(kubeconfig: &Path, path: &str, document: &Value) -> Result<(), String> {
    let file = tempfile::NamedTempFile::new().expect("a file");
    fs::write(file.path(), document.to_string()).expect("a file");
    let output = tokio::process::Command::new("kubectl")
        .arg("--kubeconfig")
        .arg(kubeconfig)
        .args(["create", "--raw", path, "-f"])
        .arg(file.path())
        .output()
        .await
        .expect("kubectl runs");
    if output.status.success() {
        return Ok(());
    }
    Err(String::from_utf8_lossy(&output.stderr).into_owned())
}

async fn an_api_server_with_rules_refuses_what_the_agents_refuse_and_says_why() {
    let cluster = Cluster::get().await;
    let kubeconfig = cluster.start_rules().await;
    let definitions = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/cel/crds.yaml");
    let definitions: Vec<Value> =
        serde_saphyr::from_multiple(&fs::read_to_string(definitions).expect("the definitions"))
            .expect("YAML");
    assert_eq!(definitions.len(), 2);
    for definition in &definitions {
        let path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
        create(&kubeconfig, path, definition)
            .await
            .expect("the server takes the rules, and what they may cost");
    }
    let group = "/apis/egress-enforcer.io/v1alpha1";
    let policies = format!("{group}/namespaces/default/egresspolicies");
    let policy = |name: &str, spec: &str| {
        json!({
            "apiVersion": "egress-enforcer.io/v1alpha1",
            "kind": "EgressPolicy",
            "metadata": {"name": name, "namespace": "default"},
            "spec": serde_saphyr::from_str::<Value>(spec).expect("YAML"),
        })
    };
    cluster
        .eventually("the definitions are established", async || {
            create(&kubeconfig, &policies, &policy("first", "{}"))
                .await
                .is_ok()
        })
        .await;
    let cases: Vec<Case> = serde_saphyr::from_str(CASES).expect("rules.yaml");
    for (number, case) in cases.iter().enumerate() {
        let told = create(&kubeconfig, &policies, &policy(&format!("p{number}"), &case.spec)).await;
        match &case.says {
            None => assert_eq!(told, Ok(()), "{}", case.spec),
            Some(word) => assert!(
                told.as_ref().is_err_and(|told| told.contains(word)),
                "{}: {told:?}",
                case.spec
            ),
        }
    }
    // Of the cluster's own kind there are more places for the same rules.
    let cases = [("deny", "443"), ("ceiling", "443"), ("egress", "443")];
    for (list, word) in cases {
        let spec = json!({list: [{"to": [{"domain": "x.test"}], "ports": [{"port": 443}], "http": [{"methods": ["GET"]}]}]});
        let mut document = policy(list, "{}");
        document["kind"] = "ClusterEgressPolicy".into();
        document["metadata"] = json!({"name": list});
        document["spec"] = spec;
        let told = create(&kubeconfig, &format!("{group}/clusteregresspolicies"), &document).await;
        assert!(
            told.as_ref().is_err_and(|told| told.contains(word)),
            "{list}: {told:?}"
        );
    }
    cluster.stop_rules().await;
}
