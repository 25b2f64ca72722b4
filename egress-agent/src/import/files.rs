//! Files of a squid's machine, perhaps copied to below another directory.

use std::{
    fs,
    io::Read as _,
    path::{Component, Path, PathBuf},
};

use super::conf::Files;

/// Larger ones are no lists of hosts.
const MOST_BYTES: u64 = 64 << 20;

/// Reads below `root`, and relative names beside the configuration.
#[derive(Debug, Clone)]
pub struct Disk {
    main: PathBuf,
    root: Option<PathBuf>,
    beside: PathBuf,
}

impl Disk {
    /// Files for the configuration at `path`; absolute names in it are below `root` if there is one.
    #[must_use]
    pub fn new(path: &Path, root: Option<&Path>) -> Self {
        Self {
            main: path.to_owned(),
            root: root.map(Path::to_owned),
            beside: path.parent().map(Path::to_owned).unwrap_or_default(),
        }
    }

    fn place(&self, path: &Path) -> PathBuf {
        match &self.root {
            _ if path == self.main => path.to_owned(),
            Some(root) if path.is_absolute() && !path.starts_with(root) => {
                let inside = path
                    .components()
                    .filter(|part| matches!(part, Component::Normal(_)))
                    .collect::<PathBuf>();
                root.join(inside)
            }
            _ if path.is_absolute() || path.starts_with(&self.beside) => path.to_owned(),
            _ => self.beside.join(path),
        }
    }
}

impl Files for Disk {
    fn read(&self, path: &Path) -> Result<String, String> {
        let place = self.place(path);
        let mut bytes = Vec::new();
        let read = fs::File::open(&place).and_then(|file| file.take(MOST_BYTES + 1).read_to_end(&mut bytes));
        match read {
            Err(error) => Err(format!("{error} (--root DIR looks for it below DIR)")),
            Ok(length) if length as u64 > MOST_BYTES => Err("larger than 64 MiB".to_owned()),
            Ok(_) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        }
    }

    fn matching(&self, pattern: &str) -> Result<Vec<PathBuf>, String> {
        let path = Path::new(pattern);
        let (Some(directory), Some(name)) = (path.parent(), path.file_name().and_then(|name| name.to_str()))
        else {
            return Err(format!("{pattern} names no file"));
        };
        if directory.to_string_lossy().contains(['*', '?', '[']) || name.contains(['[', '\\']) {
            return Err(format!(
                "{pattern}: only `*` and `?` in the last part are understood"
            ));
        }
        if !name.contains(['*', '?']) {
            return Ok(vec![path.to_owned()]);
        }
        let entries = fs::read_dir(self.place(directory))
            .map_err(|error| format!("{pattern}: {error} (--root DIR looks for it below DIR)"))?;
        let mut found: Vec<PathBuf> = entries
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .filter(|entry| !entry.starts_with('.') && is_match(name.as_bytes(), entry.as_bytes()))
            .map(|entry| directory.join(entry))
            .collect();
        // glob(3) sorts.
        found.sort();
        Ok(found)
    }
}

/// `*` and `?`; linear, with one point to go back to.
fn is_match(pattern: &[u8], text: &[u8]) -> bool {
    let (mut at, mut seen) = (0, 0);
    let mut back = None;
    while let Some(byte) = text.get(seen) {
        match pattern.get(at) {
            Some(b'*') => {
                back = Some((at, seen));
                at += 1;
                continue;
            }
            Some(expected) if *expected == b'?' || expected == byte => {
                at += 1;
                seen += 1;
                continue;
            }
            Some(_) | None => {}
        }
        let Some((star, from)) = back else {
            return false;
        };
        back = Some((star, from + 1));
        at = star + 1;
        seen = from + 1;
    }
    pattern
        .get(at..)
        .unwrap_or_default()
        .iter()
        .all(|byte| *byte == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_glob_does() {
        for (pattern, text, expected) in [
            ("*.conf", "a.conf", true),
            ("*.conf", "a.conf.bak", false),
            ("*", "", true),
            ("a?c*", "abcd", true),
            ("a*b*c", "aXbXbXc", true),
            ("a*b*c", "aXbXbX", false),
        ] {
            assert_eq!(
                is_match(pattern.as_bytes(), text.as_bytes()),
                expected,
                "{pattern} {text}"
            );
        }
    }

    #[test]
    fn files_are_looked_for_below_the_root_and_beside_the_configuration() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("etc/squid/conf.d")).unwrap();
        fs::write(root.path().join("etc/squid/list"), "a.test\n").unwrap();
        fs::write(root.path().join("etc/squid/conf.d/b.conf"), "").unwrap();
        fs::write(root.path().join("etc/squid/conf.d/a.conf"), "").unwrap();
        let disk = Disk::new(&root.path().join("etc/squid/squid.conf"), Some(root.path()));
        assert_eq!(disk.read(Path::new("/etc/squid/list")).unwrap(), "a.test\n");
        assert_eq!(disk.read(Path::new("list")).unwrap(), "a.test\n");
        assert_eq!(
            disk.matching("/etc/squid/conf.d/*.conf").unwrap(),
            [
                PathBuf::from("/etc/squid/conf.d/a.conf"),
                PathBuf::from("/etc/squid/conf.d/b.conf")
            ]
        );
        assert!(disk.read(Path::new("/../x")).unwrap_err().contains("--root"));
    }
}
