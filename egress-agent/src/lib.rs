//! The egress enforcer's agent. Modules in the order in which data flows: kernel event, identity, policy, proxy,
//! access log. A lower stage never imports a higher one.

pub mod access_log;
pub mod cli;
pub mod cluster;
pub mod commands;
pub mod config;
pub mod console;
pub mod dns;
pub mod drain;
pub mod enforcer;
pub mod identity;
pub mod import;
pub mod instance;
pub mod kernel;
pub mod netns;
pub mod policy;
pub mod proxy;
pub mod publish;
mod race;
pub mod readiness;
pub mod socket;
pub mod status;
pub mod telemetry;
