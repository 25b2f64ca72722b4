//! When no file descriptor is left. A connection that cannot be accepted would wait in the listener's queue, its client
//! believing itself connected, and the listener would stay readable, so that the worker spins. So a descriptor is kept in
//! reserve: given up, it lets one connection be accepted, refused and recorded, and is taken back.

use std::{
    cell::{Cell, RefCell},
    fs::File,
    io,
    net::SocketAddr,
    rc::Rc,
    time::{Duration, Instant},
};

use tokio::{
    net::{TcpListener, TcpStream},
    time::{sleep, timeout},
};

/// Between two messages about the same trouble.
const TELL_EVERY: Duration = Duration::from_secs(60);
/// How long to leave it when even the reserve is gone.
const PAUSE: Duration = Duration::from_millis(20);

/// One worker's reserve.
#[derive(Debug)]
pub(super) struct Reserve {
    spare: RefCell<Option<File>>,
    told: Cell<Option<Instant>>,
}

/// Whether an accept failed for want of descriptors: the process's (EMFILE) or the machine's (ENFILE).
pub(super) fn is_exhaustion(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE))
}

impl Reserve {
    pub(super) fn new() -> Rc<Self> {
        let reserve = Self {
            spare: RefCell::default(),
            told: Cell::default(),
        };
        reserve.restore();
        Rc::new(reserve)
    }

    /// Accepts one connection in the reserve's place; it is to be closed before [`Self::restore`]. `None` after a pause
    /// if that is not possible either.
    pub(super) async fn accept(&self, listener: &TcpListener) -> Option<(TcpStream, SocketAddr)> {
        if self.told.get().is_none_or(|told| told.elapsed() >= TELL_EVERY) {
            self.told.set(Some(Instant::now()));
            tracing::error!(
                "no file descriptor is left: new connections are refused (see `status`, and ulimit -n)"
            );
        }
        let accepted = match self.spare.take() {
            Some(spare) => {
                drop(spare);
                // Another one may have taken the connection, or the descriptor.
                timeout(PAUSE, listener.accept()).await.ok().and_then(Result::ok)
            }
            None => None,
        };
        if accepted.is_none() {
            self.restore();
            sleep(PAUSE).await;
        }
        accepted
    }

    /// Takes the reserve back.
    pub(super) fn restore(&self) {
        let mut spare = self.spare.borrow_mut();
        if spare.is_none() {
            *spare = File::open("/dev/null").ok();
        }
    }
}
