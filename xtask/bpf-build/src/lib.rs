//! How the kernel programs become an object file.
//!
//! No released toolchain ships `core` for the BPF targets, so it is compiled beside the programs (`-Z
//! build-std=core`). That takes a rustc that has its own library source at hand, and `bpf-linker`, which
//! reads the LLVM bitcode that this rustc writes. Neither belongs to a plain installation: [`Tools::find`]
//! looks in the places where they usually are and says what is missing; `cargo xtask setup` installs it.
//!
//! The crate has next to no dependencies, so that the agent's build script does not wait for them.

mod btf;
mod compile;
mod linker;
mod rustc;
mod stack;

use std::path::{Path, PathBuf};

pub use btf::{Malformed, mend_names};
pub use compile::{Endian, Request, compile};
pub use linker::{LINKER_VERSION, Linker};
pub use rustc::{LLVM_MAJOR, OLDEST_RUSTC, Rustc, version};
pub use stack::stacks;

/// Everything the kernel programs are built with.
#[derive(Debug, Clone)]
pub struct Tools {
    /// A compiler with its library source.
    pub rustc: Rustc,
    /// The linker, and the LLVM that it is to load.
    pub linker: Linker,
}

/// Where to look for the tools.
#[derive(Debug, Clone)]
pub struct Places {
    /// The rustc that compiles the rest of the workspace.
    pub rustc: PathBuf,
    /// The project's own tool directory, where `cargo xtask setup` installs.
    pub tools: PathBuf,
    /// The person's home directory; none for a system account.
    pub home: Option<PathBuf>,
    /// Directories of `PATH`, in order.
    pub path: Vec<PathBuf>,
    /// Where rustup keeps its toolchains.
    pub rustup: Option<PathBuf>,
}

/// What is not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Missing {
    /// No rustc with its library source, or none new enough.
    RustSource,
    /// No `bpf-linker` of the right version.
    Linker,
    /// The linker is there, but no LLVM library for it to load.
    Llvm,
}

impl Places {
    /// The usual places, for a workspace at `root`.
    pub fn usual(root: &Path, rustc: PathBuf) -> Self {
        let home = std::env::var_os("HOME").map(PathBuf::from);
        let rustup = std::env::var_os("RUSTUP_HOME")
            .map(PathBuf::from)
            .or_else(|| home.as_ref().map(|h| h.join(".rustup")));
        let path = std::env::var_os("PATH")
            .map(|path| std::env::split_paths(&path).collect())
            .unwrap_or_default();
        Self {
            rustc,
            tools: root.join("target/tools/bin"),
            home,
            path,
            rustup,
        }
    }
}

impl Tools {
    /// Looks in all the places; the first that serves is taken.
    ///
    /// # Errors
    ///
    /// The list of what is missing, never empty.
    pub fn find(places: &Places) -> Result<Self, Vec<Missing>> {
        let rustc = Rustc::candidates(places)
            .find(Rustc::serves)
            .ok_or(Missing::RustSource);
        let binary = Linker::find_binary(places).ok_or(Missing::Linker);
        match (rustc, binary) {
            (Ok(rustc), Ok(binary)) => {
                // Its own LLVM reads its own bitcode for certain; one of the same major version, from another
                // toolchain, will do.
                let llvm = rustc.llvm_library();
                let llvm = llvm.or_else(|| Rustc::candidates(places).find_map(|other| other.llvm_library()));
                let llvm = llvm.ok_or_else(|| vec![Missing::Llvm])?;
                Ok(Self {
                    rustc,
                    linker: Linker { binary, llvm },
                })
            }
            (rustc, binary) => Err(rustc.err().into_iter().chain(binary.err()).collect()),
        }
    }
}

impl std::fmt::Display for Tools {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{}, bpf-linker {LINKER_VERSION} at {}",
            self.rustc,
            self.linker.binary.display()
        )
    }
}

impl std::fmt::Display for Missing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::RustSource => write!(
                f,
                "a rustc ({}.{} or later, with LLVM {LLVM_MAJOR}) that has its library source",
                OLDEST_RUSTC.0, OLDEST_RUSTC.1
            ),
            Self::Linker => write!(f, "bpf-linker {LINKER_VERSION}"),
            Self::Llvm => write!(f, "the LLVM {LLVM_MAJOR} library that bpf-linker loads"),
        }
    }
}
