//! Waiting for descriptors that are no sockets.

use std::{io, os::fd::AsRawFd};

use tokio::io::{Interest, unix::AsyncFd};

/// Registers `inner` with the runtime of the calling thread.
///
/// `inner` must own its descriptor and keep it for life, as a file, a signalfd or a map does: every caller passes an
/// owned value of such a type, which nothing can take out of the AsyncFd.
///
/// # Errors
/// epoll cannot watch it.
pub fn watch<T: AsRawFd>(inner: T, interest: Interest) -> io::Result<AsyncFd<T>> {
    // SAFETY: `inner` owns an open descriptor, always returns the same, and lives as long as the registration.
    unsafe { AsyncFd::register_with_interest(inner, interest) }.map_err(Into::into)
}
