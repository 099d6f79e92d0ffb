// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! What the tests share.
#![allow(dead_code)]

pub mod case;
pub mod connection;
pub mod dns;
pub mod echo;
pub mod exchange;
pub mod frame;
pub mod frames;
pub mod http;
pub mod icmp;
pub mod lab;
pub mod random;
pub mod rig;
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
