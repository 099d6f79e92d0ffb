// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! Those whom the load balancer does not trust, played from outside: what they send, do and
//! hold, and what it costs others.

#[path = "../common/mod.rs"]
mod common;

mod failing_calls;
mod flaps;
mod flood;
mod forged;
mod half_closed;
mod host;
mod loop_errors;
mod loops;
mod names;
mod neighbours;
mod servers;
mod signals;
mod stranger;
mod strangers;
mod tracer;
mod unread;
mod users;
mod victim;

use common::lab::Lab;

/// A lab for a test, unless it must be skipped.
fn lab(test: &str) -> Option<Lab> {
    common::root_or_skip(test).then(Lab::start)
}

/// The same for a test that loads the machine: no other lab is there.
fn lab_alone(test: &str) -> Option<Lab> {
    common::root_or_skip(test).then(Lab::alone)
}
