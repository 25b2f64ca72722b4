//! The agent's listeners in one network namespace, as the kernel needs to know them.

use crate::address::Endpoint;

/// Most listeners per family in one namespace. Each is a destination of its own, so that redirected connects are not
/// limited to one range of ephemeral ports (28,232 by default), and each belongs to one worker of the agent.
pub const LISTENERS_PER_FAMILY: usize = 4;

/// First IPv4 address the agent listens on; the n-th listener is n addresses further. In 127.0.0.0/8, where no
/// interface and no application is found; the letters are "EG".
pub const FIRST_V4: [u8; 4] = [127, 69, 71, 1];

/// The port tried first in each namespace: above the ephemeral range (32768..=60999) and Kubernetes' node ports
/// (30000..=32767).
pub const PREFERRED_PORT: u16 = 61443;

/// Listeners of one network namespace, by its cookie.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Listeners {
    /// Ports on [`FIRST_V4`] and the addresses after it; 0 for none.
    pub v4: [u16; LISTENERS_PER_FAMILY],
    /// Ports on ::1; 0 for none (IPv6 may be disabled in the namespace).
    pub v6: [u16; LISTENERS_PER_FAMILY],
    /// The source address that the namespace's route to the world would choose, for getsockname(2); zeros for none.
    pub source_v4: [u8; 4],
    /// UDP port of the name service on [`FIRST_RESOLVER`](crate::dns::FIRST_RESOLVER) and the addresses after it; 0 for
    /// none.
    pub dns_v4: u16,
    /// First of its UDP ports on ::1, one for each of those addresses; 0 for none.
    pub dns_v6: u16,
    /// The same for IPv6.
    pub source_v6: [u8; 16],
}

impl Listeners {
    /// The listener that a connect of the given family goes to; `spread` is any number, best a random one.
    #[must_use]
    #[inline(always)]
    pub fn pick(&self, is_v4: bool, spread: u32) -> Option<Endpoint> {
        // The mask keeps the index in bounds in a way that the verifier can follow.
        let chosen = (spread as usize) & (LISTENERS_PER_FAMILY - 1);
        let ports = if is_v4 { &self.v4 } else { &self.v6 };
        // Fewer workers than places: the first is there whenever any is.
        let index = if ports[chosen] == 0 { 0 } else { chosen };
        match ports[index] {
            0 => None,
            port => Some(endpoint(is_v4, index, port)),
        }
    }

    /// Whether `endpoint` is one of these listeners.
    #[must_use]
    #[inline(always)]
    pub fn contains(&self, listener: &Endpoint) -> bool {
        if self.dns_slot(listener).is_some() {
            return true;
        }
        let port = listener.port();
        match listener.octets_v4() {
            Some(octets) => {
                let index = u32::from_be_bytes(octets).wrapping_sub(u32::from_be_bytes(FIRST_V4)) as usize;
                index < LISTENERS_PER_FAMILY
                    && self.v4[index & (LISTENERS_PER_FAMILY - 1)] == port
                    && port != 0
            }
            None => self.has_v6_port(port),
        }
    }

    /// Whether any listener has this port, for the bind hooks, which refuse wildcard addresses too.
    #[must_use]
    #[inline(always)]
    pub fn has_port(&self, port: u16) -> bool {
        let [a, b, c, d] = self.v4;
        port != 0 && (a == port || b == port || c == port || d == port || self.has_v6_port(port))
    }

    #[inline(always)]
    fn has_v6_port(&self, port: u16) -> bool {
        let [a, b, c, d] = self.v6;
        port != 0 && (a == port || b == port || c == port || d == port)
    }
}

/// Address and port of the listener at `index`.
#[must_use]
#[inline(always)]
pub fn endpoint(is_v4: bool, index: usize, port: u16) -> Endpoint {
    if is_v4 {
        let first = u32::from_be_bytes(FIRST_V4);
        // Listeners beyond those that there can be share the last address.
        let distance = match index {
            0 => 0,
            1 => 1,
            2 => 2,
            _ => 3,
        };
        Endpoint::v4(first.wrapping_add(distance).to_be_bytes(), port)
    } else {
        Endpoint::v6([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1], port)
    }
}
