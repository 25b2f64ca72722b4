//! Cgroup paths to pods: what kubelets and container runtimes call the cgroups of a pod and of its containers.
//!
//! ```text
//! cgroupfs driver                  systemd driver
//! kubepods                         kubepods.slice                (kind: kubelet/kubepods, kubelet-kubepods.slice)
//! |- podUID                        |- kubepods-podUID.slice                       Guaranteed
//! |  '- ID                         |  '- cri-containerd-ID.scope
//! '- burstable, besteffort         '- kubepods-burstable.slice
//!    '- podUID                        '- kubepods-burstable-podUID.slice          the UID's - are _ here
//!       '- ID, crio-ID                   '- cri-containerd-ID.scope, crio-ID.scope, docker-ID.scope
//! ```
//!
//! Only what the kubelet has made is read, from its root downwards. A container may make cgroups of any name below its own
//! one: they are parts of it, whatever they are called.

use std::{fmt, path::Path};

use serde::{Deserialize, Serialize};

/// The pod's part of a cgroup path: the UID of the API server, or for a static pod the hash of its manifest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct PodUid {
    bits: u128,
    is_hash: bool,
}

/// Which part of a pod a cgroup is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part<'a> {
    /// The pod's own cgroup, or one that no runtime is known to make: nothing runs there as a rule.
    Pod,
    /// A container (the pause container is one too), by the runtime's id.
    Container(&'a str),
    /// CRI-O's monitor of a container: it belongs to the runtime, and is treated as the pod.
    Monitor,
}

/// A cgroup of a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PodCgroup<'a> {
    /// Whose.
    pub uid: PodUid,
    /// Which part.
    pub part: Part<'a>,
}

/// What the names of a container's cgroup begin with, by runtime. containerd and Docker with the cgroupfs driver use the bare
/// id.
const RUNTIMES: [&str; 4] = ["cri-containerd-", "crio-", "docker-", "containerd-"];

/// The classes of service that have a cgroup of their own.
const CLASSES: [&str; 2] = ["burstable", "besteffort"];

/// Hex digits of a container's id.
const ID_DIGITS: usize = 64;

/// Reads a path below the kubelet's root cgroup. `None` for the root, a class of service, and what no kubelet makes.
#[must_use]
pub fn parse(below_root: &Path) -> Option<PodCgroup<'_>> {
    let mut names = below_root.iter().map(|name| name.to_str());
    let mut name = names.next()??;
    if is_class(name) {
        name = names.next()??;
    }
    let uid = pod(name)?;
    let part = match names.next() {
        // Not text: no runtime's.
        None | Some(None) => Part::Pod,
        Some(Some(name)) => part(name),
    };
    Some(PodCgroup { uid, part })
}

/// Whether a directory of this name is a kubelet's root cgroup.
#[must_use]
pub fn is_root(name: &str) -> bool {
    name == "kubepods" || name == "kubepods.slice" || name.ends_with("-kubepods.slice")
}

fn is_class(name: &str) -> bool {
    CLASSES.iter().any(|class| {
        name == *class
            || name
                .strip_suffix(".slice")
                .and_then(|name| name.strip_suffix(class))
                .is_some_and(|prefix| prefix.ends_with("kubepods-"))
    })
}

fn pod(name: &str) -> Option<PodUid> {
    let Some(slice) = name.strip_suffix(".slice") else {
        return name.strip_prefix("pod")?.parse().ok();
    };
    let (prefix, uid) = slice.rsplit_once("-pod")?;
    let is_kubelets = prefix.ends_with("kubepods")
        || CLASSES.iter().any(|class| {
            prefix
                .strip_suffix(class)
                .is_some_and(|prefix| prefix.ends_with("kubepods-"))
        });
    // systemd reads a - as a step down in the tree.
    (is_kubelets && !uid.contains('-'))
        .then(|| uid.replace('_', "-").parse().ok())
        .flatten()
}

fn part(name: &str) -> Part<'_> {
    let bare = name.strip_suffix(".scope").unwrap_or(name);
    let id = RUNTIMES
        .iter()
        .find_map(|runtime| bare.strip_prefix(runtime))
        .unwrap_or(bare);
    if is_container_id(id) {
        return Part::Container(id);
    }
    match id.strip_prefix("conmon-") {
        Some(id) if is_container_id(id) => Part::Monitor,
        _ => Part::Pod,
    }
}

/// Whether a text is a container's id, as runtimes write it.
fn is_container_id(text: &str) -> bool {
    text.len() == ID_DIGITS && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

impl PodUid {
    /// Whether it is the hash of a static pod's manifest: the kubelet has the pod from a file of the node.
    #[must_use]
    pub const fn is_hash(self) -> bool {
        self.is_hash
    }
}

/// It is no pod's UID.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no UID of a pod: 8-4-4-4-12 hex digits, or 32 for a static pod")]
pub struct NoUid;

impl std::str::FromStr for PodUid {
    type Err = NoUid;

    fn from_str(text: &str) -> Result<Self, NoUid> {
        let is_hash = text.len() == 32;
        let mut bits = 0_u128;
        for (at, byte) in text.bytes().enumerate() {
            let digit = match byte {
                b'-' if !is_hash && matches!(at, 8 | 13 | 18 | 23) => continue,
                _ if !is_hash && matches!(at, 8 | 13 | 18 | 23) => return Err(NoUid),
                b'0'..=b'9' => byte - b'0',
                b'a'..=b'f' => byte - b'a' + 10,
                _ => return Err(NoUid),
            };
            bits = bits << 4 | u128::from(digit);
        }
        if is_hash || text.len() == 36 {
            Ok(Self { bits, is_hash })
        } else {
            Err(NoUid)
        }
    }
}

impl From<PodUid> for String {
    fn from(uid: PodUid) -> Self {
        uid.to_string()
    }
}

impl TryFrom<String> for PodUid {
    type Error = NoUid;

    fn try_from(text: String) -> Result<Self, NoUid> {
        text.parse()
    }
}

impl fmt::Display for PodUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hex = format!("{:032x}", self.bits);
        if self.is_hash {
            return f.write_str(&hex);
        }
        let mut rest = hex.as_str();
        for length in [8, 4, 4, 4] {
            let (group, others) = rest.split_at_checked(length).unwrap_or((rest, ""));
            write!(f, "{group}-")?;
            rest = others;
        }
        f.write_str(rest)
    }
}

#[cfg(test)]
mod tests;
