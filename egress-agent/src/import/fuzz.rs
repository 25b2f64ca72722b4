//! Entry for fuzzing: panics if a promise is broken.

use std::path::{Path, PathBuf};

use super::{Files, Options, import};
use crate::policy::read_text;

/// A main file, and one more that every other name stands for.
struct Memory<'a> {
    main: &'a str,
    other: &'a str,
}

impl Files for Memory<'_> {
    fn read(&self, path: &Path) -> Result<String, String> {
        Ok(if path == Path::new("squid.conf") {
            self.main.to_owned()
        } else {
            self.other.to_owned()
        })
    }

    fn matching(&self, pattern: &str) -> Result<Vec<PathBuf>, String> {
        Ok(vec![PathBuf::from(pattern)])
    }
}

/// A squid.conf of any text, in which what follows a form feed is the file that it includes: reading never panics, and what
/// is written is a good policy file.
///
/// # Panics
/// A promise is broken.
pub fn squid_conf(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let (main, other) = text.split_once('\x0c').unwrap_or((text, ""));
    let files = Memory { main, other };
    for options in [
        Options::default(),
        Options {
            namespace: Some("team".to_owned()),
            sources: "10.1.0.0/16".parse().into_iter().collect(),
            ports: vec![8080],
            ..Options::default()
        },
    ] {
        if let Ok(import) = import(Path::new("squid.conf"), &files, &options) {
            let read = read_text(Path::new("policies.yaml"), &import.policies);
            assert!(read.is_ok(), "{read:?} in\n{}", import.policies);
            for finding in import.findings {
                assert!(!finding.text.contains('\n'), "one line each: {finding}");
            }
        }
    }
}
