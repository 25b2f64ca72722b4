//! A rustc that can compile `core` for a target that no release ships.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::Places;

/// The oldest rustc that compiles the workspace, (major, minor): its `rust-version`.
pub const OLDEST_RUSTC: (u32, u32) = (1, 95);

/// The LLVM whose functions bpf-linker [`LINKER_VERSION`](crate::LINKER_VERSION) was written for. A rustc
/// with a newer one writes bitcode that this one may not read.
pub const LLVM_MAJOR: u32 = 22;

/// An installed compiler.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rustc {
    /// The compiler itself, not a proxy for it.
    pub binary: PathBuf,
    /// The directory that holds its `lib`.
    pub sysroot: PathBuf,
    /// As it calls itself, such as `1.96.0` or `1.97.0-nightly`.
    pub release: String,
    /// Major version of its LLVM.
    pub llvm_major: u32,
    /// Whether the source of its own library is installed.
    pub has_source: bool,
}

impl Rustc {
    /// Asks `binary` what it is; none where it does not answer.
    pub fn ask(binary: &Path) -> Option<Self> {
        let sysroot = PathBuf::from(output(Command::new(binary).args(["--print", "sysroot"]))?.trim());
        let about = output(Command::new(binary).arg("-vV"))?;
        let field = |name: &str| {
            about
                .lines()
                .find_map(|line| line.strip_prefix(name))
                .map(str::trim)
        };
        // rustup's rustc is a proxy that obeys variables and files of the directory it is run in: take what
        // it stands for.
        let own = sysroot.join("bin/rustc");
        Some(Self {
            binary: if own.is_file() { own } else { binary.to_owned() },
            release: field("release:")?.to_owned(),
            llvm_major: field("LLVM version:")?.split('.').next()?.parse().ok()?,
            has_source: has_source(&sysroot),
            sysroot,
        })
    }

    /// Every compiler there is, each asked as it is reached: the one in use first, then rustup's others, then the
    /// distribution's.
    pub(crate) fn candidates(places: &Places) -> impl Iterator<Item = Self> {
        let toolchains = places.rustup.as_ref().map(|home| home.join("toolchains"));
        let toolchains = toolchains
            .and_then(|directory| fs::read_dir(directory).ok())
            .into_iter()
            .flatten();
        let mut others: Vec<_> = toolchains
            .flatten()
            .map(|entry| entry.path().join("bin/rustc"))
            .collect();
        others.sort();
        others.push(PathBuf::from("/usr/bin/rustc"));
        others.retain(|binary| binary.is_file());
        std::iter::once(places.rustc.clone())
            .chain(others)
            .filter_map(|binary| Self::ask(&binary))
    }

    /// Whether it can compile the kernel programs.
    pub fn serves(&self) -> bool {
        self.has_source
            && self.llvm_major == LLVM_MAJOR
            && version(&self.release).is_some_and(|version| version >= OLDEST_RUSTC)
    }

    /// The LLVM library that it loads itself, if it is one that bpf-linker can use.
    pub fn llvm_library(&self) -> Option<PathBuf> {
        if self.llvm_major != LLVM_MAJOR {
            return None;
        }
        // rustup's toolchains bring theirs in lib/; Debian's is shared, in lib/TRIPLET/, beside those of
        // other versions.
        let lib = self.sysroot.join("lib");
        let below = fs::read_dir(&lib)
            .ok()?
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| path.is_dir());
        std::iter::once(lib).chain(below).find_map(|directory| {
            let mut files: Vec<_> = fs::read_dir(directory)
                .ok()?
                .flatten()
                .map(|entry| entry.path())
                .collect();
            files.sort();
            files.into_iter().find(|file| is_llvm_library(file))
        })
    }
}

impl std::fmt::Display for Rustc {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "rustc {} at {}", self.release, self.binary.display())
    }
}

/// Major and minor number of a version such as `1.96.0`, or Debian's `1.96.0+dfsg1-1~deb12u2`.
pub fn version(text: &str) -> Option<(u32, u32)> {
    let mut parts = text.split('.');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

fn has_source(sysroot: &Path) -> bool {
    sysroot
        .join("lib/rustlib/src/rust/library/core/Cargo.toml")
        .is_file()
}

/// Named for the right version, and a library indeed: rustup puts a linker script of nearly the same name
/// beside it.
fn is_llvm_library(file: &Path) -> bool {
    let Some(name) = file.file_name().and_then(|name| name.to_str()) else {
        return false;
    };
    let named = [
        format!("libLLVM.so.{LLVM_MAJOR}."),
        format!("libLLVM-{LLVM_MAJOR}"),
    ];
    named.iter().any(|prefix| name.starts_with(prefix.as_str())) && starts_as_elf(file)
}

fn starts_as_elf(file: &Path) -> bool {
    let mut magic = [0; 4];
    fs::File::open(file)
        .and_then(|mut file| std::io::Read::read_exact(&mut file, &mut magic))
        .is_ok()
        && magic == *b"\x7fELF"
}

fn output(command: &mut Command) -> Option<String> {
    let output = command.output().ok()?;
    output
        .status
        .success()
        .then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_rustup_and_of_debian_are_read() {
        for (text, expected) in [
            ("1.95.0", Some((1, 95))),
            ("1.97.0-nightly", Some((1, 97))),
            ("1.96.0+dfsg1-1~deb12u2", Some((1, 96))),
            ("unknown", None),
            ("1", None),
        ] {
            assert_eq!(version(text), expected, "{text}");
        }
    }

    #[test]
    fn a_linker_script_and_another_version_are_no_llvm_library() {
        let directory = std::env::temp_dir().join(format!("bpf-build-test-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let file = |name: &str, bytes: &[u8]| {
            let path = directory.join(name);
            fs::write(&path, bytes).unwrap();
            path
        };
        assert!(is_llvm_library(&file(
            "libLLVM.so.22.1-rust-1.95.0-stable",
            b"\x7fELF..."
        )));
        assert!(!is_llvm_library(&file(
            "libLLVM-22-rust-1.95.0-stable.so",
            b"INPUT(libLLVM.so.22.1)"
        )));
        assert!(!is_llvm_library(&file("libLLVM.so.19.1", b"\x7fELF...")));
        fs::remove_dir_all(&directory).unwrap();
    }
}
