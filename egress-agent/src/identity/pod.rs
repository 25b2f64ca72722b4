//! A pod as the API server tells it, cut down to what an enforcer needs.

use std::{collections::BTreeMap, net::IpAddr};

use k8s_openapi::{
    api::core::v1::{ContainerStatus, Pod as Object, PodSpec, PodStatus},
    jiff::Timestamp,
};
use serde::{Deserialize, Serialize};

use super::PodUid;

/// With the value `true` it asks that the pod be left alone; heeded only where the configuration says so.
pub const EXEMPT_ANNOTATION: &str = "egress-enforcer.io/exempt";

/// On the object that stands for a static pod in the API server: that it is such a one, and the UID that the kubelet gave
/// to the pod itself.
const MIRROR_ANNOTATION: &str = "kubernetes.io/config.mirror";
const HASH_ANNOTATION: &str = "kubernetes.io/config.hash";

/// The containers of service meshes, and the users that they run as if the pod does not say: Istio's and Linkerd's.
const SIDECARS: [(&str, u32); 2] = [("istio-proxy", 1337), ("linkerd-proxy", 2102)];

/// A pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Pod {
    pub(super) uid: PodUid,
    /// A static pod's cgroup has this UID and not that of the API server.
    pub(super) hash: Option<PodUid>,
    pub(super) created: Option<Timestamp>,
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) service_account: String,
    pub(super) node: String,
    pub(super) host_network: bool,
    pub(super) addresses: Vec<IpAddr>,
    /// Container ids, without the runtime's name, to the containers' names: init and ephemeral ones too.
    pub(super) containers: BTreeMap<String, String>,
    /// It asks to be left alone.
    pub(super) wants_exemption: bool,
    /// The user of a mesh's sidecar in it. Whatever is told here decides nothing but who is the owner of a socket.
    #[serde(default)]
    pub(super) sidecar: Option<u32>,
}

/// The API server sent a pod that lacks what all pods have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a pod without {0}")]
pub(super) struct Lacking(&'static str);

impl Pod {
    pub(super) fn read(object: &Object) -> Result<Self, Lacking> {
        let metadata = &object.metadata;
        let spec = object.spec.as_ref().ok_or(Lacking("spec"))?;
        let annotations = metadata.annotations.as_ref();
        let annotation = |key| annotations.and_then(|all| all.get(key)).map(String::as_str);
        let hash = annotation(MIRROR_ANNOTATION)
            .and_then(|_is_mirror| annotation(HASH_ANNOTATION))
            .and_then(|hash| hash.parse::<PodUid>().ok())
            .filter(|hash| hash.is_hash());
        Ok(Self {
            uid: uid_of(object).ok_or(Lacking("a UID"))?,
            hash,
            created: metadata.creation_timestamp.as_ref().map(|time| time.0),
            namespace: metadata.namespace.clone().ok_or(Lacking("a namespace"))?,
            name: metadata.name.clone().ok_or(Lacking("a name"))?,
            labels: metadata.labels.clone().unwrap_or_default(),
            service_account: spec.service_account_name.clone().unwrap_or_default(),
            node: spec.node_name.clone().unwrap_or_default(),
            host_network: spec.host_network.unwrap_or_default(),
            addresses: object.status.as_ref().map(addresses).unwrap_or_default(),
            containers: object.status.as_ref().map(containers).unwrap_or_default(),
            wants_exemption: annotation(EXEMPT_ANNOTATION) == Some("true"),
            sidecar: sidecar(spec),
        })
    }
}

/// The UID of a pod.
pub(super) fn uid_of(object: &Object) -> Option<PodUid> {
    object.metadata.uid.as_ref()?.parse().ok()
}

/// Sidecars may be init containers that stay (Kubernetes 1.28).
fn sidecar(spec: &PodSpec) -> Option<u32> {
    let all = spec
        .containers
        .iter()
        .chain(spec.init_containers.iter().flatten());
    all.filter_map(|container| {
        let (_, usual) = SIDECARS.iter().find(|(name, _)| *name == container.name)?;
        let told = container
            .security_context
            .as_ref()
            .and_then(|context| context.run_as_user);
        told.map_or(Some(*usual), |user| user.try_into().ok())
    })
    .next()
}

fn addresses(status: &PodStatus) -> Vec<IpAddr> {
    let all = status.pod_ips.iter().flatten().map(|address| &address.ip);
    // A server before 1.16, or a kubelet with one address.
    let first = status.pod_ip.iter().filter(|_| status.pod_ips.is_none());
    all.chain(first).filter_map(|text| text.parse().ok()).collect()
}

fn containers(status: &PodStatus) -> BTreeMap<String, String> {
    let all = [
        &status.init_container_statuses,
        &status.container_statuses,
        &status.ephemeral_container_statuses,
    ];
    let named = |status: &ContainerStatus| {
        // `containerd://8a1b…`
        let (_runtime, id) = status.container_id.as_ref()?.split_once("://")?;
        Some((id.to_owned(), status.name.clone()))
    };
    all.into_iter().flatten().flatten().filter_map(named).collect()
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::json;

    use super::*;

    pub(in crate::identity) fn object(value: serde_json::Value) -> Object {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn a_pod_is_read_with_every_kind_of_container() {
        let pod = Pod::read(&object(json!({
            "metadata": {
                "uid": "0ac9f8a1-6d51-4a3f-9a8b-2f3c1d9e7b55", "namespace": "horizons", "name": "web-0",
                "labels": {"app": "web"}, "annotations": {"egress-enforcer.io/exempt": "true"}
            },
            "spec": {"nodeName": "n1", "serviceAccountName": "web", "hostNetwork": true, "containers": []},
            "status": {
                "podIP": "10.0.0.7", "podIPs": [{"ip": "10.0.0.7"}, {"ip": "fd00::7"}, {"ip": "?"}],
                "initContainerStatuses": [{"name": "init", "containerID": "containerd://aa", "image": "", "imageID": "", "ready": true, "restartCount": 0}],
                "containerStatuses": [
                    {"name": "main", "containerID": "cri-o://bb", "image": "", "imageID": "", "ready": true, "restartCount": 0},
                    {"name": "waiting", "image": "", "imageID": "", "ready": false, "restartCount": 0}
                ],
                "ephemeralContainerStatuses": [{"name": "debug", "containerID": "docker://cc", "image": "", "imageID": "", "ready": true, "restartCount": 0}]
            }
        })))
        .unwrap();
        assert_eq!(
            (
                pod.namespace.as_str(),
                pod.name.as_str(),
                pod.service_account.as_str()
            ),
            ("horizons", "web-0", "web")
        );
        assert_eq!(
            pod.addresses,
            ["10.0.0.7".parse::<IpAddr>().unwrap(), "fd00::7".parse().unwrap()]
        );
        let containers: Vec<_> = pod
            .containers
            .iter()
            .map(|(id, name)| format!("{id}={name}"))
            .collect();
        assert_eq!(containers, ["aa=init", "bb=main", "cc=debug"]);
        assert!(pod.host_network && pod.wants_exemption && pod.hash.is_none());
    }

    #[test]
    fn a_meshs_sidecar_is_known_by_its_name() {
        let read = |spec: serde_json::Value| {
            let object = object(json!({
                "metadata": {"uid": "0ac9f8a1-6d51-4a3f-9a8b-2f3c1d9e7b55", "namespace": "a", "name": "b"}, "spec": spec
            }));
            Pod::read(&object).unwrap().sidecar
        };
        let istio = json!({"name": "istio-proxy", "securityContext": {"runAsUser": 4242}});
        assert_eq!(read(json!({"containers": [{"name": "web"}, istio]})), Some(4242));
        let linkerd = json!({"name": "linkerd-proxy", "restartPolicy": "Always"});
        assert_eq!(
            read(json!({"containers": [{"name": "web"}], "initContainers": [linkerd]})),
            Some(2102)
        );
        assert_eq!(read(json!({"containers": [{"name": "web"}]})), None);
    }

    #[test]
    fn only_a_mirror_pod_has_the_hash_of_a_static_one() {
        let read = |annotations: serde_json::Value| {
            let object = object(json!({
                "metadata": {"uid": "0ac9f8a1-6d51-4a3f-9a8b-2f3c1d9e7b55", "namespace": "a", "name": "b", "annotations": annotations},
                "spec": {"containers": []}
            }));
            Pod::read(&object).unwrap().hash.map(|hash| hash.to_string())
        };
        let hash = "7b4d1e0a9c8f2b3d4e5f60718293a4b5";
        assert_eq!(
            read(json!({HASH_ANNOTATION: hash, MIRROR_ANNOTATION: hash})).as_deref(),
            Some(hash)
        );
        assert_eq!(read(json!({HASH_ANNOTATION: hash})), None);
        let uid = "11111111-2222-4333-8444-555555555555";
        assert_eq!(
            read(json!({HASH_ANNOTATION: uid, MIRROR_ANNOTATION: uid})),
            None,
            "no other pod's UID"
        );
    }

    #[test]
    fn what_is_no_pod_is_refused() {
        for broken in [
            json!({"metadata": {"namespace": "a", "name": "b"}, "spec": {"containers": []}}),
            json!({"metadata": {"uid": "x", "namespace": "a", "name": "b"}, "spec": {"containers": []}}),
            json!({"metadata": {"uid": "0ac9f8a1-6d51-4a3f-9a8b-2f3c1d9e7b55", "name": "b"}, "spec": {"containers": []}}),
        ] {
            assert!(Pod::read(&object(broken)).is_err());
        }
    }
}
