// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! Who answers an ICMP echo to a VIP: the host, if it has the address, else the
//! program.

use crate::common::lab::Lab;

const SERVE: &str = "--listen 192.0.2.1:80 --backend 10.0.0.2 --backend 10.0.0.3";

fn echoed(lab: &Lab) -> u64 {
    lab.status()["packets"]["sent"]["echo_reply"]
        .as_u64()
        .unwrap()
}

fn ping(lab: &Lab) {
    lab.at("client", "ping -c 3 -i 0.1 -W 2 192.0.2.1");
}

#[test]
fn an_echo_to_a_vip_is_answered_by_the_host_while_it_has_the_address() {
    let test = "an_echo_to_a_vip_is_answered_by_the_host_while_it_has_the_address";
    let Some(lab) = crate::lab(test) else {
        return;
    };
    lab.at("client", "ip route add 192.0.2.1/32 via 10.0.0.5");
    let lb = lab.balance(SERVE);
    ping(&lab);
    assert_eq!(echoed(&lab), 3);
    // A source address that is no VIP is always the host's.
    lab.at("client", "ping -c 3 -i 0.1 -W 2 10.0.0.5");
    assert_eq!(echoed(&lab), 3);

    for round in 1..=2 {
        lab.at("lb", "ip addr add 192.0.2.1/32 dev lo");
        std::thread::sleep(std::time::Duration::from_millis(500));
        ping(&lab);
        assert_eq!(echoed(&lab), 3 * round, "the host answers");
        lab.at("lb", "ip addr del 192.0.2.1/32 dev lo");
        std::thread::sleep(std::time::Duration::from_millis(500));
        ping(&lab);
        assert_eq!(echoed(&lab), 3 * round + 3, "the program answers");
    }
    lb.end();

    lab.at("lb", "ip addr add 192.0.2.1/32 dev lo");
    let lb = lab.balance(&format!("-i eth0 {SERVE}"));
    ping(&lab);
    assert_eq!(echoed(&lab), 0, "the host has it from the start");
    lb.end();
}
