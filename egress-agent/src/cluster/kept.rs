//! What the API server has told, kept on disk so that an agent that starts while the server is away knows the last of it.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// The largest file. 10,000 policies of a usual size are some 10 MiB.
const MOST_BYTES: usize = 64 << 20;
/// What the files look like; another number is not read.
const FORMAT: u32 = 1;

/// A file of it.
#[derive(Debug, Clone)]
pub struct Kept {
    file: PathBuf,
}

#[derive(Serialize)]
struct Written<T> {
    format: u32,
    saved: String,
    kept: T,
}

#[derive(Deserialize)]
struct Read<T> {
    format: u32,
    saved: jiff::Timestamp,
    kept: T,
}

impl Kept {
    /// In a file of a directory, which is made for its owner alone when it is needed.
    #[must_use]
    pub fn in_directory(directory: &Path, file: &str) -> Self {
        Self {
            file: directory.join(file),
        }
    }

    /// What was saved last, and when. A file that cannot be used is told, and is as none: what it held is not known.
    #[must_use]
    pub fn recall<T: DeserializeOwned>(&self) -> Option<(T, jiff::Timestamp)> {
        match self.read() {
            Ok(read) => Some((read.kept, read.saved)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => {
                tracing::warn!(file = %self.file.display(), %error, "what the last run has kept cannot be used");
                None
            }
        }
    }

    /// Replaces what was saved, as a whole or not at all. Blocks.
    ///
    /// # Errors
    /// It cannot be written, or is too large; the old one is left then.
    pub fn save<T: Serialize>(&self, what: T) -> io::Result<()> {
        let written = Written {
            format: FORMAT,
            saved: jiff::Timestamp::now().to_string(),
            kept: what,
        };
        let text = serde_json::to_vec(&written)?;
        if text.len() > MOST_BYTES {
            return Err(io::Error::new(
                io::ErrorKind::FileTooLarge,
                format!(
                    "{} would have {} bytes, and at most {MOST_BYTES} are kept",
                    self.file.display(),
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

    fn read<T: DeserializeOwned>(&self) -> io::Result<Read<T>> {
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
        let read: Read<T> = serde_json::from_slice(&text)?;
        if read.format != FORMAT {
            return refused(format!("its format is {}, and {FORMAT} is known", read.format));
        }
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_saved_is_recalled_and_is_its_owners_alone() {
        let directory = tempfile::tempdir().unwrap();
        let kept = Kept::in_directory(&directory.path().join("state/one"), "x.json");
        assert!(kept.recall::<Vec<u32>>().is_none());
        kept.save([1, 2]).unwrap();
        kept.save([1, 2, 3]).unwrap();
        assert_eq!(kept.recall::<Vec<u32>>().unwrap().0, [1, 2, 3]);
        let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o777;
        assert_eq!(mode(&kept.file), 0o600);
        assert_eq!(mode(kept.file.parent().unwrap()), 0o700);
    }

    #[test]
    fn a_file_that_others_may_write_or_that_is_damaged_is_none() {
        let directory = tempfile::tempdir().unwrap();
        let kept = Kept::in_directory(directory.path(), "x.json");
        let recall = || kept.recall::<Vec<u32>>();
        kept.save([1]).unwrap();
        assert!(recall().is_some());
        let mode = |mode| std::os::unix::fs::PermissionsExt::from_mode(mode);
        fs::set_permissions(&kept.file, mode(0o622)).unwrap();
        assert!(recall().is_none());
        fs::set_permissions(&kept.file, mode(0o600)).unwrap();
        let text = fs::read_to_string(&kept.file).unwrap();
        fs::write(&kept.file, text.replace("\"format\":1", "\"format\":2")).unwrap();
        assert!(recall().is_none());
        fs::write(&kept.file, &text[..text.len() - 1]).unwrap();
        assert!(recall().is_none());
        fs::write(directory.path().join("x.json.next"), "left over").unwrap();
        kept.save([1]).unwrap();
        assert!(recall().is_some());
    }
}
