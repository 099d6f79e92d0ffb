// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
mod common;

use common::rig::*;
use etherparse::PacketBuilder;
use xdp_proxy::datapath::Settings;

#[test]
fn smoke() {
    for (partial, complete) in [(false, false), (true, false), (true, true)] {
        let rig = Rig::new(
            &config(vec![service(
                "10.0.0.5:80",
                &[("10.0.0.2:80", 1), ("10.0.0.3:80", 1)],
            )]),
            Settings {
                hash_seed: 7,
                partial_checksums: partial,
                complete_checksums: complete,
                offload_to: None,
            },
        );
        let builder = PacketBuilder::ethernet2(CLIENT_MAC, LB_MAC)
            .ipv4([10, 0, 0, 9], [10, 0, 0, 5], 64)
            .tcp(40000, 80, 1000, 64240)
            .syn();
        let mut frame = Vec::new();
        builder.write(&mut frame, &[]).unwrap();
        let ran = rig.run(&frame);
        eprintln!("{:?}", ran);
        eprintln!(
            "{:?}",
            etherparse::PacketHeaders::from_ethernet_slice(&ran.frame)
        );
        eprintln!("{:?}", rig.datapath.counters(2).unwrap());
    }
}
