// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! Datagrams that do not fit into a frame, and IP headers with options.

use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::time::Duration;

use etherparse::{IpFragOffset, IpNumber, Ipv6FragmentHeader};
use nix::libc;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, connect, socket};

use xdp_proxy::service::Protocol;

use crate::common::echo::{Echo, make_room};
use crate::common::frame::{ETHERNET_BYTES, Frame, Network, Sum};
use crate::common::http::Connection;
use crate::common::lab::{HOSTS, Lab, TWO, sum};
use crate::common::random::Random;
use crate::common::wire::{Wire, mac};

const VIPS: [&str; 2] = ["10.0.0.5:7", "[fd00::5]:7"];
const ECHO: &str = "
[[service]]
listen = '10.0.0.5:7/udp'
backend = [{ address = '10.0.0.2' }]
[[service]]
listen = '[fd00::5]:7/udp'
backend = [{ address = 'fd00::2' }]
";
const CLIENTS: [&str; 2] = ["client", "client2"];
const PATIENCE: Duration = Duration::from_secs(5);

/// A second client, and the echo in both families.
fn set_up(lab: &Lab) -> [Echo; 2] {
    lab.script("ADDRESS[client2]=10.0.0.9; add_host client2");
    ["10.0.0.2:7", "[fd00::2]:7"].map(|address| Echo::start(lab, "http1", address))
}

fn client_socket(lab: &Lab, host: &str, vip: SocketAddr) -> UdpSocket {
    let any = if vip.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = lab.within(host, || UdpSocket::bind(any).unwrap());
    make_room(&socket);
    socket.connect(vip).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

#[track_caller]
fn echoes(socket: &UdpSocket, sent: &[u8]) {
    let mut buffer = vec![0; 65_536];
    let length = socket.recv(&mut buffer).unwrap();
    assert!(
        buffer[..length] == *sent,
        "{} bytes became {length}",
        sent.len()
    );
}

fn echoes_datagrams(lab: &Lab, mode: &str) {
    let _servers = set_up(lab);
    let config = lab.write("echo.toml", ECHO);
    let lb = lab.balance(&format!("--mode {mode} -c {config}"));
    let talk = |host: &str, seed: u64| {
        for vip in VIPS {
            let mut random = Random(seed);
            let socket = client_socket(lab, host, vip.parse().unwrap());
            for bytes in [4_000, 60_000].into_iter().cycle().take(40) {
                let sent = random.bytes(bytes);
                socket.send(&sent).unwrap();
                echoes(&socket, &sent);
            }
        }
    };
    std::thread::scope(|scope| {
        for (host, seed) in CLIENTS.into_iter().zip(1..) {
            scope.spawn(move || talk(host, seed));
        }
    });
    let status = lab.status();
    assert_eq!(sum(&status["packets"]["dropped"]), 0, "{status:#}");
    lab.checksums_were_right(&HOSTS);
    lb.end();
}

#[test]
fn datagrams_in_fragments_are_echoed_to_two_clients_at_once() {
    if let Some(lab) = crate::lab("datagrams_in_fragments_are_echoed_to_two_clients_at_once") {
        echoes_datagrams(&lab, "generic");
    }
}

#[test]
fn datagrams_in_fragments_are_echoed_in_native_mode() {
    if let Some(lab) = crate::lab("datagrams_in_fragments_are_echoed_in_native_mode") {
        lab.script("native");
        echoes_datagrams(&lab, "native");
    }
}

/// The datagram in pieces for frames of 1,500 bytes. All datagrams have the same
/// identification.
fn fragments_of(frame: &Frame) -> Vec<Vec<u8>> {
    const PIECE: usize = 1448;
    let bytes = frame.bytes(Sum::Complete);
    let (link, datagram) = (&bytes[..ETHERNET_BYTES], &bytes[frame.transport_at()..]);
    let count = datagram.len().div_ceil(PIECE);
    let fragment = |(number, piece): (usize, &[u8])| {
        let offset = IpFragOffset::try_new((number * PIECE / 8) as u16).unwrap();
        let more = number + 1 < count;
        let header = match &frame.network {
            Network::V4(ip) => {
                let mut ip = ip.clone();
                ip.protocol = IpNumber::UDP;
                ip.dont_fragment = false;
                ip.more_fragments = more;
                ip.fragment_offset = offset;
                ip.set_payload_len(piece.len()).unwrap();
                ip.header_checksum = ip.calc_header_checksum();
                ip.to_bytes().to_vec()
            }
            Network::V6(ip, _) => {
                let mut ip = ip.clone();
                let fragment = Ipv6FragmentHeader::new(IpNumber::UDP, offset, more, 0x1d1d);
                ip.next_header = IpNumber::IPV6_FRAGMENTATION_HEADER;
                ip.set_payload_length(8 + piece.len()).unwrap();
                [&ip.to_bytes()[..], &fragment.to_bytes()].concat()
            }
        };
        [link, &header, piece].concat()
    };
    datagram.chunks(PIECE).enumerate().map(fragment).collect()
}

#[test]
fn clients_that_chose_the_same_identification_do_not_meet() {
    let Some(lab) = crate::lab("clients_that_chose_the_same_identification_do_not_meet") else {
        return;
    };
    let _servers = set_up(&lab);
    let config = lab.write("echo.toml", ECHO);
    let lb = lab.balance(&format!("-c {config}"));
    let to = mac(&lab, "lb");
    let wires = CLIENTS.map(|host| lab.within(host, Wire::open));
    let macs = CLIENTS.map(|host| mac(&lab, host));
    let mut random = Random(7);
    for vip in VIPS.map(|vip| vip.parse().unwrap()) {
        let sockets = CLIENTS.map(|host| client_socket(&lab, host, vip));
        // A datagram by the stack, so that every neighbour is known.
        for socket in &sockets {
            socket.send(b"hello").unwrap();
            echoes(socket, b"hello");
        }
        for bytes in [4_000, 60_000].into_iter().cycle().take(20) {
            let frames = [0, 1].map(|client| {
                let from: SocketAddr = sockets[client].local_addr().unwrap();
                let mut frame = Frame::new(Protocol::Udp, (macs[client], to), from, vip);
                frame.payload = random.bytes(bytes);
                frame
            });
            let pieces = frames.each_ref().map(fragments_of);
            for (first, second) in pieces[0].iter().zip(&pieces[1]) {
                wires[0].send(&[first]);
                wires[1].send(&[second]);
            }
            for (socket, frame) in sockets.iter().zip(&frames) {
                echoes(socket, &frame.payload);
            }
        }
    }
    lab.checksums_were_right(&HOSTS);
    lb.end();
}

/// A connection whose packets have these options of IPv4 (RFC 791, section 3.1).
fn open_with_options(options: &[u8]) -> Connection {
    let (family, kind) = (AddressFamily::Inet, SockType::Stream);
    let socket = socket(family, kind, SockFlag::SOCK_CLOEXEC, None).unwrap();
    // SAFETY: `options` is a buffer of the length given, which the kernel copies.
    let set = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IP,
            libc::IP_OPTIONS,
            options.as_ptr().cast(),
            options.len() as u32,
        )
    };
    assert_eq!(set, 0, "{}", std::io::Error::last_os_error());
    connect(socket.as_raw_fd(), &SockaddrIn::new(10, 0, 0, 5, 80)).unwrap();
    Connection::over(TcpStream::from(socket), PATIENCE).unwrap()
}

fn carries_options(lab: &Lab, mode: &str) {
    let lb = lab.balance(&format!("--mode {mode} {TWO}"));
    let opening = "tcp dst port 80 and tcp[tcpflags] & tcp-syn != 0";
    let captures = ["http1", "http2"].map(|host| lab.capture(host, opening));
    lab.within("client", || {
        let record_route = [&[7, 39, 4], &[0; 36][..], &[0]].concat();
        for options in [&[1; 4], &record_route[..]] {
            for _ in 0..10 {
                let mut connection = open_with_options(options);
                assert_eq!(connection.get("/1m").unwrap().len(), 1 << 20);
            }
        }
    });
    let seen = captures.map(|capture| capture.end()).concat();
    assert!(
        seen.contains("options (NOP") && seen.contains("options (RR"),
        "{seen}"
    );
    lab.checksums_were_right(&HOSTS);
    lb.end();
}

#[test]
fn options_of_ipv4_are_carried() {
    if let Some(lab) = crate::lab("options_of_ipv4_are_carried") {
        carries_options(&lab, "generic");
    }
}

#[test]
fn options_of_ipv4_are_carried_in_native_mode() {
    if let Some(lab) = crate::lab("options_of_ipv4_are_carried_in_native_mode") {
        lab.script("native");
        carries_options(&lab, "native");
    }
}
