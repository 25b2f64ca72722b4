//! What the agent needs of the machine, checked before anything is changed.

use std::{fs, path::Path};

use caps::{CapSet, Capability};
use nix::unistd::Uid;

/// Linux 5.15: the oldest kernel whose helpers all programs find. Proven from 6.1 on.
const OLDEST_KERNEL: (u32, u32) = (5, 15);

/// What root has outside of containers. Attaching takes the first two (or the third), entering a network namespace the
/// third, and looking into other users' processes for it the last.
const CAPABILITIES: [Capability; 4] = [
    Capability::CAP_BPF,
    Capability::CAP_NET_ADMIN,
    Capability::CAP_SYS_ADMIN,
    Capability::CAP_SYS_PTRACE,
];

/// Something is missing; the text says what to do.
#[derive(Debug, thiserror::Error)]
pub enum FeatureError {
    /// Not root.
    #[error("root is needed to load kernel programs: run it with sudo")]
    NotRoot,
    /// Root whose privileges were taken away.
    #[error(
        "root lacks {missing} here: run it where root is not confined (a container needs these capabilities, \
         and a command under `exec` has none of them unless it was started with --keep-privileges)"
    )]
    Confined {
        /// The capabilities.
        missing: String,
    },
    /// Old kernel.
    #[error("Linux {found} is too old: at least {}.{} is needed", OLDEST_KERNEL.0, OLDEST_KERNEL.1)]
    OldKernel {
        /// `uname -r`.
        found: String,
    },
    /// No BTF.
    #[error(
        "the kernel tells no types (/sys/kernel/btf/vmlinux is missing): a kernel with CONFIG_DEBUG_INFO_BTF is needed"
    )]
    NoBtf,
}

/// Checks user, kernel version and type information.
///
/// # Errors
/// The first thing that is missing.
pub fn require() -> Result<(), FeatureError> {
    if !Uid::effective().is_root() {
        return Err(FeatureError::NotRoot);
    }
    let has = caps::read(None, CapSet::Effective).unwrap_or_default();
    let missing: Vec<_> = CAPABILITIES
        .iter()
        .filter(|capability| !has.contains(capability))
        .map(ToString::to_string)
        .collect();
    if !missing.is_empty() {
        return Err(FeatureError::Confined {
            missing: missing.join(", "),
        });
    }
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let release = release.trim();
    if !is_new_enough(release) {
        return Err(FeatureError::OldKernel {
            found: release.to_owned(),
        });
    }
    if !Path::new("/sys/kernel/btf/vmlinux").exists() {
        return Err(FeatureError::NoBtf);
    }
    Ok(())
}

/// An unreadable version counts as too old.
fn is_new_enough(release: &str) -> bool {
    let mut parts = release
        .split(|c: char| !c.is_ascii_digit())
        .map(str::parse::<u32>);
    match (parts.next(), parts.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => (major, minor) >= OLDEST_KERNEL,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::is_new_enough;

    #[test]
    fn versions_before_5_15_are_refused() {
        for release in [
            "5.15.0-91-generic",
            "6.1.0-56-cloud-amd64",
            "6.18.44-fc",
            "7.3.4+deb13",
            "10.0",
        ] {
            assert!(is_new_enough(release), "{release}");
        }
        for release in ["5.14.0-427.el9", "4.19.0", "", "six", "5"] {
            assert!(!is_new_enough(release), "{release}");
        }
    }
}
