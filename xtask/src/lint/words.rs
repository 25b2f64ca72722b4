//! What committed files must not say: places on somebody's machine, and other people's host names.

use std::{fs, path::Path, process::Command};

use anyhow::{Context, Result, bail};

use crate::workspace;

/// Top directories of a person's or a build machine's own files.
const PRIVATE: [&str; 4] = ["home", "root", "Users", "work"];

/// Ends by which a name is known to be a host's. Others are as often fields of a struct.
const TOP_LEVEL: [&str; 5] = ["com", "edu", "gov", "mil", "org"];

/// Names that may stand in a file: reserved ones, the demonstration's, and where the standards and our models
/// are published.
const HOSTS: [&str; 10] = [
    "apache.org",
    "example.com",
    "example.org",
    "nasa.gov",
    "ietf.org",
    "kernel.org",
    "rfc-editor.org",
    "squid-cache.org",
    "iana.org",
    "publicsuffix.org",
];

pub(super) fn check() -> Result<()> {
    let root = workspace::root();
    let listing = Command::new("git")
        .args(["ls-files", "-z"])
        .current_dir(&root)
        .output()
        .context("cannot run git")?;
    if !listing.status.success() {
        bail!(
            "git ls-files: {}",
            String::from_utf8_lossy(&listing.stderr).trim()
        );
    }
    let listing = String::from_utf8_lossy(&listing.stdout).into_owned();
    // A lock file names where every package comes from.
    let files = listing
        .split('\0')
        .filter(|file| !file.is_empty() && !file.ends_with("Cargo.lock"));
    let mut wrong = Vec::new();
    for file in files {
        // Not text, or removed in the work tree: nothing to read.
        let Ok(text) = fs::read_to_string(root.join(file)) else {
            continue;
        };
        wrong.extend(complaints(Path::new(file), &text));
    }
    if wrong.is_empty() {
        return Ok(());
    }
    bail!("\n  {}", wrong.join("\n  "))
}

fn complaints(file: &Path, text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let place = format!("{}:{}", file.display(), number + 1);
        found.extend(private_path(line).map(|path| format!("{place}: a path of one machine: {path}")));
        found.extend(foreign_hosts(line).map(|host| format!("{place}: somebody's host name: {host}")));
    }
    found
}

/// A path that begins at the root and leads to private files.
fn private_path(line: &str) -> Option<String> {
    PRIVATE
        .iter()
        .map(|directory| format!("/{directory}/"))
        .find(|path| {
            line.match_indices(path.as_str()).any(|(at, _)| {
                let before = line.get(..at).and_then(|before| before.chars().next_back());
                before.is_none_or(|c| c.is_whitespace() || "\"'`(=:,".contains(c))
            })
        })
}

fn foreign_hosts(line: &str) -> impl Iterator<Item = String> {
    line.split(|c: char| !(c.is_alphanumeric() || ".-%{}\\".contains(c)))
        // NAME.com stands for any name.
        .filter(|word| {
            !word
                .split('.')
                .any(|label| label.len() > 1 && label.bytes().all(|b| b.is_ascii_uppercase()))
        })
        .map(|word| word.trim_matches(['.', '-']).to_ascii_lowercase())
        // A test's escapes and placeholders: no host.
        .filter(|word| {
            word.chars()
                .all(|c| c.is_ascii_alphanumeric() || c == '.' || c == '-')
        })
        .filter(|word| {
            word.rsplit_once('.')
                .is_some_and(|(_, end)| TOP_LEVEL.contains(&end))
        })
        // Also what tests make of an allowed name, by putting something before it or by cutting it.
        .filter(|word| {
            !HOSTS
                .iter()
                .any(|host| word.ends_with(host) || host.ends_with(word.as_str()))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_of_one_machine_is_found_and_a_relative_one_is_not() {
        let file = Path::new("x");
        // Put together here: written out, they would be complaints about this file.
        for directory in PRIVATE {
            assert_eq!(
                complaints(file, &format!("see \"/{directory}/me/x\"")).len(),
                1,
                "{directory}"
            );
            assert!(
                complaints(file, &format!("target/{directory}/x, //{directory}/")).is_empty(),
                "{directory}"
            );
        }
    }

    #[test]
    fn reserved_names_may_stand_and_others_may_not() {
        let file = Path::new("x");
        let foreign = ["somebody", "com"].join(".");
        assert_eq!(
            complaints(file, &format!("curl https://api.{foreign}:443/x")).len(),
            1
        );
        assert!(
            complaints(
                file,
                "https://api.example.com, *.nasa.gov, www.rfc-editor.org/rfc/rfc8305"
            )
            .is_empty()
        );
    }
}
