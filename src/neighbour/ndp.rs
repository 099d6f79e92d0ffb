// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! Neighbour solicitations and advertisements (RFC 4861, sections 4.3 and 4.4),
//! as bytes. Pure.

use std::net::Ipv6Addr;

use super::Mac;

/// An IPv6 header, the solicitation, and one option.
pub const LEN: usize = IPV6 + 24 + 8;
/// Where the IPv6 header names the next header.
pub const NEXT_HEADER: usize = 6;
pub const ICMPV6: u8 = 58;
/// Where the ICMPv6 type stands: Linux answers without extension headers.
pub const TYPE: usize = IPV6;
pub const ADVERTISEMENT: u8 = 136;
const IPV6: usize = 40;
const SOLICITATION: u8 = 135;
/// No router has had the packet in its hands.
const HOP_LIMIT: u8 = 255;
/// Flags of an advertisement.
const SOLICITED: u8 = 0x40;
const OVERRIDE: u8 = 0x20;
/// Options: whose Ethernet address they carry. Both are 8 bytes long.
const SOURCE_ADDRESS: u8 = 1;
const TARGET_ADDRESS: u8 = 2;

#[derive(Debug, PartialEq, Eq)]
pub struct Advertisement {
    pub target: Ipv6Addr,
    /// `None`: that of who was asked. Told to those only who asked everyone.
    pub mac: Option<Mac>,
    /// It holds even if another MAC is known: no proxy, no one of several.
    pub overrides: bool,
}

/// The group that listens for who is asked for the target (RFC 4291, section
/// 2.7.1), and the MAC of the group (RFC 2464, section 7).
pub fn group(target: Ipv6Addr) -> (Ipv6Addr, Mac) {
    let [.., a, b, c] = target.octets();
    let low = u128::from_be_bytes([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, a, b, c]);
    let address = Ipv6Addr::from(0xff02_0000_0000_0000_0000_0001_ff00_0000 | low);
    (address, [0x33, 0x33, 0xff, a, b, c])
}

/// `to`: the target itself or its group.
pub fn solicitation(own: Mac, source: Ipv6Addr, to: Ipv6Addr, target: Ipv6Addr) -> [u8; LEN] {
    let mut packet = [0; LEN];
    packet[0] = 6 << 4;
    packet[5] = (LEN - IPV6) as u8;
    packet[NEXT_HEADER] = ICMPV6;
    packet[7] = HOP_LIMIT;
    packet[8..24].copy_from_slice(&source.octets());
    packet[24..40].copy_from_slice(&to.octets());
    packet[TYPE] = SOLICITATION;
    packet[48..64].copy_from_slice(&target.octets());
    packet[64..66].copy_from_slice(&[SOURCE_ADDRESS, 1]);
    packet[66..].copy_from_slice(&own);
    let checksum = checksum(&packet);
    packet[42..44].copy_from_slice(&checksum.to_be_bytes());
    packet
}

/// Over the pseudo-header (RFC 8200, section 8.1) and what follows the IPv6 header.
fn checksum(packet: &[u8; LEN]) -> u16 {
    let words = packet[8..].chunks_exact(2);
    let sum: u32 = words
        .map(|word| u32::from(word[0]) << 8 | u32::from(word[1]))
        .chain([(LEN - IPV6) as u32, ICMPV6.into()])
        .sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !((folded + (folded >> 16)) as u16)
}

/// What the packet says, if it is the answer to a question. The checksum is
/// not looked at: on a veth nobody has taken it yet.
pub fn parse_advertisement(packet: &[u8]) -> Option<Advertisement> {
    let (header, mut options) = packet.split_at_checked(IPV6 + 24)?;
    let target: [u8; 16] = header[48..64].try_into().ok()?;
    let flags = header[44];
    let answers = header[NEXT_HEADER] == ICMPV6
        && header[7] == HOP_LIMIT
        && header[TYPE..TYPE + 2] == [ADVERTISEMENT, 0]
        && flags & SOLICITED != 0;
    let mut mac = None;
    while !options.is_empty() {
        let [kind, eights, rest @ ..] = options else {
            return None;
        };
        if (*kind, *eights) == (TARGET_ADDRESS, 1) {
            mac = rest.first_chunk().copied();
        }
        // One of length 0 makes the whole packet invalid (section 7.1.2).
        options = options.get(usize::from(*eights).checked_mul(8).filter(|len| *len > 0)?..)?;
    }
    (answers && mac.is_none_or(super::is_of_one_host)).then_some(Advertisement {
        target: target.into(),
        mac,
        overrides: flags & OVERRIDE != 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const US: Mac = [2, 0, 0, 0, 0, 1];
    const THEM: Mac = [2, 0, 0, 0, 0, 2];

    fn here() -> Ipv6Addr {
        "fd00::1".parse().unwrap()
    }

    fn there() -> Ipv6Addr {
        "fd00::12:3456".parse().unwrap()
    }

    #[test]
    fn the_group_is_made_of_the_last_three_bytes() {
        let (address, mac) = group(there());
        assert_eq!(address.to_string(), "ff02::1:ff12:3456");
        assert_eq!(mac, [0x33, 0x33, 0xff, 0x12, 0x34, 0x56]);
    }

    #[test]
    fn a_solicitation_is_as_another_stack_makes_it() {
        let (group, _) = group(there());
        let packet = solicitation(US, here(), group, there());
        let mut icmp = packet[IPV6..].to_vec();
        icmp[2..4].fill(0);
        let reference = etherparse::Icmpv6Header::with_checksum(
            etherparse::Icmpv6Type::Unknown {
                type_u8: SOLICITATION,
                code_u8: 0,
                bytes5to8: [0; 4],
            },
            here().octets(),
            group.octets(),
            &icmp[8..],
        )
        .unwrap();
        assert_eq!(packet[40..48], reference.to_bytes()[..]);
        let ip = etherparse::Ipv6HeaderSlice::from_slice(&packet).unwrap();
        assert_eq!(ip.destination_addr(), group);
        assert_eq!((ip.hop_limit(), ip.payload_length()), (255, 32));
    }

    #[test]
    fn only_whole_solicited_advertisements_count() {
        let mut packet = solicitation(THEM, there(), here(), there());
        assert_eq!(parse_advertisement(&packet), None);
        packet[TYPE] = ADVERTISEMENT;
        assert_eq!(parse_advertisement(&packet), None);
        packet[44] = SOLICITED;
        packet[64] = TARGET_ADDRESS;
        let mut expected = Advertisement {
            target: there(),
            mac: Some(THEM),
            overrides: false,
        };
        assert_eq!(parse_advertisement(&packet).as_ref(), Some(&expected));
        packet[44] |= OVERRIDE;
        expected.overrides = true;
        assert_eq!(parse_advertisement(&packet).as_ref(), Some(&expected));

        for cut in [0, 41, 63, 65, 71] {
            assert_eq!(parse_advertisement(&packet[..cut]), None, "{cut} bytes");
        }
        for (place, wrong) in [(7, 254), (41, 1), (65, 0), (66, 1)] {
            let mut packet = packet;
            packet[place] = wrong;
            assert_eq!(parse_advertisement(&packet), None, "byte {place}");
        }
        expected.mac = None;
        assert_eq!(parse_advertisement(&packet[..64]), Some(expected));
    }
}
