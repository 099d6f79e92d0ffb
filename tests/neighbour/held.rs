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
            let vips = BTreeSet::from(["10.0.0.1", "192.0.2.1", "2001:db8::1"].map(addr));
            let eth0 = interface("eth0").await.unwrap();
            let neighbours = Neighbours::follow(&eth0, [] as [IpAddr; 0], vips.clone()).await;
            let mut neighbours = neighbours.unwrap();
            let held = |of: &[&str]| of.iter().map(|text| addr(text)).collect::<BTreeSet<_>>();
            let of_vips = |now: &Neighbours| &now.held() & &vips;
            assert_eq!(of_vips(&neighbours), held(&["10.0.0.1"]));

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
                let took = until(&mut neighbours, |now_| of_vips(now_) == held(now)).await;
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

/// Nobody else can send from these.
#[test]
fn what_all_hosts_of_a_network_have_is_held_as_well() {
    as_lb(
        "what_all_hosts_of_a_network_have_is_held_as_well",
        async |_switch| {
            let eth0 = interface("eth0").await.unwrap();
            let neighbours = Neighbours::follow(&eth0, [] as [IpAddr; 0], []).await;
            let mut neighbours = neighbours.unwrap();
            let held = |now: &Neighbours, text: &str| now.held().contains(&addr(text));
            assert!(held(&neighbours, "10.0.0.255"), "{:?}", neighbours.held());
            ip("link add d0 type bridge");
            ip("link set d0 up");
            for (line, address) in [
                ("addr add 192.0.2.66/27 dev d0", "192.0.2.95"),
                ("addr add 192.0.2.1/28 brd 192.0.2.9 dev d0", "192.0.2.9"),
                ("addr add 198.51.100.1/24 dev d0", "198.51.100.255"),
            ] {
                assert!(!held(&neighbours, address), "{address}");
                ip(line);
                let took = until(&mut neighbours, |now| held(now, address)).await;
                println!("{line}: known after {took:?}");
            }
            // Of a link between two, both addresses are of one host each.
            ip("addr add 203.0.113.4/31 dev d0");
            until(&mut neighbours, |now| held(now, "203.0.113.4")).await;
            assert!(!held(&neighbours, "203.0.113.5"));
            ip("addr del 198.51.100.1/24 dev d0");
            until(&mut neighbours, |now| !held(now, "198.51.100.255")).await;
        },
    );
}
