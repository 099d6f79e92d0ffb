// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! ARP requests and replies (RFC 826) on one interface, through a packet socket.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::libc;
use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, SockFlag, SockType, SockaddrLike, bind, recv, sendto, socket,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::Mac;

/// An ARP packet for IPv4 over Ethernet.
const LEN: usize = 28;
/// Ethernet (1), IPv4 (0x0800), addresses of 6 and 4 bytes.
const PREFIX: [u8; 6] = [0, 1, 8, 0, 6, 4];
const REQUEST: [u8; 2] = [0, 1];
const REPLY: [u8; 2] = [0, 2];
const EVERYONE: Mac = [0xff; 6];

/// A socket that sends and receives ARP on one interface, and nothing else.
pub struct Arp {
    socket: AsyncFd<OwnedFd>,
    interface: u32,
}

impl Arp {
    /// Fails without CAP_NET_RAW in the user namespace that owns the network namespace.
    pub fn open(interface: u32) -> io::Result<Arp> {
        // Without a protocol the socket receives nothing before it is bound.
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let socket = socket(AddressFamily::Packet, SockType::Datagram, flags, None)?;
        bind(socket.as_raw_fd(), &link_address(interface, [0; 6])?)?;
        // SAFETY: the socket is an OwnedFd: open, and the same descriptor until it is dropped.
        let socket = unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) }?;
        Ok(Arp { socket, interface })
    }

    /// Asks who has `target`; `at` is the one to be asked, `None`: everyone.
    /// The packet may be lost, as any.
    pub fn ask(
        &self,
        own: Mac,
        source: Ipv4Addr,
        target: Ipv4Addr,
        at: Option<Mac>,
    ) -> io::Result<()> {
        let packet = request(own, source, target);
        let to = link_address(self.interface, at.unwrap_or(EVERYONE))?;
        sendto(self.socket.as_raw_fd(), &packet, &to, MsgFlags::empty())?;
        Ok(())
    }

    /// Waits for the next reply to `own`: who answered, and from which MAC.
    pub async fn answer(&self, own: Mac) -> (Ipv4Addr, Mac) {
        loop {
            let mut packet = [0; LEN];
            let received = self
                .socket
                .async_io(Interest::READABLE, |fd| {
                    Ok(recv(fd.as_raw_fd(), &mut packet, MsgFlags::empty())?)
                })
                .await;
            // An error says that the interface went down, once; netlink says it too.
            if received.is_ok_and(|len| len == LEN)
                && let Some(answer) = parse_reply(&packet, own)
            {
                return answer;
            }
        }
    }
}

fn request(own: Mac, source: Ipv4Addr, target: Ipv4Addr) -> [u8; LEN] {
    let mut packet = [0; LEN];
    packet[..6].copy_from_slice(&PREFIX);
    packet[6..8].copy_from_slice(&REQUEST);
    packet[8..14].copy_from_slice(&own);
    packet[14..18].copy_from_slice(&source.octets());
    packet[24..].copy_from_slice(&target.octets());
    packet
}

/// Who answers, if the packet is a reply to `own` from one host's MAC.
fn parse_reply(packet: &[u8; LEN], own: Mac) -> Option<(Ipv4Addr, Mac)> {
    let mac: Mac = packet[8..14].try_into().ok()?;
    let address: [u8; 4] = packet[14..18].try_into().ok()?;
    let unicast = mac[0] & 1 == 0 && mac != [0; 6];
    let to_us = packet[..6] == PREFIX && packet[6..8] == REPLY && packet[18..24] == own;
    (to_us && unicast).then_some((address.into(), mac))
}

/// Where ARP packets for `mac` go: the interface, the protocol, the MAC.
fn link_address(interface: u32, mac: Mac) -> io::Result<LinkAddr> {
    let mut sll_addr = [0; 8];
    sll_addr[..6].copy_from_slice(&mac);
    let raw = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: (libc::ETH_P_ARP as u16).to_be(),
        sll_ifindex: interface as i32,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 6,
        sll_addr,
    };
    // SAFETY: `raw` is a complete sockaddr_ll of the length given, and is copied.
    unsafe { LinkAddr::from_raw((&raw const raw).cast(), Some(size_of_val(&raw) as u32)) }
        .ok_or_else(|| io::ErrorKind::InvalidInput.into())
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
        packet[6..8].copy_from_slice(&REPLY);
        assert_eq!(parse_reply(&packet, us), None);
        packet[18..24].copy_from_slice(&us);
        assert_eq!(parse_reply(&packet, us), Some((there, them)));
        packet[8..14].copy_from_slice(&EVERYONE);
        assert_eq!(parse_reply(&packet, us), None);
    }
}
