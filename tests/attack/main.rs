// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! Those who mean no good, each from where he is: strangers who send packets, users of the
//! host, servers, and calls that fail.

#[path = "../common/mod.rs"]
mod common;

mod flood;
mod forged;
mod half_closed;

use common::lab::Lab;

/// A lab for a test, unless it must be skipped.
fn lab(test: &str) -> Option<Lab> {
    common::root_or_skip(test).then(Lab::start)
}

/// The same for a test that loads the machine: no other lab is there.
fn lab_alone(test: &str) -> Option<Lab> {
    common::root_or_skip(test).then(Lab::alone)
}
