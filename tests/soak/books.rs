// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! Every packet is counted, and what is counted as sent has arrived.

use serde_json::Value;

use crate::HOSTS;
use crate::common::books::{adds_up, still_moment};
use crate::common::lab::{LB, Lab, sum};

/// Counts of one moment at which no packet came.
pub struct Books {
    kernel: u64,
    status: Value,
    at_client: u64,
    at_backends: u64,
}

impl Books {
    /// Counts what comes from the load balancer, at the hosts that it comes to. What
    /// its host sends itself, to check a backend or to refuse what a dead flow is sent,
    /// has not passed a router: its time to live is whole.
    pub fn open(lab: &Lab) {
        for (host, what) in hosts() {
            let table = format!(
                "table netdev soak {{\nchain in {{\n\
                 type filter hook ingress device \"eth0\" priority 0\n\
                 ip saddr {LB} tcp {what} counter\n}}\n}}\n"
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
        [
            (
                "received",
                grew(&packets("received")),
                self.kernel - before.kernel,
            ),
            (
                "sent to backends",
                forwarded,
                self.at_backends - before.at_backends,
            ),
            (
                "sent to clients",
                to_clients,
                self.at_client - before.at_client,
            ),
        ]
        .into_iter()
        .filter(|(_, counted, came)| counted != came)
        .map(|(what, counted, came)| format!("packets {what}: {counted} counted, {came} came"))
        .collect()
    }
}

fn hosts() -> impl Iterator<Item = (&'static str, &'static str)> {
    let backends = HOSTS.iter().map(|host| (*host, "dport 80 ip ttl 63"));
    backends.chain([("client", "sport 80")])
}
