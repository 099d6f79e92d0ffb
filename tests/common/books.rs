// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! The load balancer's counts beside the kernel's.

use std::time::Duration;

use serde_json::Value;

use super::lab::{Lab, sum};

/// Packets that `eth0` of `lb` received, by the kernel's count, and the status
/// of the same moment.
pub fn still_moment(lab: &Lab) -> (u64, Value) {
    let received = || -> u64 {
        let count = lab.at("lb", "cat /sys/class/net/eth0/statistics/rx_packets");
        count.trim().parse().unwrap()
    };
    for _ in 0..100 {
        let before = received();
        std::thread::sleep(Duration::from_millis(20));
        let status = lab.status();
        if received() == before {
            return (before, status);
        }
    }
    panic!("packets keep coming");
}

pub fn adds_up(status: &Value) {
    let packets = &status["packets"];
    let parts =
        packets["passed"].as_u64().unwrap() + sum(&packets["sent"]) + sum(&packets["dropped"]);
    assert_eq!(packets["received"].as_u64(), Some(parts), "{packets:#}");
}
