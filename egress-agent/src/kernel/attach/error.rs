//! Why the programs are not in force.

use std::{io, path::PathBuf};

use aya::{EbpfError, programs::ProgramError};

use crate::kernel::pins::PinError;

/// Why the programs are not in force. Nothing of a failed attempt stays; what an earlier agent left does.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// The object does not load.
    #[error("the kernel refuses the maps or programs: {0}")]
    Load(#[from] EbpfError),
    /// A program does not load or attach.
    #[error("{program}: {error}")]
    Program {
        /// Its name.
        program: &'static str,
        /// What the kernel said, with the verifier's log.
        #[source]
        error: Box<ProgramError>,
    },
    /// The object lacks a program: a build that went wrong.
    #[error("the object has no program {0} of the expected type")]
    Missing(&'static str),
    /// A link cannot be pinned.
    #[error("{program}: cannot pin its link: {error}")]
    Pin {
        /// Its name.
        program: &'static str,
        /// What the kernel said.
        error: io::Error,
    },
    /// An earlier agent's pins cannot be looked at.
    #[error("{path}: cannot take over what an earlier agent has pinned: {error}")]
    Adopt {
        /// The directory of its pins.
        path: PathBuf,
        /// What the kernel said.
        error: io::Error,
    },
    /// An earlier agent of this name enforced another cgroup, and its programs still do.
    #[error(
        "{0}: the programs of an earlier agent of this name are in force in another cgroup: run `egress-agent cleanup` first, or give the instance another name"
    )]
    ElsewhereInForce(PathBuf),
    /// No place for pins.
    #[error(transparent)]
    Pins(#[from] PinError),
    /// The cgroup cannot be opened.
    #[error("{path}: {error}")]
    Cgroup {
        /// The directory.
        path: String,
        /// What the kernel said.
        error: io::Error,
    },
}
