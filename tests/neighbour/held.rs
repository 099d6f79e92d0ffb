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

/// keepalived's `use_vmac` makes such a device.
const MACVLAN: &str =
    "link add link eth0 name vrrp.51 address 00:00:5e:00:01:33 type macvlan mode private";

#[test]
fn a_vip_on_a_device_with_a_mac_of_its_own_is_told_with_the_mend() {
    let test = "a_vip_on_a_device_with_a_mac_of_its_own_is_told_with_the_mend";
    as_lb(test, async |_switch| {
        let vips = ["10.0.0.9", "10.0.0.8", "10.0.0.7"].map(addr);
        let eth0 = interface("eth0").await.unwrap();
        let none: [IpAddr; 0] = [];
        let neighbours = Neighbours::follow(&eth0, none, vips).await;
        let mut neighbours = neighbours.unwrap();
        let astray = |now: &Neighbours| now.astray().into_values().collect::<Vec<_>>();
        assert!(astray(&neighbours).is_empty());
        ip(MACVLAN);
        ip("link set vrrp.51 up");
        // An interface of its own is no business of this one, nor is the loopback.
        ip("link add d0 type bridge");
        ip("addr add 10.0.0.8/32 dev d0");
        ip("addr add 10.0.0.7/32 dev lo");
        ip("addr add 10.0.0.9/32 dev vrrp.51");
        until(&mut neighbours, |now| !astray(now).is_empty()).await;
        let expected = "VIP 10.0.0.9 is on vrrp.51, a macvlan with a MAC of its own, \
                        00:00:5e:00:01:33, so that clients send there and the host refuses them: \
                        eth0 takes what comes to 02:00:00:00:00:01: put the address on eth0 itself \
                        (keepalived: without `use_vmac`)";
        assert_eq!(astray(&neighbours), [expected]);
        // Where the interface has it as well, clients find that.
        ip("addr add 10.0.0.9/32 dev eth0");
        until(&mut neighbours, |now| astray(now).is_empty()).await;
        ip("addr del 10.0.0.9/32 dev eth0");
        until(&mut neighbours, |now| !astray(now).is_empty()).await;
        ip("link del vrrp.51");
        until(&mut neighbours, |now| astray(now).is_empty()).await;

        // The bridge answers for its ports.
        ip("link set d0 address 02:00:00:00:00:77");
        ip("link set d0 up");
        ip("link set eth0 master d0");
        until(&mut neighbours, |now| !astray(now).is_empty()).await;
        let [bridge] = &astray(&neighbours)[..] else {
            panic!("one VIP is on the bridge")
        };
        assert!(
            bridge.starts_with("VIP 10.0.0.8 is on d0, a bridge with a MAC of its own")
                && bridge.ends_with(": name it with -i d0"),
            "{bridge}"
        );
    });
}
