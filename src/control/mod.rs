// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! The daemon's control socket, both ends. It is an abstract Unix socket: it
//! belongs to the network namespace, so that `docker exec` and `ip netns exec`
//! reach the daemon without any file in common, two instances on one interface
//! collide at once, and nothing is left when the daemon dies.
//!
//! Everybody can take its name and connect to it, so both ends prove first that they are
//! trusted (`trust.rs`). Then a client writes one [`Request`] as a line of JSON and reads one
//! [`Response`].

mod client;
mod door;
mod handover;
mod names;
mod rights;
mod trust;

use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use nix::sys::socket::{Backlog, listen};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use crate::status::Status;
pub use client::{Daemon, Found, Silent, Stranger, find};
use door::Door;
pub use handover::{Handover, Predecessor};
use names::Name;

/// A request is a few words; a client has this long to say them, more than it may take it to
/// find all daemons.
const REQUEST_BYTES_MAX: u64 = 4096;
const REQUEST_DEADLINE: Duration = Duration::from_secs(20);

/// What a daemon says first to a client that it trusts.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Greeting {
    interface: String,
}

impl Greeting {
    fn of(interface: &str) -> Greeting {
        Greeting {
            interface: interface.to_owned(),
        }
    }
}

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
    /// That the socket has.
    name: Name,
    door: Door,
    calls: mpsc::Receiver<(Request, Caller)>,
    receiving: JoinHandle<()>,
}

impl Control {
    /// Takes the interface's name in this network namespace, and serves it. Where a stranger
    /// has it, a name like it.
    ///
    /// # Errors
    /// Another daemon is there.
    pub fn bind(interface: &str) -> Result<Control> {
        let (name, listener) = bind(interface)?;
        let mut control = Control::on(interface, listener)?;
        // Who else is about to begin is to find this one.
        control.go_on();
        let others = client::find_but(Some(interface), Some(&name))?;
        if !others.daemons.is_empty() {
            bail!(
                "another xdp-proxy runs on {interface}: end it with `xdp-proxy stop -i \
                 {interface}`, or take its place with `run --take-over`"
            );
        }
        if let Some(hung) = others.strangers.iter().find(|s| s.may_be_a_daemon()) {
            bail!("{hung}");
        }
        others.tell_of_strangers(|word| tracing::warn!("{word}"));
        control.tell_of_name();
        Ok(control)
    }

    /// Serves a socket that has the interface's name already, once it is told to go on.
    ///
    /// # Errors
    /// There is no thread or descriptor to be had.
    pub fn on(interface: &str, listener: UnixListener) -> Result<Control> {
        let name = Name::of_socket(&listener)?;
        // So that the kernel knows whose it is now.
        listen(&listener, Backlog::MAXALLOWABLE).context("opening the control socket")?;
        let (sender, calls) = mpsc::channel(16);
        let (visitors, visits) = mpsc::unbounded_channel();
        Ok(Control {
            name,
            door: Door::new(interface, listener, visitors)?,
            calls,
            receiving: tokio::spawn(receive(visits, sender)),
        })
    }

    /// The next request. Cancel-safe.
    pub async fn call(&mut self) -> Option<(Request, Caller)> {
        self.calls.recv().await
    }

    /// Another handle of the socket, for who is to have it next.
    pub fn descriptor(&self) -> Result<OwnedFd> {
        door::handle(&self.door.listener())
    }

    /// Lets clients wait: they are the next daemon's, or come when this one goes on.
    pub fn pause(&mut self) {
        self.door.open(false);
    }

    pub fn go_on(&mut self) {
        self.door.open(true);
    }

    /// Takes the name that the interface has now, if the socket has another one: it was
    /// renamed, or a stranger had it.
    ///
    /// # Errors
    /// No socket is to be had: clients still get here by the one before. To be called again.
    pub fn follow(&mut self, interface: &str) -> Result<()> {
        let is_renamed = interface != self.name.interface;
        if !is_renamed && self.name.is_first() {
            return Ok(());
        }
        let (name, listener) = match bind(interface) {
            // It has one that is as good.
            Ok((name, _)) if !is_renamed && !name.is_first() => return Ok(()),
            bound => bound.with_context(|| format!("clients still get here by {}", self.name))?,
        };
        self.door.move_to(interface, listener);
        self.name = name;
        self.tell_of_name();
        Ok(())
    }

    /// Says once that the name is another one than clients would guess.
    fn tell_of_name(&self) {
        if !self.name.is_first() {
            tracing::warn!(
                "another process has the name @xdp-proxy/{}: commands get here by {}, which they \
                 find in /proc",
                self.name.interface,
                self.name
            );
        }
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.receiving.abort();
    }
}

/// Takes the interface's name, or, where somebody has it, a name like it.
fn bind(interface: &str) -> Result<(Name, UnixListener)> {
    let mut name = Name::of(interface)?;
    loop {
        match name.bind() {
            Ok(listener) => return Ok((name, listener)),
            Err(error) if error.kind() == ErrorKind::AddrInUse => name = name.other(),
            Err(error) => return Err(error).context("opening the control socket"),
        }
    }
}

/// Each trusted client's conversation is a task of its own.
async fn receive(
    mut visits: mpsc::UnboundedReceiver<UnixStream>,
    calls: mpsc::Sender<(Request, Caller)>,
) {
    while let Some(stream) = visits.recv().await {
        let stream = stream
            .set_nonblocking(true)
            .and_then(|()| tokio::net::UnixStream::from_std(stream));
        match stream {
            Ok(stream) => drop(tokio::spawn(serve(stream, calls.clone()))),
            Err(error) => tracing::debug!("a client of the control socket is lost: {error}"),
        }
    }
}

/// One trusted client's conversation; its end drops `end`.
async fn serve(mut stream: tokio::net::UnixStream, calls: mpsc::Sender<(Request, Caller)>) {
    let (mut end, conversation) = oneshot::channel();
    let talk = async {
        let mut line = String::new();
        let mut reader = tokio::io::BufReader::new((&mut stream).take(REQUEST_BYTES_MAX));
        tokio::time::timeout(REQUEST_DEADLINE, reader.read_line(&mut line)).await??;
        let (sender, response) = oneshot::channel();
        let caller = Caller {
            response: sender,
            conversation,
        };
        calls.send((serde_json::from_str(&line)?, caller)).await?;
        let (response, descriptors) = response.await?;
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
