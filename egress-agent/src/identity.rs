//! Who opened a socket: cgroup id to workload.

mod workload;

pub use workload::{Process, Workload};
