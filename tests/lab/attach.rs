// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! Modes, and programs that are not ours.

use crate::common::http;
use crate::common::lab::{BINARY, LB, TWO, refusal};

#[test]
fn a_foreign_program_is_never_replaced() {
    let Some(lab) = crate::lab("a_foreign_program_is_never_replaced") else {
        return;
    };
    lab.script("clang -O2 -g -target bpf -c \"$LAB_DIR/pass.bpf.c\" -o /run/pass.o");
    for hook in ["xdpgeneric", "xdpdrv"] {
        lab.at(
            "lb",
            &format!("ip link set dev eth0 {hook} obj /run/pass.o sec xdp"),
        );
        let there = lab.attached().unwrap();
        let id = &there["prog"]["id"];
        for mode in ["auto", "generic", "native"] {
            let error = refusal(&lab.proxy(&format!("run --mode {mode} {TWO}")), 1);
            println!("{error}");
            assert!(error.contains(&format!("(id {id})")), "{error}");
            assert!(
                error.contains("\"pass\"") && error.contains(hook),
                "{error}"
            );
        }
        refusal(&lab.proxy("stop"), 1);
        assert_eq!(lab.attached(), Some(there));
        lab.at("lb", &format!("ip link set dev eth0 {hook} off"));
    }
    // The mend that was named works.
    lab.balance(TWO).end();
}

#[test]
fn each_mode_is_had_or_refused_in_one_line() {
    let Some(lab) = crate::lab("each_mode_is_had_or_refused_in_one_line") else {
        return;
    };
    let error = refusal(&lab.proxy(&format!("run --mode offload {TWO}")), 1);
    println!("{error}");
    assert!(error.contains("eth0") && error.contains("offload") && error.contains("--mode"));
    assert_eq!(lab.attached(), None);
    for (mode, got) in [
        ("auto", "generic"),
        ("generic", "generic"),
        ("native", "native"),
    ] {
        let lb = lab.balance(&format!("--mode {mode} {TWO}"));
        assert!(lb.ready.contains(&format!("eth0 ({got})")), "{}", lb.ready);
        assert_eq!(lab.status()["mode"], got);
        if mode == "native" {
            // The peer has no program, and nobody here can see it.
            let log = lb.log();
            assert!(log.contains("WARN") && log.contains("its peer"), "{log}");
        } else if mode == "auto" {
            assert!(lb.log().contains("veth"), "auto says why: {}", lb.log());
        }
        lb.end();
        assert_eq!(lab.attached(), None);
    }
}

#[test]
fn native_mode_on_a_veth_looks_at_a_peer_that_it_can_see() {
    let Some(lab) = crate::lab("native_mode_on_a_veth_looks_at_a_peer_that_it_can_see") else {
        return;
    };
    for line in [
        "ip link add v0 type veth peer name v1",
        "ip addr add 10.7.0.1/24 dev v0",
        "ip link set v0 up",
        "ip link set v1 up",
    ] {
        lab.at("lb", line);
    }
    let run = "--mode native -i v0 --listen 10.7.0.1:80 --backend 10.7.0.2";
    let error = refusal(&lab.proxy(&format!("run {run}")), 1);
    println!("{error}");
    assert!(error.contains("v0") && error.contains("v1") && error.contains("--mode generic"));
    assert!(!lab.at("lb", "ip -d link show v0").contains("xdp"));

    lab.script("clang -O2 -g -target bpf -c \"$LAB_DIR/pass.bpf.c\" -o /run/pass.o");
    lab.at("lb", "ip link set dev v1 xdpdrv obj /run/pass.o sec xdp");
    let lb = lab.balance(run);
    assert!(lb.ready.contains("v0 (native)"), "{}", lb.ready);
    lb.end();
}

#[test]
fn two_on_one_interface_do_not_meet_and_two_interfaces_do_not_mind() {
    let test = "two_on_one_interface_do_not_meet_and_two_interfaces_do_not_mind";
    let Some(lab) = crate::lab(test) else {
        return;
    };
    let first = lab.balance(TWO);
    let there = lab.attached();
    let error = refusal(&lab.proxy(&format!("run {TWO}")), 1);
    println!("{error}");
    assert!(
        error.contains("eth0") && error.contains("xdp-proxy stop"),
        "{error}"
    );
    assert_eq!(lab.attached(), there);
    lab.within("client", || http::host(LB).unwrap());

    lab.at("lb", "ip link add v0 type veth peer name v1");
    lab.at("lb", "ip addr add 10.7.0.1/24 dev v0");
    lab.at("lb", "ip link set v0 up");
    let second = lab.balance("--listen 10.7.0.1:80 --backend 10.7.0.2");
    assert!(second.ready.contains("v0 (generic)"), "{}", second.ready);
    let both = lab.status();
    let interfaces: Vec<_> = both
        .as_array()
        .unwrap()
        .iter()
        .map(|one| &one["interface"])
        .collect();
    assert_eq!(interfaces, ["eth0", "v0"]);
    lab.at("lb", &format!("{BINARY} stop -i v0"));
    assert_eq!(second.wait().code(), Some(0));
    assert_eq!(lab.attached(), there);
    lab.within("client", || http::host(LB).unwrap());
    first.end();
}
