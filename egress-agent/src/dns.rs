//! Names that workloads look up: who may ask for what, who is asked, and what the answers teach.
//!
//! A query of an enforced workload is never passed on. It is read, its name judged, and if the policy could allow any
//! connection to that name a query of our own is made for it, to a name server that we trust whatever server was asked.

mod answer;
#[cfg(test)]
pub(crate) mod fake_dns;
pub(crate) mod files;
mod forwarder;
#[doc(hidden)]
pub mod fuzz;
mod log;
mod message;
pub mod names;
pub(crate) mod private;
mod relay;
mod search_list;
mod upstream;

pub use answer::Ech;
pub use forwarder::{Asking, ForwardCounts, ForwardSettings, Forwarder};
pub use log::{DnsLog, Level};
pub use message::{Incoming, Question, Transport};
pub use names::NameTable;
pub use relay::relay;
pub use upstream::NameServers;
