//! Watching over links and pins: another program with the right to do so may detach, replace or remove them at any time,
//! and the kernel tells nobody.

use std::{fs::File, io, os::fd::AsFd};

use super::{
    AttachError, Attached, Attachment, Link, failed, number_of, open_cgroup, pinning, remove_if_there,
};

/// Something that another program had changed, and that is as it should be again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Repair {
    /// Name of the program or the map.
    pub name: &'static str,
    /// What was found.
    pub found: &'static str,
}

impl Attachment {
    /// Looks whether everything is still as [`Self::attach`] left it, and puts right what is not: a link that was
    /// detached by force, whose program was replaced, or whose pin was removed, and the pin of a map. Adds to `repairs` what
    /// it has put right, also if it fails.
    ///
    /// # Errors
    /// Something cannot be put right; it is tried again at the next call.
    pub fn mend(&mut self, repairs: &mut Vec<Repair>) -> Result<(), AttachError> {
        let (directory, id) = open_cgroup(&self.cgroup)?;
        self.pins.restore()?;
        for index in 0..self.links.len() {
            repairs.extend(self.mend_link(index, &directory, id)?);
        }
        for (name, number) in &self.maps {
            repairs.extend(self.mend_map(name, *number).map_err(pinning(name))?);
        }
        self.mend_fences(repairs)
    }

    fn mend_link(
        &mut self,
        index: usize,
        directory: &File,
        cgroup: u64,
    ) -> Result<Option<Repair>, AttachError> {
        let Some(Attached {
            name,
            hook,
            link,
            program,
        }) = self.links.get(index)
        else {
            return Ok(None);
        };
        let (name, hook, program) = (*name, *hook, *program);
        let state = link.state().map_err(pinning(name))?;
        let found = if state.target != cgroup {
            let link = self.attach_anew(name, hook, directory)?;
            let program = link.state().map_err(pinning(name))?.program;
            self.links[index] = Attached {
                name,
                hook,
                link,
                program,
            };
            "it was detached"
        } else if state.program != program {
            let ours = self
                .program(name)?
                .fd()
                .map_err(failed(name))?
                .as_fd()
                .try_clone_to_owned();
            let ours = ours.map_err(pinning(name))?;
            self.links[index]
                .link
                .replace(ours.as_fd())
                .map_err(pinning(name))?;
            "its program was replaced"
        } else if Link::open(&self.path_of(name))
            .and_then(|pinned| pinned.state())
            .is_ok_and(|pinned| pinned.id == state.id)
        {
            return Ok(None);
        } else {
            self.links[index]
                .link
                .pin(&self.path_of(name))
                .map_err(pinning(name))?;
            "its pin was removed"
        };
        Ok(Some(Repair { name, found }))
    }

    fn mend_map(&self, name: &'static str, number: u32) -> io::Result<Option<Repair>> {
        let path = self.path_of(name);
        if number_of(&path).is_ok_and(|pinned| pinned == number) {
            return Ok(None);
        }
        let map = self.ebpf.map(name).ok_or(io::ErrorKind::NotFound)?;
        remove_if_there(&path)?;
        map.pin(path).map_err(io::Error::other)?;
        Ok(Some(Repair {
            name,
            found: "its pin was removed",
        }))
    }
}
