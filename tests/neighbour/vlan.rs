// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! Routes that lead through VLAN devices on the interface.

use std::time::Duration;

use xdp_proxy::neighbour::{DisplayMac, interface, tags_on};

use crate::*;

/// On the interface: 802.1Q, 802.1ad, and one in the other.
const DEVICES: [&str; 4] = [
    "link eth0 name eth0.10 type vlan id 10",
    "link eth0 name eth0.100 type vlan protocol 802.1ad id 100",
    "link eth0.100 name eth0.100.30 type vlan id 30",
    "link eth0.100.30 name eth0.100.30.7 type vlan id 7",
];

fn q(id: u16) -> Tag {
    Tag {
        protocol: 0x8100,
        id,
    }
}

fn ad(id: u16) -> Tag {
    Tag {
        protocol: 0x88a8,
        id,
    }
}

fn resolved_in(tags: &[Tag], mac: Mac, next_hop: &str, source: &str) -> Option<Reach> {
    Some(Reach::Resolved {
        mac,
        tags: tags.to_vec(),
        next_hop: addr(next_hop),
        source: addr(source),
    })
}

/// Makes a VLAN device and gives it 10.1.NET.HOST/24.
fn add_vlan(at: &dyn Fn(&str), device: &str, net: u8, host: u8) {
    at(&format!("link add {device}"));
    let name = device.split(' ').nth(3).unwrap();
    at(&format!("link set {name} addrgenmode none up"));
    at(&format!("addr add 10.1.{net}.{host}/24 dev {name}"));
}

/// The load balancer and a backend in each of the VLANs: 10.1.0.0/24 to 10.1.3.0/24.
fn backend_in_vlans(switch: &Switch) -> Host {
    let backend = switch.host("10.0.0.2/24", BACKEND);
    for (device, net) in DEVICES.iter().zip(0..) {
        add_vlan(&ip, device, net, 1);
        add_vlan(&|arguments| backend.ip(arguments), device, net, 2);
    }
    backend
}

#[test]
fn backends_in_vlans_are_resolved_with_their_tags() {
    as_lb_with_vlans(
        "backends_in_vlans_are_resolved_with_their_tags",
        async |switch| {
            let _backend = backend_in_vlans(switch);
            ip("route add 10.9.0.0/24 via 10.1.2.2");
            let all = [
                "10.0.0.2", "10.1.0.2", "10.1.1.2", "10.1.2.2", "10.1.3.2", "10.9.0.1",
            ];
            let neighbours = follow(&all).await;
            let expected: [&[Tag]; 3] = [&[q(10)], &[ad(100)], &[ad(100), q(30)]];
            for (tags, net) in expected.into_iter().zip(0..) {
                let backend = format!("10.1.{net}.2");
                let here = format!("10.1.{net}.1");
                assert_eq!(
                    neighbours.reach(addr(&backend)),
                    resolved_in(tags, BACKEND, &backend, &here)
                );
            }
            assert_eq!(
                neighbours.reach(addr("10.0.0.2")),
                resolved(BACKEND, "10.0.0.2")
            );
            assert_eq!(
                neighbours.reach(addr("10.9.0.1")),
                resolved_in(&[ad(100), q(30)], BACKEND, "10.1.2.2", "10.1.2.1")
            );
            assert_eq!(
                why(&neighbours, "10.1.3.2"),
                "10.1.3.2 is reached through eth0.100.30.7, not eth0"
            );
            tokio::time::sleep(Duration::from_secs(1)).await;
            let entry = kernels_entry("10.1.2.2");
            assert!(
                entry.contains("eth0.100.30 lladdr 02:00:00:00:00:02"),
                "{entry}"
            );

            let eth0 = interface("eth0").await.unwrap();
            let inner = interface("eth0.100.30").await.unwrap();
            let tags = async |above, below| tags_on(below, above).await.unwrap();
            assert_eq!(tags(&inner, &eth0).await, Some(vec![ad(100), q(30)]));
            assert_eq!(tags(&eth0, &eth0).await, Some(vec![]));
            assert_eq!(tags(&eth0, &inner).await, None);
        },
    );
}

#[test]
fn a_silent_backends_new_mac_is_noticed_in_a_vlan() {
    as_lb_with_vlans(
        "a_silent_backends_new_mac_is_noticed_in_a_vlan",
        async |switch| {
            let backend = backend_in_vlans(switch);
            let mut neighbours = follow(&["10.1.0.2", "10.1.2.2"]).await;
            tokio::time::sleep(Duration::from_millis(1300)).await;
            let mac = [2, 0, 0, 0, 1, 1];
            backend.ip(&format!("link set eth0 address {}", DisplayMac(mac)));
            let expected = [
                resolved_in(&[q(10)], mac, "10.1.0.2", "10.1.0.1"),
                resolved_in(&[ad(100), q(30)], mac, "10.1.2.2", "10.1.2.1"),
            ];
            let took = until(&mut neighbours, |now| {
                ["10.1.0.2", "10.1.2.2"].map(|address| now.reach(addr(address))) == expected
            })
            .await;
            println!("the new MAC was noticed after {took:?}");
            assert!(took < Duration::from_secs(3));
        },
    );
}

#[test]
fn vlan_devices_that_come_and_go_are_followed() {
    as_lb_with_vlans(
        "vlan_devices_that_come_and_go_are_followed",
        async |switch| {
            let backend = switch.host("10.0.0.2/24", BACKEND);
            let mut neighbours = follow(&["10.1.0.2"]).await;
            assert_eq!(why(&neighbours, "10.1.0.2"), "no route to 10.1.0.2");
            // The same name, another VLAN each time.
            for id in [10, 11] {
                let device = format!("link eth0 name v0 type vlan id {id}");
                add_vlan(&|arguments| backend.ip(arguments), &device, 0, 2);
                add_vlan(&ip, &device, 0, 1);
                let expected = resolved_in(&[q(id)], BACKEND, "10.1.0.2", "10.1.0.1");
                until(&mut neighbours, |now| {
                    now.reach(addr("10.1.0.2")) == expected
                })
                .await;

                ip("link set v0 down");
                until(&mut neighbours, |now| {
                    now.reach(addr("10.1.0.2")) != expected
                })
                .await;
                assert_eq!(why(&neighbours, "10.1.0.2"), "no route to 10.1.0.2");
                ip("link set v0 up");
                until(&mut neighbours, |now| {
                    now.reach(addr("10.1.0.2")) == expected
                })
                .await;

                ip("link del v0");
                until(&mut neighbours, |now| {
                    now.reach(addr("10.1.0.2")) != expected
                })
                .await;
                assert_eq!(why(&neighbours, "10.1.0.2"), "no route to 10.1.0.2");
                backend.ip("link del v0");
            }
            // The one that is followed is still there.
            assert!(neighbours.interface().up);
        },
    );
}

#[test]
fn a_vlan_device_that_the_datapath_cannot_serve_says_why() {
    as_lb_with_vlans(
        "a_vlan_device_that_the_datapath_cannot_serve_says_why",
        async |switch| {
            let _backend = backend_in_vlans(switch);
            ip("link add eth1 type veth peer name eth2");
            ip("link set eth2 up");
            ip("link set eth1 up");
            add_vlan(&ip, "link eth1 name eth1.10 type vlan id 10", 9, 1);
            ip("link set eth0.10 address 02:00:00:00:00:99");
            let mut neighbours = follow(&["10.1.0.2", "10.1.9.2"]).await;
            assert_eq!(
                why(&neighbours, "10.1.9.2"),
                "10.1.9.2 is reached through eth1.10, not eth0"
            );
            assert_eq!(
                why(&neighbours, "10.1.0.2"),
                "eth0.10, which leads to 10.1.0.2, has a MAC of its own: give it that of eth0 (`ip link \
             set dev eth0.10 address 02:00:00:00:00:01`)"
            );
            ip("link set dev eth0.10 address 02:00:00:00:00:01");
            let expected = resolved_in(&[q(10)], BACKEND, "10.1.0.2", "10.1.0.1");
            until(&mut neighbours, |now| {
                now.reach(addr("10.1.0.2")) == expected
            })
            .await;

            ip("link set eth0 address 02:00:00:00:00:98");
            until(&mut neighbours, |now| now.interface().mac[5] == 0x98).await;
            tokio::time::sleep(Duration::from_secs(4)).await;
            assert!(why(&neighbours, "10.1.0.2").contains("a MAC of its own"));

            switch.0.ip("link set p01 down");
            until(&mut neighbours, |now| !now.interface().up).await;
            switch.0.ip("link set p01 up");
            ip("link set dev eth0.10 address 02:00:00:00:00:98");
            until(&mut neighbours, |now| {
                now.reach(addr("10.1.0.2")) == expected
            })
            .await;
        },
    );
}
