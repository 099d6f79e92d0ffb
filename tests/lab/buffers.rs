// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! Frames in several buffers: jumbo frames, and large answers.

use std::os::fd::AsFd as _;

use serde_json::Value;
use xdp_proxy::datapath::{Datapath, Hook, Settings, attach_fd, detach_fd, replace_fd};

use crate::common::http::{self, Connection};
use crate::common::lab::{HOSTS, LB, Lab, TWO, TWO_UNCHECKED};
use crate::common::{kernel, rig, served, several_buffers_or_skip};
use crate::traffic::upload;

/// All links carry jumbo frames.
fn widen(lab: &Lab) {
    for host in HOSTS {
        lab.at("switch", &format!("ip link set {host} mtu 9000"));
        lab.at(host, "ip link set eth0 mtu 9000");
    }
    lab.at("switch", "ip link set br0 mtu 9000");
}

fn serves_jumbo_frames(lab: &Lab, mode: &str) {
    widen(lab);
    let file = lab.write("two.toml", TWO_UNCHECKED);
    let lb = lab.balance(&format!("--mode {mode} -c {file}"));
    assert!(lb.ready.contains(&format!("eth0 ({mode})")), "{}", lb.ready);
    lab.script("head -c 10485760 /dev/urandom >/run/10m");
    for host in ["http1", "http2"] {
        lab.script(&format!("cp /run/10m \"$STATE/{host}/files\""));
    }
    upload(lab, LB);
    let line = format!("curl -sS --fail --max-time 20 -o /run/got http://{LB}/10m");
    for _ in 0..10 {
        lab.at("client", &line);
        assert!(lab.read("/run/got") == lab.read("/run/10m"), "damaged");
    }
    let status = lab.status();
    let of = |counter: &str| status["services"][0][counter].as_u64().unwrap();
    for direction in ["forwarded", "returned"] {
        let bytes = of(&format!("{direction}_bytes"));
        let packets = of(&format!("{direction}_packets"));
        println!("{mode}: {direction} {bytes} bytes in {packets} packets");
        assert!(bytes > 100 << 20, "{status:#}");
    }
    let (bytes, packets) = (of("forwarded_bytes"), of("forwarded_packets"));
    let (back_bytes, back_packets) = (of("returned_bytes"), of("returned_packets"));
    assert!(
        bytes + back_bytes > 4000 * (packets + back_packets),
        "few frames are in several buffers: {status:#}"
    );
    let dropped = status["packets"]["dropped"].as_object().unwrap();
    assert!(dropped.values().all(|count| count == 0), "{status:#}");
    lab.checksums_were_right(&HOSTS);
    lb.end();

    // A restart forgets the flow.
    let lb = lab.balance(&format!("--mode {mode} -c {file}"));
    let mut connection = lab.within("client", || Connection::open(LB).unwrap());
    connection.host().unwrap();
    lb.end();
    let lb = lab.balance(&format!("--mode {mode} -c {file}"));
    let error = connection.post(&vec![0; 8000]).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{error}");
    lb.end();
}

#[test]
fn jumbo_frames_are_carried_in_generic_mode() {
    if !several_buffers_or_skip("jumbo_frames_are_carried_in_generic_mode") {
        return;
    }
    serves_jumbo_frames(&Lab::alone(), "generic");
}

#[test]
fn jumbo_frames_are_carried_in_native_mode() {
    if !several_buffers_or_skip("jumbo_frames_are_carried_in_native_mode") {
        return;
    }
    let lab = Lab::alone();
    lab.script("native");
    serves_jumbo_frames(&lab, "native");
}

/// To a program for one buffer the kernel gives a GSO packet of 64 KB in one of 128 KB,
/// which fills the window of a young connection: 15 to 25 times for each request, where
/// the direct path has 3 to 6 and this 1 to 5.
#[test]
fn downloads_of_new_connections_are_not_stopped_by_windows_that_close() {
    let test = "downloads_of_new_connections_are_not_stopped_by_windows_that_close";
    if !several_buffers_or_skip(test) {
        return;
    }
    if kernel() < (6, 9) {
        eprintln!("NOT HERE {test}: generic mode has several buffers from Linux 6.9 on");
        return;
    }
    let lab = Lab::alone();
    let lb = lab.balance(TWO);
    let closed = || lab.counter("client", "TcpExtTCPToZeroWindowAdv");
    let before = closed();
    let report = lab.at(
        "client",
        "wrk -t2 -c100 -d2s -H Connection:close http://10.0.0.5/1m",
    );
    let (line, _) = report.split_once(" requests in").unwrap();
    let requests: u64 = line.split_whitespace().last().unwrap().parse().unwrap();
    let each = (closed() - before) as f64 / requests as f64;
    println!("{requests} downloads, {each:.1} windows of 0 each");
    assert!(requests > 100 && each < 10.0, "{requests}, {each}");
    lb.end();
}

/// As after an upgrade from a version that had one buffer, and back.
#[test]
fn programs_for_one_buffer_and_for_several_replace_each_other() {
    let test = "programs_for_one_buffer_and_for_several_replace_each_other";
    if !several_buffers_or_skip(test) {
        return;
    }
    let lab = Lab::start();
    let tables = rig::tables(&rig::config(vec![rig::service(
        "10.0.0.5:80",
        &served::SERVED[0].1,
    )]));
    let load = |one_buffer| {
        let settings = Settings {
            one_buffer,
            ..rig::GENERIC
        };
        Datapath::load(&tables, &settings).unwrap()
    };
    let programs = [true, false].map(load);
    let [one, several] = programs
        .each_ref()
        .map(|datapath| datapath.program().as_fd());
    let link: Value = serde_json::from_str(&lab.at("lb", "ip -j link show dev eth0")).unwrap();
    let index = link[0]["ifindex"].as_u64().unwrap() as u32;
    lab.within("lb", || {
        for hook in [Hook::Generic, Hook::Native] {
            attach_fd(index, one, hook).unwrap();
            replace_fd(index, several, one, hook).unwrap();
            replace_fd(index, one, several, hook).unwrap();
            detach_fd(index, one, hook).unwrap();
        }
    });
    lab.within("client", || http::host("10.0.0.2").unwrap());
}
