// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! Real servers of UDP behind the load balancer: DNS, and iperf3.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::UdpGsoSegment;
use serde_json::Value;

use crate::common::dns;
use crate::common::echo::Echo;
use crate::common::lab::{HOSTS, Lab};
use crate::common::random::Random;

const PATIENCE: Duration = Duration::from_secs(3);
const QUESTIONS: u16 = 1000;
/// Of the share of a backend: four standard deviations at 1,000 questions are 0.063.
const TOLERANCE: f64 = 0.1;
const TEXTS: usize = 15;
/// Makes a question longer than the MTU.
const PADDING: u16 = 2000;
const DNS: &str = "
[[service]]
listen = '10.0.0.5:53/udp'
backend = [{ address = '10.0.0.2' }, { address = '10.0.0.3' }]
[[service]]
listen = '[fd00::5]:53/udp'
backend = [{ address = 'fd00::2' }, { address = 'fd00::3' }]
";

/// Native mode wants a program on the peer.
fn mode(lab: &Lab, native: bool) -> &'static str {
    if native {
        lab.script("native");
        "native"
    } else {
        "generic"
    }
}

fn address_of(number: u16) -> Ipv4Addr {
    let [high, low] = number.to_be_bytes();
    Ipv4Addr::new(192, 0, 2 + high, low)
}

fn text_of(number: usize) -> String {
    format!("{number:0250}")
}

/// The same names on both backends: n0.lab and so on have an address each, and
/// big.lab nearly 4 KB of text.
pub fn serve_names(lab: &Lab) {
    let mut zone =
        String::from("no-resolv\nno-hosts\nuser=root\ngroup=root\nedns-packet-max=4096\n");
    for number in 0..QUESTIONS {
        zone += &format!("host-record=n{number}.lab,{}\n", address_of(number));
    }
    for number in 0..TEXTS {
        zone += &format!("txt-record=big.lab,{}\n", text_of(number));
    }
    let zone = lab.write("names", &zone);
    for host in ["http1", "http2"] {
        lab.at(
            host,
            &format!("dnsmasq --conf-file={zone} --pid-file=/run/{host}.dns"),
        );
    }
}

/// Asks for every name, each from a port of its own.
pub fn ask_for_every_name(server: SocketAddr) {
    for number in 0..QUESTIONS {
        let addresses = dns::addresses(server, &format!("n{number}.lab")).unwrap();
        assert_eq!(addresses, [address_of(number)], "n{number}.lab");
    }
}

/// A question and an answer that are longer than the MTU.
pub fn ask_at_length(server: SocketAddr) {
    let texts = dns::texts(server, "big.lab", PADDING).unwrap();
    assert_eq!(texts.len(), TEXTS);
    for number in 0..TEXTS {
        let text = text_of(number);
        let expected = [&[text.len() as u8], text.as_bytes()].concat();
        assert!(texts.contains(&expected), "{texts:?}");
    }
}

#[test]
fn a_thousand_names_are_asked_for_and_both_resolvers_answer() {
    let Some(lab) = crate::lab("a_thousand_names_are_asked_for_and_both_resolvers_answer") else {
        return;
    };
    serve_names(&lab);
    let config = lab.write("dns.toml", DNS);
    for native in [false, true] {
        let mode = mode(&lab, native);
        let lb = lab.balance(&format!("--mode {mode} -c {config}"));
        for (service, server) in ["10.0.0.5:53", "[fd00::5]:53"].into_iter().enumerate() {
            lab.within("client", || ask_for_every_name(server.parse().unwrap()));
            let status = lab.status();
            let service = &status["services"][service];
            assert_eq!(service["forwarded_packets"], QUESTIONS, "{status:#}");
            assert_eq!(service["returned_packets"], QUESTIONS, "{status:#}");
            for backend in service["backends"].as_array().unwrap() {
                let share = backend["forwarded_packets"].as_f64().unwrap() / f64::from(QUESTIONS);
                println!(
                    "{mode}, {server}: {} answered {share:.3}",
                    backend["address"]
                );
                assert!((share - 0.5).abs() < TOLERANCE, "{status:#}");
            }
        }
        lb.end();
    }
    lab.checksums_were_right(&HOSTS);
}

#[test]
fn long_questions_and_answers_arrive_whole() {
    let Some(lab) = crate::lab("long_questions_and_answers_arrive_whole") else {
        return;
    };
    serve_names(&lab);
    let config = lab.write("dns.toml", DNS);
    let lb = lab.balance(&format!("-c {config}"));
    for server in ["10.0.0.5:53", "[fd00::5]:53"] {
        let ask = || (0..20).for_each(|_| ask_at_length(server.parse().unwrap()));
        lab.within("client", ask);
    }
    let (v4, v6) = ("IpReasmOKs", "Ip6ReasmOKs");
    for (host, name, least) in [
        ("client", v4, 20),
        ("client", v6, 20),
        ("http1", v4, 1),
        ("http2", v6, 1),
    ] {
        let whole = lab.counter(host, name);
        assert!(whole >= least, "{host}: {name} {whole}");
    }
    lab.checksums_were_right(&HOSTS);
    lb.end();
}

/// Sends for a second to or, if `reverse`, from the backend.
fn stream(lab: &Lab, server: &str, reverse: bool) {
    let (option, receiver) = if reverse {
        ("-R", "client")
    } else {
        ("", "http1")
    };
    let family = if server.contains(':') { "6" } else { "" };
    let not_read = || lab.counter(receiver, &format!("Udp{family}RcvbufErrors"));
    let before = not_read();
    let line = format!("iperf3 -u -c {server} -b 50M -l 1200 -t 1 -J {option}");
    let report: Value = serde_json::from_str(&lab.at("client", &line)).unwrap();
    let sum = |name: &str| report["end"]["sum"][name].as_u64().unwrap();
    let (sent, lost, late) = (sum("packets"), sum("lost_packets"), not_read() - before);
    println!("{line}: {sent} datagrams, {lost} lost, {late} for want of a reader");
    assert!(
        sent > 2500 && lost.saturating_sub(late) * 100 <= sent,
        "{report:#}"
    );
}

#[test]
fn a_stream_of_datagrams_loses_none() {
    let Some(lab) = crate::lab("a_stream_of_datagrams_loses_none") else {
        return;
    };
    lab.at("http1", "iperf3 -s -D");
    let service = |vip: &str, backend: &str| {
        let service = |protocol: &str| {
            format!(
                "[[service]]\nlisten = '{vip}:5201/{protocol}'\n\
                 backend = [{{ address = '{backend}' }}]\n"
            )
        };
        service("tcp") + &service("udp")
    };
    let config = service("10.0.0.5", "10.0.0.2") + &service("[fd00::5]", "fd00::2");
    let config = lab.write("iperf.toml", &config);
    let lb = lab.balance(&format!("-c {config}"));
    for server in ["10.0.0.5", "fd00::5"] {
        stream(&lab, server, false);
        stream(&lab, server, true);
    }
    let dropped = lab.status()["packets"]["dropped"].clone();
    let dropped = dropped.as_object().unwrap();
    assert!(dropped.values().all(|count| *count == 0), "{dropped:?}");
    lab.checksums_were_right(&HOSTS);
    lb.end();
}

/// Many datagrams in one packet of the stack, as senders of QUIC make them.
#[test]
fn datagrams_that_the_card_shall_cut_arrive_each() {
    const PIECE: usize = 1200;
    let Some(lab) = crate::lab("datagrams_that_the_card_shall_cut_arrive_each") else {
        return;
    };
    let addresses = ["10.0.0.2:53", "[fd00::2]:53"];
    let _servers = addresses.map(|address| Echo::start(&lab, "http1", address));
    let config = DNS.replace(", { address = '10.0.0.3' }", "");
    let config = lab.write("cut.toml", &config.replace(", { address = 'fd00::3' }", ""));
    for native in [false, true] {
        let lb = lab.balance(&format!("--mode {} -c {config}", mode(&lab, native)));
        for (from, server) in [("0.0.0.0:0", "10.0.0.5:53"), ("[::]:0", "[fd00::5]:53")] {
            let socket = lab.within("client", || UdpSocket::bind(from).unwrap());
            socket.connect(server).unwrap();
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            setsockopt(&socket, UdpGsoSegment, &(PIECE as i32)).unwrap();
            let sent = Random(9).bytes(30 * PIECE + 100);
            for _ in 0..20 {
                socket.send(&sent).unwrap();
                for piece in sent.chunks(PIECE) {
                    let mut buffer = [0; 2 * PIECE];
                    let length = socket.recv(&mut buffer).unwrap();
                    assert!(buffer[..length] == *piece, "{server}: {length} bytes");
                }
            }
        }
        lb.end();
    }
    lab.checksums_were_right(&HOSTS);
}

#[test]
fn a_client_of_a_closed_port_is_told() {
    let Some(lab) = crate::lab("a_client_of_a_closed_port_is_told") else {
        return;
    };
    let config = lab.write("dns.toml", DNS);
    for native in [false, true] {
        let mode = mode(&lab, native);
        let lb = lab.balance(&format!("--mode {mode} -c {config}"));
        for (from, server) in [("0.0.0.0:0", "10.0.0.5:53"), ("[::]:0", "[fd00::5]:53")] {
            let error = lab.within("client", || {
                let socket = UdpSocket::bind(from).unwrap();
                socket.connect(server).unwrap();
                socket.set_read_timeout(Some(PATIENCE)).unwrap();
                socket.send(b"anybody?").unwrap();
                socket.recv(&mut [0; 8]).unwrap_err()
            });
            assert_eq!(
                error.kind(),
                ErrorKind::ConnectionRefused,
                "{mode}: {error}"
            );
        }
        assert_eq!(lab.status()["packets"]["sent"]["icmp_error"], 2);
        lb.end();
    }
    lab.checksums_were_right(&HOSTS);
}
