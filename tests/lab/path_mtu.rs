// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! A cable on the way is narrower than both ends know, and TCP finds out: by the
//! ICMP errors of the router before it, which the load balancer translates.

use std::fs;
use std::process::Output;

use crate::common::lab::{Lab, sum};

const MTU: &str = "mtu 1280";
/// Addresses of `lb`, and ones that it does not hold, which are routed to it.
const VIPS: [&str; 4] = ["10.0.0.5", "10.0.1.5", "[fd00::5]", "[fd00:1::5]"];

/// The services on all VIPs; a backend of each family.
fn services(backends: [&str; 2]) -> String {
    let service = |vip: &&str| {
        let backend = backends[usize::from(vip.starts_with('['))];
        format!("[[service]]\nlisten = '{vip}:80'\nbackend = [{{ address = '{backend}' }}]\n")
    };
    VIPS.iter().map(service).collect()
}

/// Everybody knows the way to everybody, and nobody a path's MTU.
fn lay_cables(lab: &Lab) {
    lab.script("add_far");
    for host in ["http1", "client"] {
        lab.at(host, "ip route add 10.8.0.0/24 via 10.0.0.254");
        lab.at(host, "ip route add fd08::/64 via fd00::254");
    }
    for host in ["router", "client"] {
        lab.at(host, "ip route add 10.0.1.5 via 10.0.0.5");
        lab.at(host, "ip route add fd00:1::5 via fd00::5");
    }
    lab.script("head -c 10485760 /dev/urandom >/run/10m");
}

fn is_ipv6(vip: &str) -> bool {
    vip.starts_with('[')
}

fn bare(address: &str) -> &str {
    address.trim_matches(['[', ']'])
}

fn done(what: &str, output: &Output) {
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{what}: {words}");
}

fn download(lab: &Lab, client: &str, vip: &str) {
    let line = format!("curl -gsS --fail --max-time 20 -o /run/got http://{vip}/10m");
    done(&line, &lab.try_at(client, &line));
    assert!(
        lab.read("/run/got") == lab.read("/run/10m"),
        "{vip}: damaged"
    );
    fs::remove_file(lab.path("/run/got")).unwrap();
}

fn upload(lab: &Lab, client: &str, vip: &str) {
    let line = format!(
        "curl -gsS --fail --max-time 20 -o /dev/null -H Expect: --data-binary @/run/10m \
         http://{vip}/upload"
    );
    done(&line, &lab.try_at(client, &line));
}

fn icmp_errors(lab: &Lab) -> u64 {
    lab.status()["packets"]["sent"]["icmp_error"]
        .as_u64()
        .unwrap()
}

/// Of the paths that a host knows it tells its peers the MTU too, as its MSS.
fn forget_paths(lab: &Lab, host: &str) {
    for family in ["-4", "-6"] {
        lab.at(host, &format!("ip {family} route flush cache"));
    }
}

/// What the router said arrived at the sender by way of the load balancer, which
/// is whom the sender believes to have reached.
fn finds_out(lab: &Lab, sender: &str, peer: &str, transfer: impl FnOnce()) {
    let counter = if is_ipv6(peer) {
        "Icmp6InPktTooBigs"
    } else {
        "IcmpInDestUnreachs"
    };
    forget_paths(lab, sender);
    let (translated, told) = (icmp_errors(lab), lab.counter(sender, counter));
    transfer();
    let translated = icmp_errors(lab) - translated;
    let told = lab.counter(sender, counter) - told;
    println!("{sender} to {peer}: {translated} ICMP errors translated, {told} arrived");
    assert!(translated > 0 && told > 0);
    let route = lab.at(sender, &format!("ip route get {}", bare(peer)));
    assert!(route.contains(MTU), "{sender}: {route}");
}

fn ends_well(lab: &Lab, hosts: &[&str]) {
    let status = lab.status();
    assert_eq!(sum(&status["packets"]["dropped"]), 0, "{status:#}");
    lab.checksums_were_right(hosts);
}

/// The backends' segments do not fit through the cable to the client.
fn towards_the_client(lab: &Lab, mode: &str) {
    lay_cables(lab);
    lab.script("cp /run/10m $STATE/http1/files/");
    let config = lab.write("mtu.toml", &services(["10.0.0.2", "fd00::2"]));
    let lb = lab.balance(&format!("-i eth0 --mode {mode} -c {config}"));
    for vip in VIPS {
        let source = if is_ipv6(vip) {
            "[fd00::5]"
        } else {
            "10.0.0.5"
        };
        finds_out(lab, "http1", source, || download(lab, "far", vip));
        // Here the client's own router tells it.
        forget_paths(lab, "http1");
        upload(lab, "far", vip);
        let route = lab.at("far", &format!("ip route get {}", bare(vip)));
        assert!(route.contains(MTU), "far: {route}");
    }
    ends_well(lab, &["far", "router", "http1"]);
    lb.end();
}

/// The clients' segments do not fit through the cable to the backend.
fn towards_the_backend(lab: &Lab, mode: &str) {
    lay_cables(lab);
    lab.script("serve far; cp /run/10m $STATE/far/files/");
    let config = lab.write("mtu.toml", &services(["10.8.0.1", "fd08::1"]));
    let lb = lab.balance(&format!("-i eth0 --mode {mode} -c {config}"));
    for vip in VIPS {
        finds_out(lab, "client", vip, || upload(lab, "client", vip));
        download(lab, "client", vip);
    }
    ends_well(lab, &["far", "router", "client"]);
    lb.end();
}

#[test]
fn a_narrow_path_to_the_client_is_found_out() {
    if let Some(lab) = crate::lab("a_narrow_path_to_the_client_is_found_out") {
        towards_the_client(&lab, "generic");
    }
}

#[test]
fn a_narrow_path_to_the_backend_is_found_out() {
    if let Some(lab) = crate::lab("a_narrow_path_to_the_backend_is_found_out") {
        towards_the_backend(&lab, "generic");
    }
}

#[test]
fn a_narrow_path_to_the_client_is_found_out_in_native_mode() {
    if let Some(lab) = crate::lab("a_narrow_path_to_the_client_is_found_out_in_native_mode") {
        lab.script("native");
        towards_the_client(&lab, "native");
    }
}

#[test]
fn a_narrow_path_to_the_backend_is_found_out_in_native_mode() {
    if let Some(lab) = crate::lab("a_narrow_path_to_the_backend_is_found_out_in_native_mode") {
        lab.script("native");
        towards_the_backend(&lab, "native");
    }
}
