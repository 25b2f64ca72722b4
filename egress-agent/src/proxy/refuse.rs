//! How a client is told no: never by silence.

mod alert;

pub use alert::Alert;
