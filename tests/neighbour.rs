// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! Neighbours on real links: each test is a load balancer in a network
//! namespace of its own, and hosts in theirs, on one switch. The namespaces
//! have no names and end with the test, whatever happens.

mod common;

use std::io;
use std::net::IpAddr;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::libc;
use nix::sched::{CloneFlags, unshare};
use xdp_proxy::neighbour::{
    DisplayMac, Interface, Mac, Neighbours, Peer, Reach, interface, interface_towards,
    interface_with_address, interface_with_index,
};

const BACKEND: Mac = [2, 0, 0, 0, 0, 2];
const ROUTER: Mac = [2, 0, 0, 0, 0, 0xfe];

/// Runs the test as the load balancer: on a thread in a network namespace of
/// its own, `eth0` with 10.0.0.1/24 on the switch.
fn as_lb(test: &str, body: impl AsyncFnOnce(&Switch) + Send) {
    if !common::root_or_skip(test) {
        return;
    }
    let run = || {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        // With `cargo test -- --nocapture`, what a user would see.
        let _ = tracing_subscriber::fmt().with_test_writer().try_init();
        ip("link set lo up");
        let switch = Switch::new();
        switch.attach(None, "eth0", "10.0.0.1/24", [2, 0, 0, 0, 0, 1]);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(body(&switch));
    };
    std::thread::scope(|scope| scope.spawn(run).join())
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}

/// A process in a network namespace of its own; it dies with the thread that made it.
struct Host(Child);

impl Host {
    fn new() -> Host {
        let mut command = Command::new("sleep");
        command.arg("infinity");
        // SAFETY: the closure makes two system calls, both safe between fork and exec.
        unsafe {
            command.pre_exec(|| {
                if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0 {
                    return Err(io::Error::last_os_error());
                }
                Ok(unshare(CloneFlags::CLONE_NEWNET)?)
            });
        }
        Host(command.spawn().unwrap())
    }

    fn ip(&self, arguments: &str) {
        let pid = self.0.id().to_string();
        run(Command::new("nsenter")
            .args(["-t", &pid, "-n", "ip"])
            .args(arguments.split(' ')));
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A host with a bridge.
struct Switch(Host);

impl Switch {
    fn new() -> Switch {
        let host = Host::new();
        host.ip("link add br0 type bridge");
        host.ip("link set br0 up");
        Switch(host)
    }

    /// Gives a host, or the load balancer, an interface on the switch.
    fn attach(&self, host: Option<&Host>, name: &str, address: &str, mac: Mac) {
        let switch = self.0.0.id();
        let port = format!("p{:02x}", mac[5]);
        let mac = DisplayMac(mac);
        let at = |arguments: &str| match host {
            Some(host) => host.ip(arguments),
            None => ip(arguments),
        };
        at(&format!(
            "link add {name} address {mac} type veth peer name {port} netns {switch}"
        ));
        self.0.ip(&format!("link set {port} master br0 up"));
        at(&format!("addr add {address} dev {name}"));
        // No IPv6 address: its duplicate detection would notify in the middle of a test.
        at(&format!("link set {name} addrgenmode none"));
        at(&format!("link set {name} up"));
    }

    fn host(&self, address: &str, mac: Mac) -> Host {
        let host = Host::new();
        host.ip("link set lo up");
        self.attach(Some(&host), "eth0", address, mac);
        host
    }
}

fn ip(arguments: &str) {
    run(Command::new("ip").args(arguments.split(' ')));
}

fn run(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).output().unwrap();
    assert!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

fn kernels_entry(address: &str) -> String {
    run(Command::new("ip").args(["neigh", "show", "to", address]))
}

fn addr(text: &str) -> IpAddr {
    text.parse().unwrap()
}

async fn follow(addresses: &[&str]) -> Neighbours {
    let eth0 = interface("eth0").await.unwrap();
    let addresses = addresses.iter().map(|text| addr(text));
    let mut neighbours = Neighbours::follow(&eth0, addresses, []).await.unwrap();
    neighbours.settle(Duration::from_secs(3)).await;
    neighbours
}

fn resolved(mac: Mac, next_hop: &str) -> Option<Reach> {
    Some(Reach::Resolved {
        mac,
        tags: vec![],
        next_hop: addr(next_hop),
        source: addr("10.0.0.1"),
    })
}

fn why(neighbours: &Neighbours, address: &str) -> String {
    match neighbours.reach(addr(address)) {
        Some(Reach::Unresolved { why, .. }) => why,
        other => panic!("{address} is {other:?}"),
    }
}

/// How long until the condition holds; fails after five seconds.
async fn until(neighbours: &mut Neighbours, condition: impl Fn(&Neighbours) -> bool) -> Duration {
    let start = Instant::now();
    let changes = async {
        while !condition(neighbours) {
            neighbours.changed().await.unwrap();
        }
    };
    let done = tokio::time::timeout(Duration::from_secs(5), changes).await;
    assert!(
        done.is_ok(),
        "not within 5 s; now {:?}",
        neighbours.snapshot()
    );
    start.elapsed()
}

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
