// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! Somebody in the network namespace of `lb` who is not trusted.

use std::fs;
use std::io::Write as _;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};

use caps::{CapSet, CapsHashSet};
use nix::cmsg_space;
use nix::libc;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, UnixAddr, recvmsg, sendmsg};

use crate::common::lab::Lab;

pub const ROOT: u32 = 0;
pub const NOBODY: u32 = 65534;

/// What can stand before a command, so that it is a stranger's.
pub const STRANGERS: [&str; 4] = [
    "setpriv --bounding-set=-all --inh-caps=-all",
    // What container engines give by default.
    "setpriv --bounding-set=-all,+chown,+kill,+setuid,+setgid,+net_bind_service,+net_raw,+sys_chroot --inh-caps=-all",
    "setpriv --reuid 65534 --regid 65534 --clear-groups",
    // Root with all capabilities, but in a user namespace of his own.
    "unshare --user --map-root-user",
];

/// Does the work on `lb`, as a user without any capability.
pub fn as_stranger<T: Send>(lab: &Lab, user: u32, work: impl FnOnce() -> T + Send) -> T {
    lab.within("lb", || {
        // Of this thread alone.
        for set in [CapSet::Effective, CapSet::Permitted, CapSet::Inheritable] {
            if user == ROOT {
                caps::set(None, set, &CapsHashSet::new()).unwrap();
            }
        }
        // SAFETY: it takes no pointers. libc's own would change all threads.
        let result = unsafe { libc::syscall(libc::SYS_setresuid, user, user, user) };
        assert_eq!(result, 0);
        work()
    })
}

pub fn address(name: &[u8]) -> SocketAddr {
    SocketAddr::from_abstract_name([b"xdp-proxy/", name].concat()).unwrap()
}

/// Takes a daemon's name, and nothing else.
pub fn squat(lab: &Lab, user: u32, name: &[u8]) -> UnixListener {
    as_stranger(lab, user, || {
        UnixListener::bind_addr(&address(name)).unwrap()
    })
}

pub fn knock(name: &str) -> std::io::Result<UnixStream> {
    UnixStream::connect_addr(&address(name.as_bytes()))
}

/// Names of control sockets on `lb`.
pub fn names(lab: &Lab) -> Vec<String> {
    let sockets = lab.at("lb", "cat /proc/net/unix");
    let names = sockets
        .lines()
        .filter_map(|line| line.split_once("@xdp-proxy/"));
    names.map(|(_, name)| name.to_owned()).collect()
}

/// What only the trusted can do.
pub fn mark(socket: &UnixStream) -> nix::Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: the value lives across the call, and has the size that is told.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_DEBUG,
            (&raw const on).cast(),
            size_of_val(&on) as libc::socklen_t,
        )
    };
    nix::errno::Errno::result(result).map(drop)
}

/// Passes a descriptor on.
pub fn pass(stream: &UnixStream, bytes: &[u8], descriptor: BorrowedFd) {
    let raw = [descriptor.as_raw_fd()];
    let rights = [ControlMessage::ScmRights(&raw)];
    let parts = [std::io::IoSlice::new(bytes)];
    let flags = MsgFlags::MSG_NOSIGNAL;
    sendmsg::<UnixAddr>(stream.as_raw_fd(), &parts, &rights, flags, None).unwrap();
}

/// What comes, with its descriptors; nothing where the other end has hung up.
pub fn receive(stream: &UnixStream) -> (Vec<u8>, Vec<OwnedFd>) {
    let mut bytes = [0; 4096];
    let mut space = cmsg_space!([i32; 128]);
    let mut parts = [std::io::IoSliceMut::new(&mut bytes)];
    let flags = MsgFlags::empty();
    let received = recvmsg::<UnixAddr>(stream.as_raw_fd(), &mut parts, Some(&mut space), flags);
    let Ok(message) = received else {
        return Default::default();
    };
    let mut descriptors = Vec::new();
    for control in message.cmsgs().unwrap() {
        if let ControlMessageOwned::ScmRights(raw) = control {
            // SAFETY: the kernel has just made them.
            descriptors.extend(
                raw.into_iter()
                    .map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }),
            );
        }
    }
    let length = message.bytes;
    (bytes[..length].to_vec(), descriptors)
}

/// Sends bytes to whoever asks, for as long as he listens. Returns how many, at the end.
pub fn flood(listener: &UnixListener, bytes: &[u8], at_most: usize) -> usize {
    let mut sent = 0;
    for client in listener.incoming() {
        let Ok(mut client) = client else { return sent };
        while sent < at_most && client.write_all(bytes).is_ok() {
            sent += bytes.len();
        }
    }
    sent
}

/// How many descriptors the daemon has open.
pub fn descriptors(lab: &Lab) -> usize {
    let pid = lab.status()["pid"].as_u64().unwrap();
    let fds = lab.path(&format!("/proc/{pid}/fd"));
    fs::read_dir(fds).unwrap().count()
}
