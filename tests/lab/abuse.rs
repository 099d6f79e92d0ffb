// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! What nobody should send, in numbers, and changes under the load balancer's feet:
//! those who behave do not notice.

use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use etherparse::{IpFragOffset, IpNumber, Ipv4Header};
use xdp_proxy::service::Protocol;

use crate::common::beside;
use crate::common::books::adds_up;
use crate::common::echo::{Echo, make_room};
use crate::common::frame::{ETHERNET_BYTES, Frame, Sum};
use crate::common::http::Connection;
use crate::common::lab::{HOSTS, LB, TWO};
use crate::common::load::{self, originals};
use crate::common::random::Random;
use crate::common::wire::{Wire, mac};

const JUNK: usize = 300_000;
/// Frames of one system call.
const BATCH: usize = 100;
const SERVICES: &str = "
[[service]]
listen = '10.0.0.5:80'
backend = [{ address = '10.0.0.2' }]
[[service]]
listen = '10.0.0.5:7/udp'
backend = [{ address = '10.0.0.2' }]
";

/// Makes packets to the VIP that fit together with nothing.
struct Junk {
    random: Random,
    macs: ([u8; 6], [u8; 6]),
    /// The VIP's end of a real connection, and the client's.
    real: (SocketAddr, SocketAddr),
}

impl Junk {
    fn packet(&mut self, protocol: IpNumber, payload: &[u8]) -> (Ipv4Header, Vec<u8>) {
        let from = [10, 0, 0, self.random.below(256) as u8];
        let length = payload.len() as u16;
        let mut ip = Ipv4Header::new(length, 64, protocol, from, [10, 0, 0, 5]).unwrap();
        ip.identification = self.random.word() as u16;
        (ip, payload.to_vec())
    }

    /// The first eight bytes or a later piece, never a whole.
    fn fragment(&mut self) -> (Ipv4Header, Vec<u8>) {
        let (protocol, port) = match self.random.once_in(2) {
            true => (IpNumber::TCP, 80),
            false => (IpNumber::UDP, 7),
        };
        let length = 8 * (1 + self.random.below(180));
        let mut payload = self.random.bytes(length);
        payload[2..4].copy_from_slice(&[0, port]);
        if self.random.once_in(2) {
            payload.truncate(8);
        }
        let (mut ip, payload) = self.packet(protocol, &payload);
        ip.more_fragments = !self.random.once_in(8);
        let offset = if self.random.once_in(2) {
            0
        } else {
            self.random.below(8000)
        };
        ip.fragment_offset = IpFragOffset::try_new(offset as u16).unwrap();
        (ip, payload)
    }

    /// An error about a segment that the VIP sent: of a real flow or of none.
    fn error(&mut self) -> (Ipv4Header, Vec<u8>) {
        let (vip, client) = self.real;
        let mut quoted = Frame::new(Protocol::Tcp, self.macs, vip, client);
        if !self.random.once_in(4) {
            let port = self.random.word() as u16;
            quoted.set_ends(vip, SocketAddr::new(client.ip(), port));
        }
        // Not in its window: its ends must not believe it.
        quoted.tcp().sequence_number = self.random.word() as u32;
        let mut quoted = quoted.bytes(Sum::Complete).split_off(ETHERNET_BYTES);
        quoted.truncate(8 + self.random.below(quoted.len()));
        let kind = [3, 11, 12, 5][self.random.below(4)];
        let code = self.random.below(16) as u8;
        let mut payload = [&[kind, code, 0, 0, 0, 0, 2, 0], &quoted[..]].concat();
        let sum = etherparse::checksum::Sum16BitWords::new().add_slice(&payload);
        payload[2..4].copy_from_slice(&sum.ones_complement().to_ne_bytes());
        self.packet(IpNumber::ICMP, &payload)
    }

    fn frame(&mut self) -> Vec<u8> {
        let (mut ip, payload) = match self.random.once_in(2) {
            true => self.fragment(),
            false => self.error(),
        };
        ip.header_checksum = ip.calc_header_checksum();
        let (from, to) = self.macs;
        [&to[..], &from, &[8, 0], &ip.to_bytes(), &payload].concat()
    }
}

#[test]
fn junk_disturbs_nobody() {
    let Some(lab) = crate::lab_alone("junk_disturbs_nobody") else {
        return;
    };
    lab.script("ADDRESS[mallory]=10.0.0.66; add_host mallory");
    let _server = Echo::start(&lab, "http1", "10.0.0.2:7");
    let config = lab.write("abuse.toml", SERVICES);
    let lb = lab.balance(&format!("-c {config}"));
    let of_http1 = &originals(&lab)[..1];
    let (mut connection, socket) = lab.within("client", || {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.connect("10.0.0.5:7").unwrap();
        (Connection::open(LB).unwrap(), socket)
    });
    make_room(&socket);
    socket
        .set_read_timeout(Some(Duration::from_secs(1)))
        .unwrap();
    let client: SocketAddr = ([10, 0, 0, 4], connection.local_port()).into();
    let mut junk = Junk {
        random: Random(5),
        macs: (mac(&lab, "mallory"), mac(&lab, "lb")),
        real: ("10.0.0.5:80".parse().unwrap(), client),
    };
    let wire = lab.within("mallory", Wire::open);
    let download = |over: &AtomicBool| load::download(&mut connection, of_http1, over);
    let echo = |over: &AtomicBool| {
        let (mut random, mut buffer) = (Random(6), vec![0; 65_536]);
        let (mut echoes, mut lost) = (0, 0);
        while !over.load(Ordering::Relaxed) {
            let sent = random.bytes(8000);
            socket.send(&sent).unwrap();
            match socket.recv(&mut buffer) {
                Ok(length) => {
                    assert!(buffer[..length] == sent, "a datagram is damaged");
                    echoes += 1;
                }
                Err(_) => lost += 1,
            }
        }
        (echoes, lost)
    };
    let send_junk = || {
        for _ in 0..JUNK / BATCH {
            let frames: Vec<_> = (0..BATCH).map(|_| junk.frame()).collect();
            wire.send(&frames);
        }
    };
    let (downloads, ((echoes, lost), ())) = beside(download, || beside(echo, send_junk));
    println!(
        "beside {JUNK} packets of junk {downloads} downloads of 1 MB, {echoes} datagrams of 8 KB, \
         {lost} lost"
    );
    // A backend forgets fragments that come between too many others' (`ipfrag_max_dist`).
    assert!(downloads > 0 && echoes > lost);
    let status = lab.status();
    println!("{:#}", status["packets"]);
    adds_up(&status);
    assert!(connection.get("/1m").unwrap() == of_http1[0]);
    lab.checksums_were_right(&["client", "lb"]);
    lb.end();
}

#[test]
fn a_download_outlives_changes_of_the_load_balancers_link() {
    let test = "a_download_outlives_changes_of_the_load_balancers_link";
    // Until the daemon has told the program a new MAC, the host gets what comes to it, and
    // resets the connection.
    let Some(lab) = crate::lab_alone(test) else {
        return;
    };
    let lb = lab.balance(TWO);
    let files = originals(&lab);
    let download = |over: &AtomicBool| {
        let mut connection = lab.within("client", || Connection::open(LB).unwrap());
        load::download(&mut connection, &files, over)
    };
    let (downloads, ()) = beside(download, || {
        let pause = || std::thread::sleep(Duration::from_millis(500));
        pause();
        for change in [
            "down",
            "up",
            "address 02:00:00:00:04:01",
            "mtu 9000",
            "mtu 1500",
            "mtu 1400",
        ] {
            lab.at("lb", &format!("ip link set eth0 {change}"));
            pause();
        }
        lab.at("lb", "ip link set eth0 mtu 1500");
        pause();
    });
    println!("{downloads} downloads of 1 MB while the link changed");
    assert!(downloads > 10);
    lb.until("up", |status| {
        let backends = status["services"][0]["backends"].as_array().unwrap();
        backends.iter().all(|backend| backend["state"] == "up")
    });
    lab.checksums_were_right(&HOSTS);
    lb.end();
}
