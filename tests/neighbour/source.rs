// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! Routes that go by the source, and the address that packets come from.

use std::net::IpAddr;

use xdp_proxy::service::Towards;

use crate::*;

fn from(address: &str, sources: &[&str]) -> Towards {
    Towards {
        address: addr(address),
        sources: sources.iter().map(|source| addr(source)).collect(),
    }
}

async fn follow_from(towards: &[Towards]) -> Neighbours {
    let eth0 = interface("eth0").await.unwrap();
    let towards = towards.iter().cloned();
    let mut neighbours = Neighbours::follow(&eth0, towards, []).await.unwrap();
    neighbours.settle(Duration::from_secs(3)).await;
    neighbours
}

/// The next hop and the source.
fn ends(neighbours: &Neighbours, towards: &Towards) -> Option<(IpAddr, IpAddr)> {
    match neighbours.reach(towards.clone()) {
        Some(Reach::Resolved {
            next_hop, source, ..
        }) => Some((next_hop, source)),
        _ => None,
    }
}

/// What is far away is reached by a router; what comes from one address by another router.
async fn follows_rules(switch: &Switch, family: &str, net: &str, far: &str, backend: &str) {
    let own = |host: &str| format!("{net}{host}");
    let bits = if family == "-4" { 24 } else { 64 };
    let host = |at: &str, mac: u8| {
        let host = switch.host(&format!("10.0.0.{}/24", mac), [2, 0, 0, 0, 0, mac]);
        if family == "-6" {
            host.ip(&format!("addr add {at}/{bits} dev eth0 nodad"));
        }
        host
    };
    let _hosts = [host(&own("254"), 0xfe), host(&own("253"), 0xfd)];
    if family == "-6" {
        ip(&format!("addr add {}/{bits} dev eth0 nodad", own("1")));
    }
    let nodad = if family == "-6" { " nodad" } else { "" };
    ip(&format!(
        "addr add {}/{} dev eth0{nodad}",
        own("11"),
        if bits == 24 { 32 } else { 128 }
    ));
    ip(&format!(
        "{family} route add {far}/{bits} via {} src {}",
        own("254"),
        own("1")
    ));
    ip(&format!(
        "{family} route add {far}/{bits} via {} table 7",
        own("253")
    ));
    ip(&format!("{family} rule add from {} table 7", own("11")));
    let [any, first, second, both, strange] = [
        from(backend, &[]),
        from(backend, &[&own("1")]),
        from(backend, &[&own("11")]),
        from(backend, &[&own("1"), &own("11")]),
        from(backend, &[&own("77")]),
    ];
    let all = [&any, &first, &second, &both, &strange].map(Clone::clone);
    let mut neighbours = follow_from(&all).await;
    let by = |router: &str, source: &str| Some((addr(&own(router)), addr(&own(source))));
    let seen = |now: &Neighbours| {
        [&any, &first, &second, &both, &strange].map(|towards| ends(now, towards))
    };
    let split = [
        by("254", "1"),
        by("254", "1"),
        by("253", "11"),
        None,
        by("254", "1"),
    ];
    assert_eq!(seen(&neighbours), split);
    let Some(Reach::Unresolved { why, .. }) = neighbours.reach(both.clone()) else {
        panic!("it has two next hops");
    };
    let expected = format!(
        "{backend} is reached by {} on eth0 from {}, and by {} on eth0 from {}: give the service \
         sources whose packets take one way",
        own("254"),
        own("1"),
        own("253"),
        own("11")
    );
    assert_eq!(why, expected);

    // The address that the kernel chooses has a rule as well.
    ip(&format!("{family} rule add from {} table 7", own("1")));
    let others = [
        by("253", "1"),
        by("253", "1"),
        by("253", "11"),
        by("253", "1"),
        by("253", "1"),
    ];
    until(&mut neighbours, |now| seen(now) == others).await;

    ip(&format!(
        "{family} rule add from {} unreachable pref 1",
        own("11")
    ));
    until(&mut neighbours, |now| ends(now, &second).is_none()).await;
    let Some(Reach::Unresolved { why, .. }) = neighbours.reach(second.clone()) else {
        panic!("there is no route");
    };
    assert_eq!(why, format!("no route to {backend} from {}", own("11")));
    assert_eq!(ends(&neighbours, &first), by("253", "1"));
}

#[test]
fn rules_that_go_by_the_source_are_followed() {
    as_lb("rules_that_go_by_the_source_are_followed", async |switch| {
        follows_rules(switch, "-4", "10.0.0.", "10.9.0.0", "10.9.0.9").await;
    });
}

#[test]
fn rules_that_go_by_the_source_are_followed_for_ipv6() {
    let test = "rules_that_go_by_the_source_are_followed_for_ipv6";
    as_lb(test, async |switch| {
        follows_rules(switch, "-6", "fd00::", "fd09::", "fd09::9").await;
    });
}

#[test]
fn packets_come_from_an_ipv6_address_that_lasts() {
    let test = "packets_come_from_an_ipv6_address_that_lasts";
    as_lb(test, async |switch| {
        let backend = switch.host("10.0.0.2/24", BACKEND);
        backend.ip("addr add fd00::2/64 dev eth0 nodad");
        let set = |value: &str| drop(run(Command::new("sysctl").args(["-qw", value])));
        set("net.ipv6.conf.eth0.use_tempaddr=2");
        set("net.ipv6.conf.eth0.accept_dad=0");
        ip("addr add fd00::1/64 dev eth0 mngtmpaddr");
        let chosen = || {
            let route = run(Command::new("ip").args(["-6", "route", "get", "fd00::2"]));
            route
                .split(" src ")
                .nth(1)
                .unwrap()
                .split(' ')
                .next()
                .unwrap()
                .to_owned()
        };
        let start = Instant::now();
        while chosen() == "fd00::1" {
            assert!(
                start.elapsed() < Duration::from_secs(5),
                "there is no temporary one"
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        let towards = from("fd00::2", &[]);
        let mut neighbours = follow_from(std::slice::from_ref(&towards)).await;
        let lasting = Some((addr("fd00::2"), addr("fd00::1")));
        assert_eq!(ends(&neighbours, &towards), lasting);

        // One that is not to be used any more stands behind it, whichever is nearer.
        ip("addr add fd00::3/64 dev eth0 nodad preferred_lft 0");
        ip("addr add fd00::77/64 dev eth0 nodad");
        tokio::time::sleep(Duration::from_millis(300)).await;
        let (_, source) = ends(&neighbours, &towards).unwrap();
        assert!(
            [addr("fd00::1"), addr("fd00::77")].contains(&source),
            "{source}"
        );
        ip("addr del fd00::77/64 dev eth0");
        until(&mut neighbours, |now| ends(now, &towards) == lasting).await;
    });
}
