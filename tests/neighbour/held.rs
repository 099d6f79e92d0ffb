// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! Which of the VIPs the host has itself.

use std::collections::BTreeSet;

use xdp_proxy::neighbour::{Neighbours, interface};

use crate::*;

#[test]
fn a_vip_is_held_while_any_interface_has_it() {
    as_lb(
        "a_vip_is_held_while_any_interface_has_it",
        async |_switch| {
            let vips = ["10.0.0.1", "192.0.2.1", "2001:db8::1"].map(addr);
            let eth0 = interface("eth0").await.unwrap();
            let neighbours = Neighbours::follow(&eth0, [] as [IpAddr; 0], vips).await;
            let mut neighbours = neighbours.unwrap();
            let held = |of: &[&str]| of.iter().map(|text| addr(text)).collect::<BTreeSet<_>>();
            assert_eq!(neighbours.held(), held(&["10.0.0.1"]));

            ip("link add d0 type bridge");
            ip("link set d0 up");
            for (line, now) in [
                (
                    "addr add 192.0.2.1/32 dev lo",
                    &["10.0.0.1", "192.0.2.1"][..],
                ),
                ("addr add 192.0.2.2/32 dev lo", &["10.0.0.1", "192.0.2.1"]),
                ("addr del 10.0.0.1/24 dev eth0", &["192.0.2.1"]),
                (
                    "addr add 2001:db8::1/128 dev d0 nodad",
                    &["192.0.2.1", "2001:db8::1"],
                ),
                // The far end of a link is not held, the near one is.
                (
                    "addr add 192.0.2.3 peer 10.0.0.1 dev d0",
                    &["192.0.2.1", "2001:db8::1"],
                ),
                (
                    "addr add 10.0.0.1 peer 192.0.2.9 dev d0",
                    &["10.0.0.1", "192.0.2.1", "2001:db8::1"],
                ),
                ("link del d0", &["192.0.2.1"]),
                ("addr flush dev lo", &[]),
            ] {
                ip(line);
                let took = until(&mut neighbours, |now_| now_.held() == held(now)).await;
                println!("{line}: known after {took:?}");
            }
        },
    );
}
