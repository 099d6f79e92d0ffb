// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! The unit, as `make install` puts it there, under a real systemd. It is process 1 where
//! lab/kernels.sh runs this; `lb` is a network namespace of the unit's.

use std::fs;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::common::lab::{Lab, TWO_UNCHECKED};
use crate::common::load::Clients;
use crate::common::own_kernel_or_skip;

const UNIT: &str = "xdp-proxy@eth0";
const CONFIG: &str = "/etc/xdp-proxy/eth0.toml";
const PATIENCE: Duration = Duration::from_secs(30);

fn systemctl(arguments: &str) -> Output {
    let mut command = Command::new("systemctl");
    command.args(arguments.split(' ')).output().unwrap()
}

/// The same, and it must succeed.
fn does(arguments: &str) -> String {
    let output = systemctl(arguments);
    assert!(
        output.status.success(),
        "{arguments}: {output:?}\n{}",
        journal()
    );
    String::from_utf8(output.stdout).unwrap()
}

fn property(name: &str) -> String {
    let value = does(&format!("show --value -p {name} {UNIT}"));
    value.trim().to_owned()
}

fn pid() -> i32 {
    property("MainPID").parse().unwrap()
}

fn journal() -> String {
    let mut command = Command::new("journalctl");
    let output = command.args(["-u", UNIT, "-o", "cat"]).output().unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Waits until another process serves than the one that did.
fn until_restarted(was: i32) {
    let begun = Instant::now();
    while property("ActiveState") != "active" || [0, was].contains(&pid()) {
        assert!(
            begun.elapsed() < PATIENCE,
            "{}\n{}",
            does(&format!("show {UNIT}")),
            journal()
        );
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// The unit serves on `lb` for as long as this lives.
struct Installed;

impl Installed {
    fn on(lab: &Lab) -> Installed {
        let namespace = lab.path("/run/netns/lb");
        let settings = format!(
            "[Service]\nNetworkNamespacePath={}\nWatchdogSec=3s\nTimeoutAbortSec=1s\n",
            namespace.display()
        );
        let folder = format!("/etc/systemd/system/{UNIT}.service.d");
        fs::create_dir_all(&folder).unwrap();
        fs::write(format!("{folder}/lab.conf"), settings).unwrap();
        fs::create_dir_all("/etc/xdp-proxy").unwrap();
        fs::write(CONFIG, TWO_UNCHECKED).unwrap();
        does("daemon-reload");
        Installed
    }
}

impl Drop for Installed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- the journal\n{}---", journal());
        }
        systemctl(&format!("disable --now {UNIT}"));
    }
}

#[test]
fn systemd_starts_reloads_restarts_and_stops_it_and_no_flow_is_lost() {
    let test = "systemd_starts_reloads_restarts_and_stops_it_and_no_flow_is_lost";
    if !own_kernel_or_skip(test) {
        return;
    }
    let lab = Lab::start();
    let _installed = Installed::on(&lab);
    does(&format!("enable --now {UNIT}"));
    // Ready is what starts tell, so traffic is served.
    let mut kept = Clients::open(&lab);
    assert!(
        property("StatusText").ends_with("-> 2 backends"),
        "{}",
        property("StatusText")
    );
    assert!(does(&format!("is-enabled {UNIT}")).contains("enabled"));
    let first = pid();
    let owner = fs::metadata(format!("/proc/{first}")).unwrap();
    assert_ne!(
        std::os::unix::fs::MetadataExt::uid(&owner),
        0,
        "a user of its own"
    );

    let one = TWO_UNCHECKED.replace(", { address = '10.0.0.3' }", "");
    assert_ne!(one, TWO_UNCHECKED);
    fs::write(CONFIG, &one).unwrap();
    does(&format!("reload {UNIT}"));
    assert!(
        property("StatusText").ends_with("-> 1 backend"),
        "{}",
        property("StatusText")
    );
    kept.go_on(&lab);
    fs::write(CONFIG, "listen = 1").unwrap();
    assert!(!systemctl(&format!("reload {UNIT}")).status.success());
    assert!(
        journal().contains("not reloaded, nothing was changed: "),
        "{}",
        journal()
    );
    fs::write(CONFIG, TWO_UNCHECKED).unwrap();
    does(&format!("reload {UNIT}"));
    assert_eq!(pid(), first);
    kept.go_on(&lab);

    does(&format!("kill -s KILL {UNIT}"));
    kept.go_on(&lab);
    until_restarted(first);
    assert!(journal().contains("taking over program"), "{}", journal());
    kept.go_on(&lab);

    // It hangs; the watchdog's signal is left waiting, and the next one ends it.
    let second = pid();
    kill(Pid::from_raw(second), Signal::SIGSTOP).unwrap();
    until_restarted(second);
    assert!(journal().contains("Watchdog timeout"), "{}", journal());
    kept.go_on(&lab);

    let third = pid();
    does(&format!("restart {UNIT}"));
    assert_ne!(pid(), third);
    kept.go_on(&lab);

    // What it attached stays, until it is to go.
    does(&format!("stop {UNIT}"));
    assert_eq!(property("ActiveState"), "inactive");
    assert!(lab.attached().is_some());
    kept.go_on(&lab);
    does(&format!("start {UNIT}"));
    kept.go_on(&lab);
    does(&format!("disable --now {UNIT}"));
    lab.at("lb", "/usr/bin/xdp-proxy stop -i eth0");
    assert_eq!(lab.attached(), None);
}

#[test]
fn systemd_tells_why_a_start_failed_and_does_not_try_a_wrong_configuration_again() {
    let test = "systemd_tells_why_a_start_failed_and_does_not_try_a_wrong_configuration_again";
    if !own_kernel_or_skip(test) {
        return;
    }
    let lab = Lab::start();
    let _installed = Installed::on(&lab);
    fs::write(CONFIG, "listen = 1").unwrap();
    assert!(!systemctl(&format!("start {UNIT}")).status.success());
    assert_eq!(property("Result"), "exit-code");
    assert_eq!(property("NRestarts"), "0");
    let status = systemctl(&format!("status {UNIT}"));
    let status = String::from_utf8(status.stdout).unwrap();
    assert!(status.contains("/etc/xdp-proxy/eth0.toml"), "{status}");
    assert_eq!(lab.attached(), None);
}
