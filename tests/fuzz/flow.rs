// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! What is known of a flow, and of a datagram in fragments.

use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use crate::wire;

/// What names a flow at the client's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tuple {
    pub protocol: u8,
    pub client: SocketAddr,
    pub service: SocketAddr,
}

/// VLAN tags as they lie in a frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tags {
    words: [[u8; 4]; wire::TAGS_MAX],
    count: usize,
}

impl Tags {
    pub fn of(frame: &[u8], l3: usize) -> Tags {
        let mut tags = Tags::default();
        for word in frame[12..l3 - 2].chunks_exact(4) {
            tags.words[tags.count] = word.try_into().expect("4 bytes");
            tags.count += 1;
        }
        tags
    }

    /// As replies carry them: without the bit that has frames dropped before others, nor
    /// what says nothing.
    pub fn replied(frame: &[u8], l3: usize) -> Tags {
        let mut tags = Tags::default();
        for word in frame[12..l3 - 2].chunks_exact(4) {
            let word = [word[0], word[1], word[2] & 0xef, word[3]];
            if word != [0x81, 0, 0, 0] {
                tags.words[tags.count] = word;
                tags.count += 1;
            }
        }
        tags
    }

    /// As the maps hold them.
    pub fn of_words(words: [u32; wire::TAGS_MAX]) -> Tags {
        let count = words.iter().filter(|word| **word != 0).count();
        let words = words.map(u32::to_ne_bytes);
        Tags { words, count }
    }

    pub fn bytes(&self) -> &[u8] {
        self.words[..self.count].as_flattened()
    }
}

/// What the fragments of one datagram have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FragmentKey {
    from: IpAddr,
    to: IpAddr,
    id: u32,
    protocol: u8,
}

impl FragmentKey {
    pub fn of(packet: &wire::Packet) -> FragmentKey {
        FragmentKey {
            from: packet.from,
            to: packet.to,
            id: packet.id,
            protocol: if packet.v6 { 0 } else { packet.protocol },
        }
    }
}

/// What became of the first fragment.
#[derive(Clone, Copy, Debug)]
pub enum Decision {
    Passed,
    /// It came from this end of the flow with this number in this place, and
    /// left with that identification.
    Sent(usize, u64, End, u32),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Client,
    Backend,
}

#[derive(Clone, Debug)]
pub struct Flow {
    pub tuple: Tuple,
    pub backend: usize,
    pub source: SocketAddr,
    pub mac: [u8; 6],
    pub tags: Tags,
    pub answered: bool,
    /// By an ACK alone, which is of an earlier connection from its port.
    pub answered_other: bool,
    /// The backend has sent data before its client confirmed.
    pub early: bool,
    pub established: bool,
    /// Who has sent FIN, and acknowledged the other's; who has reset.
    pub finished: [bool; 2],
    pub acknowledged: [bool; 2],
    pub reset: [bool; 2],
    /// TCP: the numbers after what each end is known to have sent.
    pub next: [u32; 2],
    /// In half hours, and by the clock.
    pub begun: (u32, Instant),
    /// Whose checksums were to be completed when that was last clear.
    pub partial: [bool; 2],
    pub retired: bool,
    /// When it was last kept alive, in half hours.
    pub seen: u32,
    /// Flows are numbered as they begin.
    pub number: u64,
    /// What its record carries as long as it is its.
    pub hash: u32,
}
