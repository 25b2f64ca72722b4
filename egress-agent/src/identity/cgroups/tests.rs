//! Directories of any file system have inode numbers; the code under test knows no difference.

use kube::runtime::watcher::Event;
use serde_json::json;

use super::*;
use crate::identity::{Exemptions, pod::tests::object};

const UID: &str = "0ac9f8a1-6d51-4a3f-9a8b-2f3c1d9e7b55";
const HASH: &str = "7b4d1e0a9c8f2b3d4e5f60718293a4b5";
const ID: &str = "8a1b0f3c5d7e9a1b0f3c5d7e9a1b0f3c5d7e9a1b0f3c5d7e9a1b0f3c5d7e9a1b";

fn mapping(path: &str, namespace: &str) -> Mapping {
    let workload = Workload {
        namespace: namespace.to_owned(),
        name: path.to_owned(),
        ..Workload::default()
    };
    Mapping {
        path: PathBuf::from(path),
        workload,
    }
}

#[test]
fn the_longest_configured_path_names_a_cgroup_and_new_cgroups_are_found() {
    let mount = tempfile::tempdir().unwrap();
    let root = mount.path().join("enforced");
    for path in ["web/one", "batch"] {
        fs::create_dir_all(root.join(path)).unwrap();
    }
    let mappings = vec![mapping("web", "team-web"), mapping("web/one", "team-one")];
    let identities = Identities::new(mount.path().to_path_buf(), root.clone(), mappings, None).unwrap();
    let id = |path: &str| fs::metadata(root.join(path)).unwrap().ino();

    assert_eq!(identities.of(id("web")).unwrap().namespace, "team-web");
    let one = identities.of(id("web/one")).unwrap();
    assert_eq!(
        (one.namespace.as_str(), one.cgroup.as_str()),
        ("team-one", "/enforced/web/one")
    );
    assert_eq!(identities.of(id("batch")).unwrap().namespace, "default");

    fs::create_dir(root.join("web/later")).unwrap();
    assert_eq!(identities.of(id("web/later")).unwrap().namespace, "team-web");
    let outside = fs::metadata(mount.path()).unwrap().ino();
    assert_eq!(identities.of(outside), None);
}

#[test]
fn a_name_that_only_begins_alike_is_another_cgroup() {
    let mount = tempfile::tempdir().unwrap();
    let root = mount.path().to_path_buf();
    fs::create_dir(root.join("webserver")).unwrap();
    let mappings = vec![mapping("web", "team-web")];
    let identities = Identities::new(root.clone(), root.clone(), mappings, None).unwrap();
    let id = fs::metadata(root.join("webserver")).unwrap().ino();
    assert_eq!(identities.of(id).unwrap().namespace, "default");
}

/// A node: its kubelet's tree, and what the API server says.
struct Node {
    mount: tempfile::TempDir,
    identities: Arc<Identities>,
    directory: Arc<PodDirectory>,
}

impl Node {
    fn new(patience: Duration) -> Self {
        let mount = tempfile::tempdir().unwrap();
        let root = mount.path().join("kubepods");
        fs::create_dir(&root).unwrap();
        let directory = PodDirectory::new(Exemptions::default());
        let source = PodSource {
            root: root.clone(),
            directory: Arc::clone(&directory),
            exempt_static: true,
            patience,
        };
        let identities = Identities::new(mount.path().to_path_buf(), root, Vec::new(), Some(source)).unwrap();
        Self {
            mount,
            identities: Arc::new(identities),
            directory,
        }
    }

    fn cgroup(&self, path: &str) -> u64 {
        let directory = self.mount.path().join("kubepods").join(path);
        fs::create_dir_all(&directory).unwrap();
        fs::metadata(&directory).unwrap().ino()
    }

    fn namespace(&self, name: &str) {
        let object = serde_json::from_value(json!({"metadata": {"name": name}})).unwrap();
        self.directory.take_namespace(Event::Apply(object));
    }

    fn pod(&self, name: &str, container: Option<&str>) {
        let containers: Vec<_> = container
            .iter()
            .map(|name| {
                json!({"name": name, "containerID": format!("containerd://{ID}"), "image": "", "imageID": "", "ready": true, "restartCount": 0})
            })
            .collect();
        self.directory.take_pod(Event::Apply(object(json!({
            "metadata": {"uid": UID, "namespace": "team", "name": name},
            "spec": {"containers": []}, "status": {"containerStatuses": containers}
        }))));
    }
}

#[tokio::test(start_paused = true)]
async fn a_connection_waits_for_a_pod_that_the_api_server_is_about_to_tell() {
    let node = Node::new(Duration::from_secs(5));
    let cgroup = node.cgroup(&format!("burstable/pod{UID}/{ID}"));
    let identities = Arc::clone(&node.identities);
    let asking = tokio::spawn(async move { identities.find(cgroup).await });
    tokio::task::yield_now().await;
    node.pod("web", None);
    tokio::task::yield_now().await;
    assert!(!asking.is_finished(), "its namespace is not known");
    node.namespace("team");
    let workload = asking.await.unwrap().unwrap();
    assert_eq!(
        (workload.namespace.as_str(), workload.name.as_str()),
        ("team", "web")
    );
    assert_eq!(workload.cgroup, format!("/kubepods/burstable/pod{UID}/{ID}"));
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_nobody_knows_is_nobody_after_a_while() {
    let node = Node::new(Duration::from_secs(5));
    let cgroup = node.cgroup(&format!("pod{UID}/{ID}"));
    let begun = tokio::time::Instant::now();
    assert_eq!(node.identities.find(cgroup).await, None);
    assert_eq!(begun.elapsed(), Duration::from_secs(5));
}

#[tokio::test(start_paused = true)]
async fn nobody_waits_for_what_is_no_pod() {
    let node = Node::new(Duration::from_secs(5));
    let begun = tokio::time::Instant::now();
    for path in ["burstable", "burstable/user.slice", ""] {
        let cgroup = node.cgroup(path);
        assert_eq!(node.identities.find(cgroup).await, None, "{path}");
    }
    assert_eq!(node.identities.find(u64::MAX).await, None);
    assert_eq!(begun.elapsed(), Duration::ZERO);
}

#[test]
fn a_containers_own_cgroups_are_the_pods_and_its_name_comes_later() {
    let node = Node::new(Duration::from_secs(5));
    let container = node.cgroup(&format!("pod{UID}/{ID}"));
    let below = node.cgroup(&format!("pod{UID}/{ID}/system.slice"));
    node.namespace("team");
    node.pod("web", None);
    let early = node.identities.of(container).unwrap();
    assert_eq!(early.pod.as_ref().unwrap().container, "");
    node.pod("web", Some("main"));
    let late = node.identities.of(container).unwrap();
    assert_eq!(late.pod.as_ref().unwrap().container, "main");
    assert!(late.is_same_as(&early) && late.is_same_as(&node.identities.of(below).unwrap()));
    assert!(
        Arc::ptr_eq(&late, &node.identities.of(container).unwrap()),
        "nothing has changed"
    );
}

/// A kubelet starts static pods before there is an API server, which may be one of them.
#[test]
fn a_static_pod_is_exempt_before_the_api_server_is_there() {
    let node = Node::new(Duration::from_secs(5));
    let cgroup = node.cgroup(&format!("burstable/pod{HASH}/{ID}"));
    assert!(node.identities.of(cgroup).unwrap().is_exempt());
}

#[test]
fn a_cgroup_that_has_gone_is_remembered_for_a_while() {
    let node = Node::new(Duration::from_secs(5));
    let cgroup = node.cgroup(&format!("pod{UID}/{ID}"));
    node.namespace("team");
    node.pod("web", None);
    assert!(node.identities.of(cgroup).is_some());
    fs::remove_dir_all(node.mount.path().join("kubepods").join(format!("pod{UID}"))).unwrap();
    node.directory.take_pod(Event::Delete(object(json!({
        "metadata": {"uid": UID, "namespace": "team", "name": "web"}, "spec": {"containers": []}
    }))));
    let now = Instant::now();
    node.identities.sweep(now);
    node.identities.sweep(now + AFTERLIFE / 2);
    assert!(node.identities.of(cgroup).is_some());
    node.identities.sweep(now + AFTERLIFE);
    assert_eq!(node.identities.of(cgroup), None);
    assert_eq!((node.identities.len(), node.directory.counts().pods), (0, 0));
}

#[test]
fn everything_that_is_there_at_the_start_is_looked_at() {
    let node = Node::new(Duration::from_secs(5));
    let cgroup = node.cgroup(&format!("pod{UID}/{ID}"));
    node.namespace("team");
    node.pod("web", None);
    let all = node.identities.refresh().unwrap();
    assert!(
        all.iter()
            .any(|(id, workload)| *id == cgroup && workload.name == "web")
    );
    assert_eq!(all.len(), 2, "the pod's own cgroup and its container's");
}

#[test]
fn what_has_changed_is_told_cgroup_by_cgroup() {
    let node = Node::new(Duration::from_secs(5));
    node.namespace("team");
    let others = node.cgroup("burstable");
    assert_eq!(node.identities.of(others), None);
    let cgroup = node.cgroup(&format!("pod{UID}/{ID}"));
    assert_eq!(node.identities.of(cgroup), None);
    assert_eq!(
        node.identities.news(),
        Changes::Of(HashSet::from([others, cgroup])),
        "they have become known"
    );

    node.pod("web", None);
    assert_eq!(
        node.identities.news(),
        Changes::Of(HashSet::from([cgroup])),
        "the pod has"
    );
    node.pod("web", None);
    assert_eq!(node.identities.news(), Changes::default(), "nothing is new");
    node.namespace("elsewhere");
    assert_eq!(node.identities.news(), Changes::default(), "nobody is there");
}

#[test]
fn a_mirror_pod_may_concern_other_cgroups_than_its_own() {
    let node = Node::new(Duration::from_secs(5));
    node.namespace("team");
    node.directory.take_pod(Event::Apply(object(json!({
        "metadata": {"uid": UID, "namespace": "team", "name": "static", "annotations": {
            "kubernetes.io/config.mirror": HASH, "kubernetes.io/config.hash": HASH
        }},
        "spec": {"containers": []}
    }))));
    assert_eq!(node.identities.news(), Changes::All);
}
