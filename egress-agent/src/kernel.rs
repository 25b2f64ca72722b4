//! The kernel side as the agent sees it: load and attach the programs, fill their tables, read their reports.

mod attach;
mod cgroup;
mod events;
mod features;
mod layout;
mod link;
mod pins;
mod tables;

pub use attach::{AttachError, Attachment, Inheritance, Repair};
pub use cgroup::{CgroupMount, cgroup_of, find_mount, mount_points, own_cgroup};
pub use events::{EventReader, HeldReader, Waking, WakingReader, WantedReader};
pub use features::{FeatureError, require};
pub use pins::{PinDirectory, PinError, bpffs_root, require_lasting as require_lasting_pins};
pub use tables::{Counts, FlowTable, ListenerTable, MOST_PORTS, QueryTable, Settings, TableError};
