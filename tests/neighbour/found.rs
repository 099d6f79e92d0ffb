// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! What is found at first: interfaces, next hops, reasons.

use std::time::{Duration, Instant};

use xdp_proxy::neighbour::{
    Interface, Peer, interface, interface_towards, interface_with_address, interface_with_index,
};

use crate::*;

#[test]
fn interfaces_are_found_and_described() {
    as_lb("interfaces_are_found_and_described", async |_switch| {
        let eth0 = interface("eth0").await.unwrap();
        let expected = Interface {
            index: eth0.index,
            name: "eth0".to_owned(),
            mac: [2, 0, 0, 0, 0, 1],
            mtu: 1500,
            up: eth0.up,
            kind: Some("veth".to_owned()),
            vlan: None,
            stacked_on: None,
            controller: None,
            peer: Peer::Elsewhere,
            xdp_program: None,
        };
        assert_eq!(eth0, expected);
        let error = interface("eth7").await.unwrap_err().to_string();
        assert_eq!(
            error,
            "no interface \"eth7\": the interfaces here are lo, eth0"
        );

        ip("link add v0 type veth peer name v1");
        ip("link property add dev v0 altname a-name-of-more-than-fifteen-bytes");
        let v0 = interface("a-name-of-more-than-fifteen-bytes")
            .await
            .unwrap();
        let Peer::Here(v1) = v0.peer else {
            panic!("{v0:?}")
        };
        assert_eq!(interface_with_index(v1).await.unwrap().name, "v1");
        assert!(!v0.up);
        assert!(interface_with_index(99).await.is_err());

        let name = |found: Option<Interface>| found.map(|interface| interface.name);
        ip("addr add 192.0.2.1/32 dev lo");
        assert_eq!(
            name(interface_with_address(addr("10.0.0.1")).await.unwrap()).as_deref(),
            Some("eth0")
        );
        assert_eq!(
            name(interface_with_address(addr("192.0.2.1")).await.unwrap()),
            None
        );
        assert_eq!(
            name(interface_with_address(addr("10.0.0.2")).await.unwrap()),
            None
        );
        assert_eq!(
            name(interface_towards(addr("10.0.0.2")).await.unwrap()).as_deref(),
            Some("eth0")
        );
        assert_eq!(
            name(interface_towards(addr("10.0.0.1")).await.unwrap()),
            None
        );
        assert_eq!(
            name(interface_towards(addr("10.9.0.1")).await.unwrap()),
            None
        );
    });
}

#[test]
fn backends_are_resolved_on_the_link_and_behind_a_router() {
    as_lb(
        "backends_are_resolved_on_the_link_and_behind_a_router",
        async |switch| {
            let _backend = switch.host("10.0.0.2/24", BACKEND);
            let router = switch.host("10.0.0.254/24", ROUTER);
            let far = Host::new();
            router.ip(&format!(
                "link add eth1 type veth peer name eth0 netns {}",
                far.0.id()
            ));
            router.ip("addr add 10.9.0.254/24 dev eth1");
            router.ip("link set eth1 up");
            far.ip("addr add 10.9.0.1/24 dev eth0");
            far.ip("link set eth0 up");
            ip("route add 10.9.0.0/24 via 10.0.0.254");

            let neighbours = follow(&["10.0.0.2", "10.9.0.1", "10.9.0.2"]).await;
            assert_eq!(
                neighbours.reach(addr("10.0.0.2")),
                resolved(BACKEND, "10.0.0.2")
            );
            assert_eq!(
                neighbours.reach(addr("10.9.0.1")),
                resolved(ROUTER, "10.0.0.254")
            );
            assert_eq!(
                neighbours.reach(addr("10.9.0.2")),
                resolved(ROUTER, "10.0.0.254")
            );
            assert_eq!(neighbours.reach(addr("10.0.0.3")), None);
            assert!(neighbours.interface().up);
            tokio::time::sleep(Duration::from_secs(1)).await;
            let entry = kernels_entry("10.0.0.2");
            assert!(
                entry.contains("02:00:00:00:00:02") && !entry.contains("PERMANENT"),
                "{entry}"
            );
        },
    );
}

#[test]
fn an_address_that_cannot_be_reached_says_why() {
    as_lb(
        "an_address_that_cannot_be_reached_says_why",
        async |_switch| {
            ip("link add eth1 type veth peer name eth2");
            ip("link set eth2 up");
            ip("addr add 10.1.0.1/24 dev eth1");
            ip("link set eth1 up");
            ip("route add 10.9.0.0/24 via 10.0.0.254");
            let start = Instant::now();
            let neighbours = follow(&[
                "10.0.0.9",
                "10.9.0.1",
                "10.0.0.1",
                "10.1.0.2",
                "172.16.0.1",
                "10.0.0.255",
                "127.0.0.1",
            ])
            .await;
            let elapsed = start.elapsed();
            println!("silence noticed after {elapsed:?}");
            assert!(elapsed < Duration::from_millis(1800), "{elapsed:?}");
            let expected = [
                ("10.0.0.9", "nobody answers ARP for 10.0.0.9"),
                (
                    "10.9.0.1",
                    "nobody answers ARP for 10.0.0.254, the router to 10.9.0.1",
                ),
                ("10.0.0.1", "10.0.0.1 is an address of this host"),
                ("10.1.0.2", "10.1.0.2 is reached through eth1, not eth0"),
                ("172.16.0.1", "no route to 172.16.0.1"),
                ("10.0.0.255", "10.0.0.255 is no address of one host"),
                ("127.0.0.1", "127.0.0.1 is an address of this host"),
            ];
            for (address, reason) in expected {
                assert_eq!(why(&neighbours, address), reason);
            }
        },
    );
}

#[test]
fn a_static_neighbour_is_respected() {
    as_lb("a_static_neighbour_is_respected", async |switch| {
        let _backend = switch.host("10.0.0.2/24", BACKEND);
        ip("neigh add 10.0.0.2 lladdr 02:00:00:00:00:77 nud permanent dev eth0");
        ip("neigh add 10.0.0.9 lladdr 02:00:00:00:00:78 nud noarp dev eth0");
        let typed = resolved([2, 0, 0, 0, 0, 0x77], "10.0.0.2");
        let mut neighbours = follow(&["10.0.0.2", "10.0.0.9"]).await;
        tokio::time::sleep(Duration::from_millis(4500)).await;
        assert_eq!(neighbours.reach(addr("10.0.0.2")), typed);
        assert_eq!(
            neighbours.reach(addr("10.0.0.9")),
            resolved([2, 0, 0, 0, 0, 0x78], "10.0.0.9")
        );
        let entry = kernels_entry("10.0.0.2");
        assert!(
            entry.contains("02:00:00:00:00:77") && entry.contains("PERMANENT"),
            "{entry}"
        );

        ip("neigh del 10.0.0.2 dev eth0");
        until(&mut neighbours, |now| {
            now.reach(addr("10.0.0.2")) == resolved(BACKEND, "10.0.0.2")
        })
        .await;
        ip("neigh replace 10.0.0.2 lladdr 02:00:00:00:00:77 nud permanent dev eth0");
        until(&mut neighbours, |now| now.reach(addr("10.0.0.2")) == typed).await;
        drop(neighbours);
        assert!(kernels_entry("10.0.0.2").contains("PERMANENT"));
    });
}
