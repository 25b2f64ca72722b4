//! The kernel side as the agent sees it: load and attach the programs, fill their tables, read their reports.

mod attach;
mod cgroup;
mod cgroup_tree;
mod direct;
mod events;
mod features;
mod fences;
mod layout;
mod link;
mod observed;
mod pins;
mod sock_diag;
mod tables;
mod under_way;
mod usage;

pub use attach::{AttachError, Attachment, Inheritance, Repair, remove_fences};
pub use cgroup::{CgroupMount, cgroup_of, find_mount, first_process_mount, mount_points, own_cgroup};
pub use cgroup_tree::{CgroupTree, children};
pub use direct::DirectTable;
pub use events::{ClosedReader, EventReader, HeldReader, Reported, TimedReader, WakingReader, WantedReader};
pub use features::{FeatureError, require};
pub use fences::{Fence, FenceCounts, FenceTables, Fenced, Opening, PortRanges};
pub use observed::{Due, ObservedTable};
pub use pins::{PinDirectory, PinError, bpffs_root, require_lasting as require_lasting_pins};
pub use sock_diag::{OpenSocket, SockDiag};
pub use tables::{
    Counts, FlowTable, ListenerTable, MOST_EXEMPT, MOST_PROXIES, QueryTable, Settings, TableError,
    VettedTable,
};
pub use under_way::UnderWay;
pub use usage::most_entries;
