//! Who opened a socket: cgroup id to workload.

pub mod cgroup_path;
mod cgroups;
mod changes;
mod directory;
mod exempt;
#[doc(hidden)]
pub mod fuzz;
pub mod kubelet;
mod memory;
mod pod;
mod pods;
mod tally;
mod workload;

pub use cgroup_path::PodUid;
pub use cgroups::{Identities, Mapping, PodSource};
pub use changes::Changes;
pub use directory::{PodCounts, PodDirectory, PodWatch};
pub use exempt::Exemptions;
pub use memory::PodMemory;
pub use pod::EXEMPT_ANNOTATION;
pub use tally::{Place, Seat, Shares, Tally};
pub use workload::{PodFacts, Process, Workload};
