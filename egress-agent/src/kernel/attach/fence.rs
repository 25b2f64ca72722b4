//! Fences: two programs at the host's end of a veth pair. One notes what comes into the namespace at its other end, one
//! judges what leaves it. They outlive the agent as the other programs do: as pinned links from Linux 6.6 on, before that
//! as filters, which stay by themselves and are found again by what the table of fences has of them.

use std::{
    collections::BTreeMap,
    fs, io,
    os::fd::{AsFd, BorrowedFd},
    path::{Path, PathBuf},
};

use aya::{
    maps::{HashMap, MapData},
    programs::{
        SchedClassifier, TcAttachType,
        tc::{self, NlOptions, SchedClassifierLink, TcAttachOptions, TcHandle},
    },
    util::KernelVersion,
};
use egress_common::{
    fence::Fence,
    names::{map, program},
};
use nix::net::if_::{if_indextoname, if_nameindex};

use super::{AttachError, Attachment, Repair, failed, pinning, remove_if_there};
use crate::kernel::{
    link::{Direction, Link},
    tables,
};

/// What is attached, in this order: what comes in must be known before what leaves is judged.
const PARTS: [Part; 2] = [
    // What goes into the namespace is what the host's end sends.
    Part {
        program: program::ENTRY,
        direction: Direction::Egress,
    },
    Part {
        program: program::FENCE,
        direction: Direction::Ingress,
    },
];

/// Before all that others have attached by netlink.
const PRIORITY: u16 = 1;

/// One of the two programs.
#[derive(Debug, Clone, Copy)]
struct Part {
    program: &'static str,
    direction: Direction,
}

/// The fences of an instance.
#[derive(Debug)]
pub(super) struct Fences {
    table: HashMap<MapData, u32, Fence>,
    /// By the index of their interface.
    raised: BTreeMap<u32, Raised>,
}

/// A fence in force.
#[derive(Debug)]
struct Raised {
    noted: Fence,
    /// As [`PARTS`]; none where there are filters.
    links: Vec<FenceLink>,
}

#[derive(Debug)]
struct FenceLink {
    link: Link,
    program: u32,
}

impl Fences {
    pub(super) fn open(pins: &Path) -> Result<Self, AttachError> {
        Ok(Self {
            table: tables::hash(pins, map::FENCES).map_err(|error| pinning(map::FENCES)(error.into()))?,
            raised: BTreeMap::new(),
        })
    }
}

impl Attachment {
    /// Fences the network namespace `netns` at the interface `index` of the agent's own; `cgroup` is that of one of its
    /// members. Where there is a fence already, it is kept.
    ///
    /// # Errors
    /// The kernel refuses: nothing is attached then.
    pub fn raise_fence(&mut self, index: u32, netns: u64, cgroup: u64) -> Result<(), AttachError> {
        if self
            .fences
            .raised
            .get(&index)
            .is_some_and(|raised| raised.noted.netns == netns)
        {
            return Ok(());
        }
        // An interface whose index is used again.
        self.lower_fence(index);
        let by_link = has_links();
        let noted = Fence {
            netns,
            cgroup,
            handle: if by_link { 0 } else { self.handle() },
            reserved: 0,
        };
        self.fences
            .table
            .insert(index, noted, 0)
            .map_err(|error| pinning(map::FENCES)(io::Error::other(error)))?;
        self.fences.raised.insert(
            index,
            Raised {
                noted,
                links: Vec::new(),
            },
        );
        let attached = if by_link {
            PARTS.iter().try_for_each(|part| self.link_part(index, *part))
        } else {
            self.adopt_filters(index, noted.handle)
        };
        if attached.is_err() {
            self.lower_fence(index);
        }
        attached
    }

    /// Takes the fence at an interface away, if there is one.
    pub fn lower_fence(&mut self, index: u32) {
        let Some(raised) = self.fences.raised.remove(&index) else {
            return;
        };
        for part in PARTS.iter().rev() {
            if let Err(error) = remove_if_there(&self.fence_path(index, *part)) {
                tracing::warn!(%error, index, "cannot remove the pin of a fence");
            }
        }
        drop(raised.links);
        remove_filters(index, raised.noted.handle);
        // The kernel refuses only what is not there.
        let _gone = self.fences.table.remove(&index);
    }

    /// The interfaces with a fence, and the cookies of the namespaces behind them.
    pub fn fences(&self) -> impl Iterator<Item = (u32, u64)> {
        self.fences
            .raised
            .iter()
            .map(|(index, raised)| (*index, raised.noted.netns))
    }

    /// Goes on with the fences of an earlier agent, with our programs in them.
    pub(super) fn adopt_fences(&mut self) {
        let noted: Vec<(u32, Fence)> = self.fences.table.iter().filter_map(Result::ok).collect();
        for (index, fence) in noted {
            let mut raised = Raised {
                noted: fence,
                links: Vec::new(),
            };
            let adopted = if fence.handle == 0 {
                self.adopt_links(index).map(|links| raised.links = links)
            } else {
                self.adopt_filters(index, fence.handle)
            };
            self.fences.raised.insert(index, raised);
            if let Err(error) = adopted {
                // Its namespace is gone, or somebody has removed it: raised anew if it is still wanted.
                tracing::info!(%error, index, "an earlier agent's fence is not in force any more");
                self.lower_fence(index);
            }
        }
    }

    /// Removes the pins of links, and the filters, that are none of ours: an earlier agent's, whose table had another
    /// layout. To be called once all that are wanted have been raised, in the place of those.
    ///
    /// # Errors
    /// The pins or the interfaces cannot be read, or a pin cannot be removed.
    pub fn remove_stale_fences(&self) -> io::Result<()> {
        for name in self.pins.names()?.iter().filter(|name| is_pin(name)) {
            let is_raised = |index: &u32| PARTS.iter().any(|part| pin_name(*index, part.program) == *name);
            if !self.fences.raised.keys().any(is_raised) {
                remove_if_there(&self.path_of(name))?;
            }
        }
        if !has_links() {
            // Without the table nothing says where they are, but their handle is ours alone.
            for interface in &if_nameindex()? {
                if !self.fences.raised.contains_key(&interface.index()) {
                    remove_filters(interface.index(), self.handle());
                }
            }
        }
        Ok(())
    }

    /// Takes all of them away, for the orderly end: pins go with the others'.
    pub(super) fn remove_filters(&self) {
        for (index, raised) in &self.fences.raised {
            remove_filters(*index, raised.noted.handle);
        }
    }

    /// Looks whether they are as they were attached, as `mend` does with the rest. One that cannot be mended keeps nobody from
    /// looking at the others.
    pub(super) fn mend_fences(&mut self, repairs: &mut Vec<Repair>) -> Result<(), AttachError> {
        let mut first = Ok(());
        let indices: Vec<u32> = self.fences.raised.keys().copied().collect();
        for index in indices {
            // Gone with its pair: nothing leaves there any more.
            if if_indextoname(index).is_err() {
                self.lower_fence(index);
                continue;
            }
            let handle = self
                .fences
                .raised
                .get(&index)
                .map_or(0, |raised| raised.noted.handle);
            for (place, part) in PARTS.iter().enumerate() {
                let found = if handle == 0 {
                    self.mend_part(index, place, *part)
                } else {
                    self.mend_filter(index, *part, handle)
                };
                match found {
                    Ok(found) => repairs.extend(found.map(|found| Repair {
                        name: part.program,
                        found,
                    })),
                    Err(error) => first = first.and(Err(error)),
                }
            }
        }
        first
    }

    fn mend_filter(
        &mut self,
        index: u32,
        part: Part,
        handle: u32,
    ) -> Result<Option<&'static str>, AttachError> {
        // Exclusively: it fails where the filter is.
        match self.filter_part(index, part, handle) {
            Ok(()) => Ok(Some("it was removed")),
            Err(AttachError::Program { error, .. }) if is_there_already(&*error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn mend_part(
        &mut self,
        index: u32,
        place: usize,
        part: Part,
    ) -> Result<Option<&'static str>, AttachError> {
        let path = self.fence_path(index, part);
        let ours = self.program(part.program)?.fd().map_err(failed(part.program))?;
        let ours = ours.as_fd().try_clone_to_owned().map_err(pinning(part.program))?;
        let Some(fence) = self
            .fences
            .raised
            .get_mut(&index)
            .and_then(|raised| raised.links.get_mut(place))
        else {
            return Ok(None);
        };
        let state = fence.link.state().map_err(pinning(part.program))?;
        if state.target != u64::from(index) {
            *fence = new_link(ours.as_fd(), index, part, &path)?;
            return Ok(Some("it was detached"));
        }
        if state.program != fence.program {
            fence.link.replace(ours.as_fd()).map_err(pinning(part.program))?;
            return Ok(Some("its program was replaced"));
        }
        if Link::open(&path)
            .and_then(|pinned| pinned.state())
            .is_ok_and(|pinned| pinned.id == state.id)
        {
            return Ok(None);
        }
        fence.link.pin(&path).map_err(pinning(part.program))?;
        Ok(Some("its pin was removed"))
    }

    fn link_part(&mut self, index: u32, part: Part) -> Result<(), AttachError> {
        let path = self.fence_path(index, part);
        let program = self.program(part.program)?.fd().map_err(failed(part.program))?;
        let made = new_link(program.as_fd(), index, part, &path)?;
        if let Some(raised) = self.fences.raised.get_mut(&index) {
            raised.links.push(made);
        }
        Ok(())
    }

    fn adopt_links(&mut self, index: u32) -> Result<Vec<FenceLink>, AttachError> {
        let mut links = Vec::new();
        for part in PARTS {
            let name = part.program;
            let path = self.fence_path(index, part);
            let program = self.program(name)?.fd().map_err(failed(name))?;
            let program = program.as_fd();
            let link = match Link::open(&path) {
                Ok(link) if link.state().map_err(pinning(name))?.target == u64::from(index) => {
                    link.replace(program).map_err(pinning(name))?;
                    let program = link.state().map_err(pinning(name))?.program;
                    FenceLink { link, program }
                }
                _ => new_link(program, index, part, &path)?,
            };
            links.push(link);
        }
        Ok(links)
    }

    fn adopt_filters(&mut self, index: u32, handle: u32) -> Result<(), AttachError> {
        let interface = name_of(index).map_err(pinning(program::FENCE))?;
        for part in PARTS {
            let name = part.program;
            let attached = filter(&interface, part, handle).map_err(pinning(name))?;
            let program: &mut SchedClassifier = self.program(name)?.try_into().map_err(failed(name))?;
            // Replaces the program of a filter that is there.
            let id = match program.attach_to_link(attached) {
                Ok(id) => id,
                Err(_no_filter) => {
                    self.filter_part(index, part, handle)?;
                    continue;
                }
            };
            let link = program.take_link(id).map_err(failed(name))?;
            // It would remove the filter when dropped.
            std::mem::forget(link);
        }
        Ok(())
    }

    fn filter_part(&mut self, index: u32, part: Part, handle: u32) -> Result<(), AttachError> {
        let name = part.program;
        let interface = name_of(index).map_err(pinning(name))?;
        // An error says that it is there, or else attaching says what is wrong.
        drop(tc::qdisc_add_clsact(&interface));
        let options = TcAttachOptions::Netlink(NlOptions {
            priority: PRIORITY,
            handle: TcHandle::from(handle),
            classid: None,
        });
        let program: &mut SchedClassifier = self.program(name)?.try_into().map_err(failed(name))?;
        let id = program
            .attach_with_options(&interface, attach_type(part), options)
            .map_err(failed(name))?;
        let link = program.take_link(id).map_err(failed(name))?;
        std::mem::forget(link);
        Ok(())
    }

    fn fence_path(&self, index: u32, part: Part) -> PathBuf {
        self.path_of(&pin_name(index, part.program))
    }

    /// Two agents may have filters at one interface.
    fn handle(&self) -> u32 {
        // FNV-1a, because it must be the same in every version; 0 would let the kernel choose.
        let name = self.pins.path().as_os_str().as_encoded_bytes();
        let hash = name.iter().fold(0x811c_9dc5_u32, |hash, byte| {
            (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193)
        });
        hash | 1
    }
}

/// Removes the filters of a dead agent's fences, which do not go with its pins.
///
/// # Errors
/// Its table is there and cannot be read.
pub fn remove_fences(pins: &Path) -> io::Result<()> {
    if !fs::exists(pins.join(map::FENCES))? {
        return Ok(());
    }
    let table: HashMap<MapData, u32, Fence> = tables::hash(pins, map::FENCES)?;
    for (index, fence) in table.iter().filter_map(Result::ok) {
        remove_filters(index, fence.handle);
    }
    Ok(())
}

/// Whether a pin is that of a fence's link.
pub(super) fn is_pin(name: &str) -> bool {
    PARTS.iter().any(|part| {
        name.strip_prefix(part.program)
            .and_then(|rest| rest.strip_prefix('_'))
            .is_some_and(|index| index.bytes().all(|byte| byte.is_ascii_digit()))
    })
}

/// Whether the kernel has links to interfaces.
fn has_links() -> bool {
    KernelVersion::current().is_ok_and(|running| running >= KernelVersion::new(6, 6, 0))
}

fn pin_name(index: u32, program: &str) -> String {
    format!("{program}_{index}")
}

fn new_link(program: BorrowedFd<'_>, index: u32, part: Part, path: &Path) -> Result<FenceLink, AttachError> {
    let name = part.program;
    let link = Link::to_interface(program, index, part.direction).map_err(pinning(name))?;
    link.pin(path).map_err(pinning(name))?;
    let program = link.state().map_err(pinning(name))?.program;
    Ok(FenceLink { link, program })
}

fn remove_filters(index: u32, handle: u32) {
    let Some(interface) = (handle != 0).then(|| name_of(index).ok()).flatten() else {
        return;
    };
    for part in PARTS.iter().rev() {
        // Dropping it removes the filter. What is gone already is as it should be.
        drop(filter(&interface, *part, handle));
    }
}

fn filter(interface: &str, part: Part, handle: u32) -> io::Result<SchedClassifierLink> {
    SchedClassifierLink::attached(
        interface,
        attach_type(part),
        PRIORITY,
        TcHandle::from(handle),
        None,
    )
}

const fn attach_type(part: Part) -> TcAttachType {
    match part.direction {
        Direction::Ingress => TcAttachType::Ingress,
        Direction::Egress => TcAttachType::Egress,
    }
}

fn name_of(index: u32) -> io::Result<String> {
    let name = if_indextoname(index)?;
    name.into_string().map_err(io::Error::other)
}

/// EEXIST, from the depths of the library's errors.
fn is_there_already(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut error = Some(error);
    while let Some(current) = error {
        if current
            .downcast_ref::<io::Error>()
            .is_some_and(|error| error.raw_os_error() == Some(libc::EEXIST))
        {
            return true;
        }
        error = current.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pins_of_fences_are_told_from_those_of_programs_and_strangers() {
        assert!(is_pin(&pin_name(17, program::FENCE)));
        assert!(is_pin(&pin_name(4_294_967_295, program::ENTRY)));
        for other in [
            program::FENCE,
            "egress_fence_x",
            "egress_connect4_1",
            "egress_fence_1_next",
        ] {
            assert!(!is_pin(other), "{other}");
        }
    }
}
