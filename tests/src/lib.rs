//! The laboratory for tests of the agent on the real kernel. It builds worlds of their own for them: network
//! namespaces without a route out, cgroups, DNS and origin servers that record what arrives; runs the agent's program
//! in them as a user would; and reads what it wrote. It knows nothing of the agent's insides.
#![expect(
    clippy::expect_used,
    clippy::panic,
    reason = "a test that cannot go on fails by panic, for the place and the stack"
)]

pub mod agent;
pub mod attacks;
pub mod bytes;
pub mod certificates;
pub mod clients;
pub mod cluster;
pub mod daemon;
pub mod dns;
pub mod harness;
pub mod hello;
pub mod kubernetes;
pub mod lab;
pub mod looping;
pub mod origins;
pub mod patience;
pub mod raw_client;
pub mod require;
pub mod squid;
pub mod squid_log;
pub mod wire;
