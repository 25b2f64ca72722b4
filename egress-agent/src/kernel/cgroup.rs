//! Where the cgroup2 hierarchy is mounted and where in it a process is.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};

use super::cgroup_tree;

/// The cgroup2 hierarchy: alone, or the `unified` mount of a host that also has version 1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CgroupMount {
    /// Where it is mounted.
    pub path: PathBuf,
}

/// Where the first process may have it.
const HOSTS: [&str; 2] = ["/proc/1/root/sys/fs/cgroup", "/proc/1/root/sys/fs/cgroup/unified"];

/// Finds the cgroup2 mount by its file system type, which is the only thing that all hosts agree on. In a container that
/// sees several it is the one that shows most: the container's own shows nothing but the container.
///
/// # Errors
/// /proc is missing, or there is no such mount ([`io::ErrorKind::NotFound`], with what to do).
pub fn find_mount() -> io::Result<CgroupMount> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    mount_of_type(&mounts, "cgroup2").map(|path| CgroupMount { path }).ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::NotFound,
            "no cgroup2 hierarchy is mounted: mount one with `mount -t cgroup2 none /sys/fs/cgroup/unified`, or boot with systemd.unified_cgroup_hierarchy=1",
        )
    })
}

/// The calling process's cgroup as a directory below the mount.
///
/// # Errors
/// See [`cgroup_of`].
pub fn own_cgroup(mount: &CgroupMount) -> io::Result<PathBuf> {
    cgroup_of(mount, "self")
}

/// The cgroup of a process (its id, or `self`) as a directory below the mount.
///
/// # Errors
/// There is no such process ([`io::ErrorKind::NotFound`]), /proc cannot be read, or the process's cgroup lies outside
/// what is mounted here.
pub fn cgroup_of(mount: &CgroupMount, process: &str) -> io::Result<PathBuf> {
    let cgroups = fs::read_to_string(format!("/proc/{process}/cgroup"))?;
    let path =
        unified_path(&cgroups).ok_or_else(|| io::Error::other("the process is in no cgroup2 cgroup"))?;
    let pid = match process {
        "self" => std::process::id().to_string(),
        other => other.to_owned(),
    };
    let directory = mount.path.join(path.trim_start_matches('/'));
    if !path.starts_with("/..") && has_member(&directory, &pid) {
        return Ok(directory);
    }
    // In a container with a cgroup namespace but the host's mount the two do not fit together: `/` is then the container's
    // own cgroup, deep below the mount's root.
    cgroup_tree::walk(&mount.path, |directory| has_member(directory, &pid)).ok_or_else(|| {
        let is_there = fs::exists(format!("/proc/{process}")).unwrap_or(true);
        io::Error::new(
            if is_there {
                io::ErrorKind::Other
            } else {
                io::ErrorKind::NotFound
            },
            format!(
                "the cgroup {path} of process {pid} is not visible below {}",
                mount.path.display()
            ),
        )
    })
}

fn has_member(directory: &Path, pid: &str) -> bool {
    fs::read_to_string(directory.join("cgroup.procs"))
        .is_ok_and(|members| members.lines().any(|member| member == pid))
}

/// The cgroup2 mount as the first process sees it: the host's, for a container that shares its process ids and into which
/// nobody has mounted it.
#[must_use]
pub fn first_process_mount() -> Option<CgroupMount> {
    let is_cgroup2 =
        |path: &Path| statfs(path).is_ok_and(|status| status.filesystem_type() == CGROUP2_SUPER_MAGIC);
    let found = HOSTS.iter().map(Path::new).find(|path| is_cgroup2(path));
    found.map(|path| CgroupMount {
        path: path.to_path_buf(),
    })
}

/// Every mount point of a file system type.
///
/// # Errors
/// /proc is missing.
pub fn mount_points(kind: &str) -> io::Result<Vec<PathBuf>> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    Ok(mounts
        .lines()
        .filter_map(|line| mount_point(line, kind))
        .map(|(_, point)| point)
        .collect())
}

/// Mount point of the whole of a file system of a type in the text of /proc/PID/mountinfo (proc(5)): the type follows the
/// `-`. Of several the one whose root is the furthest above that of this process's cgroup namespace, and of those the first.
fn mount_of_type(mountinfo: &str, kind: &str) -> Option<PathBuf> {
    let mut best: Option<(usize, PathBuf)> = None;
    for (root, point) in mountinfo.lines().filter_map(|line| mount_point(line, kind)) {
        // A bind mount of a part of it would hide the rest.
        if root != "/" && !root.starts_with("/..") {
            continue;
        }
        let above = root.split('/').filter(|part| *part == "..").count();
        if best.as_ref().is_none_or(|(most, _)| above > *most) {
            best = Some((above, point));
        }
    }
    best.map(|(_, point)| point)
}

/// Root and mount point of a line of mountinfo, if it is of that type.
fn mount_point<'a>(line: &'a str, kind: &str) -> Option<(&'a str, PathBuf)> {
    let (head, tail) = line.split_once(" - ")?;
    let mut head = head.split(' ').skip(3);
    let (root, point) = (head.next()?, head.next()?);
    (tail.split(' ').next()? == kind).then(|| (root, PathBuf::from(unescape(point))))
}

/// The path of the `0::` line of /proc/PID/cgroup (cgroups(7)).
fn unified_path(cgroups: &str) -> Option<&str> {
    cgroups.lines().find_map(|line| line.strip_prefix("0::"))
}

/// mountinfo writes space, tab, newline and backslash as octal escapes.
fn unescape(text: &str) -> String {
    text.replace("\\040", " ")
        .replace("\\011", "\t")
        .replace("\\012", "\n")
        .replace("\\134", "\\")
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
25 30 0:23 / /sys/fs/cgroup ro,nosuid shared:9 - tmpfs tmpfs ro,mode=755
26 25 0:24 / /sys/fs/cgroup/unified rw,nosuid shared:10 - cgroup2 cgroup2 rw,nsdelegate
27 25 0:25 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu
31 30 0:28 / /odd\\040place rw - bpf bpf rw";

    #[test]
    fn the_unified_mount_of_a_hybrid_host_is_found() {
        assert_eq!(
            mount_of_type(HYBRID, "cgroup2"),
            Some(PathBuf::from("/sys/fs/cgroup/unified"))
        );
        assert_eq!(mount_of_type(HYBRID, "bpf"), Some(PathBuf::from("/odd place")));
        assert_eq!(mount_of_type(HYBRID, "ext4"), None);
        let v2 = "36 25 0:30 / /sys/fs/cgroup rw,nosuid - cgroup2 none rw";
        assert_eq!(
            mount_of_type(v2, "cgroup2"),
            Some(PathBuf::from("/sys/fs/cgroup"))
        );
    }

    /// A DaemonSet's pod with a cgroup namespace of its own and the host's /sys/fs/cgroup below /host.
    #[test]
    fn a_container_prefers_the_hosts_mount_to_its_own() {
        let container = "\
40 30 0:30 / /sys/fs/cgroup ro,nosuid - cgroup2 cgroup rw
41 30 0:30 /../../../.. /host/sys/fs/cgroup rw - cgroup2 cgroup2 rw
42 30 0:30 /../.. /elsewhere rw - cgroup2 cgroup2 rw";
        assert_eq!(
            mount_of_type(container, "cgroup2"),
            Some(PathBuf::from("/host/sys/fs/cgroup"))
        );
    }

    #[test]
    fn a_mount_of_a_part_of_the_hierarchy_does_not_count() {
        let part = "36 25 0:30 /kubepods /mnt/pods rw - cgroup2 none rw";
        assert_eq!(mount_of_type(part, "cgroup2"), None);
    }

    #[test]
    fn the_unified_line_is_the_one_with_hierarchy_zero() {
        assert_eq!(
            unified_path("4:memory:/a\n0::/user.slice/x\n"),
            Some("/user.slice/x")
        );
        assert_eq!(unified_path("4:memory:/a\n"), None);
    }
}
