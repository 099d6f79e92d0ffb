// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! Load from `client` that notices every fault: connections that are kept and used,
//! new ones, and slow downloads.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::beside;
use super::http::Connection;
use super::lab::{LB, Lab};

/// Longest wait for more requests.
const PATIENCE: Duration = Duration::from_secs(10);

/// How many requests were answered while there is load.
#[derive(Default)]
pub struct Load {
    requests: AtomicUsize,
}

impl Load {
    /// Keeps the load up while `work` goes on: `kept` connections are used again and
    /// again, each with one backend, and one connection after the other is new.
    pub fn during<T>(lab: &Lab, kept: usize, work: impl FnOnce(&Load) -> T) -> T {
        let load = Load::default();
        let client = |over: &AtomicBool| lab.within("client", || load.keep_up(kept, over));
        let ((), done) = beside(client, || {
            load.goes_on();
            work(&load)
        });
        done
    }

    pub fn requests(&self) -> usize {
        self.requests.load(Ordering::Relaxed)
    }

    /// Waits until every connection was used again.
    pub fn goes_on(&self) {
        let (before, start) = (self.requests(), Instant::now());
        while self.requests() < before + 120 {
            assert!(start.elapsed() < PATIENCE, "no requests are answered");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn keep_up(&self, kept: usize, over: &AtomicBool) {
        let mut kept: Vec<_> = (0..kept).map(|_| Connection::open(LB).unwrap()).collect();
        let owners: Vec<String> = kept.iter_mut().map(|c| c.host().unwrap()).collect();
        while !over.load(Ordering::Relaxed) {
            for (connection, owner) in kept.iter_mut().zip(&owners) {
                assert_eq!(&connection.host().unwrap(), owner, "a connection moved");
                self.requests.fetch_add(1, Ordering::Relaxed);
            }
            Connection::open(LB).unwrap().host().unwrap();
        }
    }
}

/// Downloads of 1 MiB each that go on side by side until all are complete.
pub struct Downloads(Vec<Download>);

struct Download {
    stream: TcpStream,
    bytes: usize,
}

impl Downloads {
    /// Begins them, on the thread of a host.
    pub fn begin(count: u64) -> Downloads {
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        let enough = soft.max(count + 500);
        setrlimit(Resource::RLIMIT_NOFILE, enough, hard.max(enough)).unwrap();
        let all = (0..count).map(|_| {
            let mut stream = TcpStream::connect((LB, 80)).unwrap();
            let request = b"GET /1m HTTP/1.1\r\nHost: lab\r\nConnection: close\r\n\r\n";
            stream.write_all(request).unwrap();
            stream.set_nonblocking(true).unwrap();
            Download { stream, bytes: 0 }
        });
        Downloads(all.collect())
    }

    /// How many are not complete.
    pub fn left(&self) -> usize {
        self.0.len()
    }

    /// Reads a little of each. An end too early or an error is a panic.
    pub fn read_some(&mut self) {
        let mut buffer = [0; 16 << 10];
        self.0
            .retain_mut(|download| match download.stream.read(&mut buffer) {
                Ok(0) => {
                    let header = download.bytes.wrapping_sub(1 << 20);
                    assert!(header < 1000, "{} bytes came", download.bytes);
                    false
                }
                Ok(bytes) => {
                    download.bytes += bytes;
                    true
                }
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::WouldBlock, "{error}");
                    true
                }
            });
    }
}
