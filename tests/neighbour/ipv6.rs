// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! IPv6 next hops: as fast as those of IPv4.

use std::time::Duration;

use xdp_proxy::neighbour::DisplayMac;

use crate::*;

fn resolved_v6(mac: Mac, tags: &[Tag], next_hop: &str, source: &str) -> Option<Reach> {
    Some(Reach::Resolved {
        mac,
        tags: tags.to_vec(),
        next_hop: addr(next_hop),
        source: addr(source),
    })
}

/// fd00::1 here, fd00::2 there.
fn backend(switch: &Switch) -> Host {
    ip("addr add fd00::1/64 dev eth0 nodad");
    let backend = switch.host("10.0.0.2/24", BACKEND);
    backend.ip("addr add fd00::2/64 dev eth0 nodad");
    backend
}

/// Nothing announces the new MAC. `MAC_CHANGES` says how often.
#[test]
fn a_silent_ipv6_backends_new_mac_is_noticed() {
    as_lb(
        "a_silent_ipv6_backends_new_mac_is_noticed",
        async |switch| {
            let backend = backend(switch);
            let mut neighbours = follow(&["fd00::2", "fd00::9"]).await;
            assert_eq!(
                neighbours.reach(addr("fd00::2")),
                resolved_v6(BACKEND, &[], "fd00::2", "fd00::1")
            );
            assert_eq!(
                why(&neighbours, "fd00::9"),
                "nobody answers neighbour solicitations for fd00::9"
            );
            let changes = std::env::var("MAC_CHANGES").map_or(1, |count| count.parse().unwrap());
            let mut worst = Duration::ZERO;
            for i in 0..changes {
                tokio::time::sleep(Duration::from_millis(1000 + u64::from(i) * 37)).await;
                let mac = [2, 0, 0, 0, 1, i];
                backend.ip(&format!("link set eth0 address {}", DisplayMac(mac)));
                let expected = resolved_v6(mac, &[], "fd00::2", "fd00::1");
                let took = until(&mut neighbours, |now| {
                    now.reach(addr("fd00::2")) == expected
                })
                .await;
                println!("the new MAC was noticed after {took:?}");
                worst = worst.max(took);
                tokio::time::sleep(Duration::from_millis(500)).await;
                let entry = kernels_entry("fd00::2");
                assert!(entry.contains(&DisplayMac(mac).to_string()), "{entry}");
            }
            println!("at the latest after {worst:?}");
            assert!(worst < Duration::from_secs(3));
        },
    );
}

#[test]
fn an_ipv6_backend_that_dies_is_noticed_and_so_is_its_return() {
    let test = "an_ipv6_backend_that_dies_is_noticed_and_so_is_its_return";
    as_lb(test, async |switch| {
        let backend = backend(switch);
        let mut neighbours = follow(&["fd00::2"]).await;
        let expected = resolved_v6(BACKEND, &[], "fd00::2", "fd00::1");
        backend.ip("link set eth0 down");
        let took = until(&mut neighbours, |now| {
            now.reach(addr("fd00::2")) != expected
        })
        .await;
        println!("the death was noticed after {took:?}");
        assert_eq!(
            why(&neighbours, "fd00::2"),
            "nobody answers neighbour solicitations for fd00::2"
        );
        backend.ip("link set eth0 up");
        backend.ip("addr replace fd00::2/64 dev eth0 nodad");
        let took = until(&mut neighbours, |now| {
            now.reach(addr("fd00::2")) == expected
        })
        .await;
        println!("the return was noticed after {took:?}");
    });
}

/// Routers often have the same link-local address on every link.
#[test]
fn one_link_local_address_in_two_vlans_is_two_next_hops() {
    as_lb_with_vlans(
        "one_link_local_address_in_two_vlans_is_two_next_hops",
        async |switch| {
            let mut routers = Vec::new();
            for id in [10, 20] {
                let mac = [2, 0, 0, 0, 0, id];
                let router = switch.host("10.0.0.2/24", mac);
                let device = format!("link eth0 name eth0.{id} type vlan id {id}");
                for (at, address) in [(None, "fe80::1"), (Some(&router), "fe80::2")] {
                    let at = |arguments: &str| {
                        at.map_or_else(|| ip(arguments), |host| host.ip(arguments))
                    };
                    at(&format!("link add {device}"));
                    at(&format!("link set eth0.{id} addrgenmode none up"));
                    at(&format!("addr add {address}/64 dev eth0.{id} nodad"));
                }
                ip(&format!("addr add fd00:{id}::1/64 dev eth0.{id} nodad"));
                ip(&format!(
                    "route add fd00:1{id}::/64 via fe80::2 dev eth0.{id}"
                ));
                routers.push(router);
            }
            let neighbours = follow(&["fd00:110::5", "fd00:120::5"]).await;
            for id in [10, 20] {
                let tag = Tag {
                    protocol: 0x8100,
                    id,
                };
                assert_eq!(
                    neighbours.reach(addr(&format!("fd00:1{id}::5"))),
                    resolved_v6(
                        [2, 0, 0, 0, 0, id as u8],
                        &[tag],
                        "fe80::2",
                        &format!("fd00:{id}::1")
                    )
                );
            }
        },
    );
}
