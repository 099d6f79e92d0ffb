// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! A daemon hands what it has to the next one: the control socket, the program and
//! its maps, as descriptors over the control socket (unix(7), SCM_RIGHTS). That
//! takes no capability and no file.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};

use anyhow::{Context as _, Result, bail};
use nix::cmsg_space;
use nix::errno::Errno;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recv, recvmsg, sendmsg};
use tokio::io::Interest;

use super::{Request, Response, Silent, connect, parse_response, send_request};

/// Descriptors of one message, at most.
const DESCRIPTORS_MAX: usize = 128;
/// The answer is a few words.
const RESPONSE_BYTES_MAX: usize = 4096;

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
        let Some((conversation, descriptors)) = ask(interface, Request::TakeOver)? else {
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

/// The maps of the daemon on an interface; `None`: none runs there.
pub fn maps(interface: &str) -> Result<Option<Vec<OwnedFd>>> {
    Ok(ask(interface, Request::Maps)?.map(|(_, descriptors)| descriptors))
}

fn ask(interface: &str, request: Request) -> Result<Option<(UnixStream, Vec<OwnedFd>)>> {
    let Some(mut conversation) = connect(interface)? else {
        return Ok(None);
    };
    send_request(&mut conversation, request)?;
    let (line, descriptors) = match receive(&conversation) {
        Err(error) if error.downcast_ref() == Some(&Errno::EAGAIN) => {
            let interface = interface.to_owned();
            return Err(Silent { interface }.into());
        }
        received => {
            received.with_context(|| format!("asking the daemon on {interface} for what it has"))?
        }
    };
    if line.is_empty() {
        bail!(
            "the daemon on {interface} hung up: it ended, or it is of a version that hands nothing \
             over; if it still runs, end it with `xdp-proxy stop -i {interface}`"
        );
    }
    match parse_response(&line)? {
        Response::HandedOver => Ok(Some((conversation, descriptors))),
        Response::Error(error) => bail!("the daemon on {interface}: {error}"),
        _ => bail!("the daemon on {interface} gave another answer than was asked for"),
    }
}

fn receive(stream: &UnixStream) -> Result<(String, Vec<OwnedFd>)> {
    let mut line = Vec::new();
    let mut descriptors = Vec::new();
    while line.last() != Some(&b'\n') && line.len() < RESPONSE_BYTES_MAX {
        let mut part = [0; 256];
        let mut parts = [IoSliceMut::new(&mut part)];
        let mut space = cmsg_space!([i32; DESCRIPTORS_MAX]);
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let message = recvmsg::<()>(stream.as_raw_fd(), &mut parts, Some(&mut space), flags)?;
        for control in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(raw) = control {
                // SAFETY: the kernel has just made them for this process.
                let owned = raw
                    .into_iter()
                    .map(|fd| unsafe { OwnedFd::from_raw_fd(fd) });
                descriptors.extend(owned);
            }
        }
        let bytes = message.bytes;
        if bytes == 0 {
            break;
        }
        line.extend_from_slice(&part[..bytes]);
    }
    Ok((String::from_utf8(line)?, descriptors))
}

/// Sends the line with the descriptors.
pub(super) async fn send(
    stream: &tokio::net::UnixStream,
    line: &str,
    descriptors: &[OwnedFd],
) -> Result<()> {
    let raw: Vec<_> = descriptors.iter().map(|fd| fd.as_raw_fd()).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control = if raw.is_empty() {
        &rights[..0]
    } else {
        &rights[..]
    };
    let mut control = control;
    let mut rest = line.as_bytes();
    while !rest.is_empty() {
        let sent = stream
            .async_io(Interest::WRITABLE, || {
                let parts = [IoSlice::new(rest)];
                let flags = MsgFlags::MSG_NOSIGNAL;
                sendmsg::<()>(stream.as_raw_fd(), &parts, control, flags, None)
                    .map_err(std::io::Error::from)
            })
            .await?;
        rest = &rest[sent..];
        control = &[];
    }
    Ok(())
}
