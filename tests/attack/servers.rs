// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! Backends that answer checks with all that they have: it costs the checks a bounded part of
//! a processor, and the loop that serves nothing.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{ServerConfig, ServerConnection, StreamOwned};

use crate::common::lab::{BINARY, Lab};

/// Longer than any check.
const PATIENCE: Duration = Duration::from_secs(3);
/// How long each kind of server is asked, and how often.
const ROUND: Duration = Duration::from_secs(2);
const INTERVAL: &str = "200ms";
/// What a connection may take of a server: the bound, and what lies in buffers on the way.
const TAKEN_MAX: u64 = 1 << 20;
/// No request is shorter.
const REQUEST_BYTES_MIN: usize = 60;
/// Backends of each kind.
const PORTS: u16 = 4;

/// What a server does with a connection until that is reset.
type Answer = fn(&mut dyn Connection) -> io::Result<()>;

/// The same of a connection that was accepted.
type Serve = Arc<dyn Fn(TcpStream) -> io::Result<()> + Send + Sync>;

trait Connection {
    fn send(&mut self, bytes: &[u8]) -> io::Result<()>;
    /// New keys, where it has any.
    fn rekey(&mut self) -> io::Result<()>;
}

impl Connection for TcpStream {
    fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.write_all(bytes)
    }

    fn rekey(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Connection for StreamOwned<ServerConnection, TcpStream> {
    fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.write_all(bytes)?;
        self.flush()
    }

    fn rekey(&mut self) -> io::Result<()> {
        self.conn.refresh_traffic_keys().map_err(io::Error::other)
    }
}

fn plainly(answer: Answer) -> Serve {
    Arc::new(move |mut stream| answer(&mut stream))
}

/// The same bytes without end.
fn forever(connection: &mut dyn Connection, bytes: &[u8]) -> io::Result<()> {
    loop {
        connection.send(bytes)?;
    }
}

fn polite(connection: &mut dyn Connection) -> io::Result<()> {
    connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
}

const KINDS: [(&str, Answer); 9] = [
    ("100 Continue without end", |to| {
        forever(to, &b"HTTP/1.1 100 Continue\r\n\r\n".repeat(2000))
    }),
    ("100 Continue, one at a time", |to| {
        forever(to, b"HTTP/1.1 100 Continue\r\n\r\n")
    }),
    ("headers without end", |to| {
        to.send(b"HTTP/1.1 200 OK\r\n")?;
        forever(to, &b"a: b\r\n".repeat(2000))
    }),
    ("a header without end", |to| {
        to.send(b"HTTP/1.1 200 OK\r\na: ")?;
        forever(to, &[b'x'; 16 << 10])
    }),
    ("a head byte by byte", |to| {
        to.send(b"HTTP/1.1 200 OK\r\na: ")?;
        forever(to, b"x")
    }),
    ("a body byte by byte", |to| {
        to.send(b"HTTP/1.1 200 OK\r\n\r\n")?;
        forever(to, b"x")
    }),
    ("a body without end", |to| {
        to.send(b"HTTP/1.1 200 OK\r\n\r\n")?;
        forever(to, &[b'x'; 16 << 10])
    }),
    ("chunks of one byte", |to| {
        to.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")?;
        forever(to, &b"1\r\nx\r\n".repeat(2000))
    }),
    ("a chunk's extension without end", |to| {
        to.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;")?;
        forever(to, &b"a=b;".repeat(2000))
    }),
];

/// Instead of the handshake of TLS.
const RECORDS: [(&str, &[u8]); 4] = [
    ("warnings", &[21, 3, 3, 0, 2, 1, 0]),
    ("changes of the cipher", &[20, 3, 3, 0, 1, 1]),
    ("empty pieces of a handshake", &[22, 3, 3, 0, 0]),
    (
        "a handshake of 16 MiB",
        &[22, 3, 3, 0, 8, 2, 255, 255, 255, 0, 0, 0, 0],
    ),
];

/// A server on some ports of http1, until it is dropped.
struct Server {
    over: Arc<AtomicBool>,
    /// The most that one connection took.
    taken: Arc<AtomicU64>,
    connections: Arc<AtomicU64>,
}

impl Server {
    /// Each connection is handed over once the check has sent something.
    fn start(lab: &Lab, first_port: u16, serve: Serve) -> Server {
        let server = Server {
            over: Arc::default(),
            taken: Arc::default(),
            connections: Arc::default(),
        };
        let listeners = lab.within("http1", || {
            let ports = first_port..first_port + PORTS;
            ports
                .map(|port| TcpListener::bind(("10.0.0.2", port)).unwrap())
                .collect::<Vec<_>>()
        });
        for listener in listeners {
            listener.set_nonblocking(true).unwrap();
            let serve = serve.clone();
            let (over, taken) = (server.over.clone(), server.taken.clone());
            let connections = server.connections.clone();
            thread::spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    let Ok((stream, _)) = listener.accept() else {
                        thread::sleep(Duration::from_millis(2));
                        continue;
                    };
                    connections.fetch_add(1, Ordering::Relaxed);
                    let (serve, taken) = (serve.clone(), taken.clone());
                    thread::spawn(move || {
                        let watched = stream.try_clone().unwrap();
                        let _ = accepted(stream).and_then(|stream| serve(stream));
                        taken.fetch_max(sent_bytes(&watched), Ordering::Relaxed);
                    });
                }
            });
        }
        server
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
    }
}

fn accepted(mut stream: TcpStream) -> io::Result<TcpStream> {
    stream.set_nonblocking(false)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.peek(&mut [0])?;
    stream.flush()?;
    Ok(stream)
}

/// What the other end acknowledged (tcpi_bytes_acked).
fn sent_bytes(stream: &TcpStream) -> u64 {
    use nix::libc;
    use std::os::fd::AsRawFd as _;
    const BYTES_ACKED: usize = 120;
    let mut info = [0u8; 256];
    let mut length = info.len() as u32;
    // SAFETY: the buffer has as many bytes as the length says.
    let error = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &mut length,
        )
    };
    assert!(error == 0 && length as usize > BYTES_ACKED + 8);
    u64::from_ne_bytes(info[BYTES_ACKED..BYTES_ACKED + 8].try_into().unwrap())
}

fn config(kind: &str, first_port: u16) -> String {
    let backends: Vec<String> = (first_port..first_port + PORTS)
        .map(|port| format!("{{ address = '10.0.0.2:{port}' }}"))
        .collect();
    format!(
        "[[service]]\nlisten = '10.0.0.5:80'\n\
         health = {{ type = '{kind}', interval = '{INTERVAL}', timeout = '{INTERVAL}' }}\n\
         backend = [{}]\n",
        backends.join(", ")
    )
}

/// The processor time of the checks, or of all else, so far.
fn spent(pid: i32, of_checks: bool) -> Duration {
    let spent = threads(pid, of_checks).into_iter().map(|thread| {
        let text = fs::read_to_string(thread.join("schedstat")).unwrap();
        Duration::from_nanos(text.split(' ').next().unwrap().parse().unwrap())
    });
    spent.sum()
}

/// The threads of a process: that of the checks, or all others.
fn threads(pid: i32, of_checks: bool) -> Vec<PathBuf> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let tasks = tasks.map(|task| task.unwrap().path());
    let name = |task: &PathBuf| fs::read_to_string(task.join("comm")).unwrap();
    tasks
        .filter(|task| (name(task).trim() == "checks") == of_checks)
        .collect()
}

/// What a round costs the checks and the loop, for each connection that the server had.
fn cost(lab: &Lab, kind: &str, port: u16, server: &Server) -> [Duration; 2] {
    lab.write("servers.toml", &config(kind, port));
    lab.at("lb", &format!("{BINARY} reload"));
    let pid = pid(lab);
    let before = [true, false].map(|checks| spent(pid, checks));
    let first = server.connections.load(Ordering::Relaxed);
    let begun = Instant::now();
    while begun.elapsed() < ROUND {
        thread::sleep(Duration::from_millis(50));
    }
    let connections = server.connections.load(Ordering::Relaxed) - first;
    assert!(connections > 0, "nobody was asked");
    let after = [true, false].map(|checks| spent(pid, checks));
    [0, 1].map(|which| (after[which] - before[which]) / connections as u32)
}

/// The daemon, as this side numbers it.
fn pid(lab: &Lab) -> i32 {
    let inside = lab.status()["pid"].as_i64().unwrap();
    let is_it = |pid: &i32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let line = status.lines().find(|line| line.starts_with("NSpid:"));
        let own = fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
        let labs = fs::read_link(lab.path("/proc/1/ns/pid")).ok();
        let last = line.and_then(|line| line.split_whitespace().last());
        last == Some(&inside.to_string()) && own == labs && own.is_some()
    };
    let all = fs::read_dir("/proc").unwrap();
    let mut pids = all.filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok());
    pids.find(is_it).expect("the daemon is there")
}

#[test]
fn servers_that_answer_checks_without_end_cost_little() {
    let test = "servers_that_answer_checks_without_end_cost_little";
    let Some(lab) = crate::lab(test) else {
        return;
    };
    lab.script(
        "cd /run && openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes \
                -keyout key.pem -out cert.pem -subj /CN=lab -days 9 2>/dev/null",
    );
    let file = lab.write("servers.toml", &config("http", 9000));
    let server = Server::start(&lab, 9000, plainly(polite));
    let lb = lab.balance(&format!("-c {file}"));
    let [thread] = &threads(pid(&lab), true)[..] else {
        panic!("checks have a thread");
    };
    let status = fs::read_to_string(thread.join("status")).unwrap();
    for line in ["CapPrm:\t0000000000000000", "NoNewPrivs:\t1"] {
        assert!(status.contains(line), "{status}");
    }
    let [checks, the_loop] = cost(&lab, "http", 9000, &server);
    drop(server);
    println!("a polite check: {checks:?}, and {the_loop:?} of the loop");

    let certificate = CertificateDer::from_pem_slice(&lab.read("/run/cert.pem")).unwrap();
    let key = PrivateKeyDer::from_pem_slice(&lab.read("/run/key.pem")).unwrap();
    let tls = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    let tls = Arc::new(tls);
    let over_tls = |answer: Answer| {
        let tls = tls.clone();
        let serve = move |stream: TcpStream| {
            let connection = ServerConnection::new(tls.clone()).map_err(io::Error::other)?;
            let mut stream = StreamOwned::new(connection, stream);
            stream.read_exact(&mut [0; REQUEST_BYTES_MIN])?;
            answer(&mut stream)
        };
        Arc::new(serve) as Serve
    };
    let server = Server::start(&lab, 9100, over_tls(polite));
    let [checks_tls, the_loop_tls] = cost(&lab, "https", 9100, &server);
    drop(server);
    println!("by TLS: {checks_tls:?}, and {the_loop_tls:?} of the loop");

    let mut port = 9200;
    let mut judge = |name: &str, kind: &str, serve: Serve| {
        port += PORTS;
        let server = Server::start(&lab, port, serve);
        let [cost_of_checks, cost_of_loop] = cost(&lab, kind, port, &server);
        let taken = server.taken.load(Ordering::Relaxed);
        println!("{kind}, {name}: {cost_of_checks:?}, loop {cost_of_loop:?}, {taken} bytes");
        let (polite, polite_loop) = match kind {
            "http" => (checks, the_loop),
            _ => (checks_tls, the_loop_tls),
        };
        assert!(cost_of_checks < polite * 30, "{name}: {cost_of_checks:?}");
        assert!(cost_of_loop < polite_loop * 10, "{name}: {cost_of_loop:?}");
        assert!(taken < TAKEN_MAX, "{name}: {taken} bytes were taken");
    };
    for (name, answer) in KINDS {
        judge(name, "http", plainly(answer));
    }
    let rekeying = ("new keys", rekeys as Answer);
    for (name, answer) in KINDS.into_iter().take(2).chain([rekeying]) {
        judge(name, "https", over_tls(answer));
    }
    for (name, record) in RECORDS {
        let serve = |mut stream: TcpStream| forever(&mut stream, &record.repeat(1000));
        judge(name, "https", Arc::new(serve));
    }
    lb.end();
}

fn rekeys(connection: &mut dyn Connection) -> io::Result<()> {
    loop {
        connection.rekey()?;
        connection.send(b"x")?;
    }
}
