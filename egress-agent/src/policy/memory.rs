//! The API server's policies on disk, so that an agent that starts while the server is away judges by the last ones known.
//!
//! What is kept are the objects as they were written, and they are compiled anew when they are read: a file from another
//! version of the agent, or one that was tampered with, is no more than a set of policies, and one that cannot be read is
//! none at all.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{object::PolicyObject, objects::PolicyObjects};

/// The largest file. 10,000 policies of a usual size are some 10 MiB.
const MOST_BYTES: usize = 64 << 20;
/// What the file looks like; another number is not read.
const FORMAT: u32 = 1;

/// Where they are kept.
#[derive(Debug, Clone)]
pub struct PolicyMemory {
    file: PathBuf,
}

#[derive(Serialize)]
struct Written<'a> {
    format: u32,
    saved: String,
    objects: Vec<&'a PolicyObject>,
}

#[derive(Deserialize)]
struct Read {
    format: u32,
    saved: jiff::Timestamp,
    objects: Vec<PolicyObject>,
}

impl PolicyMemory {
    /// In `policies.json` of a directory, which is made for its owner alone when it is needed.
    #[must_use]
    pub fn in_directory(directory: &Path) -> Self {
        Self {
            file: directory.join("policies.json"),
        }
    }

    /// What was saved last, and when. A file that cannot be used is told, and is as none: what it held is not known.
    #[must_use]
    pub fn recall(&self) -> Option<(PolicyObjects, jiff::Timestamp)> {
        match self.read() {
            Ok(read) => {
                let mut objects = PolicyObjects::default();
                for object in read.objects {
                    objects.apply(object);
                }
                Some((objects, read.saved))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => {
                tracing::warn!(file = %self.file.display(), %error, "the policies of the last run cannot be used");
                None
            }
        }
    }

    /// Replaces what was saved, as a whole or not at all. Blocks.
    ///
    /// # Errors
    /// It cannot be written, or is too large; the old one is left then.
    pub fn save(&self, objects: &PolicyObjects) -> io::Result<()> {
        let written = Written {
            format: FORMAT,
            saved: jiff::Timestamp::now().to_string(),
            objects: objects.versions().collect(),
        };
        let text = serde_json::to_vec(&written)?;
        if text.len() > MOST_BYTES {
            return Err(io::Error::new(
                io::ErrorKind::FileTooLarge,
                format!(
                    "the policies are {} bytes, and at most {MOST_BYTES} are kept",
                    text.len()
                ),
            ));
        }
        if let Some(directory) = self.file.parent() {
            DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        }
        let beside = self.file.with_extension("json.next");
        // Left by an agent that was killed while it wrote, or put there by somebody: neither is written into.
        match fs::remove_file(&beside) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&beside)?;
        file.write_all(&text)?;
        // A machine that loses power must find the old file or the new one.
        file.sync_all()?;
        fs::rename(beside, &self.file)
    }

    fn read(&self) -> io::Result<Read> {
        let file = File::open(&self.file)?;
        let metadata = file.metadata()?;
        let refused = |why: String| Err(io::Error::new(io::ErrorKind::InvalidData, why));
        if metadata.uid() != nix::unistd::geteuid().as_raw() || metadata.mode() & 0o022 != 0 {
            return refused("it belongs to somebody else, or others may write it".to_owned());
        }
        let mut text = Vec::new();
        let limit = u64::try_from(MOST_BYTES).unwrap_or(u64::MAX);
        file.take(limit.saturating_add(1)).read_to_end(&mut text)?;
        if text.len() > MOST_BYTES {
            return refused(format!("it is larger than {MOST_BYTES} bytes"));
        }
        let read: Read = serde_json::from_slice(&text)?;
        if read.format != FORMAT {
            return refused(format!("its format is {}, and {FORMAT} is known", read.format));
        }
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::policy::{object::ObjectKey, objects::InForce, verdict::PolicyKind};

    fn object(generation: i64, domain: &str) -> PolicyObject {
        PolicyObject {
            key: ObjectKey {
                kind: PolicyKind::EgressPolicy,
                namespace: "a".to_owned(),
                name: "p".to_owned(),
            },
            uid: "u".to_owned(),
            generation,
            spec: json!({"egress": [{"to": [{"domain": domain}]}]}),
        }
    }

    #[test]
    fn the_last_good_version_and_the_broken_one_after_it_are_kept() {
        let directory = tempfile::tempdir().unwrap();
        let memory = PolicyMemory::in_directory(&directory.path().join("state/one"));
        assert!(memory.recall().is_none());
        let mut objects = PolicyObjects::default();
        objects.apply(object(1, "x.test"));
        objects.apply(object(2, "*.com"));
        memory.save(&objects).unwrap();
        let none = std::collections::BTreeSet::new();
        let (recalled, _) = memory.recall().unwrap();
        assert!(recalled.facts(&none).eq(objects.facts(&none)));
        assert_eq!(recalled.facts(&none).next().unwrap().in_force, InForce::Older(1));
        let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o777;
        assert_eq!(mode(&memory.file), 0o600);
        assert_eq!(mode(memory.file.parent().unwrap()), 0o700);
    }

    #[test]
    fn a_file_that_others_may_write_or_that_is_damaged_is_none() {
        let directory = tempfile::tempdir().unwrap();
        let memory = PolicyMemory::in_directory(directory.path());
        memory.save(&PolicyObjects::default()).unwrap();
        assert!(memory.recall().is_some());
        let mode = |mode| std::os::unix::fs::PermissionsExt::from_mode(mode);
        fs::set_permissions(&memory.file, mode(0o622)).unwrap();
        assert!(memory.recall().is_none());
        fs::set_permissions(&memory.file, mode(0o600)).unwrap();
        let text = fs::read_to_string(&memory.file).unwrap();
        fs::write(&memory.file, text.replace("\"format\":1", "\"format\":2")).unwrap();
        assert!(memory.recall().is_none());
        fs::write(&memory.file, &text[..text.len() - 1]).unwrap();
        assert!(memory.recall().is_none());
        fs::write(directory.path().join("policies.json.next"), "left over").unwrap();
        memory.save(&PolicyObjects::default()).unwrap();
        assert!(memory.recall().is_some());
    }
}
