//! Entry for the fuzzer and the replay of its corpus.

use std::{ffi::OsStr, os::unix::ffi::OsStrExt, path::Path};

use super::cgroup_path::{self, Part, PodUid};

/// Cgroup paths of any bytes: reading never panics, a UID prints to itself, and nothing below a container changes whose
/// it is.
///
/// # Panics
/// A promise is broken.
pub fn cgroup_path(bytes: &[u8]) {
    let path = Path::new(OsStr::from_bytes(bytes));
    let Some(found) = cgroup_path::parse(path) else {
        return;
    };
    assert_eq!(
        found.uid.to_string().parse::<PodUid>(),
        Ok(found.uid),
        "a UID prints to itself"
    );
    if matches!(found.part, Part::Container(_)) {
        let below = path.join("kubepods/burstable/pod11111111-2222-4333-8444-555555555555/x");
        assert_eq!(
            cgroup_path::parse(&below),
            Some(found),
            "a container's own tree is the container's"
        );
    }
}
