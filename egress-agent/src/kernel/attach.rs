//! Loads the programs, attaches them to a cgroup, and pins links and maps.

use std::{fs::File, io, path::Path};

use aya::{
    Ebpf, EbpfError, EbpfLoader,
    maps::MapError,
    pin,
    programs::{
        CgroupAttachMode, CgroupSkb, CgroupSkbAttachType, CgroupSock, CgroupSockAddr, ProgramError, SockOps,
        links::{FdLink, LinkError, PinnedLink},
    },
};
use egress_common::names::{map, program};

use super::pins::{PinDirectory, PinError};

/// The programs, compiled by the build script.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/egress-ebpf"));

/// Every map that is pinned; aya-log's own ring buffer is not.
const PINNED_MAPS: [&str; 10] = [
    map::EXEMPT,
    map::INTERNAL,
    map::PORTS,
    map::LISTENERS,
    map::FLOWS,
    map::SOCKETS,
    map::OBSERVED,
    map::EVENTS,
    map::WANTED,
    map::COUNTS,
];

const SOCK_ADDR_PROGRAMS: [&str; 10] = [
    program::GETPEERNAME4,
    program::GETPEERNAME6,
    program::GETSOCKNAME4,
    program::GETSOCKNAME6,
    program::BIND4,
    program::BIND6,
    program::SENDMSG4,
    program::SENDMSG6,
    program::CONNECT4,
    program::CONNECT6,
];

/// Loaded and attached programs. Dropping it leaves the pins, and with them the enforcement, in place.
#[derive(Debug)]
pub struct Attachment {
    ebpf: Ebpf,
    links: Vec<PinnedLink>,
    pins: PinDirectory,
}

/// Why the programs are not in force. Nothing of a failed attempt stays.
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
        error: String,
    },
    /// A map cannot be used.
    #[error("map {name}: {error}")]
    Map {
        /// Its name.
        name: &'static str,
        /// What the kernel said.
        #[source]
        error: Box<MapError>,
    },
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

impl Attachment {
    /// Loads the programs and pins the maps under the instance's name. Nothing is enforced before [`Self::attach`], so
    /// that the tables can be filled first.
    ///
    /// # Errors
    /// See [`AttachError`].
    pub fn load(instance: &str) -> Result<Self, AttachError> {
        let pins = PinDirectory::create(instance)?;
        let mut loader = EbpfLoader::new();
        for name in PINNED_MAPS {
            loader.map_pin_path(name, pins.path().join(name));
        }
        match loader.load(OBJECT) {
            Ok(ebpf) => Ok(Self {
                ebpf,
                links: Vec::new(),
                pins,
            }),
            Err(error) => {
                discard(pins);
                Err(error.into())
            }
        }
    }

    /// Attaches every program to the cgroup; connect comes last, so that no connect is redirected before what names
    /// and publishes it is in place.
    ///
    /// # Errors
    /// See [`AttachError`]; call [`Self::remove`] then.
    pub fn attach(&mut self, cgroup: &Path) -> Result<(), AttachError> {
        let directory = File::open(cgroup).map_err(|error| AttachError::Cgroup {
            path: cgroup.display().to_string(),
            error,
        })?;
        self.attach_socket_programs(&directory)?;
        for name in SOCK_ADDR_PROGRAMS {
            let program: &mut CgroupSockAddr = typed(&mut self.ebpf, name)?;
            let link = program
                .load()
                .and_then(|()| program.attach(&directory, CgroupAttachMode::Single))
                .and_then(|id| program.take_link(id))
                .map_err(failed(name))?;
            self.keep(name, link.try_into())?;
        }
        Ok(())
    }

    /// The object, for tables and logs.
    pub fn ebpf_mut(&mut self) -> &mut Ebpf {
        &mut self.ebpf
    }

    /// Names of the attached programs.
    #[must_use]
    pub fn programs(&self) -> Vec<String> {
        let mut names: Vec<String> = SOCK_ADDR_PROGRAMS
            .iter()
            .chain(&[program::SOCK_CREATE, program::SOCK_OPS, program::SKB_EGRESS])
            .map(|name| (*name).to_owned())
            .collect();
        names.sort();
        names
    }

    /// Where links and maps are pinned.
    #[must_use]
    pub fn pin_path(&self) -> &Path {
        self.pins.path()
    }

    /// Ends the enforcement: removes the pins and closes the links.
    ///
    /// # Errors
    /// A pin that could not be removed.
    pub fn remove(self) -> io::Result<()> {
        let Self { ebpf, links, pins } = self;
        let result = pins.remove();
        drop(links);
        drop(ebpf);
        result
    }

    fn attach_socket_programs(&mut self, directory: &File) -> Result<(), AttachError> {
        let name = program::SOCK_CREATE;
        let create: &mut CgroupSock = typed(&mut self.ebpf, name)?;
        let link = create
            .load()
            .and_then(|()| create.attach(directory, CgroupAttachMode::Single))
            .and_then(|id| create.take_link(id))
            .map_err(failed(name))?;
        self.keep(name, link.try_into())?;

        let name = program::SOCK_OPS;
        let tcp: &mut SockOps = typed(&mut self.ebpf, name)?;
        let link = tcp
            .load()
            .and_then(|()| tcp.attach(directory, CgroupAttachMode::Single))
            .and_then(|id| tcp.take_link(id))
            .map_err(failed(name))?;
        self.keep(name, link.try_into())?;

        let name = program::SKB_EGRESS;
        let packet: &mut CgroupSkb = typed(&mut self.ebpf, name)?;
        let link = packet
            .load()
            .and_then(|()| packet.attach(directory, CgroupSkbAttachType::Egress, CgroupAttachMode::Single))
            .and_then(|id| packet.take_link(id))
            .map_err(failed(name))?;
        self.keep(name, link.try_into())
    }

    fn keep(&mut self, program: &'static str, link: Result<FdLink, LinkError>) -> Result<(), AttachError> {
        let pinned = link
            .map_err(|error| AttachError::Pin {
                program,
                error: error.to_string(),
            })?
            .pin(self.pins.path().join(program))
            .map_err(|error: pin::PinError| AttachError::Pin {
                program,
                error: error.to_string(),
            })?;
        self.links.push(pinned);
        Ok(())
    }
}

fn typed<'a, P>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut P, AttachError>
where
    &'a mut P: TryFrom<&'a mut aya::programs::Program>,
{
    ebpf.program_mut(name)
        .and_then(|program| program.try_into().ok())
        .ok_or(AttachError::Missing(name))
}

fn failed(program: &'static str) -> impl Fn(ProgramError) -> AttachError {
    move |error| AttachError::Program {
        program,
        error: Box::new(error),
    }
}

fn discard(pins: PinDirectory) {
    if let Err(error) = pins.remove() {
        tracing::warn!(%error, "cannot remove the pins of a failed start: run `egress-agent cleanup`");
    }
}
