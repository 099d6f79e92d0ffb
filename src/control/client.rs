// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! The client's end: it asks who has the names of daemons, all at once, and goes on with
//! those that prove to be trusted. Strangers cost a moment, whatever they do.

use std::fmt::{self, Display, Formatter};
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr, UnixCredentials, connect, getsockopt,
    socket, sockopt::PeerCredentials,
};
use nix::sys::stat::stat;

use super::names::{self, Name};
use super::{Greeting, Request, Response, rights, trust};

/// How long who has a name may take to prove itself: one of the first, one of the many after
/// them, and all together. The daemon's loop has no part in it, so it takes a moment.
const PROOF_DEADLINE: Duration = Duration::from_secs(2);
const PROOF_DEADLINE_OF_MANY: Duration = Duration::from_millis(500);
const SEARCH_DEADLINE: Duration = Duration::from_secs(4);
/// So many strangers are told of one by one.
const TOLD_MAX: usize = 30;
/// So many are asked at once; each takes a descriptor.
const AT_ONCE: usize = 256;
/// Before somebody who has hung up, or has no room for clients, is asked again.
const PAUSE: Duration = Duration::from_millis(20);
const GREETING_BYTES_MAX: usize = 256;
const GREETING_DEADLINE: Duration = Duration::from_millis(500);
/// How long a daemon may take to answer.
pub(super) const RESPONSE_DEADLINE: Duration = Duration::from_secs(10);
/// 10,000 backends take 8 MB.
const RESPONSE_BYTES_MAX: u64 = 256 << 20;
const PROGRESS: &str = "asking who has the daemons' names";

/// Who has the names that were asked for.
#[derive(Default)]
pub struct Found {
    pub daemons: Vec<Daemon>,
    pub strangers: Vec<Stranger>,
}

/// A daemon that has proven itself, and waits for one request.
pub struct Daemon {
    pub interface: String,
    name: Name,
    stream: UnixStream,
}

/// Somebody who has a daemon's name and has not proven to be one.
pub struct Stranger {
    name: Name,
    holder: Option<Holder>,
}

/// The process that listens on a name, as the kernel knows it.
struct Holder {
    credentials: UnixCredentials,
    /// Of the process itself, whoever has its number now. From Linux 6.5 on.
    process: Option<OwnedFd>,
    has_ended: bool,
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

impl Display for Stranger {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let who = match &self.holder {
            Some(holder) => match (holder.credentials.pid(), holder.credentials.uid()) {
                (0, uid) => format!("a process of user {uid} that can't be seen from here"),
                (pid, uid) => format!("process {pid} of user {uid}"),
            },
            None => "somebody".into(),
        };
        write!(
            f,
            "{} has the name {} and does not prove to be an xdp-proxy of this version that may \
             administer the network: not believed (one that hangs, or an older one, is ended by \
             its signals, and what it attached serves on)",
            who, self.name
        )
    }
}

/// Asks who has the names of an interface, or of all of this network namespace.
///
/// # Errors
/// This process may not ask: it does not have CAP_NET_ADMIN.
pub fn find(interface: Option<&str>) -> Result<Found> {
    find_but(interface, None)
}

/// The same without the one who has this name.
pub(super) fn find_but(interface: Option<&str>, own: Option<&Name>) -> Result<Found> {
    let mut names = names::taken(interface)?;
    names.retain(|name| Some(name) != own);
    let mut found = Found::default();
    let end = Instant::now() + SEARCH_DEADLINE;
    for (index, some) in names.chunks(AT_ONCE).enumerate() {
        let patience = match index {
            0 => PROOF_DEADLINE,
            _ => PROOF_DEADLINE_OF_MANY,
        };
        let end = end.min(Instant::now() + patience);
        let mut calls: Vec<Call> = some.iter().cloned().map(Call::new).collect();
        while Instant::now() < end {
            for call in &mut calls {
                call.go_on()?;
            }
            if calls.iter().all(Call::is_over) {
                break;
            }
            wait(&calls, end)?;
        }
        for call in calls {
            match call.state {
                State::Absent => {}
                State::Proven(daemon) => found.daemons.push(daemon),
                State::Knocking(_) | State::Waiting(_) | State::Strange => {
                    found.strangers.push(Stranger {
                        name: call.name,
                        holder: call.holder,
                    });
                }
            }
        }
    }
    // One daemon may have several names while it changes them.
    found.daemons.sort_by(|a, b| a.interface.cmp(&b.interface));
    Ok(found)
}

impl Found {
    /// Says who has daemons' names and is none.
    pub fn tell_of_strangers(&self, say: impl Fn(&str)) {
        let told = self.strangers.iter().take(TOLD_MAX);
        told.for_each(|stranger| say(&stranger.to_string()));
        let more = self.strangers.len().saturating_sub(TOLD_MAX);
        if more > 0 {
            say(&format!(
                "{more} more daemons' names are held by others that don't prove to be one"
            ));
        }
    }
}

/// Who has one name, as far as it is known.
struct Call {
    name: Name,
    holder: Option<Holder>,
    state: State,
}

enum State {
    /// To be asked from this moment on.
    Knocking(Instant),
    /// The proof is to come here.
    Waiting(UnixStream),
    Proven(Daemon),
    Absent,
    Strange,
}

impl Call {
    fn new(name: Name) -> Call {
        Call {
            name,
            holder: None,
            state: State::Knocking(Instant::now()),
        }
    }

    fn is_over(&self) -> bool {
        !matches!(self.state, State::Knocking(_) | State::Waiting(_))
    }

    /// Does what can be done without waiting.
    fn go_on(&mut self) -> Result<()> {
        if let State::Knocking(from) = self.state
            && from <= Instant::now()
        {
            self.state = match self.knock() {
                Ok(door) => State::Waiting(door),
                Err(Knock::Denied) => bail!(
                    "asking the daemon on {} takes CAP_NET_ADMIN, which this process does not \
                     have: try again as root",
                    self.name.interface
                ),
                Err(Knock::Nobody) => State::Absent,
                Err(Knock::Full) => State::Knocking(Instant::now() + PAUSE),
                Err(Knock::Strange) => State::Strange,
            };
        }
        if let State::Waiting(door) = &self.state {
            let mut word = [0; 1];
            match rights::receive(door, &mut word, 1, MsgFlags::MSG_DONTWAIT) {
                Ok((0, _)) => self.state = State::Knocking(Instant::now() + PAUSE),
                Ok((_, descriptors)) => {
                    let proof = descriptors.into_iter().next();
                    self.state = match proof.and_then(|proof| self.believe(proof)) {
                        Some(daemon) => State::Proven(daemon),
                        None => State::Strange,
                    };
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => self.state = State::Strange,
            }
        }
        Ok(())
    }

    /// Sends a marked socket to who has the name. The proof comes over the other end.
    fn knock(&mut self) -> Result<UnixStream, Knock> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let kind = SockType::Stream;
        let name = socket(AddressFamily::Unix, kind, flags, None).map_err(|_| Knock::Full)?;
        let address = UnixAddr::new_abstract(&self.name.bytes()).map_err(|_| Knock::Strange)?;
        match connect(name.as_raw_fd(), &address) {
            Ok(()) => {}
            Err(Errno::ECONNREFUSED) => return Err(Knock::Nobody),
            Err(Errno::EAGAIN | Errno::EINTR) => return Err(Knock::Full),
            Err(_) => return Err(Knock::Strange),
        }
        self.holder = Holder::of(&name);
        let (door, given) = trust::pair().map_err(|error| match error.kind() {
            io::ErrorKind::PermissionDenied => Knock::Denied,
            _ => Knock::Full,
        })?;
        match rights::send(&name, b"\n", &[given.into()], MsgFlags::MSG_DONTWAIT) {
            Ok(_) => Ok(door),
            Err(_) => Err(Knock::Full),
        }
    }

    /// Who has made the socket is trusted, and says on which interface it is.
    fn believe(&self, proof: OwnedFd) -> Option<Daemon> {
        if !trust::is_marked(&proof) {
            return None;
        }
        let stream = UnixStream::from(proof);
        let State::Waiting(door) = &self.state else {
            return None;
        };
        if !trust::are_neighbours(&stream, door) {
            return None;
        }
        // It was said before the socket was sent.
        stream.set_read_timeout(Some(GREETING_DEADLINE)).ok()?;
        let mut greeting = Vec::new();
        let mut byte = [0];
        while byte != *b"\n" && greeting.len() < GREETING_BYTES_MAX {
            (&stream).read_exact(&mut byte).ok()?;
            greeting.push(byte[0]);
        }
        let Greeting { interface } = serde_json::from_slice(&greeting).ok()?;
        stream.set_read_timeout(Some(RESPONSE_DEADLINE)).ok()?;
        (interface == self.name.interface).then(|| Daemon {
            interface,
            name: self.name.clone(),
            stream,
        })
    }
}

/// Why nobody could be asked.
enum Knock {
    Nobody,
    /// No room for now.
    Full,
    /// By no daemon.
    Strange,
    /// This process has no CAP_NET_ADMIN.
    Denied,
}

/// Until something comes, or it is time to knock again.
fn wait(calls: &[Call], end: Instant) -> Result<()> {
    let mut until = end;
    let mut doors = Vec::new();
    for call in calls {
        match &call.state {
            State::Waiting(door) => doors.push(PollFd::new(door.as_fd(), PollFlags::POLLIN)),
            State::Knocking(from) => until = until.min(*from),
            _ => {}
        }
    }
    let rest = until.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
    let timeout = PollTimeout::try_from(rest).unwrap_or(PollTimeout::ZERO);
    match poll(&mut doors, timeout) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(error) => Err(error).context(PROGRESS),
    }
}

impl Holder {
    fn of(name: &OwnedFd) -> Option<Holder> {
        let credentials = getsockopt(name, PeerCredentials).ok()?;
        let (process, has_ended) = match trust::option_of::<i32>(name, trust::SO_PEERPIDFD) {
            // SAFETY: the kernel has just made it for this process.
            Ok(fd) => (Some(unsafe { OwnedFd::from_raw_fd(fd) }), false),
            Err(error) => (
                None,
                error.raw_os_error() != Some(Errno::ENOPROTOOPT as i32),
            ),
        };
        Some(Holder {
            credentials,
            process,
            has_ended,
        })
    }

    /// Whether it is a process with CAP_NET_ADMIN in this one's user namespace, as far as that
    /// is to be seen. Not a proof, as somebody else may hold the socket by now.
    fn may_be_trusted(&self) -> bool {
        let pid = self.credentials.pid();
        let namespace = |process: &str| stat(&*format!("/proc/{process}/ns/user")).ok();
        let (Some(own), Some(its)) = (namespace("self"), namespace(&pid.to_string())) else {
            return false;
        };
        let effective = caps::CapSet::Effective;
        let capable = caps::has_cap(Some(pid), effective, caps::Capability::CAP_NET_ADMIN);
        pid != 0 && own.st_ino == its.st_ino && capable.unwrap_or(false) && self.lives()
    }

    fn lives(&self) -> bool {
        let Some(process) = &self.process else {
            return !self.has_ended;
        };
        // It is readable once the process has ended.
        let mut one = [PollFd::new(process.as_fd(), PollFlags::POLLIN)];
        poll(&mut one, PollTimeout::ZERO) == Ok(0)
    }
}

impl Stranger {
    /// Others took all the time that there was.
    pub fn was_asked(&self) -> bool {
        self.holder.is_some()
    }

    pub fn interface(&self) -> &str {
        &self.name.interface
    }

    /// Whether it looks like a daemon that hangs, or one of an older version.
    pub fn may_be_a_daemon(&self) -> bool {
        self.holder.as_ref().is_some_and(Holder::may_be_trusted)
    }
}

impl Daemon {
    /// Asks it; `None`: it ended before it answered.
    ///
    /// # Errors
    /// [`Silent`], or it gave no answer that could be understood.
    pub fn ask(mut self, request: Request) -> Result<Option<Response>> {
        let asked = self.say(request);
        let mut line = String::new();
        let mut answer = BufReader::new(&self.stream).take(RESPONSE_BYTES_MAX);
        match asked.and_then(|()| answer.read_line(&mut line)) {
            Ok(0) => Ok(None),
            Err(error) if has_gone(&error) => Ok(None),
            Err(error) => Err(self.failure(error)),
            Ok(_) => parse_response(&line).map(Some),
        }
    }

    /// The same for an answer with descriptors, and goes on with the conversation.
    ///
    /// # Errors
    /// The same, or the daemon refuses.
    pub(super) fn ask_for_descriptors(
        mut self,
        request: Request,
    ) -> Result<Option<(UnixStream, Vec<OwnedFd>)>> {
        let mut line = Vec::new();
        let mut descriptors = Vec::new();
        let asked = self.say(request);
        let received = asked.and_then(|()| {
            while line.last() != Some(&b'\n') && (line.len() as u64) < RESPONSE_BYTES_MAX {
                let mut part = [0; 256];
                let room = rights::DESCRIPTORS_MAX;
                let (length, more) =
                    rights::receive(&self.stream, &mut part, room, MsgFlags::empty())?;
                descriptors.extend(more);
                line.extend_from_slice(&part[..length]);
                if length == 0 {
                    break;
                }
            }
            Ok(())
        });
        match received {
            Err(error) if has_gone(&error) => return Ok(None),
            Err(error) => return Err(self.failure(error)),
            Ok(()) if line.is_empty() => return Ok(None),
            Ok(()) => {}
        }
        match parse_response(std::str::from_utf8(&line)?)? {
            Response::HandedOver => Ok(Some((self.stream, descriptors))),
            Response::Error(error) => bail!("the daemon on {}: {error}", self.interface),
            _ => bail!(
                "the daemon on {} gave another answer than was asked for",
                self.interface
            ),
        }
    }

    fn say(&mut self, request: Request) -> io::Result<()> {
        let line = serde_json::to_string(&request)? + "\n";
        self.stream.write_all(line.as_bytes())
    }

    fn failure(&self, error: io::Error) -> anyhow::Error {
        if error.kind() == io::ErrorKind::WouldBlock {
            let interface = self.interface.clone();
            return Silent { interface }.into();
        }
        anyhow::Error::new(error).context(format!(
            "waiting for the answer of the daemon on {} ({})",
            self.interface, self.name
        ))
    }
}

/// It has ended.
fn has_gone(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe
    )
}

fn parse_response(line: &str) -> Result<Response> {
    serde_json::from_str(line).context("the daemon's answer is of another version")
}
