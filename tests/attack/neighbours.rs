// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! A host of the clients' own network, which knows a flow's addresses and ports and sends
//! frames as if they were its client's.

use xdp_proxy::service::Protocol;

use crate::common::call::{CONFIG, Call, Server};
use crate::common::frame::{ACK, FIN, Frame, SYN, set_flags};
use crate::common::lab::Lab;
use crate::common::sum::Sum;
use crate::common::wire::{Wire, mac};

/// A lab with the attacker in it, `thief`.
fn lab(test: &str) -> Option<Lab> {
    let lab = crate::lab(test)?;
    lab.script("ADDRESS[thief]=10.0.0.66; add_host thief");
    lab.write("proxy.toml", CONFIG);
    Some(lab)
}

/// Frames of the thief's with a call's ends, with all that it can guess.
fn forged(lab: &Lab, call: &Call) -> Vec<Vec<u8>> {
    let macs = (mac(lab, "thief"), mac(lab, "lb"));
    if !call.is_tcp() {
        let mut frame = Frame::new(Protocol::Udp, macs, call.client, call.vip);
        frame.payload = b"mine".to_vec();
        return vec![frame.bytes(Sum::Complete); 4];
    }
    let flags = [ACK, SYN, SYN | ACK, FIN | ACK, 0, ACK | 8, ACK | 0x20];
    let numbers = [0, 1, 0x4000_0000, 0x8000_0000, 0xffff_ffff];
    let each = flags
        .iter()
        .flat_map(|flags| numbers.map(|number| (*flags, number)));
    each.map(|(flags, number)| {
        let mut frame = Frame::new(Protocol::Tcp, macs, call.client, call.vip);
        frame.tcp().sequence_number = number;
        frame.tcp().acknowledgment_number = number ^ 0x0bad_cafe;
        frame.tcp().window_size = 1000;
        set_flags(frame.tcp(), flags);
        frame.bytes(Sum::Complete)
    })
    .collect()
}

#[test]
fn frames_of_another_host_turn_no_answer_to_it() {
    let Some(lab) = lab("frames_of_another_host_turn_no_answer_to_it") else {
        return;
    };
    let lb = lab.balance("-c /run/proxy.toml");
    let server = Server::start(&lab);
    let mut calls = server.calls_from(&lab, "client");
    let stolen = lab.capture("thief", "src port 90 and (host 10.0.0.5 or host fd00::5)");
    for call in &mut calls {
        call.answer();
        let frames = forged(&lab, call);
        for frame in frames {
            lab.within("thief", || Wire::open().send(&[frame]));
        }
        call.answer();
        if call.is_tcp() {
            call.ask();
        }
        call.answer();
    }
    let stolen = stolen.end();
    assert!(stolen.trim().is_empty(), "{stolen}");
    lb.end();
}

/// The thief is first, with the addresses of a client that has not come yet: as soon as the
/// kernel knows where the client is, answers go there.
#[test]
fn a_place_that_was_squatted_is_given_to_whom_the_kernel_knows() {
    let Some(lab) = lab("a_place_that_was_squatted_is_given_to_whom_the_kernel_knows") else {
        return;
    };
    let lb = lab.balance("-c /run/proxy.toml");
    let server = Server::start(&lab);
    let mut call = server
        .calls_from(&lab, "client")
        .into_iter()
        .find(|call| !call.is_tcp())
        .unwrap();
    // Its flow ends with the daemon, and the thief begins it anew.
    lb.end();
    let lb = lab.balance("-c /run/proxy.toml");
    for frame in forged(&lab, &call) {
        lab.within("thief", || Wire::open().send(&[frame]));
    }
    call.ask();
    lab.at("client", "ping -c 1 -W 2 10.0.0.5");
    call.ask();
    let took = call.answer();
    println!("answered after {took:.0?}");
    lb.end();
}

#[test]
fn a_client_on_link_whose_mac_changes_keeps_its_flows() {
    let Some(lab) = lab("a_client_on_link_whose_mac_changes_keeps_its_flows") else {
        return;
    };
    let lb = lab.balance("-c /run/proxy.toml");
    let server = Server::start(&lab);
    let mut calls = server.calls_from(&lab, "client");
    for call in &mut calls {
        call.answer();
    }
    lab.at("client", "ip link set eth0 address 02:00:00:00:04:04");
    // It asks for the VIP, as hosts do now and then; the calls themselves are silent.
    for vip in ["10.0.0.5", "fd00::5"] {
        lab.at("client", &format!("ping -c 1 -W 5 {vip}"));
    }
    for call in &mut calls {
        let took = call.answer();
        println!("{} answered after {took:.0?}", call.client);
    }
    lb.end();
}
