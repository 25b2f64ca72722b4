//! What arrives at a place without any connection: raw sockets, which are handed every packet of a protocol after all
//! that the place's interfaces do with it, and before anybody asks who it is for.

use std::{
    net::Ipv4Addr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::{net::UdpSocket, sync::Notify, time::timeout};

use crate::{lab::Place, patience::seconds};

/// A tap.
#[derive(Debug, Clone)]
pub struct Wire {
    state: Arc<State>,
}

#[derive(Debug, Default)]
struct State {
    seen: Mutex<Vec<Packet>>,
    changed: Notify,
}

/// A packet as a raw socket hands it out: with its header if it is of IPv4, without if it is of IPv6.
#[derive(Debug, Clone)]
struct Packet {
    is_v4: bool,
    bytes: Vec<u8>,
}

impl Wire {
    /// Taps these IP protocols.
    ///
    /// # Panics
    /// The sockets cannot be made.
    pub async fn tap(place: &Place, protocols: &'static [i32]) -> Self {
        let wire = Self {
            state: Arc::default(),
        };
        let state = Arc::clone(&wire.state);
        place
            .run(async move {
                for protocol in protocols {
                    for (domain, is_v4) in [(Domain::IPV4, true), (Domain::IPV6, false)] {
                        let socket = Socket::new(domain, Type::RAW, Some(Protocol::from(*protocol)));
                        let socket = socket.expect("a raw socket");
                        socket.set_nonblocking(true).expect("non-blocking");
                        // To the runtime a socket is what is read by recv(2).
                        let socket = UdpSocket::from_std(socket.into()).expect("a runtime");
                        tokio::spawn(read(socket, is_v4, Arc::clone(&state)));
                    }
                }
            })
            .await;
        wire
    }

    /// Whether a packet with this text has arrived.
    #[must_use]
    pub fn saw(&self, text: &str) -> bool {
        self.any(|packet| packet.contains(text))
    }

    /// Whether an IPv4 packet for this address has arrived.
    #[must_use]
    pub fn saw_packet_to(&self, address: Ipv4Addr) -> bool {
        self.any(|packet| packet.is_v4 && packet.bytes.get(16..20) == Some(&address.octets()[..]))
    }

    /// Waits for a packet with this text.
    ///
    /// # Panics
    /// It does not arrive soon.
    pub async fn sees(&self, text: &str) {
        let waited = timeout(seconds(15), async {
            loop {
                let changed = self.state.changed.notified();
                if self.saw(text) {
                    return;
                }
                changed.await;
            }
        });
        assert!(waited.await.is_ok(), "{text} never arrived");
    }

    fn any(&self, is_it: impl Fn(&Packet) -> bool) -> bool {
        self.state.lock().iter().any(is_it)
    }
}

impl State {
    fn lock(&self) -> MutexGuard<'_, Vec<Packet>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Packet {
    fn contains(&self, text: &str) -> bool {
        self.bytes
            .windows(text.len())
            .any(|window| window == text.as_bytes())
    }
}

async fn read(socket: UdpSocket, is_v4: bool, state: Arc<State>) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(length) = socket.recv(&mut buffer).await {
        let bytes = buffer.get(..length).unwrap_or_default().to_vec();
        state.lock().push(Packet { is_v4, bytes });
        state.changed.notify_waiters();
    }
}
