// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! A daemon hands what it has to the next one: the control socket, the program and
//! its maps, as descriptors over the control socket (unix(7), SCM_RIGHTS). That
//! takes no capability to open them and no file.

use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};

use anyhow::{Result, bail};
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv};
use tokio::io::Interest;

use super::client::Daemon;
use super::{Request, find, rights};

/// What a running daemon has handed over.
pub struct Handover {
    pub listener: UnixListener,
    pub program: OwnedFd,
    pub maps: Vec<OwnedFd>,
    pub predecessor: Predecessor,
}

/// A daemon that has handed over. When this is dropped, it goes on as before if its
/// program is the one that is attached, else it ends.
pub struct Predecessor(UnixStream);

impl Handover {
    /// Asks the daemon on an interface; `None`: none runs there.
    ///
    /// # Errors
    /// It does not know how, or will not.
    pub fn ask(interface: &str) -> Result<Option<Handover>> {
        let found = find(Some(interface))?;
        let Some(daemon) = found.daemons.into_iter().next() else {
            return Ok(None);
        };
        let Some((conversation, descriptors)) = daemon.ask_for_descriptors(Request::TakeOver)?
        else {
            return Ok(None);
        };
        let mut descriptors = descriptors.into_iter();
        let (Some(listener), Some(program)) = (descriptors.next(), descriptors.next()) else {
            bail!("the daemon on {interface} handed nothing over");
        };
        Ok(Some(Handover {
            listener: listener.into(),
            program,
            maps: descriptors.collect(),
            predecessor: Predecessor(conversation),
        }))
    }
}

impl Predecessor {
    /// Whether it still waits. If it does not, it has gone on.
    pub fn waits(&self) -> bool {
        let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
        recv(self.0.as_raw_fd(), &mut [0], flags) == Err(Errno::EAGAIN)
    }
}

impl Daemon {
    /// Descriptors of its maps; `None`: it ended before it answered.
    ///
    /// # Errors
    /// It does not answer, or refuses.
    pub fn maps(self) -> Result<Option<Vec<OwnedFd>>> {
        let answer = self.ask_for_descriptors(Request::Maps)?;
        Ok(answer.map(|(_, descriptors)| descriptors))
    }
}

/// Sends the line with the descriptors.
pub(super) async fn send(
    stream: &tokio::net::UnixStream,
    line: &str,
    descriptors: &[OwnedFd],
) -> Result<()> {
    let mut descriptors = descriptors;
    let mut rest = line.as_bytes();
    while !rest.is_empty() {
        let some = || Ok(rights::send(stream, rest, descriptors, MsgFlags::empty())?);
        let sent = stream.async_io(Interest::WRITABLE, some).await?;
        rest = &rest[sent..];
        descriptors = &[];
    }
    Ok(())
}
