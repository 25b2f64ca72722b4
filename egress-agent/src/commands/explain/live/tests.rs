use std::{path::Path, sync::Arc};

use http::{Request, Response};
use kube::client::Body;
use serde_json::{Value as Json, json};

use super::*;
use crate::policy::{PolicySet, Settings, read_text};

fn answer(path: &str) -> Option<Json> {
    let policies = |kind: &str, items: Json| json!({"apiVersion": "egress-enforcer.io/v1alpha1", "kind": format!("{kind}List"), "metadata": {}, "items": items});
    match path {
        "/api/v1/namespaces/shop/pods/web-0" => Some(json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "web-0", "namespace": "shop", "labels": {"app": "web"}}, "spec": {"containers": []},
        })),
        "/api/v1/namespaces/shop" => Some(json!({
            "apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop", "labels": {"tier": "front"}},
        })),
        "/apis/egress-enforcer.io/v1alpha1/namespaces/shop/egresspolicies" => Some(policies(
            "EgressPolicy",
            json!([
                {"metadata": {"name": "web", "namespace": "shop", "uid": "1", "generation": 1},
                 "spec": {"podSelector": {"matchLabels": {"app": "web"}}, "egress": [{"to": [{"domain": "x.test"}]}]}},
                {"metadata": {"name": "bad", "namespace": "shop", "uid": "2", "generation": 1},
                 "spec": {"egress": [{"to": [{"domain": "*.com"}]}]}},
            ]),
        )),
        "/apis/egress-enforcer.io/v1alpha1/clusteregresspolicies" => Some(policies(
            "ClusterEgressPolicy",
            json!([
                {"metadata": {"name": "base", "uid": "3", "generation": 1},
                 "spec": {"namespaceSelector": {"matchLabels": {"tier": "front"}}, "deny": [{"to": [{"domain": "evil.test"}]}]}},
            ]),
        )),
        _ => None,
    }
}

fn client() -> Client {
    let server = tower::service_fn(|request: Request<Body>| async move {
        let response = match answer(request.uri().path()) {
            Some(found) => Response::new(Body::from(found.to_string().into_bytes())),
            None => {
                let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": "not found", "reason": "NotFound", "code": 404});
                Response::builder()
                    .status(404)
                    .body(Body::from(status.to_string().into_bytes()))
                    .unwrap()
            }
        };
        Ok::<_, std::convert::Infallible>(response)
    });
    Client::new(server, "default")
}

fn pod(name: &str) -> PodName {
    name.parse().unwrap()
}

#[tokio::test]
async fn a_pod_is_judged_by_its_labels_its_namespaces_and_what_is_applied() {
    let asked = gather(&client(), &pod("shop/web-0"), Vec::new()).await.unwrap();
    assert_eq!(asked.workload.labels["app"], "web");
    assert_eq!(asked.workload.namespace_labels["tier"], "front");
    let [broken] = &asked.broken[..] else { panic!() };
    assert!(
        broken.starts_with("EgressPolicy shop/bad: spec.egress[0].to[0].domain: `*.com`"),
        "{broken}"
    );
    let set = Arc::new(PolicySet::build(asked.policies, Settings::default()).unwrap());
    let selecting: Vec<_> = set.selecting(&asked.workload).map(ToString::to_string).collect();
    assert_eq!(
        selecting,
        [
            "EgressPolicy shop/bad",
            "EgressPolicy shop/web",
            "ClusterEgressPolicy base"
        ]
    );
}

#[tokio::test]
async fn a_file_is_judged_as_if_it_were_applied() {
    let text = "apiVersion: egress-enforcer.io/v1alpha1\nkind: EgressPolicy\nmetadata: {name: bad, namespace: shop}\nspec: {}\n";
    let files = read_text(Path::new("p.yaml"), text).unwrap();
    let asked = gather(&client(), &pod("shop/web-0"), files).await.unwrap();
    assert_eq!(asked.policies.len(), 3);
    PolicySet::build(asked.policies, Settings::default()).unwrap();
}

#[tokio::test]
async fn a_pod_that_is_not_there_is_told() {
    let error = gather(&client(), &pod("shop/web-9"), Vec::new())
        .await
        .unwrap_err();
    assert_eq!(error.to_string(), "there is no pod shop/web-9");
}
