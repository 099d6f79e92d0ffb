// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! ARP requests and replies (RFC 826), as bytes. Pure.

use std::net::Ipv4Addr;

use super::Mac;

/// An ARP packet for IPv4 over Ethernet.
pub const LEN: usize = 28;
pub const EVERYONE: Mac = [0xff; 6];
/// Where the operation's lower byte stands.
pub const OPERATION: usize = 7;
pub const REPLY: u8 = 2;
const REQUEST: u8 = 1;
/// Ethernet (1), IPv4 (0x0800), addresses of 6 and 4 bytes.
const PREFIX: [u8; 7] = [0, 1, 8, 0, 6, 4, 0];

pub fn request(own: Mac, source: Ipv4Addr, target: Ipv4Addr) -> [u8; LEN] {
    let mut packet = [0; LEN];
    packet[..7].copy_from_slice(&PREFIX);
    packet[OPERATION] = REQUEST;
    packet[8..14].copy_from_slice(&own);
    packet[14..18].copy_from_slice(&source.octets());
    packet[24..].copy_from_slice(&target.octets());
    packet
}

/// Who answers, if the packet is a reply to `own` from one host's MAC.
pub fn parse_reply(packet: &[u8], own: Mac) -> Option<(Ipv4Addr, Mac)> {
    let packet: &[u8; LEN] = packet.first_chunk()?;
    let mac: Mac = packet[8..14].try_into().ok()?;
    let address: [u8; 4] = packet[14..18].try_into().ok()?;
    let to_us = packet[..7] == PREFIX && packet[OPERATION] == REPLY && packet[18..24] == own;
    (to_us && super::is_of_one_host(mac)).then_some((address.into(), mac))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_replies_to_us_count() {
        let (us, them) = ([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
        let (here, there) = (Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 2));
        let mut packet = request(them, there, here);
        assert_eq!(parse_reply(&packet, us), None);
        packet[OPERATION] = REPLY;
        assert_eq!(parse_reply(&packet, us), None);
        packet[18..24].copy_from_slice(&us);
        assert_eq!(parse_reply(&packet, us), Some((there, them)));
        assert_eq!(parse_reply(&packet[..LEN - 1], us), None);
        packet[8..14].copy_from_slice(&EVERYONE);
        assert_eq!(parse_reply(&packet, us), None);
    }
}
