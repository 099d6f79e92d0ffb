// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! What the tests share.
#![allow(dead_code)]

use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

pub mod books;
pub mod case;
pub mod connection;
pub mod dns;
pub mod echo;
pub mod exchange;
pub mod fragment;
pub mod frame;
pub mod frames;
pub mod http;
pub mod icmp;
pub mod lab;
pub mod load;
pub mod random;
pub mod rig;
pub mod served;
pub mod wire;

/// Whether a test that needs root can run; says aloud when it can't, and fails
/// where skipping is not allowed (`REQUIRE_ROOT_TESTS=1`).
pub fn root_or_skip(test: &str) -> bool {
    if nix::unistd::geteuid().is_root() {
        return true;
    }
    assert!(
        std::env::var("REQUIRE_ROOT_TESTS").as_deref() != Ok("1"),
        "{test} needs root, and REQUIRE_ROOT_TESTS=1 forbids to skip it"
    );
    eprintln!("SKIPPED {test}: needs root");
    false
}

/// The same for a test that needs VLAN devices, which not every kernel has
/// (`REQUIRE_VLAN_TESTS=1` forbids to skip it).
pub fn vlan_or_skip(test: &str) -> bool {
    const TRY: &str = "ip link add v0 type veth peer name v1 &&
                       ip link add link v0 name v0.1 type vlan id 1";
    if !root_or_skip(test) {
        return false;
    }
    let tried = Command::new("unshare")
        .args(["-n", "sh", "-c", TRY])
        .output();
    if tried.unwrap().status.success() {
        return true;
    }
    assert!(
        std::env::var("REQUIRE_VLAN_TESTS").as_deref() != Ok("1"),
        "{test} needs VLAN devices, and REQUIRE_VLAN_TESTS=1 forbids to skip it"
    );
    eprintln!("SKIPPED {test}: needs VLAN devices (CONFIG_VLAN_8021Q of the kernel)");
    false
}

/// Sets a flag when it goes, also by a panic: whoever works until then stops.
pub struct Until<'a>(pub &'a AtomicBool);

impl Drop for Until<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
