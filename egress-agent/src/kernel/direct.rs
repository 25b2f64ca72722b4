//! Open flows that did not go through the agent.

use std::path::Path;

use aya::maps::{HashMap, MapData};
use egress_common::{flow::Flow, names::map};

use super::tables::{TableError, hash};

/// The table of direct flows, by socket cookie.
#[derive(Debug)]
pub struct DirectTable {
    map: HashMap<MapData, u64, Flow>,
}

impl DirectTable {
    /// Opens the pinned map.
    ///
    /// # Errors
    /// See [`TableError`].
    pub fn open(pins: &Path) -> Result<Self, TableError> {
        Ok(Self {
            map: hash(pins, map::DIRECT)?,
        })
    }

    /// How many there are. A system call for each.
    #[must_use]
    pub fn count(&self) -> usize {
        self.map.keys().count()
    }

    /// Whether the socket with this cookie has such a flow: its end is reported by itself then.
    #[must_use]
    pub fn has(&self, socket: u64) -> bool {
        self.map.get(&socket, 0).is_ok()
    }
}
