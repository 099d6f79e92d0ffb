// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! The connection of a check: what its server may send, and in how many pieces, has a bound,
//! whatever protocol is spoken over it. So has the work that it makes.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// What is read of a server, at most: certificates, an answer's head, and 64 KiB of its body.
const BYTES_MAX: usize = 128 << 10;
/// The reads that take it, at most: each costs as much as some thousand bytes.
const READS_MAX: u32 = 256;
/// What the kernel keeps for us before it is read.
pub const RECEIVE_BUFFER_BYTES: usize = 64 << 10;

/// Only a RST ends it: the FIN of an orderly end would leave one of the ends in TIME_WAIT.
pub struct Stream {
    inner: TcpStream,
    bytes_left: usize,
    reads_left: u32,
}

impl Stream {
    pub fn new(inner: TcpStream) -> Stream {
        Stream {
            inner,
            bytes_left: BYTES_MAX,
            reads_left: READS_MAX,
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let too_much = |words: String| Poll::Ready(Err(io::Error::other(words)));
        if self.bytes_left == 0 {
            return too_much(format!("it sends more than {} KiB", BYTES_MAX >> 10));
        }
        if self.reads_left == 0 {
            return too_much(format!("it sends more than {READS_MAX} pieces"));
        }
        let mut part = buffer.take(self.bytes_left);
        ready!(Pin::new(&mut self.inner).poll_read(context, &mut part))?;
        let length = part.filled().len();
        // SAFETY: `part` is the beginning of what `buffer` has unfilled, and so much of it was
        // filled.
        unsafe { buffer.assume_init(length) };
        buffer.advance(length);
        self.bytes_left -= length;
        self.reads_left -= 1;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
