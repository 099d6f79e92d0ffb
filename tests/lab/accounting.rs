// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! Every packet is counted once: beside the kernel's own counters.

use serde_json::Value;

use crate::common::books::{adds_up, still_moment};
use crate::common::http::Connection;
use crate::common::lab::{LB, Lab, TWO_UNCHECKED, sum};

/// Segments that the hosts' TCP received.
fn segments(lab: &Lab, hosts: &[&str]) -> u64 {
    hosts
        .iter()
        .map(|host| lab.counter(host, "TcpInSegs"))
        .sum()
}

#[test]
fn what_is_counted_is_what_the_kernel_counts() {
    let Some(lab) = crate::lab("what_is_counted_is_what_the_kernel_counts") else {
        return;
    };
    let file = lab.write("two.toml", TWO_UNCHECKED);
    let lb = lab.balance(&format!("-c {file}"));
    let (kernel_before, before) = still_moment(&lab);
    let at_backends = segments(&lab, &["http1", "http2"]);
    let at_client = segments(&lab, &["client"]);

    let wrk = lab
        .command("client", "wrk")
        .args(["-t1", "-c50", "-d2s", "http://10.0.0.5/"])
        .output();
    assert!(wrk.unwrap().status.success());
    lab.at("client", "ping -c 5 -i 0.05 10.0.0.5");
    // A port that nobody serves, and one connection that is never opened.
    assert!(
        !lab.try_at("client", "curl -s --max-time 2 http://10.0.0.5:81/")
            .status
            .success()
    );
    lab.within("client", || {
        for _ in 0..50 {
            let mut connection = Connection::open(LB).unwrap();
            connection.get("/small").unwrap();
        }
    });

    let (kernel_after, after) = still_moment(&lab);
    adds_up(&after);
    let grew = |path: &str| {
        let value = |status: &Value| status.pointer(path).unwrap().as_u64().unwrap();
        value(&after) - value(&before)
    };
    println!("{} packets, all accounted for", grew("/packets/received"));
    assert_eq!(grew("/packets/received"), kernel_after - kernel_before);
    assert_eq!(
        grew("/packets/sent/forwarded"),
        grew("/services/0/forwarded_packets")
    );
    assert_eq!(
        grew("/packets/sent/returned"),
        grew("/services/0/returned_packets")
    );
    assert_eq!(
        segments(&lab, &["http1", "http2"]) - at_backends,
        grew("/packets/sent/forwarded"),
        "what the backends received"
    );
    // The one more is the RST of port 81, from the host's own stack.
    assert_eq!(
        segments(&lab, &["client"]) - at_client,
        sum(&after["packets"]["sent"])
            - sum(&before["packets"]["sent"])
            - grew("/packets/sent/forwarded")
            + 1,
        "what the client received"
    );
    assert_eq!(sum(&after["packets"]["dropped"]), 0, "{after:#}");
    lb.end();
}

#[test]
fn the_sum_holds_while_packets_come() {
    let Some(lab) = crate::lab("the_sum_holds_while_packets_come") else {
        return;
    };
    let file = lab.write("two.toml", TWO_UNCHECKED);
    let lb = lab.balance(&format!("-c {file}"));
    let mut wrk = lab
        .command("client", "wrk")
        .args(["-t1", "-c20", "-d2s", "http://10.0.0.5/1m"])
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    for _ in 0..20 {
        adds_up(&lab.status());
    }
    assert!(wrk.wait().unwrap().success());
    lb.end();
}
