//! The lanes in process: raw bytes on both sides, real sockets, real policies, real dialler.

mod h1;
mod h2;
mod keep_alive;
mod lab;
mod parent;
mod refusals;
mod revoked;
mod smuggling;
mod upgrades;
mod vanishing;
