// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! One check of a backend.

use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::{Request, Uri, header};
use hyper_util::rt::TokioIo;
use nix::errno::Errno;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpSocket, UdpSocket};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::pki_types::ServerName;

use super::stream::{RECEIVE_BUFFER_BYTES, Stream};
use super::tls::{self, Authorities};
use crate::config::duration_text;
use crate::excerpt::one_line;
use crate::service::{Check, CheckKind, HttpCheck, StatusCodes, UdpCheck};

/// Of an answer's head (HAProxy's limit too).
const HEAD_BYTES_MAX: usize = 16 << 10;
/// Of an answer's body, what is read so that its sender sees it taken.
const BODY_BYTES_MAX: usize = 64 << 10;
/// The same in chunks, which each cost as much as some thousand bytes.
const BODY_PIECES_MAX: usize = 256;
/// Of a datagram, what is looked at.
const REPLY_BYTES_MAX: usize = 4096;
/// Of the reason of a failure.
const WORDS_CHARS_MAX: usize = 300;
const AGENT: &str = concat!("xdp-proxy/", env!("CARGO_PKG_VERSION"));

/// Why a check did not succeed, in words.
#[derive(Debug)]
pub enum Failure {
    Backend(String),
    /// There was no answer.
    Silence(String),
    /// This host could not ask, which says nothing of the backend.
    Here(String),
}

impl Failure {
    /// In a line: a server's certificate may have many names, and any.
    pub fn into_words(self) -> String {
        let words = match self {
            Failure::Backend(words) | Failure::Silence(words) => words,
            Failure::Here(words) => format!("can't be checked: {words}"),
        };
        one_line(&words, WORDS_CHARS_MAX)
    }

    fn of(error: &io::Error) -> Failure {
        let words = words(error);
        match error.raw_os_error().map(Errno::from_raw) {
            Some(
                Errno::EMFILE
                | Errno::ENFILE
                | Errno::ENOBUFS
                | Errno::ENOMEM
                | Errno::EADDRNOTAVAIL
                | Errno::EINVAL // no room in the neighbour table, as some kernels say it
                | Errno::ENETDOWN
                | Errno::ENETUNREACH
                | Errno::EPERM
                | Errno::EACCES,
            ) => Failure::Here(words),
            _ => Failure::Backend(words),
        }
    }
}

/// What the system calls it, as a part of a sentence.
fn words(error: &io::Error) -> String {
    let text = match error.raw_os_error() {
        Some(code) => Errno::from_raw(code).desc().to_owned(),
        None => error.to_string(),
    };
    let mut rest = text.chars();
    let first = rest.next().map(|first| first.to_ascii_lowercase());
    first.into_iter().chain(rest).collect()
}

/// What a backend is asked.
pub struct Probe {
    address: SocketAddr,
    kind: Kind,
}

enum Kind {
    Tcp,
    Http(Http, Option<Tls>),
    Udp(UdpCheck),
}

/// How to talk, and to whom.
type Tls = (Arc<ClientConfig>, ServerName<'static>);

struct Http {
    uri: Uri,
    host: String,
    status: StatusCodes,
}

impl Probe {
    pub fn new(check: &Check, address: SocketAddr, authorities: &mut Authorities) -> Result<Probe> {
        let kind = match &check.kind {
            CheckKind::Tcp => Kind::Tcp,
            CheckKind::Http(check) => Kind::Http(Http::new(check, address, 80)?, None),
            CheckKind::Https(check, trust) => {
                let config = authorities.config(trust)?;
                let tls = (config, server_name(check, address)?);
                Kind::Http(Http::new(check, address, 443)?, Some(tls))
            }
            CheckKind::Udp(check) => Kind::Udp(check.clone()),
        };
        Ok(Probe { address, kind })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Asks once, for as long as that.
    pub async fn ask(&self, limit: Duration) -> Result<(), Failure> {
        let deadline = Instant::now() + limit;
        let late = |_| Failure::Silence(format!("no answer within {}", duration_text(limit)));
        match &self.kind {
            Kind::Tcp => {
                let connected = timeout_at(deadline, self.connect()).await;
                connected.map_err(late)?.map(drop)
            }
            Kind::Udp(udp) => {
                let exchanged = timeout_at(deadline, self.exchange(udp)).await;
                exchanged.map_err(late)?
            }
            Kind::Http(http, tls) => {
                let answered = timeout_at(deadline, self.request(http, tls)).await;
                let answer = answered.map_err(late)??;
                let judged = http.judge(answer.status);
                // A body that never ends takes nothing from that.
                let _ = timeout_at(deadline, answer.read_on()).await;
                judged
            }
        }
    }

    /// Where there is nothing to send, the ACK that ends the handshake is held back: a
    /// server that is only asked for a connection never gets to see it.
    async fn connect(&self) -> Result<Stream, Failure> {
        let connected = async {
            let socket = match self.address {
                SocketAddr::V4(_) => TcpSocket::new_v4(),
                SocketAddr::V6(_) => TcpSocket::new_v6(),
            }?;
            socket.set_zero_linger()?;
            socket.set_recv_buffer_size(RECEIVE_BUFFER_BYTES as u32)?;
            if let Kind::Tcp = self.kind {
                SockRef::from(&socket).set_tcp_quickack(false)?;
            }
            socket.connect(self.address).await.map(Stream::new)
        };
        connected.await.map_err(|error| Failure::of(&error))
    }

    async fn request(&self, http: &Http, tls: &Option<Tls>) -> Result<Answer, Failure> {
        let stream = self.connect().await?;
        let answer = match tls {
            None => http.ask(stream).await,
            Some((config, name)) => {
                let connector = TlsConnector::from(config.clone());
                let stream = connector.connect(name.clone(), stream).await;
                let stream = stream.map_err(tls::in_words);
                http.ask(stream.map_err(|error| Failure::of(&error))?).await
            }
        };
        answer.map_err(|error| {
            let cause = error
                .chain()
                .find_map(|cause| cause.downcast_ref::<io::Error>());
            cause.map_or_else(|| Failure::Backend(format!("{error:#}")), Failure::of)
        })
    }

    async fn exchange(&self, udp: &UdpCheck) -> Result<(), Failure> {
        let exchanged = async {
            let any: SocketAddr = match self.address {
                SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
                SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
            };
            let socket = UdpSocket::bind(any).await?;
            socket.connect(self.address).await?;
            socket.send(&udp.payload).await?;
            let mut reply = vec![0; REPLY_BYTES_MAX];
            let length = socket.recv(&mut reply).await?;
            reply.truncate(length);
            Ok(reply)
        };
        let reply = exchanged
            .await
            .map_err(|error: io::Error| match error.kind() {
                ErrorKind::ConnectionRefused => Failure::Backend("port unreachable".into()),
                _ => Failure::of(&error),
            })?;
        let wanted = &udp.reply;
        if !wanted.is_empty() && !reply.windows(wanted.len()).any(|part| part == wanted) {
            return Err(Failure::Backend("the reply has other bytes in it".into()));
        }
        Ok(())
    }
}

/// Who the certificate must be for.
fn server_name(check: &HttpCheck, address: SocketAddr) -> Result<ServerName<'static>> {
    let Some(host) = &check.host else {
        return Ok(address.ip().into());
    };
    let uri: Uri = host.parse().with_context(|| format!("host {host:?}"))?;
    let name = uri.host().unwrap_or(host).trim_matches(['[', ']']);
    ServerName::try_from(name.to_owned()).with_context(|| format!("host {host:?}"))
}

impl Http {
    fn new(check: &HttpCheck, address: SocketAddr, default_port: u16) -> Result<Http> {
        let own = || match (address.port() == default_port, address) {
            (false, _) => address.to_string(),
            (true, SocketAddr::V4(address)) => address.ip().to_string(),
            (true, SocketAddr::V6(address)) => format!("[{}]", address.ip()),
        };
        let path = &check.path;
        Ok(Http {
            uri: path.parse().with_context(|| format!("path {path:?}"))?,
            host: check.host.clone().unwrap_or_else(own),
            status: check.status.clone(),
        })
    }

    fn judge(&self, status: u16) -> Result<(), Failure> {
        match self.status.contains(status) {
            true => Ok(()),
            false => Err(Failure::Backend(format!(
                "status {status} is not {}",
                self.status
            ))),
        }
    }

    /// One request over a connection of its own.
    async fn ask(
        &self,
        stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    ) -> Result<Answer> {
        let mut protocol = http1::Builder::new();
        protocol.max_buf_size(HEAD_BYTES_MAX);
        let (mut requests, connection) = protocol.handshake(TokioIo::new(stream)).await?;
        let mut driver = JoinSet::new();
        driver.spawn(async { drop(connection.await) });
        let request = Request::get(self.uri.clone())
            .header(header::HOST, &self.host)
            .header(header::USER_AGENT, AGENT)
            .header(header::ACCEPT, "*/*")
            .header(header::CONNECTION, "close")
            .body(Empty::<Bytes>::new())?;
        let (head, body) = requests.send_request(request).await?.into_parts();
        Ok(Answer {
            status: head.status.as_u16(),
            body,
            _driver: driver,
        })
    }
}

struct Answer {
    status: u16,
    body: Incoming,
    /// Keeps the connection going, and ends it.
    _driver: JoinSet<()>,
}

impl Answer {
    /// Takes the body, for its sender to see it taken.
    async fn read_on(mut self) {
        let mut bytes = 0;
        for _ in 0..BODY_PIECES_MAX {
            let Some(Ok(frame)) = self.body.frame().await else {
                return;
            };
            bytes += frame.data_ref().map_or(0, Bytes::len);
            if bytes >= BODY_BYTES_MAX {
                return;
            }
        }
    }
}
