//! The data path: accept, read the name, judge, dial, tunnel, record.

pub mod client_hello;
pub mod connection;
pub mod detect;
pub mod dial;
#[cfg(test)]
mod fake_dns;
pub mod http;
pub mod leg;
pub mod limits;
mod race;
pub mod read_head;
pub mod refuse;
pub mod resolve;
pub mod tunnel;

pub use connection::{Connection, Services};
