//! Which maps of an earlier agent can be used again: those whose definition and layout are the same as ours.

use std::{fs, io, path::Path};

use aya::maps::MapInfo;
use aya_obj::Object;
use egress_common::names::LAYOUT;

/// Removes the pins of those maps in `pins` that this object cannot use. The programs in force keep using them until
/// they are replaced; the object then gets new ones under the same names.
///
/// `recorded` is the layout that the earlier agent noted: with another one than ours no map can be used, whatever its
/// sizes are.
pub(super) fn discard_unusable(
    pins: &Path,
    object: &[u8],
    names: &[&'static str],
    recorded: u32,
) -> io::Result<()> {
    let object = Object::parse(object).map_err(io::Error::other)?;
    for name in names {
        let path = pins.join(name);
        if !fs::exists(&path)? {
            continue;
        }
        let is_usable = recorded == LAYOUT
            && object
                .maps
                .get(*name)
                .zip(MapInfo::from_pin(&path).ok())
                .is_some_and(|(ours, pinned)| is_alike(ours, &pinned));
        if !is_usable {
            tracing::warn!(map = name, "of another layout: the programs get a new one");
            fs::remove_file(path)?;
        }
    }
    Ok(())
}

fn is_alike(ours: &aya_obj::Map, pinned: &MapInfo) -> bool {
    pinned.map_type().is_ok_and(|kind| kind as u32 == ours.map_type())
        && pinned.key_size() == ours.key_size()
        && pinned.value_size() == ours.value_size()
        && pinned.max_entries() == ours.max_entries()
        && pinned.map_flags() == ours.map_flags()
}
