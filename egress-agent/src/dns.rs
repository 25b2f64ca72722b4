//! Names that workloads look up: who may ask for what, who is asked, and what the answers teach.

pub(crate) mod files;
pub mod names;
pub(crate) mod private;

pub use names::NameTable;
