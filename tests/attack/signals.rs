// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! A signal ends the daemon, whatever it is about to do.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use xdp_proxy::control::Handover;

use crate::common::lab::TWO;

#[test]
fn a_silent_client_that_takes_over_delays_no_signal() {
    let Some(lab) = crate::lab("a_silent_client_that_takes_over_delays_no_signal") else {
        return;
    };
    for (signal, persists) in [
        (Signal::SIGTERM, false),
        (Signal::SIGINT, false),
        (Signal::SIGTERM, true),
    ] {
        let persist = if persists { "--persist " } else { "" };
        let lb = lab.balance(&format!("{persist}{TWO}"));
        let handover = lab.within("lb", || Handover::ask("eth0").unwrap().unwrap());
        assert!(handover.predecessor.waits());
        let start = Instant::now();
        lb.signal(signal);
        let (log, status) = lb.outcome();
        assert_eq!(status.code(), Some(0), "{log}");
        assert!(
            start.elapsed() < Duration::from_secs(4),
            "{:?}",
            start.elapsed()
        );
        assert_eq!(lab.attached().is_some(), persists, "{log}");
        assert!(!handover.predecessor.waits());
    }
}
