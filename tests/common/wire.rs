// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! Frames as they are, out of the `eth0` of the namespace that the thread is in.

use std::os::fd::{AsRawFd as _, OwnedFd};
use std::ptr;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::libc;
use nix::net::if_::if_nametoindex;
use nix::sys::socket::{
    AddressFamily, LinkAddr, SockFlag, SockType, SockaddrLike as _, bind, socket,
};

use super::lab::Lab;

/// How long the receiver's queue may be full.
const PATIENCE: Duration = Duration::from_secs(5);

pub struct Wire(OwnedFd);

impl Wire {
    pub fn open() -> Wire {
        let (family, kind) = (AddressFamily::Packet, SockType::Raw);
        // Without a protocol the socket receives nothing.
        let socket = socket(family, kind, SockFlag::SOCK_CLOEXEC, None).unwrap();
        // SAFETY: all of a sockaddr_ll may be zero.
        let mut raw: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        raw.sll_family = libc::AF_PACKET as u16;
        raw.sll_ifindex = if_nametoindex("eth0").unwrap() as i32;
        let length = Some(size_of_val(&raw) as u32);
        // SAFETY: `raw` is a complete sockaddr_ll of the length given, and is copied.
        let address = unsafe { LinkAddr::from_raw((&raw const raw).cast(), length) };
        bind(socket.as_raw_fd(), &address.unwrap()).unwrap();
        Wire(socket)
    }

    /// Sends all of them, in few system calls.
    pub fn send(&self, frames: &[impl AsRef<[u8]>]) {
        let mut parts: Vec<libc::iovec> = frames.iter().map(|frame| part(frame.as_ref())).collect();
        let mut messages: Vec<libc::mmsghdr> = parts.iter_mut().map(message).collect();
        let mut sent = 0;
        let deadline = Instant::now() + PATIENCE;
        while sent < messages.len() {
            let left = &mut messages[sent..];
            // SAFETY: each message points to an iovec in `parts`, each of these into
            // `frames`, and all of them live until after the call, which writes lengths
            // into the messages alone.
            let count = unsafe {
                libc::sendmmsg(self.0.as_raw_fd(), left.as_mut_ptr(), left.len() as u32, 0)
            };
            match usize::try_from(count) {
                Ok(count) => sent += count,
                // The receiver's queue was full, and the frame is gone: once more.
                Err(_) if Errno::last() == Errno::ENOBUFS && Instant::now() < deadline => {
                    std::thread::yield_now();
                }
                Err(_) => panic!("sendmmsg: {}", Errno::last()),
            }
        }
    }
}

fn part(frame: &[u8]) -> libc::iovec {
    libc::iovec {
        iov_base: frame.as_ptr().cast_mut().cast(),
        iov_len: frame.len(),
    }
}

fn message(part: &mut libc::iovec) -> libc::mmsghdr {
    let header = libc::msghdr {
        msg_name: ptr::null_mut(),
        msg_namelen: 0,
        msg_iov: part,
        msg_iovlen: 1,
        msg_control: ptr::null_mut(),
        msg_controllen: 0,
        msg_flags: 0,
    };
    libc::mmsghdr {
        msg_hdr: header,
        msg_len: 0,
    }
}

/// The MAC of a host's `eth0`.
pub fn mac(lab: &Lab, host: &str) -> [u8; 6] {
    let text = lab.at(host, "cat /sys/class/net/eth0/address");
    let bytes = text
        .trim()
        .split(':')
        .map(|byte| u8::from_str_radix(byte, 16).unwrap());
    bytes.collect::<Vec<u8>>().try_into().unwrap()
}
