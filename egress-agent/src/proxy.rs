//! The data path: accept, read the name, judge, dial, tunnel, record.

pub mod connection;
pub mod dial;
pub mod limits;
mod race;
pub mod resolve;
pub mod tunnel;

pub use connection::{Connection, Services};
