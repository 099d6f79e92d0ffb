// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! Bytes with descriptors over a Unix socket (unix(7), SCM_RIGHTS).

use std::io::{self, IoSlice};
use std::mem::{size_of, zeroed};
use std::os::fd::{AsFd, AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

/// Descriptors of one message of a daemon, at most.
pub(super) const DESCRIPTORS_MAX: usize = 128;

/// Sends some of the bytes, with all descriptors. Returns how many bytes.
pub(super) fn send(
    socket: impl AsFd,
    bytes: &[u8],
    descriptors: &[OwnedFd],
    flags: MsgFlags,
) -> Result<usize, Errno> {
    let raw: Vec<RawFd> = descriptors.iter().map(|fd| fd.as_raw_fd()).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control = if raw.is_empty() {
        &rights[..0]
    } else {
        &rights[..]
    };
    let parts = [IoSlice::new(bytes)];
    let flags = flags | MsgFlags::MSG_NOSIGNAL;
    sendmsg::<()>(socket.as_fd().as_raw_fd(), &parts, control, flags, None)
}

/// Receives what is there, with its descriptors, for which there is room. Returns how many
/// bytes.
///
/// Where more come than have room, or than this process may open, nix would lose what it got;
/// here all of them are the caller's, to close them.
pub(super) fn receive(
    socket: impl AsFd,
    bytes: &mut [u8],
    room: usize,
    flags: MsgFlags,
) -> io::Result<(usize, Vec<OwnedFd>)> {
    // A header of two words, and the descriptors; aligned as these are to be.
    let mut control = vec![0u64; 2 + room.div_ceil(2)];
    let mut part = libc::iovec {
        iov_base: bytes.as_mut_ptr().cast(),
        iov_len: bytes.len(),
    };
    // SAFETY: all of it are numbers and pointers, which may be zero.
    let mut message: libc::msghdr = unsafe { zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&control[..]) as _;
    let flags = (flags | MsgFlags::MSG_CMSG_CLOEXEC).bits();
    // SAFETY: the message's parts live across the call, and have the sizes that are told.
    let length = unsafe { libc::recvmsg(socket.as_fd().as_raw_fd(), &raw mut message, flags) };
    if length < 0 {
        return Err(io::Error::last_os_error());
    }
    let mut descriptors = Vec::new();
    // SAFETY: the kernel has filled the control messages, one after the other, and has made
    // the descriptors in them for this process.
    unsafe {
        let mut header = libc::CMSG_FIRSTHDR(&raw const message);
        while let Some(control) = header.as_ref() {
            if (control.cmsg_level, control.cmsg_type) == (libc::SOL_SOCKET, libc::SCM_RIGHTS) {
                let data = libc::CMSG_DATA(header).cast::<RawFd>();
                let bytes = control.cmsg_len - libc::CMSG_LEN(0) as usize;
                for index in 0..bytes / size_of::<RawFd>() {
                    descriptors.push(OwnedFd::from_raw_fd(data.add(index).read_unaligned()));
                }
            }
            header = libc::CMSG_NXTHDR(&raw const message, header);
        }
    }
    Ok((length as usize, descriptors))
}
