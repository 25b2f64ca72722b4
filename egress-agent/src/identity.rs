//! Who opened a socket: cgroup id to workload.

mod cgroups;
mod workload;

pub use cgroups::{Identities, Mapping};
pub use workload::{Process, Workload};
