//! What happens to a connect: a pure function over plain values, so that the host tests and explains the very code that
//! the kernel runs.

use crate::{
    address::Endpoint,
    dns,
    listener::{self, Listeners, PREFERRED_PORT},
    outcome::Outcome,
};

/// IPPROTO_TCP.
pub const TCP: u32 = 6;
/// IPPROTO_UDP.
pub const UDP: u32 = 17;
/// IPPROTO_MPTCP: a TCP connect as far as the network sees it.
pub const MPTCP: u32 = 262;

/// What is known of a connect before anything is done to it.
#[derive(Clone, Copy, Debug)]
pub struct ConnectFacts<'a> {
    /// Where to.
    pub destination: Endpoint,
    /// The socket's protocol number.
    pub protocol: u32,
    /// The task's cgroup is exempt (the agent's own).
    pub exempt: bool,
    /// The destination lies in an internal prefix.
    pub internal: bool,
    /// The destination port is one that is redirected.
    pub port_redirected: bool,
    /// The socket's network namespace's listeners, if it has any.
    pub listeners: Option<&'a Listeners>,
    /// Any number, best a random one: spreads connects over listeners.
    pub spread: u32,
}

/// What to do with a connect.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Decision {
    /// Leave it alone.
    Pass(Outcome),
    /// Send it to the listener instead; held until the listener exists if the outcome is [`Outcome::Held`].
    Redirect(Endpoint, Outcome),
    /// Refuse it with EPERM.
    Deny(Outcome),
}

/// Decides one connect. The order is part of the contract: exempt, name servers, metadata, internal, redirect, the rest.
#[must_use]
#[inline(always)]
pub fn connect(facts: &ConnectFacts<'_>) -> Decision {
    if facts.exempt {
        return Decision::Pass(Outcome::Exempt);
    }
    let destination = &facts.destination;
    // Resolvers are often on loopback or internal, so this comes first. Their datagrams do not come this far: see the
    // kernel programs' dns.rs.
    if destination.port() == dns::PORT && matches!(facts.protocol, TCP | MPTCP) {
        return redirect(facts);
    }
    // A metadata service is never internal, whatever prefix covers it.
    if destination.is_loopback() || (facts.internal && !destination.is_metadata()) {
        return Decision::Pass(Outcome::Internal);
    }
    match facts.protocol {
        TCP | MPTCP if facts.port_redirected => redirect(facts),
        TCP | MPTCP => Decision::Pass(Outcome::OtherTcp),
        UDP => Decision::Pass(Outcome::OtherUdp),
        _ => Decision::Pass(Outcome::OtherSocket),
    }
}

#[inline(always)]
fn redirect(facts: &ConnectFacts<'_>) -> Decision {
    let is_v4 = facts.destination.octets_v4().is_some();
    match facts.listeners {
        // Held: the first listener's address with the port that the agent will try first. If it has to take another,
        // the SYN stays held and the connect times out; the next one goes to the right port.
        None => Decision::Redirect(listener::endpoint(is_v4, 0, PREFERRED_PORT), Outcome::Held),
        Some(listeners) => match listeners.pick(is_v4, facts.spread) {
            Some(to) => Decision::Redirect(to, Outcome::Redirected),
            None => Decision::Deny(Outcome::NoListener),
        },
    }
}
