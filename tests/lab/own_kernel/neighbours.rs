// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! The kernel's neighbour table, which is one for all network namespaces, is full.

use std::fs;
use std::net::{Ipv4Addr, UdpSocket};
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::lab;
use crate::common::beside;
use crate::common::lab::{BINARY, Balancer, LB, Lab};
use crate::common::load::Clients;
use crate::faults::told;
use crate::privileges::with;
use crate::switch::{kill_nginx, until};

const LB6: &str = "[fd00::5]";

/// How many entries the tables hold, as it was before this goes.
struct Limits(Vec<(PathBuf, String)>);

impl Limits {
    fn taken() -> Limits {
        let files = ["ipv4", "ipv6"].into_iter().flat_map(|family| {
            (1..=3).map(move |n| format!("/proc/sys/net/{family}/neigh/default/gc_thresh{n}"))
        });
        let kept = files.map(|file| {
            let entries = fs::read_to_string(&file).unwrap();
            (file.into(), entries)
        });
        Limits(kept.collect())
    }

    fn lower(&self, entries: [&str; 3]) {
        for ((file, _), entries) in self.0.iter().zip(entries.iter().cycle()) {
            fs::write(file, entries).unwrap();
        }
    }
}

impl Drop for Limits {
    fn drop(&mut self) {
        for (file, entries) in &self.0 {
            fs::write(file, entries).unwrap();
        }
    }
}

/// Two services whose backends are checked by what may stay without an answer.
fn services(lab: &Lab) -> String {
    let service = |vip: &str, backends: [&str; 2]| {
        format!(
            "[[service]]\nlisten = '{vip}:80'\n\
             health = {{ type = 'tcp', interval = '1s', timeout = '500ms', fall = 2 }}\n\
             backend = [{{ address = '{}' }}, {{ address = '{}' }}]\n",
            backends[0], backends[1]
        )
    };
    let text = service(LB, ["10.0.0.2", "10.0.0.3"]) + &service(LB6, ["fd00::2", "fd00::3"]);
    format!("run -c {}", lab.write("checked.toml", &text))
}

/// The other hosts share the table, and would be hit as well: they know `lb` for good.
/// And `lb` has a large network, of which nobody else is.
fn prepare(lab: &Lab) {
    let mac = lab.at("lb", "cat /sys/class/net/eth0/address");
    let mac = mac.trim();
    for host in ["client", "http1", "http2"] {
        for address in [LB, LB6.trim_matches(['[', ']'])] {
            let entry = format!("{address} lladdr {mac} dev eth0 nud permanent");
            lab.at(host, &format!("ip neigh replace {entry}"));
        }
    }
    lab.at("lb", "ip addr add 10.99.0.1/16 dev eth0");
    lab.at("lb", "ip addr add fd99::1/64 dev eth0 nodad");
}

/// Has the kernel look for neighbours that are not there, some hundred a second.
fn flood(lab: &Lab, over: &AtomicBool) {
    lab.within("lb", || {
        let [v4, v6] = ["10.99.0.1:0", "[fd99::1]:0"].map(|own| {
            let socket = UdpSocket::bind(own).unwrap();
            socket.set_nonblocking(true).unwrap();
            socket
        });
        for number in (2u16..).take_while(|_| !over.load(Ordering::Relaxed)) {
            let [high, low] = number.to_be_bytes();
            // What has no neighbour is not sent.
            let _ = v4.send_to(b"?", (Ipv4Addr::new(10, 99, high, low), 9));
            let _ = v6.send_to(b"?", format!("[fd99::{number:x}]:9"));
            std::thread::sleep(Duration::from_millis(2));
        }
    });
}

fn all_are_up(lab: &Lab) -> bool {
    let status = lab.status();
    let mut services = status["services"].as_array().unwrap().iter();
    services.all(|service| {
        let mut backends = service["backends"].as_array().unwrap().iter();
        backends.all(|backend| backend["state"] == "up")
    })
}

fn kernel_says_that_they_are_full() {
    let log = Command::new("dmesg").output().unwrap();
    let log = String::from_utf8_lossy(&log.stdout);
    for table in ["arp_cache", "ndisc_cache"] {
        let words = format!("{table}: neighbor table overflow!");
        assert!(log.contains(&words), "{log}");
    }
}

/// Nothing is lost by a flood that fills the tables, nor where there is no room any more for
/// who has lost its entry, for longer than checks take to decide; and both are told.
fn serves_on(lab: &Lab, lb: &Balancer) {
    let mut kept = [Clients::open(lab), Clients::open_to(lab, LB6)];
    let mut serves_for = |time| {
        let begun = Instant::now();
        while begun.elapsed() < time {
            for kept in &mut kept {
                kept.go_on(lab);
            }
            assert!(all_are_up(lab), "{:#}", lab.status());
        }
    };
    let limits = Limits::taken();
    limits.lower(["8", "16", "32"]);
    beside(
        |over| flood(lab, over),
        || {
            serves_for(Duration::from_secs(4));
            kernel_says_that_they_are_full();
            limits.lower(["1"; 3]);
            for backend in ["10.0.0.2", "10.0.0.3", "fd00::2", "fd00::3"] {
                lab.at("lb", &format!("ip neigh del {backend} dev eth0"));
            }
            for family in ["ipv4", "ipv6"] {
                let mend = format!("sysctl -w net.{family}.neigh.default.gc_thresh3=");
                let line = told(lb, &mend);
                let words = "WARN the kernel's neighbour table has no room for";
                assert!(line.contains(words), "{line}");
            }
            serves_for(Duration::from_secs(6));
        },
    );
    drop(limits);
    for family in ["ipv4", "ipv6"] {
        let limit = format!("(net.{family}.neigh.default.gc_thresh3)");
        told(lb, &format!("{limit} has room again"));
    }
    for kept in &mut kept {
        kept.go_on(lab);
    }
}

#[test]
fn a_full_neighbour_table_is_told_and_costs_no_flow() {
    let test = "a_full_neighbour_table_is_told_and_costs_no_flow";
    let Some(lab) = lab(test) else { return };
    prepare(&lab);
    let lb = lab.balance_by(&format!("{BINARY} {}", services(&lab)));
    serves_on(&lab, &lb);
    // Checks that this host could not send have decided nothing.
    let log = lb.log();
    println!("{log}");
    assert!(
        log.contains("can't be checked: the kernel's neighbour table is full"),
        "{log}"
    );
    assert!(
        !log.contains("is down") && !log.contains("no new flows"),
        "{log}"
    );
    kill_nginx(&lab, "http1");
    for service in 0..2 {
        until(&lb, service, 0, "down");
    }
    lb.end();
}

/// The kernel asks for the next hops, and loses what it learned.
#[test]
fn a_full_neighbour_table_costs_no_flow_where_the_kernel_has_to_ask() {
    let test = "a_full_neighbour_table_costs_no_flow_where_the_kernel_has_to_ask";
    let Some(lab) = lab(test) else { return };
    prepare(&lab);
    let user = with("net_admin bpf perfmon");
    let lb = lab.balance_by(&format!("{user} {BINARY} {}", services(&lab)));
    assert!(lb.log().contains("they take CAP_NET_RAW"), "{}", lb.log());
    serves_on(&lab, &lb);
    let log = lb.log();
    println!("{log}");
    assert!(
        !log.contains("is down") && !log.contains("no new flows"),
        "{log}"
    );
    lb.end();
}
