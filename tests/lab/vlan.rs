// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! `eth0` of `lb` as a trunk: clients and backends in VLANs.

use std::collections::BTreeSet;

use xdp_proxy::vlan::strips_tags;

use crate::common;
use crate::common::http;
use crate::common::lab::{BINARY, HOSTS, Lab};
use crate::common::load::originals;

const VLAN_10: &str = "link eth0 name eth0.10 type vlan id 10";
const VLAN_20: &str = "link eth0 name eth0.20 type vlan id 20";
const VLAN_100: &str = "link eth0 name eth0.100 type vlan protocol 802.1ad id 100";
const VLAN_100_10: &str = "link eth0.100 name eth0.100.10 type vlan id 10";
/// Makes the switch tell VLANs by their 802.1ad tags.
const AD: &str = "ip link set br0 type bridge vlan_protocol 802.1ad";

/// A lab whose switch keeps VLANs apart. It hands tags to `lb` within the frames, as
/// a card does that takes none off; or beside them, as a veth does.
fn lab(test: &str, tags_within: bool) -> Option<Lab> {
    if !common::vlan_or_skip(test) {
        return None;
    }
    let lab = Lab::start();
    lab.at("switch", "ip link set br0 type bridge vlan_filtering 1");
    if tags_within {
        lab.at(
            "switch",
            "ethtool -K lb txvlan off tx-vlan-stag-hw-insert off",
        );
    }
    Some(lab)
}

/// Makes a VLAN device on each of the hosts: 10.NET.0.N and fd00:NET::N, where N is the
/// host's number in the lab. All but `lb` are in no other VLAN then.
fn add_vlan(lab: &Lab, device: &str, net: u8, hosts: &[&str]) {
    let words: Vec<&str> = device.split(' ').collect();
    let (below, name, id) = (words[1], words[3], words.last().unwrap());
    for host in hosts {
        let number = match *host {
            "http1" => 2,
            "http2" => 3,
            "client" => 4,
            _ => 5,
        };
        let ip = |line: String| lab.at(host, &format!("ip {line}"));
        ip(format!("link add {device}"));
        ip(format!("addr add 10.{net}.0.{number}/24 dev {name}"));
        ip(format!("addr add fd00:{net}::{number}/64 dev {name} nodad"));
        // A second tag takes its place from the trunk's MTU.
        let mtu = if below == "eth0" { 1500 } else { 1496 };
        ip(format!("link set {name} mtu {mtu} up"));
        if below == "eth0" {
            lab.at("switch", &format!("bridge vlan add dev {host} vid {id}"));
        }
        if *host != "lb" {
            lab.try_at("switch", &format!("bridge vlan del dev {host} vid 1"));
        }
    }
}

/// Clients in VLAN 10 (NET 10), backends in VLAN 20 (NET 20).
fn two_vlans(lab: &Lab) {
    add_vlan(lab, VLAN_10, 10, &["client", "lb"]);
    add_vlan(lab, VLAN_20, 20, &["http1", "http2", "lb"]);
}

/// Requests are answered by both backends, what 1 MiB of download and upload carries
/// arrives as it was sent, and no host sees a bad checksum.
fn carries_everything(lab: &Lab, vip: &str) {
    let answers: BTreeSet<String> = lab.within("client", || {
        (0..20).map(|_| http::host(vip).unwrap()).collect()
    });
    assert_eq!(answers, ["http1", "http2"].map(String::from).into());

    let curl = "curl -gsS --fail --max-time 20";
    lab.at(
        "client",
        &format!("{curl} -o /run/download http://{vip}/1m"),
    );
    let arrived = lab.read("/run/download");
    assert!(originals(lab).contains(&arrived), "the download is damaged");
    let sent = lab.at(
        "client",
        &format!(
            "{curl} -H Expect: -w %{{size_upload}} --data-binary @/run/download http://{vip}/upload"
        ),
    );
    assert!(sent.ends_with("\n1048576"), "{sent}");
    lab.checksums_were_right(&HOSTS);
}

#[test]
fn flows_lead_from_one_vlan_to_another_where_tags_are_in_sight() {
    let test = "flows_lead_from_one_vlan_to_another_where_tags_are_in_sight";
    let Some(lab) = lab(test, true) else { return };
    two_vlans(&lab);
    for (vip, backends) in [
        ("10.10.0.5", "--backend 10.20.0.2 --backend 10.20.0.3"),
        ("[fd00:10::5]", "--backend fd00:20::2 --backend fd00:20::3"),
    ] {
        let lb = lab.balance(&format!("-i eth0 --listen {vip}:80 {backends}"));
        assert_eq!(
            lb.ready,
            format!("ready: eth0 (generic) {vip}:80/tcp -> 2 backends")
        );
        carries_everything(&lab, vip);
        lb.end();
    }
}

#[test]
fn flows_within_one_vlan_need_no_tag_in_sight() {
    let Some(lab) = lab("flows_within_one_vlan_need_no_tag_in_sight", false) else {
        return;
    };
    add_vlan(&lab, VLAN_10, 10, &["lb"]);
    let carries = |vip: &str, arguments: &str| {
        let lb = lab.balance(&format!("-i eth0 {arguments}"));
        assert!(!lb.log().contains("WARN"), "{}", lb.log());
        carries_everything(&lab, vip);
        lb.end();
    };
    // Those of no VLAN do not mind that there are VLANs.
    carries("10.0.0.5", common::lab::TWO);
    add_vlan(&lab, VLAN_10, 10, &["client", "http1", "http2"]);
    let serve = "--listen 10.10.0.5:80 --backend 10.10.0.2 --backend 10.10.0.3";
    carries("10.10.0.5", serve);
}

#[test]
fn flows_lead_from_no_vlan_into_one_in_native_mode() {
    let Some(lab) = lab("flows_lead_from_no_vlan_into_one_in_native_mode", true) else {
        return;
    };
    add_vlan(&lab, VLAN_20, 20, &["http1", "http2", "lb"]);
    lab.script("native");
    let backends = "--backend 10.20.0.2 --backend 10.20.0.3";
    let lb = lab.balance(&format!("--mode native --listen 10.0.0.5:80 {backends}"));
    assert_eq!(
        lb.ready,
        "ready: eth0 (native) 10.0.0.5:80/tcp -> 2 backends"
    );
    carries_everything(&lab, "10.0.0.5");
    lb.end();
}

#[test]
fn flows_lead_from_two_vlan_tags_to_one() {
    let Some(lab) = lab("flows_lead_from_two_vlan_tags_to_one", true) else {
        return;
    };
    lab.at("switch", AD);
    add_vlan(&lab, VLAN_100, 100, &HOSTS);
    add_vlan(&lab, VLAN_100_10, 10, &["client", "lb"]);
    lab.script("native");
    for mode in ["generic", "native"] {
        for (vip, backends) in [
            ("10.10.0.5", "--backend 10.100.0.2 --backend 10.100.0.3"),
            (
                "[fd00:10::5]",
                "--backend fd00:100::2 --backend fd00:100::3",
            ),
        ] {
            let lb = lab.balance(&format!(
                "-i eth0 --mode {mode} --listen {vip}:80 {backends}"
            ));
            carries_everything(&lab, vip);
            lb.end();
        }
    }
}

#[test]
fn a_vlan_device_that_has_the_vip_is_served_itself() {
    let Some(lab) = lab("a_vlan_device_that_has_the_vip_is_served_itself", false) else {
        return;
    };
    add_vlan(&lab, VLAN_10, 10, &HOSTS);
    add_vlan(&lab, VLAN_20, 20, &["http1", "lb"]);
    let serve = "--listen 10.10.0.5:80 --backend 10.10.0.2 --backend 10.10.0.3";
    let lb = lab.balance(&format!("{serve} --backend 10.20.0.2"));
    assert_eq!(
        lb.ready,
        "ready: eth0.10 (generic) 10.10.0.5:80/tcp -> 2 of 3 backends"
    );
    let status = lab.status();
    assert_eq!(
        status["services"][0]["backends"][2]["reason"],
        "10.20.0.2 is reached through eth0.20, not eth0.10"
    );
    carries_everything(&lab, "10.10.0.5");
    lab.at("lb", &format!("{BINARY} stop"));
    assert_eq!(lb.wait().code(), Some(0));
}

#[test]
fn vlan_tags_that_hide_are_warned_of_with_the_mend() {
    let Some(lab) = lab("vlan_tags_that_hide_are_warned_of_with_the_mend", false) else {
        return;
    };
    two_vlans(&lab);
    lab.script("native");
    for mode in ["generic", "native"] {
        let lb = lab.balance(&format!(
            "-i eth0 --mode {mode} --listen 10.10.0.5:80 --backend 10.20.0.2 --backend 10.20.0.3"
        ));
        let log = lb.log();
        let warnings: Vec<_> = log
            .lines()
            .filter(|line| line.contains("get lost"))
            .collect();
        println!("{warnings:?}");
        assert!(
            warnings.len() == 1
                && [
                    "WARN",
                    "VLAN 10",
                    "VLAN 20",
                    mode,
                    "ethtool -K PEER txvlan off"
                ]
                .iter()
                .all(|word| warnings[0].contains(word)),
            "{log}"
        );
        lb.end();
    }
}

#[test]
fn a_vlan_device_made_later_is_told_to_need_another_start() {
    let Some(lab) = lab(
        "a_vlan_device_made_later_is_told_to_need_another_start",
        true,
    ) else {
        return;
    };
    add_vlan(&lab, VLAN_20, 20, &["http1", "http2"]);
    let serve = "-i eth0 --listen 10.0.0.5:80 --backend 10.20.0.2 --backend 10.20.0.3";
    let lb = lab.balance(serve);
    assert!(lb.ready.ends_with("-> 0 of 2 backends"), "{}", lb.ready);
    add_vlan(&lab, VLAN_20, 20, &["lb"]);
    lb.until("told", |status| {
        status["services"][0]["backends"][0]["reason"]
            == "10.20.0.2 is in VLAN 20, and eth0 had no VLAN devices at the start; start again"
    });
    lb.end();
    let lb = lab.balance(&format!("{serve} --mode generic"));
    assert!(lb.ready.ends_with("-> 2 backends"), "{}", lb.ready);
    // Made again, it leads on as it did.
    lab.at("lb", "ip link del eth0.20");
    lb.until("gone", |status| {
        status["services"][0]["backends"][0]["state"] == "unreachable"
    });
    add_vlan(&lab, VLAN_20, 20, &["lb"]);
    lb.until("back", |status| {
        status["services"][0]["backends"][0]["state"] == "up"
    });
    lb.end();
}

#[test]
fn what_ethtool_switches_is_what_is_found() {
    let Some(lab) = crate::lab("what_ethtool_switches_is_what_is_found") else {
        return;
    };
    for (word, strips) in [("off", false), ("on", true)] {
        lab.at("lb", &format!("ethtool -K eth0 rxvlan {word}"));
        let found = lab.within("lb", || strips_tags("eth0").unwrap());
        assert_eq!(found, strips, "rxvlan {word}");
    }
    let error = lab.within("lb", || strips_tags("eth7").unwrap_err());
    assert!(error.to_string().contains("eth7"), "{error:#}");
}
