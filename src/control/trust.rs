// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! How the two ends of a conversation know that each may administer the network, as it
//! takes CAP_NET_ADMIN in the first user namespace, where the daemon's own must be.
//!
//! An abstract socket has no owner: everybody in the network namespace may take its name,
//! connect to it, and pass on what he hears. A user's number tells nothing either, as root
//! in a container may have no capability. And what /proc tells of a process is not for
//! everybody to read, not there in each process namespace, and of another process once the
//! number is given out again. So the kernel is asked for what only the trusted can do: to set
//! `SO_DEBUG` of a socket takes that capability, everybody may read it, and on a Unix socket
//! it does nothing. A socket with it is *marked* here.
//!
//! ```text
//! client                                      who has the name
//!   makes a pair A-B, marks B
//!   ----- B, over the name's connection ----->  is B marked?
//!                                               makes a pair C-D, marks D
//!   is D marked?  <------------ D, over B ----
//!   request ------------------- D to C ------>
//!           <------------------ C to D -------  answer
//! ```
//!
//! Who is between the two gets B, and no more: what is sent over B is read from A, which
//! only the client has. Over D comes only what the daemon writes to C, which never leaves
//! it. And A is never written to, so that nobody can pass B off as a D. Who passes B on to
//! another daemon than the one that was meant is found out by the greeting, which names the
//! daemon's interface, and by the network namespace of D.

use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd as _};
use std::os::unix::net::UnixStream;

use nix::libc::{self, c_int, socklen_t};

/// From Linux 5.14 and 6.5 on; libc does not know them.
const SO_NETNS_COOKIE: c_int = 71;
pub(super) const SO_PEERPIDFD: c_int = 77;

/// A pair of connected sockets, of which the second is marked.
///
/// # Errors
/// `PermissionDenied`: this process does not have the capability.
pub(super) fn pair() -> io::Result<(UnixStream, UnixStream)> {
    let (kept, given) = UnixStream::pair()?;
    let on: c_int = 1;
    // SAFETY: the value lives across the call, and has the size that is told.
    let error = unsafe {
        libc::setsockopt(
            given.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_DEBUG,
            (&raw const on).cast(),
            size_of::<c_int>() as socklen_t,
        )
    };
    match error {
        0 => Ok((kept, given)),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Whether who made the socket has the capability. It must be connected, and of a kind that
/// stays connected to the same one for ever.
pub(super) fn is_marked(socket: impl AsFd) -> bool {
    let has = |option, value| option_of::<c_int>(&socket, option).ok() == Some(value);
    has(libc::SO_DOMAIN, libc::AF_UNIX)
        && has(libc::SO_TYPE, libc::SOCK_STREAM)
        && has(libc::SO_ACCEPTCONN, 0)
        && has(libc::SO_DEBUG, 1)
}

/// Whether two sockets are of one network namespace. Before Linux 5.14 nobody can tell.
pub(super) fn are_neighbours(one: impl AsFd, other: impl AsFd) -> bool {
    let namespace = |socket: &dyn AsFd| option_of::<u64>(socket, SO_NETNS_COOKIE);
    match (namespace(&one), namespace(&other)) {
        (Ok(one), Ok(other)) => one == other,
        (one, other) => {
            let unknown = |namespace: io::Result<u64>| {
                namespace.is_err_and(|error| error.raw_os_error() == Some(libc::ENOPROTOOPT))
            };
            unknown(one) && unknown(other)
        }
    }
}

pub(super) fn option_of<T: Default>(socket: &(impl AsFd + ?Sized), option: c_int) -> io::Result<T> {
    let mut value = T::default();
    let mut bytes = size_of::<T>() as socklen_t;
    // SAFETY: the kernel writes no more than the value's bytes, any of which are a number.
    let error = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            option,
            (&raw mut value).cast(),
            &raw mut bytes,
        )
    };
    match error {
        0 if bytes as usize == size_of::<T>() => Ok(value),
        0 => Err(io::ErrorKind::InvalidData.into()),
        _ => Err(io::Error::last_os_error()),
    }
}
