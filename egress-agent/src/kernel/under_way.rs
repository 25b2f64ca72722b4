//! How many redirected connects each workload has under way: counted by the kernel as they come, corrected here for those
//! that the agent has taken.

use std::{
    collections::{HashMap, HashSet},
    path::Path,
};

use aya::maps::{Map, MapData, MapError};
use egress_common::{
    flow::{Flow, FlowKey, MOST_UNDER_WAY},
    names::map,
};

use super::tables::{TableError, at, hash, open};

/// A share of which this much is counted is looked at. What is left of it has to last until the next look.
const CROWDED: u32 = MOST_UNDER_WAY / 4;

/// A walk begins anew where the entry that it was at is taken meanwhile: it may go over the whole table so often.
const MOST_STEPS: usize = 4 * 65_536;

/// The counts, and what they count.
#[derive(Debug)]
pub struct UnderWay {
    counts: aya::maps::HashMap<MapData, u64, u32>,
    flows: aya::maps::HashMap<MapData, FlowKey, Flow>,
}

impl UnderWay {
    /// Opens the pinned maps.
    ///
    /// # Errors
    /// See [`TableError`].
    pub fn open(pins: &Path) -> Result<Self, TableError> {
        let counts = Map::LruHashMap(open(pins, map::UNDER_WAY)?);
        Ok(Self {
            counts: aya::maps::HashMap::try_from(counts).map_err(at(map::UNDER_WAY))?,
            flows: hash(pins, map::FLOWS)?,
        })
    }

    /// Puts the counts right of those that seem to have much. To be called some times a second: who counts on, and is not
    /// corrected, is refused. Costs a walk over the counts, and one over the flows where there is somebody to correct.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn settle(&mut self) -> Result<(), TableError> {
        let mut crowded: HashMap<u64, u32> = self
            .counts
            .iter()
            .filter_map(Result::ok)
            .filter(|(_, count)| *count > CROWDED)
            .map(|(share, _)| (share, 0))
            .collect();
        if crowded.is_empty() {
            return Ok(());
        }
        let mut seen = HashSet::new();
        for (key, flow) in self.flows.iter().filter_map(Result::ok).take(MOST_STEPS) {
            if let Some(count) = crowded.get_mut(&flow.share)
                && seen.insert(key)
            {
                *count += 1;
            }
        }
        for (share, count) in crowded {
            match self.counts.insert(share, count, 0) {
                Ok(()) | Err(MapError::KeyNotFound) => {}
                Err(error) => return Err(at(map::UNDER_WAY)(error)),
            }
        }
        Ok(())
    }
}
