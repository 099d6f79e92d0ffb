// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! Load from `client` that notices every fault: connections that are kept and used,
//! new ones, and slow downloads.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::beside;
use super::http::{self, Connection};
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
        let mut kept = Kept::open(LB, kept);
        while !over.load(Ordering::Relaxed) {
            self.requests.fetch_add(kept.go_on(), Ordering::Relaxed);
            http::host(LB).unwrap();
        }
    }
}

/// Connections that are there, each with its backend.
pub struct Kept(Vec<(Connection, String)>);

impl Kept {
    /// So many to a VIP, on the thread of a host.
    pub fn open(vip: &str, count: usize) -> Kept {
        let open = |_| {
            let mut connection = Connection::open(vip).unwrap();
            let backend = connection.host().unwrap();
            (connection, backend)
        };
        Kept((0..count).map(open).collect())
    }

    /// Some are with this backend.
    pub fn know(&self, host: &str) -> bool {
        self.0.iter().any(|(_, backend)| backend == host)
    }

    /// Each is used, and answered by its backend. How many.
    pub fn go_on(&mut self) -> usize {
        for (connection, backend) in &mut self.0 {
            let host = connection.host().unwrap();
            assert_eq!(&host, backend, "a connection moved");
        }
        self.0.len()
    }
}

/// Clients with connections to a VIP, each with its backend.
pub struct Clients {
    vip: &'static str,
    kept: Kept,
}

impl Clients {
    pub fn open(lab: &Lab) -> Clients {
        Clients::open_to(lab, LB)
    }

    pub fn open_to(lab: &Lab, vip: &'static str) -> Clients {
        let kept = lab.within("client", || Kept::open(vip, 20));
        Clients { vip, kept }
    }

    /// Each is answered by its backend, and so is a new one by any.
    pub fn go_on(&mut self, lab: &Lab) {
        self.kept.go_on();
        lab.within("client", || http::host(self.vip).unwrap());
        assert_eq!(lab.status()["packets"]["sent"]["refused_no_flow"], 0);
    }
}

/// The backends' two files `/1m`.
pub fn originals(lab: &Lab) -> [Vec<u8>; 2] {
    ["http1", "http2"].map(|host| lab.read(&format!("/run/xdp-proxy-lab/{host}/files/1m")))
}

/// Downloads of `/1m`, one after the other until all is over; each is whole, and one of
/// these files. How many.
pub fn download(connection: &mut Connection, files: &[Vec<u8>], over: &AtomicBool) -> usize {
    let mut downloads = 0;
    while !over.load(Ordering::Relaxed) {
        let body = connection.get("/1m").unwrap();
        assert!(files.contains(&body), "a download is damaged");
        downloads += 1;
    }
    downloads
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
