//! Loads the programs, attaches them to a cgroup, pins links and maps, and takes over what an earlier agent has pinned.

mod error;
mod fence;
mod mend;

use std::{
    fs::{self, File},
    io,
    os::{fd::AsFd, unix::fs::MetadataExt},
    path::{Path, PathBuf},
};

use aya::{
    Ebpf, EbpfLoader,
    maps::MapInfo,
    programs::{Program, ProgramError, RawTracePoint},
};
use egress_common::names::{map, program};

use self::fence::Fences;
pub use self::{error::AttachError, fence::remove_fences, mend::Repair};
use super::{
    layout,
    link::{Hook, Link},
    pins::PinDirectory,
};

/// The programs, compiled by the build script.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/egress-ebpf"));

/// Every map that is pinned; aya-log's own ring buffer is not.
const PINNED_MAPS: [&str; 27] = [
    map::EXEMPT,
    map::INTERNAL,
    map::PROXIES,
    map::MEMBERS,
    map::BLOCKS,
    map::PORTS,
    map::INBOUND,
    map::DIRECT,
    map::CLOSED,
    map::LISTENERS,
    map::FLOWS,
    map::UNDER_WAY,
    map::SOCKETS,
    map::ASKERS,
    map::QUERIES,
    map::HELD,
    map::ENFORCED,
    map::ANNOUNCED,
    map::FENCES,
    map::ARRIVALS,
    map::FRAGMENTS,
    map::VETTED,
    map::SENT,
    map::OBSERVED,
    map::EVENTS,
    map::WANTED,
    map::COUNTS,
];

/// In the order in which they are attached. Connect comes last, so that no connect is redirected before what names and
/// publishes it is in place.
const PROGRAMS: [(&str, Hook); 18] = [
    (program::SOCK_CREATE, Hook::SockCreate),
    (program::SOCK_RELEASE, Hook::SockRelease),
    (program::SETSOCKOPT, Hook::Setsockopt),
    (program::SOCK_OPS, Hook::SockOps),
    (program::SKB_INGRESS, Hook::Ingress),
    (program::SKB_EGRESS, Hook::Egress),
    (program::GETPEERNAME4, Hook::Getpeername4),
    (program::GETPEERNAME6, Hook::Getpeername6),
    (program::GETSOCKNAME4, Hook::Getsockname4),
    (program::GETSOCKNAME6, Hook::Getsockname6),
    (program::BIND4, Hook::Bind4),
    (program::BIND6, Hook::Bind6),
    (program::RECVMSG4, Hook::Recvmsg4),
    (program::RECVMSG6, Hook::Recvmsg6),
    (program::SENDMSG4, Hook::Sendmsg4),
    (program::SENDMSG6, Hook::Sendmsg6),
    (program::CONNECT4, Hook::Connect4),
    (program::CONNECT6, Hook::Connect6),
];

/// Attached where a network namespace is fenced.
const FENCE_PROGRAMS: [&str; 2] = [program::ENTRY, program::FENCE];

/// Tables of the fence and what they shrink to for an agent that is too short-lived to fence anything (`exec`): they are
/// allocated whole, 11 MiB in the others.
const SHRUNK_MAPS: [(&str, u32); 3] = [(map::ARRIVALS, 256), (map::SENT, 1024), (map::FRAGMENTS, 256)];

/// Loaded and attached programs. Dropping it leaves the pins, and with them the enforcement, in place.
#[derive(Debug)]
pub struct Attachment {
    ebpf: Ebpf,
    links: Vec<Attached>,
    fences: Fences,
    /// The kernel's numbers of the pinned maps.
    maps: Vec<(&'static str, u32)>,
    pins: PinDirectory,
    cgroup: PathBuf,
    inherited: bool,
}

/// What may be done with pins that are there already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Inheritance {
    /// Nothing: the instance is new.
    None,
    /// Use them; the earlier agent has noted this layout of its maps ([`egress_common::names::LAYOUT`]), 0 for unknown.
    Layout(u32),
}

/// A program in force.
#[derive(Debug)]
struct Attached {
    name: &'static str,
    hook: Hook,
    link: Link,
    /// The kernel's number of our program.
    program: u32,
}

impl Attachment {
    /// Loads the programs and pins the maps under the instance's name. Nothing is enforced before [`Self::attach`], so
    /// that the tables can be filled first. Where an earlier agent's pins are there, the maps are its maps, and its
    /// programs stay in force until `attach` replaces them.
    ///
    /// # Errors
    /// See [`AttachError`].
    pub fn load(instance: &str, cgroup: &Path, inheritance: Inheritance) -> Result<Self, AttachError> {
        let (pins, inherited) = match inheritance {
            Inheritance::None => (PinDirectory::create(instance)?, false),
            Inheritance::Layout(layout) => inherit(instance, cgroup, layout)?,
        };
        let mut loader = EbpfLoader::new();
        for name in PINNED_MAPS {
            loader.map_pin_path(name, pins.path().join(name));
        }
        if inheritance == Inheritance::None {
            for (name, size) in SHRUNK_MAPS {
                loader.map_max_entries(name, size);
            }
        }
        let loaded = loader.load(OBJECT).map_err(AttachError::from);
        let loaded = loaded.and_then(|mut ebpf| {
            load_programs(&mut ebpf)?;
            let maps = pinned_maps(pins.path())?;
            Ok((ebpf, maps, Fences::open(pins.path())?))
        });
        match loaded {
            Ok((ebpf, maps, fences)) => Ok(Self {
                ebpf,
                maps,
                fences,
                links: Vec::new(),
                pins,
                cgroup: cgroup.to_path_buf(),
                inherited,
            }),
            Err(error) => {
                if !inherited {
                    discard(pins);
                }
                Err(error)
            }
        }
    }

    /// Puts every program in force in the cgroup. Where an earlier agent's link is attached there, its program is
    /// replaced, without a moment in which there is none.
    ///
    /// # Errors
    /// See [`AttachError`]; call [`Self::abandon`] then.
    pub fn attach(&mut self) -> Result<(), AttachError> {
        let (directory, id) = open_cgroup(&self.cgroup)?;
        for (name, hook) in PROGRAMS {
            let link = match self.adopt(name, id)? {
                Some(link) => link,
                None => self.attach_anew(name, hook, &directory)?,
            };
            let program = link.state().map_err(pinning(name))?.program;
            self.links.push(Attached {
                name,
                hook,
                link,
                program,
            });
        }
        self.adopt_fences();
        if let Err(error) = self.watch_exec() {
            tracing::warn!(%error, "cannot see programs start: the first lookup in a new network namespace may fail");
        }
        self.remove_strangers()
    }

    /// Attaches what announces new programs. Not pinned, because it is of no use without an agent.
    fn watch_exec(&mut self) -> Result<(), AttachError> {
        let name = program::EXEC;
        let announcing: &mut RawTracePoint = self.program(name)?.try_into().map_err(failed(name))?;
        announcing
            .load()
            .and_then(|()| announcing.attach("sched_process_exec"))
            .map(drop)
            .map_err(failed(name))
    }

    /// The object, for tables and logs.
    pub fn ebpf_mut(&mut self) -> &mut Ebpf {
        &mut self.ebpf
    }

    /// Whether the pins were there before.
    #[must_use]
    pub const fn is_inherited(&self) -> bool {
        self.inherited
    }

    /// Names of the attached programs.
    #[must_use]
    pub fn programs(&self) -> Vec<String> {
        let mut names: Vec<String> = self.links.iter().map(|link| link.name.to_owned()).collect();
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
        self.remove_filters();
        let Self {
            ebpf,
            links,
            fences,
            pins,
            ..
        } = self;
        let result = pins.remove();
        drop((links, fences));
        drop(ebpf);
        result
    }

    /// Ends a failed start: removes the pins unless an earlier agent's enforcement depends on them.
    ///
    /// # Errors
    /// A pin that could not be removed.
    pub fn abandon(self) -> io::Result<()> {
        if self.inherited { Ok(()) } else { self.remove() }
    }

    /// The earlier agent's link, if it is attached to this cgroup, with our program in it.
    fn adopt(&mut self, name: &'static str, cgroup: u64) -> Result<Option<Link>, AttachError> {
        let Ok(link) = Link::open(&self.path_of(name)) else {
            return Ok(None);
        };
        if link.state().map_err(pinning(name))?.target != cgroup {
            return Ok(None);
        }
        let program = self.program(name)?.fd().map_err(failed(name))?;
        match link.replace(program.as_fd()) {
            Ok(()) => Ok(Some(link)),
            Err(error) => {
                // Of another type than ours, for one: a link of our own then comes beside it before it goes.
                tracing::warn!(program = name, %error, "an earlier agent's link does not take the program");
                Ok(None)
            }
        }
    }

    /// A link of our own, pinned instead of what is pinned there.
    fn attach_anew(&mut self, name: &'static str, hook: Hook, cgroup: &File) -> Result<Link, AttachError> {
        let path = self.path_of(name);
        let program = self.program(name)?.fd().map_err(failed(name))?;
        let link = Link::to_cgroup(program.as_fd(), cgroup.as_fd(), hook)
            .map_err(ProgramError::IOError)
            .map_err(failed(name))?;
        link.pin(&path).map_err(pinning(name))?;
        Ok(link)
    }

    /// Removes pins of programs and maps that this version does not have. Last, when nothing depends on them.
    fn remove_strangers(&self) -> Result<(), AttachError> {
        for name in self.pins.names().map_err(pinning("pins"))? {
            let is_ours =
                names_of_programs().any(|ours| ours == name) || PINNED_MAPS.contains(&name.as_str());
            if is_ours || fence::is_pin(&name) {
                continue;
            }
            tracing::info!(
                name,
                "removing what an earlier agent has pinned and this one does not have"
            );
            remove_if_there(&self.pins.path().join(name)).map_err(pinning("pins"))?;
        }
        Ok(())
    }

    fn program(&mut self, name: &'static str) -> Result<&mut Program, AttachError> {
        self.ebpf.program_mut(name).ok_or(AttachError::Missing(name))
    }

    fn path_of(&self, name: &str) -> PathBuf {
        self.pins.path().join(name)
    }
}

/// An earlier agent's pins, less what cannot be used, or new ones; and whether it is the former.
fn inherit(instance: &str, cgroup: &Path, layout: u32) -> Result<(PinDirectory, bool), AttachError> {
    let Some(pins) = PinDirectory::find(instance)? else {
        return Ok((PinDirectory::create(instance)?, false));
    };
    let (_, id) = open_cgroup(cgroup)?;
    let is_elsewhere = |name: &str| {
        Link::open(&pins.path().join(name))
            .and_then(|link| link.state())
            .is_ok_and(|state| state.target != 0 && state.target != id)
    };
    // To take them from there would set its members free.
    if names_of_programs().any(is_elsewhere) {
        return Err(AttachError::ElsewhereInForce(pins.path().to_path_buf()));
    }
    match layout::discard_unusable(pins.path(), OBJECT, &PINNED_MAPS, layout) {
        Ok(()) => Ok((pins, true)),
        Err(error) => Err(AttachError::Adopt {
            path: pins.path().to_path_buf(),
            error,
        }),
    }
}

/// Hands every program to the verifier; nothing is in force by that.
fn load_programs(ebpf: &mut Ebpf) -> Result<(), AttachError> {
    for name in names_of_programs().chain(FENCE_PROGRAMS) {
        let program = ebpf.program_mut(name).ok_or(AttachError::Missing(name))?;
        let loaded = if let Program::CgroupSockAddr(program) = program {
            program.load()
        } else if let Program::CgroupSock(program) = program {
            program.load()
        } else if let Program::CgroupSkb(program) = program {
            program.load()
        } else if let Program::CgroupSockopt(program) = program {
            program.load()
        } else if let Program::SockOps(program) = program {
            program.load()
        } else if let Program::SchedClassifier(program) = program {
            program.load()
        } else {
            return Err(AttachError::Missing(name));
        };
        loaded.map_err(failed(name))?;
    }
    Ok(())
}

fn names_of_programs() -> impl Iterator<Item = &'static str> {
    PROGRAMS.into_iter().map(|(name, _)| name)
}

/// The cgroup's directory and the kernel's id of it, which is the inode number.
fn open_cgroup(cgroup: &Path) -> Result<(File, u64), AttachError> {
    File::open(cgroup)
        .and_then(|directory| directory.metadata().map(|data| (directory, data.ino())))
        .map_err(|error| AttachError::Cgroup {
            path: cgroup.display().to_string(),
            error,
        })
}

/// Every map with the kernel's number of it.
fn pinned_maps(pins: &Path) -> Result<Vec<(&'static str, u32)>, AttachError> {
    let numbered = |name| Ok((name, number_of(&pins.join(name)).map_err(pinning(name))?));
    PINNED_MAPS.into_iter().map(numbered).collect()
}

/// The kernel's number of the map that is pinned at `path`.
fn number_of(path: &Path) -> io::Result<u32> {
    MapInfo::from_pin(path)
        .map(|info| info.id())
        .map_err(io::Error::other)
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

fn failed(program: &'static str) -> impl Fn(ProgramError) -> AttachError {
    move |error| AttachError::Program {
        program,
        error: Box::new(error),
    }
}

fn pinning(program: &'static str) -> impl Fn(io::Error) -> AttachError {
    move |error| AttachError::Pin { program, error }
}

fn discard(pins: PinDirectory) {
    if let Err(error) = pins.remove() {
        tracing::warn!(%error, "cannot remove the pins of a failed start: run `egress-agent cleanup`");
    }
}
