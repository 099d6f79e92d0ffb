// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! What changes is followed.

use std::process::Command;
use std::time::{Duration, Instant};

use nix::libc;
use xdp_proxy::neighbour::{DisplayMac, Reach};

use crate::*;

/// Nothing announces the new MAC: the backend sends no packet of its own.
/// `MAC_CHANGES` says how often.
#[test]
fn a_silent_backends_new_mac_is_noticed() {
    as_lb("a_silent_backends_new_mac_is_noticed", async |switch| {
        let backend = switch.host("10.0.0.2/24", BACKEND);
        let mut neighbours = follow(&["10.0.0.2"]).await;
        let changes = std::env::var("MAC_CHANGES").map_or(1, |count| count.parse().unwrap());
        let mut worst = Duration::ZERO;
        for i in 0..changes {
            // Any moment between two questions.
            tokio::time::sleep(Duration::from_millis(1000 + u64::from(i) * 37)).await;
            let mac = [2, 0, 0, 0, 1, i];
            backend.ip(&format!("link set eth0 address {}", DisplayMac(mac)));
            let expected = resolved(mac, "10.0.0.2");
            let took = until(&mut neighbours, |now| {
                now.reach(addr("10.0.0.2")) == expected
            })
            .await;
            println!("the new MAC was noticed after {took:?}");
            worst = worst.max(took);
            tokio::time::sleep(Duration::from_millis(500)).await;
            let entry = kernels_entry("10.0.0.2");
            assert!(entry.contains(&DisplayMac(mac).to_string()), "{entry}");
        }
        println!("at the latest after {worst:?}");
        assert!(worst < Duration::from_secs(3));
    });
}

#[test]
fn a_backend_that_dies_is_noticed_and_so_is_its_return() {
    as_lb(
        "a_backend_that_dies_is_noticed_and_so_is_its_return",
        async |switch| {
            let backend = switch.host("10.0.0.2/24", BACKEND);
            let mut neighbours = follow(&["10.0.0.2"]).await;
            backend.ip("link set eth0 down");
            let took = until(&mut neighbours, |now| {
                now.reach(addr("10.0.0.2")) != resolved(BACKEND, "10.0.0.2")
            })
            .await;
            println!("the death was noticed after {took:?}");
            assert_eq!(
                why(&neighbours, "10.0.0.2"),
                "nobody answers ARP for 10.0.0.2"
            );
            backend.ip("link set eth0 up");
            let took = until(&mut neighbours, |now| {
                now.reach(addr("10.0.0.2")) == resolved(BACKEND, "10.0.0.2")
            })
            .await;
            println!("the return was noticed after {took:?}");
        },
    );
}

#[test]
fn a_new_route_is_followed() {
    as_lb("a_new_route_is_followed", async |switch| {
        let _router = switch.host("10.0.0.254/24", ROUTER);
        let other = [2, 0, 0, 0, 0, 0xfd];
        let _other = switch.host("10.0.0.253/24", other);
        ip("route add 10.9.0.0/24 via 10.0.0.254");
        let mut neighbours = follow(&["10.9.0.1"]).await;
        assert_eq!(
            neighbours.reach(addr("10.9.0.1")),
            resolved(ROUTER, "10.0.0.254")
        );

        ip("route replace 10.9.0.0/24 via 10.0.0.253");
        // Never unresolved on the way: the first change is the new router.
        neighbours.changed().await.unwrap();
        until(&mut neighbours, |now| {
            !matches!(now.reach(addr("10.9.0.1")), Some(Reach::Unresolved { .. }))
        })
        .await;
        let expected = resolved(other, "10.0.0.253");
        until(&mut neighbours, |now| {
            now.reach(addr("10.9.0.1")) == expected
        })
        .await;

        ip("route del 10.9.0.0/24");
        until(&mut neighbours, |now| {
            now.reach(addr("10.9.0.1")) != expected
        })
        .await;
        assert_eq!(why(&neighbours, "10.9.0.1"), "no route to 10.9.0.1");
        ip("route add default via 10.0.0.254");
        until(&mut neighbours, |now| {
            now.reach(addr("10.9.0.1")) == resolved(ROUTER, "10.0.0.254")
        })
        .await;
        ip("addr add 10.9.0.1/32 dev lo");
        until(&mut neighbours, |now| {
            now.reach(addr("10.9.0.1")) != resolved(ROUTER, "10.0.0.254")
        })
        .await;
        assert_eq!(
            why(&neighbours, "10.9.0.1"),
            "10.9.0.1 is an address of this host"
        );
    });
}

#[test]
fn changes_of_the_interface_are_reported() {
    as_lb("changes_of_the_interface_are_reported", async |switch| {
        let _backend = switch.host("10.0.0.2/24", BACKEND);
        let mut neighbours = follow(&["10.0.0.2"]).await;
        let expected = resolved(BACKEND, "10.0.0.2");

        ip("link set eth0 address 02:00:00:00:00:99");
        let mac = [2, 0, 0, 0, 0, 0x99];
        until(&mut neighbours, |now| now.interface().mac == mac).await;
        tokio::time::sleep(Duration::from_secs(4)).await;
        assert_eq!(neighbours.reach(addr("10.0.0.2")), expected);

        switch.0.ip("link set p01 down");
        until(&mut neighbours, |now| !now.interface().up).await;
        assert_eq!(
            why(&neighbours, "10.0.0.2"),
            "eth0, which leads to 10.0.0.2, is down"
        );
        switch.0.ip("link set p01 up");
        until(&mut neighbours, |now| {
            now.reach(addr("10.0.0.2")) == expected
        })
        .await;

        ip("link set eth0 down");
        until(&mut neighbours, |now| {
            now.reach(addr("10.0.0.2")) != expected
        })
        .await;
        ip("link set eth0 up");
        until(&mut neighbours, |now| {
            now.reach(addr("10.0.0.2")) == expected
        })
        .await;

        ip("link add br7 type bridge");
        ip("link set eth0 master br7");
        ip("link set eth0 nomaster");
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert_eq!(neighbours.reach(addr("10.0.0.2")), expected);

        ip("link del eth0");
        let end = async {
            loop {
                if let Err(error) = neighbours.changed().await {
                    return error.to_string();
                }
            }
        };
        let error = tokio::time::timeout(Duration::from_secs(1), end)
            .await
            .unwrap();
        assert_eq!(error, "the interface eth0 was deleted or moved away");
        assert_eq!(why(&neighbours, "10.0.0.2"), error);
        assert!(neighbours.changed().await.is_err());
    });
}

#[test]
fn lost_notifications_are_made_up_for() {
    as_lb("lost_notifications_are_made_up_for", async |switch| {
        let _backend = switch.host("10.0.0.2/24", BACKEND);
        let mut neighbours = follow(&["10.0.0.2"]).await;
        // More than the socket holds, while this thread, the runtime's only one, reads none.
        let permanent = "lladdr 02:00:00:00:00:77 nud permanent dev eth0";
        let script: String = (0..6000)
            .map(|i| format!("neigh add 10.77.{}.{} {permanent}\n", i / 250, i % 250 + 1))
            .chain([format!("neigh replace 10.0.0.2 {permanent}\n")])
            .collect();
        let file = std::env::temp_dir().join(format!("neighbour-test-{}", std::process::id()));
        std::fs::write(&file, script).unwrap();
        run(Command::new("ip").arg("-batch").arg(&file));
        std::fs::remove_file(&file).unwrap();
        let typed = resolved([2, 0, 0, 0, 0, 0x77], "10.0.0.2");
        until(&mut neighbours, |now| now.reach(addr("10.0.0.2")) == typed).await;
    });
}

/// Many next hops, most of them nobody: no burst, and the one that lives is followed.
#[test]
fn a_thousand_addresses_are_asked_without_a_burst() {
    as_lb(
        "a_thousand_addresses_are_asked_without_a_burst",
        async |switch| {
            let backend = switch.host("10.0.0.2/16", BACKEND);
            ip("addr add 10.0.0.1/16 dev eth0");
            let many: Vec<String> = (0..1000)
                .map(|i| format!("10.0.{}.{}", i / 250 + 1, i % 250 + 1))
                .collect();
            let mut all: Vec<&str> = many.iter().map(String::as_str).collect();
            all.push("10.0.0.2");
            let start = Instant::now();
            let mut neighbours = follow(&all).await;
            println!(
                "{} addresses settled after {:?}",
                all.len(),
                start.elapsed()
            );
            assert_eq!(
                neighbours.reach(addr("10.0.0.2")),
                resolved(BACKEND, "10.0.0.2")
            );
            assert_eq!(
                why(&neighbours, "10.0.3.1"),
                "nobody answers ARP for 10.0.3.1"
            );
            // The kernel's table, which all namespaces share, is not filled with nobody.
            let entries = run(Command::new("ip").args(["neigh", "show"]));
            assert!(entries.lines().count() <= 1, "{entries}");
            backend.ip("link set eth0 address 02:00:00:00:00:03");
            let expected = resolved([2, 0, 0, 0, 0, 3], "10.0.0.2");
            let took = until(&mut neighbours, |now| {
                now.reach(addr("10.0.0.2")) == expected
            })
            .await;
            println!("the new MAC was noticed after {took:?}");
        },
    );
}

/// The packet socket is refused; the kernel asks.
#[test]
fn without_cap_net_raw_the_kernel_resolves() {
    as_lb("without_cap_net_raw_the_kernel_resolves", async |switch| {
        let _backend = switch.host("10.0.0.2/24", BACKEND);
        drop_net_raw();
        let mut neighbours = follow(&["10.0.0.2", "10.0.0.9"]).await;
        assert_eq!(
            neighbours.reach(addr("10.0.0.2")),
            resolved(BACKEND, "10.0.0.2")
        );
        until(&mut neighbours, |now| {
            why(now, "10.0.0.9") == "nobody answers ARP for 10.0.0.9"
        })
        .await;
        ip("neigh replace 10.0.0.2 lladdr 02:00:00:00:00:77 nud permanent dev eth0");
        let typed = resolved([2, 0, 0, 0, 0, 0x77], "10.0.0.2");
        until(&mut neighbours, |now| now.reach(addr("10.0.0.2")) == typed).await;
        tokio::time::sleep(Duration::from_millis(2500)).await;
        assert!(kernels_entry("10.0.0.2").contains("PERMANENT"));
    });
}

/// Takes CAP_NET_RAW from this thread.
fn drop_net_raw() {
    const CAP_NET_RAW: u32 = 13;
    const VERSION_3: u32 = 0x2008_0522;
    let header = [VERSION_3, 0];
    // Effective, permitted and inheritable, for capabilities 0 to 31 and then 32 to 63.
    let mut sets = [0u32; 6];
    // SAFETY: header and sets have the layout of version 3, and live through both calls.
    unsafe {
        assert_eq!(
            libc::syscall(libc::SYS_capget, header.as_ptr(), sets.as_mut_ptr()),
            0
        );
        sets[0] &= !(1 << CAP_NET_RAW);
        assert_eq!(
            libc::syscall(libc::SYS_capset, header.as_ptr(), sets.as_ptr()),
            0
        );
    }
}
