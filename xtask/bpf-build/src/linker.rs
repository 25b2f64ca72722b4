//! bpf-linker, and the LLVM library that it loads at run time.

use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::Places;

/// The version that is built against the LLVM of the compilers we accept and needs no LLVM of its own; later
/// ones want one installed by the system.
pub const LINKER_VERSION: &str = "0.10.1";

/// The linker of the kernel programs.
#[derive(Debug, Clone)]
pub struct Linker {
    /// The executable.
    pub binary: PathBuf,
    /// The library that it is to load.
    pub llvm: PathBuf,
}

impl Linker {
    /// The project's own copy, or else one that the person installed.
    pub fn find_binary(places: &Places) -> Option<PathBuf> {
        let cargo_bin = places.home.as_ref().map(|home| home.join(".cargo/bin"));
        std::iter::once(&places.tools)
            .chain(&places.path)
            .chain(&cargo_bin)
            .map(|directory| directory.join("bpf-linker"))
            .find(|binary| binary.is_file() && has_version(binary))
    }

    /// Writes into `directory` an executable that runs the linker with its LLVM, and returns its path.
    ///
    /// Left alone, the linker opens the first `libLLVM*` in `LD_LIBRARY_PATH` and beside `PATH`, and any
    /// version of it: cargo sets the former for its own ends, and a Debian machine may have three of them in
    /// one directory.
    ///
    /// # Errors
    ///
    /// What the file system says.
    pub(crate) fn wrap(&self, directory: &Path) -> io::Result<PathBuf> {
        let llvm = directory.join("llvm");
        fs::create_dir_all(&llvm)?;
        let link = llvm.join("libLLVM.so");
        if fs::read_link(&link).ok().as_deref() != Some(&self.llvm) {
            replace(&link, |new| symlink(&self.llvm, new))?;
        }
        let wrapper = directory.join("bpf-linker");
        let script = format!(
            "#!/bin/sh\nLD_LIBRARY_PATH={} exec {} \"$@\"\n",
            quote(&llvm),
            quote(&self.binary)
        );
        if fs::read_to_string(&wrapper).ok().as_deref() != Some(&script) {
            replace(&wrapper, |new| {
                fs::write(new, &script)?;
                fs::set_permissions(new, fs::Permissions::from_mode(0o755))
            })?;
        }
        Ok(wrapper)
    }
}

fn has_version(binary: &Path) -> bool {
    let Ok(output) = Command::new(binary).arg("--version").output() else {
        return false;
    };
    String::from_utf8_lossy(&output.stdout).split_whitespace().last() == Some(LINKER_VERSION)
}

/// Puts a new file in place in one step: another build may be using the old one.
fn replace(path: &Path, make: impl FnOnce(&Path) -> io::Result<()>) -> io::Result<()> {
    let new = path.with_extension(format!("new-{}", std::process::id()));
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    make(&new)?;
    fs::rename(&new, path)
}

/// For the shell: whatever is in the path stands for itself.
fn quote(path: &Path) -> String {
    format!("'{}'", path.display().to_string().replace('\'', r"'\''"))
}
