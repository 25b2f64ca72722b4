//! Paths as they were found on nodes; `ID` stands for a container's id.

use proptest::prelude::*;

use super::*;

const ID: &str = "8a1b0f3c5d7e9a1b0f3c5d7e9a1b0f3c5d7e9a1b0f3c5d7e9a1b0f3c5d7e9a1b";
const UID: &str = "0ac9f8a1-6d51-4a3f-9a8b-2f3c1d9e7b55";
const HASH: &str = "7b4d1e0a9c8f2b3d4e5f60718293a4b5";

/// The text of a path with the placeholders filled in, read.
fn read(template: &str) -> Option<(String, String)> {
    let text = template
        .replace("UID_", &UID.replace('-', "_"))
        .replace("UID", UID)
        .replace("HASH", HASH)
        .replace("ID", ID);
    let found = parse(Path::new(&text))?;
    let part = match found.part {
        Part::Pod => "pod".to_owned(),
        Part::Container(id) => id.replace(ID, "ID"),
        Part::Monitor => "monitor".to_owned(),
    };
    Some((found.uid.to_string(), part))
}

#[test]
fn every_known_layout_leads_to_its_pod_and_container() {
    for (path, uid, part) in [
        // cgroupfs driver: containerd and Docker, k3s without systemd
        ("besteffort/podUID/ID", UID, "ID"),
        ("burstable/podUID/ID", UID, "ID"),
        ("podUID/ID", UID, "ID"),
        ("podUID", UID, "pod"),
        // CRI-O with cgroupfs
        ("burstable/podUID/crio-ID", UID, "ID"),
        ("burstable/podUID/crio-conmon-ID", UID, "monitor"),
        // static pods
        ("burstable/podHASH/ID", HASH, "ID"),
        ("podHASH/ID", HASH, "ID"),
        // systemd driver: containerd (k3s with systemd too), CRI-O, Docker
        (
            "kubepods-besteffort.slice/kubepods-besteffort-podUID_.slice/cri-containerd-ID.scope",
            UID,
            "ID",
        ),
        (
            "kubepods-burstable.slice/kubepods-burstable-podUID_.slice/crio-ID.scope",
            UID,
            "ID",
        ),
        (
            "kubepods-burstable.slice/kubepods-burstable-podUID_.slice/crio-conmon-ID.scope",
            UID,
            "monitor",
        ),
        (
            "kubepods-burstable.slice/kubepods-burstable-podUID_.slice/docker-ID.scope",
            UID,
            "ID",
        ),
        ("kubepods-podUID_.slice/cri-containerd-ID.scope", UID, "ID"),
        (
            "kubepods-burstable.slice/kubepods-burstable-podHASH.slice/cri-containerd-ID.scope",
            HASH,
            "ID",
        ),
        // kind: the kubelet's root is below another slice
        (
            "kubelet-kubepods-burstable.slice/kubelet-kubepods-burstable-podUID_.slice/cri-containerd-ID.scope",
            UID,
            "ID",
        ),
        (
            "kubelet-kubepods-podUID_.slice/cri-containerd-ID.scope",
            UID,
            "ID",
        ),
        // CRI-O puts the container's own tree one further down (crun), and a container may do so itself
        ("kubepods-podUID_.slice/crio-ID.scope/container", UID, "ID"),
        ("burstable/podUID/ID/init.scope", UID, "ID"),
        ("burstable/podUID/ID/system.slice/a.service", UID, "ID"),
    ] {
        assert_eq!(read(path), Some((uid.to_owned(), part.to_owned())), "{path}");
    }
}

/// A pod that holds a kubelet of its own (kind, k3d) must not pass for the pods inside it, nor for anybody's.
#[test]
fn what_a_container_makes_below_itself_is_its_own() {
    let other = "11111111-2222-4333-8444-555555555555";
    for path in [
        format!("burstable/podUID/ID/kubepods/burstable/pod{other}/ID"),
        format!("podUID/ID/pod{other}"),
        format!("podUID/ID/../../pod{other}/ID"),
    ] {
        assert_eq!(read(&path), Some((UID.to_owned(), "ID".to_owned())), "{path}");
    }
}

#[test]
fn what_no_kubelet_makes_is_nobodys() {
    for path in [
        "",
        "burstable",
        "kubepods-burstable.slice",
        "burstable/burstable/podUID/ID",
        "guaranteed/podUID/ID",
        "podUID-x/ID",
        "pod/ID",
        "pod0ac9f8a1-6d51-4a3f-9a8b-2f3c1d9e7b5/ID",
        "pod0AC9F8A1-6d51-4a3f-9a8b-2f3c1d9e7b55/ID",
        "pod0ac9f8a1_6d51_4a3f_9a8b_2f3c1d9e7b55/ID",
        "podHASH0/ID",
        "kubepods-burstable-podUID.slice/ID",
        "user-podUID_.slice/cri-containerd-ID.scope",
        "kubepods-burstable-evil-podUID_.slice/cri-containerd-ID.scope",
        "/podUID/ID",
    ] {
        assert_eq!(read(path), None, "{path}");
    }
}

#[test]
fn a_container_whose_name_no_runtime_gives_is_still_its_pods() {
    for path in [
        "podUID/ID0",
        "podUID/cri-containerd-short.scope",
        "podUID/sandbox",
    ] {
        assert_eq!(read(path), Some((UID.to_owned(), "pod".to_owned())), "{path}");
    }
}

#[test]
fn the_kubelets_root_is_known_by_its_name() {
    for name in ["kubepods", "kubepods.slice", "kubelet-kubepods.slice"] {
        assert!(is_root(name), "{name}");
    }
    for name in [
        "kubepods-burstable.slice",
        "notkubepods.slice",
        "kubepods.service",
        "kubelet",
    ] {
        assert!(!is_root(name), "{name}");
    }
}

proptest! {
    #[test]
    fn a_uid_is_written_as_it_was_read(bits in any::<u128>(), is_hash in any::<bool>()) {
        let uid = PodUid { bits, is_hash };
        prop_assert_eq!(uid.to_string().parse(), Ok(uid));
    }

    /// However long, deep or strange: an answer, and never one for a path without a pod's UID in its first two names.
    #[test]
    fn any_path_is_read_without_a_panic(path in "[a-f0-9/._podkubes-]{0,200}") {
        if let Some(found) = parse(Path::new(&path)) {
            let uid = found.uid.to_string();
            let head = path.split('/').filter(|name| !name.is_empty()).take(2).collect::<String>();
            prop_assert!(head.replace('_', "-").contains(&uid));
        }
    }
}
