// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! A service of each protocol over each family.

use xdp_proxy::datapath::Settings;

use super::case::WAYS;
use super::exchange::*;
use super::frame::*;
use super::rig::*;

/// What each listens on, and its backends.
pub const SERVED: [(&str, [(&str, u16); 2]); 4] = [
    ("10.0.0.5:80", [("10.0.0.2:80", 1), ("10.0.0.3:8080", 1)]),
    (
        "10.0.0.5:53/udp",
        [("10.0.0.2:53", 1), ("10.0.0.3:5353", 1)],
    ),
    ("[fd00::5]:80", [("[fd00::2]:80", 1), ("[fd00::3]:8080", 1)]),
    (
        "[fd00::5]:53/udp",
        [("[fd00::2]:53", 1), ("[fd00::3]:5353", 1)],
    ),
];

pub fn rig(settings: Settings) -> Rig {
    let services = SERVED
        .iter()
        .map(|(listen, backends)| service(listen, backends));
    Rig::new(&config(services.collect()), settings)
}

/// Each of them, with every kind of checksum, each with a flow.
pub fn in_every_way(check: impl Fn(&mut Exchange)) {
    for (settings, sum) in WAYS {
        let rig = rig(*settings);
        for (listen, _) in SERVED {
            let mut exchange = Exchange::new(&rig, listen, 1).with_sum(*sum);
            exchange.open();
            check(&mut exchange);
        }
    }
}

/// A packet of each end with so much data.
pub fn both(exchange: &Exchange, payload_bytes: usize) -> [Frame; 2] {
    [exchange.client_frame(ACK), exchange.backend_frame(ACK)].map(|mut frame| {
        frame.payload = pattern(payload_bytes);
        frame
    })
}
