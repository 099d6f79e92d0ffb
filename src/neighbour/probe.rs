// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! Questions to next hops, and their answers, through packet sockets: ARP for
//! IPv4, neighbour solicitations for IPv6.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::libc::{self, BPF_ABS, BPF_B, BPF_JEQ, BPF_JMP, BPF_K, BPF_LD, BPF_RET, sock_filter};
use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, SockFlag, SockType, SockaddrLike, bind, recvfrom, sendto,
    socket,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::{Mac, arp, ndp};

/// More than an answer is long.
const ANSWER_MAX: usize = 256;

/// What a next hop told.
pub struct Answer {
    /// The index of the device that it came in by.
    pub device: u32,
    pub address: IpAddr,
    /// `None`: that of who was asked.
    pub mac: Option<Mac>,
    /// It holds even if another MAC is known.
    pub overrides: bool,
}

/// Asks, and hears answers, on every device of the network namespace.
pub struct Prober {
    arp: Packets,
    ndp: Packets,
}

impl Prober {
    /// Fails without CAP_NET_RAW in the user namespace that owns the network namespace.
    pub fn open() -> io::Result<Prober> {
        let of_type = (ndp::TYPE, ndp::ADVERTISEMENT);
        Ok(Prober {
            arp: Packets::open(libc::ETH_P_ARP, &[(arp::OPERATION, arp::REPLY)])?,
            ndp: Packets::open(
                libc::ETH_P_IPV6,
                &[(ndp::NEXT_HEADER, ndp::ICMPV6), of_type],
            )?,
        })
    }

    /// Asks on a device who has `target`; `at` is the one to be asked, `None`:
    /// everyone. The packet may be lost, as any.
    pub fn ask(
        &self,
        device: u32,
        own: Mac,
        source: IpAddr,
        target: IpAddr,
        at: Option<Mac>,
    ) -> io::Result<()> {
        match (source, target) {
            (IpAddr::V4(source), IpAddr::V4(target)) => {
                let packet = arp::request(own, source, target);
                self.arp.send(device, at.unwrap_or(arp::EVERYONE), &packet)
            }
            (IpAddr::V6(source), IpAddr::V6(target)) => {
                let (group, group_mac) = ndp::group(target);
                let (to, mac) = at.map_or((group, group_mac), |mac| (target, mac));
                let packet = ndp::solicitation(own, source, to, target);
                self.ndp.send(device, mac, &packet)
            }
            _ => Err(io::ErrorKind::InvalidInput.into()),
        }
    }

    /// Waits for the next answer to `own`. Cancel-safe.
    pub async fn answer(&self, own: Mac) -> Answer {
        let arp = self.arp.receive(|device, packet| {
            let (address, mac) = arp::parse_reply(packet, own)?;
            Some(Answer {
                device,
                address: address.into(),
                mac: Some(mac),
                overrides: true,
            })
        });
        let ndp = self.ndp.receive(|device, packet| {
            let advertisement = ndp::parse_advertisement(packet)?;
            Some(Answer {
                device,
                address: advertisement.target.into(),
                mac: advertisement.mac,
                overrides: advertisement.overrides,
            })
        });
        tokio::select! {
            answer = arp => answer,
            answer = ndp => answer,
        }
    }
}

/// A socket for packets of one protocol, without their Ethernet header.
struct Packets {
    socket: AsyncFd<OwnedFd>,
    protocol: u16,
}

impl Packets {
    /// Receives, of packets that come to this host, those that have these
    /// bytes in these places.
    fn open(protocol: i32, bytes: &[(usize, u8)]) -> io::Result<Packets> {
        // Without a protocol the socket receives nothing before it is bound.
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let socket = socket(AddressFamily::Packet, SockType::Datagram, flags, None)?;
        attach_filter(&socket, bytes)?;
        let protocol = protocol as u16;
        bind(socket.as_raw_fd(), &link_address(protocol, 0, [0; 6])?)?;
        // SAFETY: the socket is an OwnedFd: open, and the same descriptor until it is dropped.
        let socket = unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) }?;
        Ok(Packets { socket, protocol })
    }

    fn send(&self, device: u32, mac: Mac, packet: &[u8]) -> io::Result<()> {
        let to = link_address(self.protocol, device, mac)?;
        sendto(self.socket.as_raw_fd(), packet, &to, MsgFlags::empty())?;
        Ok(())
    }

    /// Waits for the next packet that `parse` makes an answer of.
    async fn receive(&self, parse: impl Fn(u32, &[u8]) -> Option<Answer>) -> Answer {
        loop {
            let mut packet = [0; ANSWER_MAX];
            let received = self
                .socket
                .async_io(Interest::READABLE, |fd| {
                    Ok(recvfrom::<LinkAddr>(fd.as_raw_fd(), &mut packet)?)
                })
                .await;
            if let Ok((len, Some(from))) = received
                && from.pkttype() != libc::PACKET_OTHERHOST
                && let Some(answer) = parse(from.ifindex() as u32, &packet[..len])
            {
                return answer;
            }
        }
    }
}

/// Has the kernel drop what lacks one of the bytes, so that it wakes nobody.
fn attach_filter(socket: &OwnedFd, bytes: &[(usize, u8)]) -> io::Result<()> {
    const ALL: u32 = u32::MAX;
    let instruction = |code: u32, jf: u8, k: u32| sock_filter {
        code: code as u16,
        jt: 0,
        jf,
        k,
    };
    let mut program = Vec::new();
    for (left, (place, value)) in (1..=bytes.len()).rev().zip(bytes) {
        let to_the_end = 2 * left as u8 - 1;
        program.push(instruction(BPF_LD | BPF_B | BPF_ABS, 0, *place as u32));
        program.push(instruction(
            BPF_JMP | BPF_JEQ | BPF_K,
            to_the_end,
            (*value).into(),
        ));
    }
    program.push(instruction(BPF_RET | BPF_K, 0, ALL));
    program.push(instruction(BPF_RET | BPF_K, 0, 0));
    let program = libc::sock_fprog {
        len: program.len() as u16,
        filter: program.as_mut_ptr(),
    };
    // SAFETY: the option's value is a sock_fprog, whose instructions live across
    // the call; the kernel copies both.
    let error = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const program).cast(),
            size_of_val(&program) as u32,
        )
    };
    nix::errno::Errno::result(error)?;
    Ok(())
}

/// Where packets for `mac` go: the device, the protocol, the MAC. Device 0: any.
fn link_address(protocol: u16, device: u32, mac: Mac) -> io::Result<LinkAddr> {
    let mut sll_addr = [0; 8];
    sll_addr[..6].copy_from_slice(&mac);
    let raw = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: protocol.to_be(),
        sll_ifindex: device as i32,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 6,
        sll_addr,
    };
    // SAFETY: `raw` is a complete sockaddr_ll of the length given, and is copied.
    unsafe { LinkAddr::from_raw((&raw const raw).cast(), Some(size_of_val(&raw) as u32)) }
        .ok_or_else(|| io::ErrorKind::InvalidInput.into())
}
