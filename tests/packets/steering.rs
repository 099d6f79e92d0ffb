// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! Where answers to clients go: by routes, by next hops, by neighbour entries, and by no
//! strange frame.

use std::net::IpAddr;

use xdp_proxy::datapath::Settings;
use xdp_proxy::neighbour::{self, ClientEntry, Link, Prefix, Replies, ReplyWay};
use xdp_proxy::tables::Routes;

use crate::common::exchange::*;
use crate::common::frame::*;
use crate::common::rig::*;
use crate::common::root_or_skip;
use crate::common::served::{SERVED, rig};

const ROUTER: u8 = 1;
const OTHER_ROUTER: u8 = 2;
const THIEF: [u8; 6] = [2, 0, 0, 9, 9, 9];
const TAGGED: Settings = Settings {
    handles_vlan: true,
    ..WHOLE
};

fn link(last: u8, vlan: Option<u16>) -> Link {
    let tag = |id| neighbour::Tag {
        protocol: 0x8100,
        id,
    };
    Link {
        mac: [2, 0, 0, 0, 1, last],
        tags: vlan.map(tag).into_iter().collect(),
    }
}

fn via(links: &[Link]) -> ReplyWay {
    ReplyWay::Via(links.to_vec())
}

/// The same way to all clients.
fn everywhere(way: ReplyWay) -> Replies {
    let all = |address: &str| Prefix::new(address.parse().unwrap(), 0);
    let vips: [IpAddr; 2] = [VIP.into(), SOURCE_V6.into()];
    Replies {
        fib_of: vips.into_iter().zip(0..).collect(),
        fibs: vec![vec![(all("0.0.0.0"), way.clone())], vec![(all("::"), way)]],
        ..Replies::default()
    }
}

fn write(rig: &mut Rig, replies: &Replies) {
    let routes = Routes::new(replies, &rig.tables.vips, |_| true);
    rig.datapath.write_routes(&routes).unwrap();
}

fn steer(rig: &mut Rig, replies: &Replies) {
    write(rig, replies);
    rig.datapath.steer(0).unwrap();
}

/// The answer to a flow's client goes there.
#[track_caller]
fn goes_to(exchange: &mut Exchange, link: &Link) {
    let mut frame = exchange.backend_frame(ACK);
    let ran = exchange.rig.run(&frame.bytes(exchange.sum));
    exchange.client_mac = link.mac;
    exchange.tags[0] = link.tags.iter().map(|tag| (tag.protocol, tag.id)).collect();
    frame = exchange.returned(&frame);
    assert_eq!(ran.frame, frame.bytes(exchange.sum_out()));
}

/// Client `number` of each service, with an open flow, as far as that is known outside.
fn opened(rig: &Rig, number: u32) -> Vec<Path> {
    let services = SERVED.iter();
    services
        .map(|(listen, _)| {
            let mut exchange = Exchange::new(rig, listen, number);
            exchange.forward(SYN);
            exchange.path()
        })
        .collect()
}

/// The answers to these flows go there.
#[track_caller]
fn all_go_to(rig: &Rig, number: u32, paths: &[Path], link: &Link) {
    for ((listen, _), path) in SERVED.iter().zip(paths) {
        goes_to(
            &mut Exchange::new(rig, listen, number).with_path(*path),
            link,
        );
    }
}

/// As the client's frames have it.
fn own() -> Link {
    Link {
        mac: CLIENT_MAC,
        tags: Vec::new(),
    }
}

#[test]
fn answers_go_by_the_routers_mac_and_vlan_whoever_sends_the_clients_frames() {
    if !root_or_skip("answers_go_by_the_routers_mac_and_vlan_whoever_sends_the_clients_frames") {
        return;
    }
    for (settings, vlan) in [(WHOLE, None), (TAGGED, None), (TAGGED, Some(7))] {
        let mut rig = rig(settings);
        let router = link(ROUTER, vlan);
        write(&mut rig, &everywhere(via(std::slice::from_ref(&router))));
        let flows = opened(&rig, 1);
        all_go_to(&rig, 1, &flows, &router);
    }
}

#[test]
fn flows_follow_a_router_that_moves_or_is_replaced_and_stay_where_none_answers() {
    if !root_or_skip("flows_follow_a_router_that_moves_or_is_replaced_and_stay_where_none_answers")
    {
        return;
    }
    let mut rig = rig(TAGGED);
    let flows = opened(&rig, 1);
    all_go_to(&rig, 1, &flows, &own());
    for router in [
        link(ROUTER, None),
        link(OTHER_ROUTER, None),
        link(OTHER_ROUTER, Some(7)),
        link(ROUTER, Some(8)),
    ] {
        steer(&mut rig, &everywhere(via(std::slice::from_ref(&router))));
        all_go_to(&rig, 1, &flows, &router);
        steer(&mut rig, &everywhere(ReplyWay::Unknown));
        all_go_to(&rig, 1, &flows, &router);
    }
    // New ones begin with what their clients use.
    let flows = opened(&rig, 2);
    all_go_to(&rig, 2, &flows, &own());
}

#[test]
fn the_sweep_steers_what_began_while_routes_were_written() {
    if !root_or_skip("the_sweep_steers_what_began_while_routes_were_written") {
        return;
    }
    let mut rig = rig(WHOLE);
    let flows = opened(&rig, 1);
    let router = link(ROUTER, None);
    write(&mut rig, &everywhere(via(std::slice::from_ref(&router))));
    all_go_to(&rig, 1, &flows, &own());
    rig.datapath.sweep().unwrap();
    all_go_to(&rig, 1, &flows, &router);
}

#[test]
fn of_several_routers_a_flow_keeps_the_one_that_its_client_came_by() {
    if !root_or_skip("of_several_routers_a_flow_keeps_the_one_that_its_client_came_by") {
        return;
    }
    let mut rig = rig(WHOLE);
    let routers = [1, 2, 3].map(|last| link(last, None));
    write(&mut rig, &everywhere(via(&routers)));
    for (number, router) in (1..).zip(&routers) {
        let mut exchange = Exchange::new(&rig, SERVED[0].0, number);
        exchange.client_mac = router.mac;
        exchange.forward(SYN);
        goes_to(&mut exchange, router);
    }
    // Of strangers all routers have some.
    let mut shares = [0; 3];
    for number in 10..100 {
        let mut exchange = Exchange::new(&rig, SERVED[0].0, number);
        exchange.forward(SYN);
        let frame = exchange.backend_frame(ACK).bytes(exchange.sum);
        let mac = rig.run(&frame).frame[..6].to_vec();
        let router = routers.iter().position(|router| router.mac[..] == mac[..]);
        shares[router.expect("a router")] += 1;
    }
    assert!(shares.iter().all(|share| *share > 10), "{shares:?}");
}

#[test]
fn the_longest_prefix_counts_in_the_list_and_in_the_trie() {
    if !root_or_skip("the_longest_prefix_counts_in_the_list_and_in_the_trie") {
        return;
    }
    let mut rig = rig(WHOLE);
    for more in [0, 40] {
        let mut replies = everywhere(via(&[link(ROUTER, None)]));
        for (fib, (listen, _)) in replies.fibs.iter_mut().zip([SERVED[0], SERVED[2]]) {
            let client = client_of(listen.parse().unwrap(), 1).ip();
            let bits = if client.is_ipv4() { 32 } else { 128 };
            let others = (0..more).map(|other| {
                let client = client_of(listen.parse().unwrap(), 1000 + other).ip();
                (Prefix::new(client, bits), via(&[link(9, None)]))
            });
            let own = (Prefix::new(client, bits), via(&[link(OTHER_ROUTER, None)]));
            fib.splice(0..0, others.chain([own]));
        }
        steer(&mut rig, &replies);
        let numbers = [1, 2].map(|number| number + more);
        // The narrow prefix is client 1's alone.
        let flows = opened(&rig, 1);
        all_go_to(&rig, 1, &flows, &link(OTHER_ROUTER, None));
        let flows = opened(&rig, numbers[1]);
        all_go_to(&rig, numbers[1], &flows, &link(ROUTER, None));
    }
}

#[test]
fn vips_may_have_routes_of_their_own() {
    if !root_or_skip("vips_may_have_routes_of_their_own") {
        return;
    }
    let (first, second) = ("10.0.0.5:80", "10.0.0.6:80");
    let services = [first, second].map(|listen| service(listen, &[("10.0.0.2:80", 1)]));
    let mut rig = Rig::new(&config(services.into()), WHOLE);
    let all = Prefix::new(VIP.into(), 0);
    let fib = |last| vec![(all, via(&[link(last, None)]))];
    let replies = Replies {
        fib_of: [(VIP.into(), 1), (IpAddr::from([10, 0, 0, 6]), 0)].into(),
        fibs: vec![fib(OTHER_ROUTER), fib(ROUTER)],
        ..Replies::default()
    };
    write(&mut rig, &replies);
    for (listen, router) in [(first, ROUTER), (second, OTHER_ROUTER)] {
        let mut exchange = Exchange::new(&rig, listen, 1);
        exchange.forward(SYN);
        goes_to(&mut exchange, &link(router, None));
    }
}

#[test]
fn no_frame_of_a_stranger_turns_the_answers_to_itself() {
    if !root_or_skip("no_frame_of_a_stranger_turns_the_answers_to_itself") {
        return;
    }
    let router = link(ROUTER, None);
    for way in [
        ReplyWay::Unknown,
        ReplyWay::OnLink,
        via(std::slice::from_ref(&router)),
    ] {
        for settings in [WHOLE, TAGGED] {
            let routed = matches!(way, ReplyWay::Via(_));
            let mut rig = rig(settings);
            write(&mut rig, &everywhere(way.clone()));
            let flows = opened(&rig, 1);
            let home = if routed { router.clone() } else { own() };
            for ((listen, _), path) in SERVED.iter().zip(&flows) {
                let mut exchange = Exchange::new(&rig, listen, 1).with_path(*path);
                goes_to(&mut exchange, &home);
                let tags: &[&[Tag]] = match settings.handles_vlan {
                    true => &[&[], &[(0x8100, 66)], &[(0x88a8, 66), (0x8100, 67)]],
                    false => &[&[]],
                };
                // Not of a RST or both FINs: these end a flow, whoever sends them.
                for flags in [ACK, SYN, SYN | ACK, FIN | ACK, 0, ACK | 8, 0x20] {
                    for tags in tags {
                        let mut forged = exchange.client_frame(flags);
                        forged.from_mac = THIEF;
                        forged.tags = tags.to_vec();
                        if flags != ACK && exchange.protocol == xdp_proxy::service::Protocol::Tcp {
                            forged.tcp().sequence_number ^= 0x5555_5555;
                            forged.tcp().acknowledgment_number ^= 0x3333_3333;
                        }
                        rig.run(&forged.bytes(exchange.sum));
                        goes_to(&mut exchange, &home);
                    }
                }
            }
        }
    }
}

#[test]
fn flows_on_link_go_by_the_kernels_entry_where_that_is_news_or_nothing_is_proven() {
    let name = "flows_on_link_go_by_the_kernels_entry_where_that_is_news_or_nothing_is_proven";
    if !root_or_skip(name) {
        return;
    }
    let mut rig = rig(TAGGED);
    let mut replies = everywhere(ReplyWay::OnLink);
    let entries = |last, vlan, changed| {
        let clients = [SERVED[0].0, SERVED[2].0].map(|listen| {
            let client = client_of(listen.parse().unwrap(), 1).ip();
            let link = link(last, vlan);
            (client, ClientEntry { link, changed })
        });
        clients.into()
    };
    write(&mut rig, &replies);
    let mut flows = Vec::new();
    for (listen, _) in SERVED {
        let mut exchange = Exchange::new(&rig, listen, 1);
        exchange.open();
        flows.push(exchange.path());
    }
    // From the beginning: UDP's flows go by it, and those of TCP by what they have proven.
    replies.entries = entries(3, None, 0);
    write(&mut rig, &replies);
    rig.datapath.sweep().unwrap();
    for ((listen, _), path) in SERVED.iter().zip(&flows) {
        let expected = if listen.contains("udp") {
            link(3, None)
        } else {
            own()
        };
        goes_to(
            &mut Exchange::new(&rig, listen, 1).with_path(*path),
            &expected,
        );
    }
    // News, once.
    (replies.entries, replies.changes) = (entries(4, Some(7), 1), 1);
    steer(&mut rig, &replies);
    all_go_to(&rig, 1, &flows, &link(4, Some(7)));
    // Of somebody else it is nothing.
    let others = opened(&rig, 2);
    steer(&mut rig, &replies);
    all_go_to(&rig, 2, &others, &own());
    // An unconfirmed flow has proven nothing either.
    let begun = opened(&rig, 1);
    drop(begun);
    let mut exchange = Exchange::new(&rig, SERVED[0].0, 1);
    exchange.client.set_port(999);
    exchange.forward(SYN);
    let path = exchange.path();
    goes_to(&mut exchange, &own());
    drop(exchange);
    rig.datapath.sweep().unwrap();
    let mut exchange = Exchange::new(&rig, SERVED[0].0, 1).with_path(path);
    exchange.client.set_port(999);
    goes_to(&mut exchange, &link(4, Some(7)));
}

#[test]
fn answers_of_the_program_itself_go_by_the_routes_too() {
    if !root_or_skip("answers_of_the_program_itself_go_by_the_routes_too") {
        return;
    }
    for (settings, vlan) in [(WHOLE, None), (TAGGED, Some(7)), (TAGGED, None)] {
        let mut rig = rig(settings);
        for place in 0..rig.tables.addresses.len() {
            rig.tables.addresses[place].answers_echo = 1;
            rig.datapath.write_address(&rig.tables, place).unwrap();
        }
        let router = link(ROUTER, vlan);
        write(&mut rig, &everywhere(via(std::slice::from_ref(&router))));
        for (listen, _) in SERVED {
            let exchange = Exchange::new(&rig, listen, 1);
            let mut frames = Vec::new();
            // RST, ICMP time exceeded, an echo reply.
            let stray = exchange.client_frame(ACK);
            let mut late = exchange.client_frame(SYN);
            *late.hops() = 1;
            let (client, vip) = (exchange.client.ip(), exchange.service.ip());
            let echo = Icmp(if vip.is_ipv4() { 8 } else { 128 }, 0, [0; 4]);
            let echo = Frame::icmp((CLIENT_MAC, LB_MAC), client, vip, echo);
            if exchange.protocol == xdp_proxy::service::Protocol::Tcp {
                frames.push(stray);
            }
            frames.extend([late, echo]);
            for frame in frames {
                let ran = rig.run(&frame.bytes(exchange.sum));
                assert_eq!((ran.verdict, &ran.frame[..6]), (XDP_TX, &router.mac[..]));
                let tagged = ran.frame[12..14] == [0x81, 0];
                assert_eq!(tagged, vlan.is_some(), "{:02x?}", ran.frame);
                if let Some(vlan) = vlan {
                    assert_eq!(ran.frame[14..16], vlan.to_be_bytes());
                }
            }
        }
    }
}
