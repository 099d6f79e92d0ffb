// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! A server that sends back each datagram, on a thread of its own.

use std::io::ErrorKind;
use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::RcvBufForce;

use super::lab::Lab;

const LONGEST: usize = 65_536;

pub struct Echo {
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Echo {
    pub fn start(lab: &Lab, host: &str, address: &str) -> Echo {
        let socket = lab.within(host, || UdpSocket::bind(address).unwrap());
        make_room(&socket);
        let over = Arc::new(AtomicBool::new(false));
        let done = over.clone();
        let thread = std::thread::spawn(move || serve(&socket, &done));
        Echo {
            over,
            thread: Some(thread),
        }
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        let _ = self.thread.take().unwrap().join();
    }
}

/// A long datagram's fragments take far more memory than it has bytes.
pub fn make_room(socket: &UdpSocket) {
    setsockopt(socket, RcvBufForce, &(4 << 20)).unwrap();
}

fn serve(socket: &UdpSocket, over: &AtomicBool) {
    socket
        .set_read_timeout(Some(Duration::from_millis(50)))
        .unwrap();
    let mut datagram = vec![0; LONGEST];
    while !over.load(Ordering::Relaxed) {
        match socket.recv_from(&mut datagram) {
            // The network may be gone before we are.
            Ok((length, from)) => drop(socket.send_to(&datagram[..length], from)),
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock, "{error}"),
        }
    }
}
