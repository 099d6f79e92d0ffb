// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! What can go wrong around a running load balancer: each is told in a clear line, no
//! flow is lost that could have been kept, and it recovers without a restart. (A bpffs
//! that takes no pins is in pins.rs, two daemons are in attach.rs.)

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use xdp_proxy::datapath::Datapath;

use crate::common::beside;
use crate::common::http::{self, Connection};
use crate::common::lab::{BINARY, Balancer, HTTP1, HTTP2, LB, Lab, TWO, refusal};
use crate::common::load::Clients;
use crate::common::rig::{GENERIC, config, service, tables};
use crate::common::root_or_skip;
use crate::common::wire::Wire;

/// Longest wait for a line of the log.
const PATIENCE: Duration = Duration::from_secs(10);

/// A client that waits longer was not served at once: its SYN was lost.
const HASTE: Duration = Duration::from_millis(800);

/// Waits for a line; returns it.
pub fn told(lb: &Balancer, words: &str) -> String {
    let start = Instant::now();
    loop {
        if let Some(line) = lb.log().lines().find(|line| line.contains(words)) {
            return line.to_owned();
        }
        assert!(
            start.elapsed() < PATIENCE,
            "nothing of {words:?}: {}",
            lb.log()
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Two backends that are checked often.
fn checked(lab: &Lab) -> String {
    let text = format!(
        "[[service]]\nlisten = \"{LB}:80\"\n\
         health = {{ type = \"tcp\", interval = \"200ms\", timeout = \"100ms\", fall = 2 }}\n\
         [[service.backend]]\naddress = \"{HTTP1}\"\n[[service.backend]]\naddress = \"{HTTP2}\"\n"
    );
    format!("-c {}", lab.write("checked.toml", &text))
}

#[test]
fn an_interface_that_goes_down_and_up_loses_no_flow() {
    let Some(lab) = crate::lab("an_interface_that_goes_down_and_up_loses_no_flow") else {
        return;
    };
    let lb = lab.balance(&checked(&lab));
    let mut kept = Clients::open(&lab);
    lab.at("lb", "ip link set eth0 down");
    told(&lb, "gets no new flows: ");
    // Longer than it takes until a check has failed for good.
    std::thread::sleep(Duration::from_secs(2));
    lab.at("lb", "ip link set eth0 up");
    lb.until("both take flows", |status| {
        let backends = status["services"][0]["backends"].as_array().unwrap();
        backends.iter().all(|backend| backend["state"] == "up")
    });
    kept.go_on(&lab);
    assert!(!lb.log().contains("its check fails"), "{}", lb.log());
    lb.end();
    assert_eq!(lab.attached(), None);
}

#[test]
fn an_interface_that_is_deleted_and_made_again_gets_the_program_back() {
    let test = "an_interface_that_is_deleted_and_made_again_gets_the_program_back";
    let Some(lab) = crate::lab(test) else { return };
    let lb = lab.balance(&checked(&lab));
    let mut kept = Clients::open(&lab);
    let mac = lab.at("lb", "cat /sys/class/net/eth0/address");
    for _ in 0..2 {
        lab.at("lb", "ip link del eth0");
        told(&lb, "eth0 is gone (");
        let status = lab.at("lb", &format!("{BINARY} status"));
        assert!(
            status.contains("20 flows") && status.contains("unreachable"),
            "{status}"
        );
        let line = refusal(&lab.proxy("reload"), 1);
        assert!(
            line.contains("eth0 is gone: reload again once it is back"),
            "{line}"
        );
        lab.script(&format!(
            "ip -n switch link add lb type veth peer name eth0 netns lb
             ip -n switch link set lb master br0 up
             ip -n lb link set eth0 address {mac}
             ip -n lb addr add {LB}/24 dev eth0
             ip -n lb link set eth0 up"
        ));
        lb.until("it is back", |status| {
            let backends = status["services"][0]["backends"].as_array().unwrap();
            backends.iter().all(|backend| backend["state"] == "up")
        });
        told(&lb, "eth0 is back: program");
        kept.go_on(&lab);
    }
    lb.end();
    assert_eq!(lab.attached(), None);
}

#[test]
fn an_address_that_goes_and_comes_back_loses_no_flow() {
    let Some(lab) = crate::lab("an_address_that_goes_and_comes_back_loses_no_flow") else {
        return;
    };
    let lb = lab.balance(TWO);
    let mut kept = Clients::open(&lab);
    lab.at("lb", "ip addr del 10.0.0.5/24 dev eth0");
    told(&lb, "gets no new flows: ");
    lab.at("lb", "ip addr add 10.0.0.5/24 dev eth0");
    told(&lb, "gets flows");
    lb.until("both take flows", |status| {
        let backends = status["services"][0]["backends"].as_array().unwrap();
        backends.iter().all(|backend| backend["state"] == "up")
    });
    kept.go_on(&lab);
    lb.end();
}

/// The routes name another address, and the first one is the host's as before.
#[test]
fn a_new_first_address_leaves_flows_and_backends_with_the_old_one() {
    let test = "a_new_first_address_leaves_flows_and_backends_with_the_old_one";
    let Some(lab) = crate::lab(test) else { return };
    let lb = lab.balance(TWO);
    let mut kept = Clients::open(&lab);
    lab.at("lb", "ip addr add 10.0.0.6/24 dev eth0");
    lab.at("lb", "ip route replace 10.0.0.0/24 dev eth0 src 10.0.0.6");
    std::thread::sleep(Duration::from_millis(1500));
    kept.go_on(&lab);
    let status = lab.status();
    for backend in status["services"][0]["backends"].as_array().unwrap() {
        assert_eq!(
            (&backend["state"], &backend["source"]),
            (&"up".into(), &LB.into())
        );
    }
    assert!(!lb.log().contains("no new flows"), "{}", lb.log());
    lb.end();
}

/// The VIP is on the loopback, and what forwarded packets come from is another one.
#[test]
fn an_address_that_is_replaced_moves_new_flows_to_its_successor() {
    let test = "an_address_that_is_replaced_moves_new_flows_to_its_successor";
    let Some(lab) = crate::lab(test) else { return };
    let mac = lab.at("lb", "cat /sys/class/net/eth0/address");
    lab.at("lb", "ip addr add 10.9.9.9/32 dev lo");
    lab.at("client", "ip route add 10.9.9.9/32 dev eth0");
    lab.at(
        "client",
        &format!("ip neigh add 10.9.9.9 lladdr {mac} dev eth0"),
    );
    let lb = lab.balance("-i eth0 --listen 10.9.9.9:80 --backend 10.0.0.2 --backend 10.0.0.3");
    let new_one = || lab.within("client", || http::host("10.9.9.9").is_ok());
    assert!((0..20).all(|_| new_one()));
    let begun = lab.status()["services"][0]["flows_begun"].as_u64().unwrap();
    let _open = lab.within("client", || Connection::open("10.9.9.9").unwrap());
    lab.at("lb", "ip addr del 10.0.0.5/24 dev eth0");
    lab.at("lb", "ip addr add 10.0.0.6/24 dev eth0");
    let line = told(&lb, "new ones come from 10.0.0.6");
    assert!(line.contains("the host has 10.0.0.5 no more"), "{line}");
    lb.until("both take flows", |status| {
        let backends = status["services"][0]["backends"].as_array().unwrap();
        let is_well = |backend: &Value| backend["state"] == "up" && backend["source"] == "10.0.0.6";
        backends.iter().all(is_well)
    });
    assert!((0..20).all(|_| new_one()));
    let service = &lab.status()["services"][0];
    assert_eq!(service["flows_begun"], begun + 21, "counts go on");
    lb.until("no flow is left", |status| {
        status["services"][0]["flows"] == 0
    });
    lb.end();
}

/// As when a lease of DHCP ends and another begins: clients come all the time.
#[test]
fn an_address_that_is_replaced_keeps_new_clients_out_for_a_moment() {
    let test = "an_address_that_is_replaced_keeps_new_clients_out_for_a_moment";
    let Some(lab) = crate::lab(test) else { return };
    let mac = lab.at("lb", "cat /sys/class/net/eth0/address");
    lab.at("lb", "ip addr add 10.9.9.9/32 dev lo");
    let entry = format!("ip neigh add 10.9.9.9 lladdr {} dev eth0", mac.trim());
    lab.at("client", "ip route add 10.9.9.9/32 dev eth0");
    lab.at("client", &entry);
    let lb = lab.balance("-i eth0 --listen 10.9.9.9:80 --backend 10.0.0.2 --backend 10.0.0.3");
    for (old, new) in [(LB, "10.0.0.6"), ("10.0.0.6", "10.0.0.7")] {
        let change = format!("addr del {old}/24 dev eth0\naddr add {new}/24 dev eth0\n");
        let file = lab.write("renumber", &change);
        let begun = Instant::now();
        let clients = |over: &AtomicBool| {
            lab.within("client", || {
                thread::scope(|scope| {
                    let mut clients = Vec::new();
                    while !over.load(Ordering::Relaxed) {
                        let came = begun.elapsed();
                        let client = move || Connection::open_within("10.9.9.9", HASTE).is_ok();
                        clients.push((came, scope.spawn(client)));
                        thread::sleep(Duration::from_millis(5));
                    }
                    let clients = clients.into_iter();
                    clients
                        .map(|(came, client)| (came, client.join().unwrap()))
                        .collect::<Vec<_>>()
                })
            })
        };
        let (clients, [before, after]) = beside(clients, || {
            thread::sleep(Duration::from_millis(300));
            let before = begun.elapsed();
            lab.at("lb", &format!("ip -batch {file}"));
            let after = begun.elapsed();
            thread::sleep(Duration::from_millis(1500));
            [before, after]
        });
        let lost: Vec<Duration> = clients
            .iter()
            .filter_map(|(came, served)| (!served).then_some(*came))
            .collect();
        let [first, last] = [lost.first(), lost.last()];
        println!(
            "the address changed within {:?}; of {} clients {} were not served, from {first:?} to \
             {last:?}, begun at {before:?}",
            after - before,
            clients.len(),
            lost.len()
        );
        assert!(first.is_none_or(|first| *first + HASTE > before));
        // The daemon looks by itself once a second.
        let patience = Duration::from_millis(500);
        assert!(
            last.is_none_or(|last| *last < after + patience),
            "{}",
            lb.log()
        );
        told(&lb, &format!("new ones come from {new}"));
    }
    lb.end();
}

#[test]
fn a_program_that_somebody_detached_is_attached_again() {
    let Some(lab) = crate::lab("a_program_that_somebody_detached_is_attached_again") else {
        return;
    };
    let lb = lab.balance(TWO);
    let mut kept = Clients::open(&lab);
    let program = lab.status()["program_id"].clone();
    for _ in 0..3 {
        lab.at("lb", "ip link set dev eth0 xdpgeneric off");
        let start = Instant::now();
        while lab.attached().is_none() {
            assert!(start.elapsed() < PATIENCE, "{}", lb.log());
        }
        assert_eq!(lab.attached().unwrap()["prog"]["id"], program);
        kept.go_on(&lab);
    }
    let line = told(&lb, "somebody detached program");
    assert!(
        line.contains("WARN") && line.contains("its flows are kept"),
        "{line}"
    );
    lb.end();
    assert_eq!(lab.attached(), None);
}

#[test]
fn a_program_in_the_place_of_ours_is_waited_for_and_never_replaced() {
    let test = "a_program_in_the_place_of_ours_is_waited_for_and_never_replaced";
    let Some(lab) = crate::lab(test) else { return };
    lab.script("clang -O2 -g -target bpf -c \"$LAB_DIR/pass.bpf.c\" -o /run/pass.o");
    let lb = lab.balance(TWO);
    let mut kept = Clients::open(&lab);
    lab.at(
        "lb",
        "ip -force link set dev eth0 xdpgeneric obj /run/pass.o sec xdp",
    );
    let other = lab.attached().unwrap();
    assert_eq!(other["prog"]["name"], "pass");
    let line = told(&lb, "nothing is balanced");
    assert!(
        line.contains(&format!("(id {})", other["prog"]["id"])) && line.contains("xdpgeneric off"),
        "{line}"
    );
    std::thread::sleep(Duration::from_millis(2500));
    assert_eq!(lab.attached(), Some(other));
    let lines = lb.log().matches("nothing is balanced").count();
    assert_eq!(lines, 1, "{}", lb.log());
    // The mend that was named.
    lab.at("lb", "ip link set dev eth0 xdpgeneric off");
    told(&lb, "attached again, its flows are kept");
    kept.go_on(&lab);
    lb.end();
    assert_eq!(lab.attached(), None);
}

#[test]
fn a_configuration_file_that_vanishes_changes_nothing() {
    let Some(lab) = crate::lab("a_configuration_file_that_vanishes_changes_nothing") else {
        return;
    };
    let arguments = checked(&lab);
    let lb = lab.balance(&arguments);
    let mut kept = Clients::open(&lab);
    let file = lab.path(arguments.strip_prefix("-c ").unwrap());
    let text = fs::read(&file).unwrap();
    fs::remove_file(&file).unwrap();
    let error = refusal(&lab.proxy("reload"), 1);
    assert!(error.contains("there is no such file"), "{error}");
    kept.go_on(&lab);
    told(&lb, "not reloaded, nothing was changed: ");
    fs::write(&file, text).unwrap();
    lab.at("lb", &format!("{BINARY} reload"));
    kept.go_on(&lab);
    lb.end();
}

/// Another host sends from the MAC of a backend, so that the switch sends it what is
/// for that; until the owner is heard again.
#[test]
fn a_mac_that_is_stolen_and_given_back_loses_no_flow() {
    let Some(lab) = crate::lab("a_mac_that_is_stolen_and_given_back_loses_no_flow") else {
        return;
    };
    let lb = lab.balance(TWO);
    let mut kept = Clients::open(&lab);
    let mac = lab.at("http1", "cat /sys/class/net/eth0/address");
    let mac = mac
        .trim()
        .split(':')
        .map(|byte| u8::from_str_radix(byte, 16).unwrap());
    let mut frame = vec![2, 0, 0, 0, 0, 0x77];
    frame.extend(mac);
    frame.extend([0x88, 0xb5]);
    frame.resize(60, 0);
    for _ in 0..10 {
        lab.within("http2", || Wire::open().send(&[&frame]));
        std::thread::sleep(Duration::from_millis(100));
        kept.go_on(&lab);
    }
    let backends = lab.status()["services"][0]["backends"].clone();
    for backend in backends.as_array().unwrap() {
        assert_eq!(backend["state"], "up", "{}", lb.log());
    }
    lb.end();
}

#[test]
fn maps_that_the_kernel_has_no_memory_for_are_an_error_in_one_line() {
    if !root_or_skip("maps_that_the_kernel_has_no_memory_for_are_an_error_in_one_line") {
        return;
    }
    let config = config(vec![service("10.0.0.5:80", &[("10.0.0.2:80", 1)])]);
    let mut tables = tables(&config);
    // More than any machine has.
    tables.services[0].entry.maglev = 1_000_000_000;
    let Err(error) = Datapath::load(&tables, &GENERIC) else {
        panic!("there is memory")
    };
    let error = format!("{error:#}");
    println!("{error}");
    assert!(
        error.contains("maps") && error.contains("allocate memory"),
        "{error}"
    );
    assert!(!error.contains('\n'), "{error}");
}

/// The clock that people set can jump as it likes: it is read by nobody. (The log's
/// lines have it, and certificates are looked at by it.)
#[test]
fn no_decision_depends_on_the_wall_clock() {
    fn look(folder: &Path, seen: &mut usize) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                look(&path, seen);
                continue;
            }
            *seen += 1;
            let text = fs::read_to_string(&path).unwrap();
            for clock in [
                "SystemTime",
                "CLOCK_REALTIME",
                "ktime_get_real",
                "ktime_get_tai",
            ] {
                assert!(!text.contains(clock), "{}: {clock}", path.display());
            }
        }
    }
    let mut seen = 0;
    look(
        &Path::new(env!("CARGO_MANIFEST_DIR")).join("src"),
        &mut seen,
    );
    assert!(seen > 40, "{seen} files");
}
