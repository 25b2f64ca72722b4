//! What the kernel programs and the agent share: addresses, flows, events, and the decision itself. No I/O, no
//! allocation, no floating point: every line here can run inside a kernel program.
#![no_std]
#![cfg_attr(not(feature = "user"), forbid(unsafe_code))]

pub mod address;
pub mod counter;
pub mod decide;
pub mod dns;
pub mod event;
pub mod fence;
pub mod flow;
pub mod listener;
pub mod member;
pub mod names;
pub mod outcome;
#[cfg(feature = "user")]
mod pod;

#[cfg(test)]
mod tests;
