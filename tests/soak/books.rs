// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! Every packet is counted, and what is counted as sent has arrived.

use serde_json::Value;

use crate::HOSTS;
use crate::common::books::{adds_up, still_moment};
use crate::common::lab::{LB, Lab, sum};
use crate::events::SOURCES;

/// Counts of one moment at which no packet came.
pub struct Books {
    kernel: u64,
    status: Value,
    at_client: u64,
    at_backends: u64,
    /// Frames for which the next host had no room in its queue.
    lost: u64,
}

impl Books {
    /// Counts what comes from the load balancer, at the hosts that it comes to. What
    /// its host sends itself, to check a backend or to refuse what a dead flow is sent,
    /// has not passed a router: its time to live is whole.
    pub fn open(lab: &Lab) {
        let sources = SOURCES.join(", ");
        for (host, what) in hosts() {
            let table = format!(
                "table netdev soak {{\nchain in {{\n\
                 type filter hook ingress device \"eth0\" priority 0\n\
                 ip saddr {{ {LB}, {sources} }} tcp {what} counter\n}}\n}}\n"
            );
            let file = lab.write("books.nft", &table);
            lab.at(host, &format!("nft -f {file}"));
        }
    }

    pub fn read(lab: &Lab) -> Books {
        let (kernel, status) = still_moment(lab);
        let arrived = |host: &str| -> u64 {
            let table: Value =
                serde_json::from_str(&lab.at(host, "nft -j list table netdev soak")).unwrap();
            let items = table["nftables"].as_array().unwrap();
            let rule = items.iter().find_map(|item| item.get("rule")).unwrap();
            let parts = rule["expr"].as_array().unwrap().iter();
            let mut counters = parts.filter_map(|part| part.get("counter"));
            counters.next().unwrap()["packets"].as_u64().unwrap()
        };
        Books {
            kernel,
            status,
            at_client: arrived("client"),
            at_backends: HOSTS.iter().map(|host| arrived(host)).sum(),
            lost: ["lb", "switch"].into_iter().map(|at| lost(lab, at)).sum(),
        }
    }

    /// What is not as it must be since `before`, in lines.
    pub fn faults(&self, before: &Books) -> Vec<String> {
        adds_up(&self.status);
        let grew = |count: &dyn Fn(&Value) -> u64| count(&self.status) - count(&before.status);
        let packets = |kind: &'static str| {
            move |status: &Value| match &status["packets"][kind] {
                Value::Object(_) => sum(&status["packets"][kind]),
                count => count.as_u64().unwrap(),
            }
        };
        let forwarded = grew(&|status| status["packets"]["sent"]["forwarded"].as_u64().unwrap());
        let to_clients = grew(&packets("sent")) - forwarded;
        println!(
            "  packets    {} received, {forwarded} to backends, {to_clients} to clients, {} dropped",
            grew(&packets("received")),
            grew(&packets("dropped")),
        );
        let sent = self.status["packets"]["sent"].as_object().unwrap().iter();
        let sent = sent.filter(|(_, count)| **count != 0);
        let sent: Vec<String> = sent
            .map(|(kind, count)| format!("{count} {kind}"))
            .collect();
        println!("  sent       {}", sent.join(", "));
        let lost = self.lost - before.lost;
        println!("  on the way {lost} lost");
        [
            (
                "received",
                grew(&packets("received")),
                self.kernel - before.kernel,
                0,
            ),
            (
                "sent to backends",
                forwarded,
                self.at_backends - before.at_backends,
                lost,
            ),
            (
                "sent to clients",
                to_clients,
                self.at_client - before.at_client,
                lost,
            ),
        ]
        .into_iter()
        .filter(|(_, counted, came, lost)| !(*came..=came + lost).contains(counted))
        .map(|(what, counted, came, lost)| {
            format!("packets {what}: {counted} counted, {came} came, {lost} lost on the way")
        })
        .collect()
    }
}

/// By the kernel's count: a veth drops what its other end has no room for, as where
/// others use the machine.
fn lost(lab: &Lab, at: &str) -> u64 {
    let all = "cat /sys/class/net/*/statistics/tx_dropped";
    let counts = lab.script(&format!("ip netns exec {at} sh -c '{all}'"));
    counts
        .lines()
        .map(|line| line.parse::<u64>().unwrap())
        .sum()
}

fn hosts() -> impl Iterator<Item = (&'static str, &'static str)> {
    let backends = HOSTS.iter().map(|host| (*host, "dport 80 ip ttl 63"));
    backends.chain([("client", "sport 80")])
}
