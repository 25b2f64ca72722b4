//! How much fits into a table, as the kernel says: the pinned map may be an earlier version's.

use std::path::Path;

use aya::maps::MapInfo;

use super::tables::{TableError, at};

/// How many entries the pinned map `name` can have.
///
/// # Errors
/// See [`TableError`].
pub fn most_entries(pins: &Path, name: &'static str) -> Result<u32, TableError> {
    MapInfo::from_pin(pins.join(name))
        .map(|info| info.max_entries())
        .map_err(at(name))
}
