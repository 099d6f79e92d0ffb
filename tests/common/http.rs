// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! A client of HTTP/1.1 that knows its connections: one is opened, used, closed
//! when the test says so.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// Longest wait for one answer: far more than one lost packet costs.
const PATIENCE: Duration = Duration::from_secs(8);

pub struct Connection(BufReader<TcpStream>);

impl Connection {
    pub fn open(server: &str) -> io::Result<Connection> {
        Connection::open_within(server, PATIENCE)
    }

    /// One whose connect, and then each read, may take so long.
    pub fn open_within(server: &str, patience: Duration) -> io::Result<Connection> {
        let server: SocketAddr = format!("{server}:80").parse().unwrap();
        let stream = TcpStream::connect_timeout(&server, patience)?;
        Connection::over(stream, patience)
    }

    /// One over a stream that is there already.
    pub fn over(stream: TcpStream, patience: Duration) -> io::Result<Connection> {
        stream.set_read_timeout(Some(patience))?;
        stream.set_nodelay(true)?;
        Ok(Connection(BufReader::new(stream)))
    }

    pub fn local_port(&self) -> u16 {
        self.0.get_ref().local_addr().unwrap().port()
    }

    /// The body of a 200, else an error.
    pub fn get(&mut self, path: &str) -> io::Result<Vec<u8>> {
        let request = format!("GET {path} HTTP/1.1\r\nHost: lab\r\n\r\n");
        self.0.get_mut().write_all(request.as_bytes())?;
        let mut line = String::new();
        self.0.read_line(&mut line)?;
        if !line.starts_with("HTTP/1.1 200 ") {
            return Err(io::Error::other(format!("answered {line:?}")));
        }
        let mut length = 0;
        loop {
            line.clear();
            self.0.read_line(&mut line)?;
            let header = line.trim_end().to_ascii_lowercase();
            if header.is_empty() {
                break;
            }
            if let Some(value) = header.strip_prefix("content-length: ") {
                length = value.parse().map_err(io::Error::other)?;
            }
        }
        let mut body = vec![0; length];
        self.0.read_exact(&mut body)?;
        Ok(body)
    }

    /// Sends a body; the status of what is answered.
    pub fn post(&mut self, body: &[u8]) -> io::Result<String> {
        let bytes = body.len();
        let head = format!("POST /upload HTTP/1.1\r\nHost: lab\r\nContent-Length: {bytes}\r\n\r\n");
        self.0
            .get_mut()
            .write_all(&[head.as_bytes(), body].concat())?;
        let mut line = String::new();
        match self.0.read_line(&mut line)? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(line.trim_end().to_owned()),
        }
    }

    /// Who answers: `http1`.
    pub fn host(&mut self) -> io::Result<String> {
        let body = String::from_utf8(self.get("/")?).map_err(io::Error::other)?;
        let name = body.trim_end().strip_prefix("Hostname: ");
        let name = name.ok_or_else(|| io::Error::other(format!("answered {body:?}")))?;
        Ok(name.to_owned())
    }
}

/// Who answers a request over a connection of its own.
pub fn host(server: &str) -> io::Result<String> {
    Connection::open(server)?.host()
}
