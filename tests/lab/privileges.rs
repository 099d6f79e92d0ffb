// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! What the daemon may do: as little as serving takes.

use std::collections::BTreeMap;
use std::os::unix::fs::{PermissionsExt as _, chown};

use nix::sys::signal::Signal;

use crate::common::http;
use crate::common::lab::{BINARY, Balancer, HTTP1, LB, Lab, TWO, refusal};

/// What capabilities(7) numbers 12, 13, 38 and 39.
const NET_ADMIN: u64 = 1 << 12;
const NET_RAW: u64 = 1 << 13;
const PERFMON: u64 = 1 << 38;
const BPF: u64 = 1 << 39;
const FOUR: u64 = NET_ADMIN | NET_RAW | PERFMON | BPF;
const SYS_ADMIN: u64 = 1 << 21;
const NOBODY: &str = "setpriv --reuid 65534 --regid 65534 --clear-groups";

/// A command's words before it, that give it these capabilities and no others, also
/// to an ordinary user.
pub fn with(capabilities: &str) -> String {
    let list = capabilities.replace(' ', ",+");
    let list = format!("-all,+{list}");
    format!("{NOBODY} --inh-caps={list} --ambient-caps={list} --bounding-set={list}")
}

/// The lines of /proc/PID/status about privileges. No thread has more, that of checks has none.
fn privileges(lab: &Lab) -> BTreeMap<String, u64> {
    let pid = lab.status()["pid"].as_u64().unwrap();
    let of_thread = |thread: &str| {
        let status = format!("/proc/{pid}/task/{thread}/status");
        let lines = lab.at("lb", &format!("grep -hE ^Cap|^NoNew {status}"));
        let parse = |line: &str| {
            let (name, value) = line.split_once(':').unwrap();
            let value = u64::from_str_radix(value.trim(), 16).unwrap();
            (name.to_owned(), value)
        };
        lines.lines().map(parse).collect::<BTreeMap<_, _>>()
    };
    let first = of_thread(&pid.to_string());
    let threads = lab.at("lb", &format!("ls /proc/{pid}/task"));
    let others = threads.split_whitespace();
    for thread in others.filter(|thread| *thread != pid.to_string()) {
        let called = lab.at("lb", &format!("cat /proc/{pid}/task/{thread}/comm"));
        for (name, value) in of_thread(thread) {
            let most = match &*name {
                "CapEff" | "CapPrm" if called.trim() == "checks" => 0,
                name => first[name],
            };
            assert_eq!(value & !most, 0, "{name} of {thread}: {value:x}");
            assert!(name != "NoNewPrivs" || value == 1);
        }
    }
    assert_eq!(first.len(), 6, "{first:x?}");
    first
}

/// It serves, reloads a file, follows a backend that goes and comes back, and sweeps.
fn does_all_its_work(lab: &Lab, lb: Balancer) {
    lab.within("client", || http::host(LB).unwrap());
    let program = lab.status()["program_id"].clone();
    lab.write("web.toml", &web(&[HTTP1]));
    let done = lab.at("lb", &format!("{BINARY} reload"));
    assert!(done.contains("backends: 0 added, 1 removed"), "{done}");
    assert_ne!(lab.status()["program_id"], program);
    let state = |state: &'static str| {
        move |status: &serde_json::Value| status["services"][0]["backends"][0]["state"] == state
    };
    lab.at("http1", "ip link set eth0 down");
    lb.until("unreachable", state("unreachable"));
    lab.at("http1", "ip link set eth0 up");
    lb.until("up", state("up"));
    lab.within("client", || http::host(LB).unwrap());
    lb.end();
    assert_eq!(lab.attached(), None);
}

fn web(backends: &[&str]) -> String {
    let backends = backends.iter();
    let backends = backends.map(|b| format!("[[service.backend]]\naddress = \"{b}\"\n"));
    format!(
        "[[service]]\nlisten = \"{LB}:80\"\n{}",
        backends.collect::<String>()
    )
}

#[test]
fn root_keeps_four_capabilities_and_can_get_no_others() {
    let Some(lab) = crate::lab("root_keeps_four_capabilities_and_can_get_no_others") else {
        return;
    };
    let file = lab.write("web.toml", &web(&[HTTP1, "10.0.0.3"]));
    let lb = lab.balance(&format!("-c {file}"));
    let privileges = privileges(&lab);
    for (set, capabilities) in [
        ("CapEff", FOUR),
        ("CapPrm", FOUR),
        ("CapBnd", FOUR),
        ("CapInh", 0),
        ("CapAmb", 0),
        ("NoNewPrivs", 1),
    ] {
        assert_eq!(privileges[set], capabilities, "{set}: {privileges:x?}");
    }
    does_all_its_work(&lab, lb);
}

#[test]
fn an_ordinary_user_with_four_capabilities_serves_reloads_and_detaches() {
    let test = "an_ordinary_user_with_four_capabilities_serves_reloads_and_detaches";
    let Some(lab) = crate::lab(test) else {
        return;
    };
    let file = lab.write("web.toml", &web(&[HTTP1, "10.0.0.3"]));
    let as_user = with("net_admin bpf perfmon net_raw");
    let lb = lab.balance_by(&format!("{as_user} {BINARY} run -c {file}"));
    let privileges = privileges(&lab);
    assert_eq!((privileges["CapEff"], privileges["CapAmb"]), (FOUR, 0));
    assert!(!lb.log().contains("WARN"), "{}", lb.log());
    does_all_its_work(&lab, lb);
}

#[test]
fn sys_admin_does_for_engines_that_know_nothing_finer() {
    let Some(lab) = crate::lab("sys_admin_does_for_engines_that_know_nothing_finer") else {
        return;
    };
    let file = lab.write("web.toml", &web(&[HTTP1, "10.0.0.3"]));
    let as_user = with("net_admin sys_admin");
    let lb = lab.balance_by(&format!("{as_user} {BINARY} run -c {file}"));
    assert_eq!(privileges(&lab)["CapEff"], NET_ADMIN | SYS_ADMIN);
    // The kernel asks for MACs, and takes its time.
    let word = "they take CAP_NET_RAW";
    assert!(lb.log().contains(word), "{}", lb.log());
    lab.within("client", || http::host(LB).unwrap());
    lb.end();
    assert_eq!(lab.attached(), None);
}

#[test]
fn each_capability_that_is_missing_is_named() {
    let Some(lab) = crate::lab("each_capability_that_is_missing_is_named") else {
        return;
    };
    for (given, missing) in [
        ("bpf perfmon", "does not have NET_ADMIN: "),
        ("sys_admin", "does not have NET_ADMIN: "),
        ("net_admin bpf", "does not have PERFMON: "),
        ("net_admin perfmon", "does not have BPF: "),
        ("net_admin", "does not have BPF, PERFMON: "),
        ("chown", "does not have NET_ADMIN, BPF, PERFMON: "),
    ] {
        let line = format!("{} {BINARY} run {TWO}", with(given));
        let error = refusal(&lab.try_at("lb", &line), 1);
        assert!(error.contains(missing), "{given}: {error}");
        assert_eq!(lab.attached(), None);
    }
}

#[test]
fn a_file_that_a_reload_could_not_read_is_told_at_the_start() {
    let Some(lab) = crate::lab("a_file_that_a_reload_could_not_read_is_told_at_the_start") else {
        return;
    };
    // Root reads it by a capability that it gives up.
    let file = lab.write("web.toml", &web(&[HTTP1]));
    chown(lab.path(&file), Some(65534), Some(65534)).unwrap();
    let closed = std::fs::Permissions::from_mode(0o600);
    std::fs::set_permissions(lab.path(&file), closed).unwrap();
    let lb = lab.balance(&format!("-c {file}"));
    let word = "web.toml: a reload won't be able to read it";
    assert!(lb.log().contains(word), "{}", lb.log());
    let error = refusal(&lab.proxy("reload"), 1);
    assert!(error.contains("let this user read it"), "{error}");
    lab.within("client", || http::host(LB).unwrap());
    lb.end();
}

#[test]
fn what_an_ordinary_user_may_not_look_into_is_not_said_to_be_nothing() {
    let test = "what_an_ordinary_user_may_not_look_into_is_not_said_to_be_nothing";
    let Some(lab) = crate::lab(test) else { return };
    let lb = lab.balance(TWO);
    let program = lab.status()["program_id"].clone();
    lb.signal(Signal::SIGKILL);
    lb.wait();
    for command in ["status", "flows -i eth0", "stop"] {
        let output = lab.try_at("lb", &format!("{NOBODY} {BINARY} {command}"));
        let error = refusal(&output, 1);
        let word = format!("on eth0, and what its XDP program {program} is");
        assert!(error.contains(&word), "{command}: {error}");
    }
    lab.at("lb", &format!("{BINARY} stop"));
    let error = refusal(&lab.try_at("lb", &format!("{NOBODY} {BINARY} status")), 1);
    assert!(
        error.contains("no xdp-proxy runs on any interface"),
        "{error}"
    );
}
