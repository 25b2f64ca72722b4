//! The data path: accept, read the name, judge, dial, tunnel, record.

pub mod client_hello;
pub mod connection;
pub mod detect;
pub mod dial;
pub mod explicit;
#[doc(hidden)]
pub mod fuzz;
pub mod http;
mod lanes;
pub mod leg;
pub mod limits;
pub mod listener;
mod name_service;
pub mod read_head;
pub mod refuse;
mod reserve;
pub mod resolve;
mod site;
pub mod tunnel;
mod worker;

pub use connection::{Connection, Services, Via};
pub use site::{Asked, Explained, Site, Unexplained};
pub use worker::{PROBE, Stop, WorkerContext, WorkerCounts, Workers};
