// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! A client of DNS over UDP (RFC 1035), each question from a socket of its own.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(5);
const HEADER_BYTES: usize = 12;
/// The longest answer that the question allows (EDNS, RFC 6891).
const ANSWER_BYTES_MAX: u16 = 4096;

#[derive(Clone, Copy)]
enum Kind {
    A = 1,
    Txt = 16,
}

/// The addresses of a name.
pub fn addresses(server: SocketAddr, name: &str) -> io::Result<Vec<Ipv4Addr>> {
    let answers = ask(server, &question(name, Kind::A, 0), Kind::A)?;
    let address = |data: Vec<u8>| <[u8; 4]>::try_from(data).map(Ipv4Addr::from);
    let addresses = answers.into_iter().map(address);
    addresses
        .collect::<Result<_, _>>()
        .map_err(|data| io::Error::other(format!("an address of {data:?}")))
}

/// The texts of a name, each with its length before it; the question is padded with
/// so many bytes (RFC 7830).
pub fn texts(server: SocketAddr, name: &str, padding: u16) -> io::Result<Vec<Vec<u8>>> {
    ask(server, &question(name, Kind::Txt, padding), Kind::Txt)
}

fn question(name: &str, kind: Kind, padding: u16) -> Vec<u8> {
    // One question and one additional record, EDNS; no recursion.
    let mut question = vec![0x4d, 0x2a, 0, 0, 0, 1, 0, 0, 0, 0, 0, 1];
    for label in name.split('.') {
        question.push(label.len() as u8);
        question.extend(label.as_bytes());
    }
    question.extend([0, 0, kind as u8, 0, 1, 0, 0, 41]);
    question.extend(ANSWER_BYTES_MAX.to_be_bytes());
    question.extend([0; 4]);
    question.extend((4 + padding).to_be_bytes());
    question.extend([0, 12]);
    question.extend(padding.to_be_bytes());
    question.resize(question.len() + usize::from(padding), 0);
    question
}

/// What the records of the answer hold.
fn ask(server: SocketAddr, question: &[u8], kind: Kind) -> io::Result<Vec<Vec<u8>>> {
    let any = if server.is_ipv4() {
        "0.0.0.0:0"
    } else {
        "[::]:0"
    };
    let socket = UdpSocket::bind(any)?;
    socket.connect(server)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.send(question)?;
    let mut answer = vec![0; usize::from(ANSWER_BYTES_MAX)];
    let length = socket.recv(&mut answer)?;
    answer.truncate(length);
    records(question, &answer, kind)
        .ok_or_else(|| io::Error::other(format!("answered {answer:02x?}")))
}

fn records(question: &[u8], answer: &[u8], kind: Kind) -> Option<Vec<Vec<u8>>> {
    let word = |at: usize| Some(u16::from_be_bytes([*answer.get(at)?, *answer.get(at + 1)?]));
    let name_bytes = question[HEADER_BYTES..]
        .iter()
        .position(|byte| *byte == 0)?
        + 1;
    let mut at = HEADER_BYTES + name_bytes + 4;
    // An answer, not cut, without an error, to this very question.
    let flags = word(2)?;
    if word(0)? != 0x4d2a
        || flags & 0x820f != 0x8000
        || answer[HEADER_BYTES..at] != question[HEADER_BYTES..at]
    {
        return None;
    }
    let mut records = Vec::new();
    for _ in 0..word(6)? {
        // The name is a pointer to the question's.
        if word(at)? != 0xc00c || word(at + 2)? != kind as u16 {
            return None;
        }
        let end = at + 12 + usize::from(word(at + 10)?);
        records.push(answer.get(at + 12..end)?.to_vec());
        at = end;
    }
    Some(records)
}
