// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! The daemon's control socket, both ends. It is an abstract Unix socket: it
//! belongs to the network namespace, so that `docker exec` and `ip netns exec`
//! reach the daemon without any file in common, two instances on one interface
//! collide at once, and nothing is left when the daemon dies.
//!
//! A client writes one [`Request`] as a line of JSON and reads one [`Response`].

mod handover;

use std::fmt::{self, Display, Formatter};
use std::fs;
use std::io::{BufRead as _, BufReader, ErrorKind, Write as _};
use std::mem;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use nix::unistd::geteuid;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use crate::status::Status;
pub use handover::{Handover, Predecessor, maps};

const PREFIX: &str = "xdp-proxy/";
/// A request is a few words; a client has this long to say them.
const REQUEST_BYTES_MAX: u64 = 4096;
const REQUEST_DEADLINE: Duration = Duration::from_secs(2);
/// How long the daemon waits where no more clients fit.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long a client waits for the daemon.
const RESPONSE_DEADLINE: Duration = Duration::from_secs(10);

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Request {
    Status,
    /// Drain a backend, of one service or of all that have it; or end that.
    Drain {
        backend: String,
        service: Option<String>,
        drains: bool,
    },
    /// Read the configuration file again, and apply the difference.
    Reload,
    /// Detach and exit; answered when that is done.
    Stop,
    /// Give descriptors of the maps.
    Maps,
    /// Hand over the control socket, the program and its maps, and wait: when the
    /// client hangs up, exit if another program is attached, else go on.
    TakeOver,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Response {
    Status(Box<Status>),
    /// What was changed, in a line.
    Reloaded(String),
    /// What was done, by line.
    Done(String),
    Stopped,
    /// The descriptors come with it.
    HandedOver,
    Error(String),
}

/// A daemon that is there and does not answer.
#[derive(Debug)]
pub struct Silent {
    interface: String,
}

impl Display for Silent {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the daemon on {} does not answer within {} s: end it by SIGKILL; what it attached \
             serves on until the next `xdp-proxy run` or `xdp-proxy stop`",
            self.interface,
            RESPONSE_DEADLINE.as_secs()
        )
    }
}

impl std::error::Error for Silent {}

/// A client that waits for the response to its request.
pub struct Caller {
    response: oneshot::Sender<(Response, Vec<OwnedFd>)>,
    conversation: oneshot::Receiver<()>,
}

impl Caller {
    /// Answers; who has gone does not need it.
    pub fn answer(self, response: Response) -> oneshot::Receiver<()> {
        let _ = self.response.send((response, Vec::new()));
        self.conversation
    }

    /// Answers with descriptors.
    pub fn answer_with(self, descriptors: Vec<OwnedFd>) {
        let _ = self.response.send((Response::HandedOver, descriptors));
    }

    /// Hands the descriptors over, and returns when the client has hung up; if this
    /// is dropped before, it is the daemon that hangs up.
    pub async fn hand_over(self, descriptors: Vec<OwnedFd>) {
        let _ = self.response.send((Response::HandedOver, descriptors));
        let _ = self.conversation.await;
    }

    /// Answers, and returns when the answer is written.
    pub async fn answer_and_wait(self, response: Response) {
        let _ = self.answer(response).await;
    }
}

/// The daemon's end, held while it runs.
pub struct Control {
    /// The name that the socket has.
    interface: String,
    listener: Arc<tokio::net::UnixListener>,
    sender: mpsc::Sender<(Request, Caller)>,
    calls: mpsc::Receiver<(Request, Caller)>,
    accepting: Option<JoinHandle<()>>,
}

impl Control {
    /// Takes the interface's name in this network namespace.
    ///
    /// # Errors
    /// Another daemon holds it.
    pub fn bind(interface: &str) -> Result<UnixListener> {
        match UnixListener::bind_addr(&address(interface)?) {
            Err(error) if error.kind() == ErrorKind::AddrInUse => bail!(
                "another xdp-proxy runs on {interface}: end it with `xdp-proxy stop -i \
                 {interface}`, or take its place with `run --take-over`"
            ),
            bound => bound.context("opening the control socket"),
        }
    }

    /// The same, and serves it.
    pub fn listen(interface: &str) -> Result<Control> {
        let mut control = Control::on(interface, Control::bind(interface)?)?;
        control.go_on();
        Ok(control)
    }

    /// Serves a socket that has the interface's name already, once it is told to go on.
    pub fn on(interface: &str, listener: UnixListener) -> Result<Control> {
        let (sender, calls) = mpsc::channel(16);
        Ok(Control {
            interface: interface.to_owned(),
            listener: served(listener)?,
            sender,
            calls,
            accepting: None,
        })
    }

    /// The next request. Cancel-safe.
    pub async fn call(&mut self) -> Option<(Request, Caller)> {
        self.calls.recv().await
    }

    /// Another handle of the socket, for who is to have it next.
    pub fn descriptor(&self) -> Result<OwnedFd> {
        let listener = self.listener.as_fd().try_clone_to_owned();
        listener.context("handing over the control socket")
    }

    /// Lets clients wait: they are the next daemon's, or come when this one goes on.
    pub fn pause(&mut self) {
        if let Some(accepting) = self.accepting.take() {
            accepting.abort();
        }
    }

    pub fn go_on(&mut self) {
        self.pause();
        self.accepting = Some(accept(self.listener.clone(), self.sender.clone()));
    }

    /// Takes the name that the interface has now, if it has another one.
    ///
    /// # Errors
    /// Another daemon holds that: clients still get here by the one before. To be called
    /// again.
    pub fn follow(&mut self, interface: &str) -> Result<()> {
        if interface == self.interface {
            return Ok(());
        }
        let listener = Control::bind(interface).and_then(served);
        self.listener =
            listener.with_context(|| format!("clients still get here by {}", self.interface))?;
        self.interface = interface.to_owned();
        self.go_on();
        Ok(())
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.pause();
    }
}

fn served(listener: UnixListener) -> Result<Arc<tokio::net::UnixListener>> {
    listener
        .set_nonblocking(true)
        .and_then(|()| tokio::net::UnixListener::from_std(listener))
        .map(Arc::new)
        .context("serving the control socket")
}

/// Accepts clients on a task of its own.
fn accept(
    listener: Arc<tokio::net::UnixListener>,
    calls: mpsc::Sender<(Request, Caller)>,
) -> JoinHandle<()> {
    tokio::spawn(async move {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => drop(tokio::spawn(serve(stream, calls.clone()))),
                // Too many clients: those that say nothing leave by the deadline.
                Err(error) => {
                    tracing::debug!("a client of the control socket is to wait: {error}");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    })
}

/// One client's conversation; its end drops `end`.
async fn serve(mut stream: tokio::net::UnixStream, calls: mpsc::Sender<(Request, Caller)>) {
    let (mut end, conversation) = oneshot::channel();
    let talk = async {
        let peer = stream.peer_cred()?.uid();
        let mut line = String::new();
        let mut reader = tokio::io::BufReader::new((&mut stream).take(REQUEST_BYTES_MAX));
        tokio::time::timeout(REQUEST_DEADLINE, reader.read_line(&mut line)).await??;
        let (response, descriptors) = if peer != 0 && peer != geteuid().as_raw() {
            let word = format!("user {peer} may not control a daemon of another user");
            (Response::Error(word), Vec::new())
        } else {
            let (sender, response) = oneshot::channel();
            let caller = Caller {
                response: sender,
                conversation,
            };
            calls.send((serde_json::from_str(&line)?, caller)).await?;
            response.await?
        };
        let mut text = serde_json::to_string(&response)?;
        text.push('\n');
        handover::send(&stream, &text, &descriptors).await?;
        if matches!(response, Response::HandedOver) {
            // Nothing more is said; either side may hang up.
            tokio::select! {
                _ = stream.readable() => {}
                () = end.closed() => {}
            }
        }
        anyhow::Ok(())
    };
    if let Err(error) = talk.await {
        tracing::debug!("a client of the control socket left: {error:#}");
    }
}

/// `None`: no daemon runs there.
fn connect(interface: &str) -> Result<Option<UnixStream>> {
    let stream = match UnixStream::connect_addr(&address(interface)?) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => return Ok(None),
        connected => connected.context("connecting to the daemon")?,
    };
    stream.set_read_timeout(Some(RESPONSE_DEADLINE))?;
    Ok(Some(stream))
}

fn send_request(stream: &mut UnixStream, request: Request) -> Result<()> {
    let line = serde_json::to_string(&request)? + "\n";
    stream
        .write_all(line.as_bytes())
        .context("asking the daemon")
}

fn parse_response(line: &str) -> Result<Response> {
    serde_json::from_str(line).context("the daemon's answer is of another version")
}

/// Asks the daemon on an interface; `None` if none runs there, or it ended
/// before it answered.
pub fn ask(interface: &str, request: Request) -> Result<Option<Response>> {
    let Some(mut stream) = connect(interface)? else {
        return Ok(None);
    };
    let mut line = serde_json::to_string(&request)?;
    line.push('\n');
    let request = mem::take(&mut line);
    let answered = stream
        .write_all(request.as_bytes())
        .and_then(|()| BufReader::new(stream).read_line(&mut line));
    match answered {
        Ok(0) => return Ok(None),
        Err(error)
            if matches!(
                error.kind(),
                ErrorKind::ConnectionReset | ErrorKind::BrokenPipe
            ) =>
        {
            return Ok(None);
        }
        Err(error) if error.kind() == ErrorKind::WouldBlock => {
            let interface = interface.to_owned();
            return Err(Silent { interface }.into());
        }
        answered => answered.context("waiting for the daemon's answer")?,
    };
    parse_response(&line).map(Some)
}

/// The interfaces that daemons of this network namespace run on.
pub fn daemons() -> Result<Vec<String>> {
    let sockets =
        fs::read_to_string("/proc/self/net/unix").context("reading /proc/self/net/unix")?;
    let marker = format!("@{PREFIX}");
    let mut interfaces: Vec<String> = sockets
        .lines()
        .filter_map(|line| line.split_once(&marker))
        .map(|(_, interface)| interface.to_owned())
        .collect();
    interfaces.sort();
    interfaces.dedup();
    Ok(interfaces)
}

fn address(interface: &str) -> Result<SocketAddr> {
    SocketAddr::from_abstract_name(format!("{PREFIX}{interface}"))
        .with_context(|| format!("{interface:?} is no name of an interface"))
}
