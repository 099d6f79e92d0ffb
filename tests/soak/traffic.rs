// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! Two hundred connections a second from `client`: most with one request, some that
//! are kept, some with a long download.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use crate::common::lab::{LB, Lab};
use crate::ledger::{Failure, Fault, Kind, Ledger};

const CONNECTION_INTERVAL: Duration = Duration::from_millis(5);
/// Longest wait for one step: far more than one lost packet costs.
const PATIENCE: Duration = Duration::from_secs(10);
/// Of so many connections one is kept, and one downloads.
const KEPT_SHARE: u64 = 20;
const DOWNLOAD_SHARE: u64 = 10;
const KEPT_REQUESTS: usize = 20;
const KEPT_PAUSE: Duration = Duration::from_millis(300);
/// A small window, so that the server waits for its client.
const WINDOW_BYTES: u32 = 16 << 10;
const DOWNLOAD_STEP_BYTES: usize = 32 << 10;
const DOWNLOAD_PAUSE: Duration = Duration::from_millis(250);

/// What clients and main thread share.
pub struct Traffic {
    pub ledger: Mutex<Ledger>,
    begun: AtomicU64,
    /// What each host serves as /1m.
    files: BTreeMap<String, Vec<u8>>,
}

/// A fault, and who had answered until then.
type Outcome = Result<(), (Option<String>, Fault)>;

impl Traffic {
    pub fn new(files: BTreeMap<String, Vec<u8>>) -> Arc<Traffic> {
        Arc::new(Traffic {
            ledger: Mutex::default(),
            begun: AtomicU64::new(0),
            files,
        })
    }

    pub fn ledger(&self) -> std::sync::MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn begun(&self) -> u64 {
        self.begun.load(Ordering::Relaxed)
    }

    /// Begins connections until it is over; returns when every one has ended.
    pub fn flow(self: &Arc<Traffic>, lab: &Lab, over: &AtomicBool) {
        lab.within("client", || {
            let runtime = tokio::runtime::Builder::new_current_thread();
            let runtime = { runtime }.enable_all().build().unwrap();
            runtime.block_on(async {
                let mut tasks = JoinSet::new();
                let mut ticks = interval(CONNECTION_INTERVAL);
                ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
                while !over.load(Ordering::Relaxed) {
                    ticks.tick().await;
                    let number = self.begun.fetch_add(1, Ordering::Relaxed);
                    let kind = match number {
                        n if n.is_multiple_of(KEPT_SHARE) => Kind::Kept,
                        n if n % DOWNLOAD_SHARE == 1 => Kind::Download,
                        _ => Kind::Short,
                    };
                    tasks.spawn(Arc::clone(self).connection(kind));
                    while tasks.try_join_next().is_some() {}
                }
                tasks.join_all().await;
            });
        });
    }

    async fn connection(self: Arc<Traffic>, kind: Kind) {
        let began = Instant::now();
        let outcome = self.talk(kind).await;
        let mut ledger = self.ledger();
        match outcome {
            Ok(()) => *ledger.served.entry(kind).or_default() += 1,
            Err((backend, fault)) => ledger.failures.push(Failure {
                kind,
                began,
                ended: Instant::now(),
                backend,
                fault,
            }),
        }
    }

    async fn talk(&self, kind: Kind) -> Outcome {
        let early = |error: io::Error| (None, Fault::from(error));
        let mut client = Client::connect(kind).await.map_err(early)?;
        let host = client.host().await.map_err(early)?;
        let late = |error: io::Error| (Some(host.clone()), Fault::from(error));
        match kind {
            Kind::Short => Ok(()),
            Kind::Kept => {
                for _ in 0..KEPT_REQUESTS {
                    sleep(KEPT_PAUSE).await;
                    let now = client.host().await.map_err(late)?;
                    if now != host {
                        let moved = Fault::Other(format!("moved to {now}"));
                        return Err((Some(host), moved));
                    }
                }
                Ok(())
            }
            Kind::Download => {
                let length = client.request("/1m").await.map_err(late)?;
                let file = &self.files[&host];
                if length != file.len() {
                    let wrong = Fault::Other(format!("{length} bytes are announced"));
                    return Err((Some(host), wrong));
                }
                for expected in file.chunks(DOWNLOAD_STEP_BYTES) {
                    let got = client.read(expected.len()).await.map_err(late)?;
                    if got != expected {
                        return Err((Some(host), Fault::Other("other bytes came".into())));
                    }
                    sleep(DOWNLOAD_PAUSE).await;
                }
                Ok(())
            }
        }
    }
}

/// A client of HTTP/1.1 over one connection.
struct Client(BufReader<TcpStream>);

impl Client {
    async fn connect(kind: Kind) -> io::Result<Client> {
        let socket = TcpSocket::new_v4()?;
        if kind == Kind::Download {
            socket.set_recv_buffer_size(WINDOW_BYTES)?;
        }
        let address: SocketAddr = format!("{LB}:80").parse().map_err(io::Error::other)?;
        let stream = within(socket.connect(address)).await?;
        stream.set_nodelay(true)?;
        Ok(Client(BufReader::new(stream)))
    }

    /// The length of the body of a 200, which is to be read next.
    async fn request(&mut self, path: &str) -> io::Result<usize> {
        let request = format!("GET {path} HTTP/1.1\r\nHost: lab\r\n\r\n");
        within(self.0.get_mut().write_all(request.as_bytes())).await?;
        let status = self.line().await?;
        if !status.starts_with("HTTP/1.1 200 ") {
            return Err(io::Error::other(format!("answered {status:?}")));
        }
        let mut length = 0;
        loop {
            let header = self.line().await?.to_ascii_lowercase();
            if header.is_empty() {
                return Ok(length);
            }
            if let Some(value) = header.strip_prefix("content-length: ") {
                length = value.parse().map_err(io::Error::other)?;
            }
        }
    }

    async fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        match within(self.0.read_line(&mut line)).await? {
            0 => Err(ErrorKind::UnexpectedEof.into()),
            _ => Ok(line.trim_end().to_owned()),
        }
    }

    async fn read(&mut self, length: usize) -> io::Result<Vec<u8>> {
        let mut body = vec![0; length];
        within(self.0.read_exact(&mut body)).await?;
        Ok(body)
    }

    /// Who answers.
    async fn host(&mut self) -> io::Result<String> {
        let length = self.request("/").await?;
        let body = String::from_utf8(self.read(length).await?).map_err(io::Error::other)?;
        let name = body.trim_end().strip_prefix("Hostname: ");
        let name = name.ok_or_else(|| io::Error::other(format!("answered {body:?}")))?;
        Ok(name.to_owned())
    }
}

async fn within<T>(step: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    timeout(PATIENCE, step)
        .await
        .map_err(|_| ErrorKind::TimedOut)?
}
