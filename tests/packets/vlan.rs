// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! VLAN tags: a flow's two ends may be in two VLANs.

use xdp_proxy::abi::OutcomeCode;
use xdp_proxy::datapath::Settings;
use xdp_proxy::service::Protocol;

use crate::common::case::WAYS;
use crate::common::exchange::*;
use crate::common::fragment::*;
use crate::common::frame::*;
use crate::common::icmp::*;
use crate::common::rig::*;
use crate::common::root_or_skip;
use crate::common::served::SERVED;
use crate::common::served::both;

const NO_FLOW: OutcomeCode = OutcomeCode::OUTCOME_REFUSED_NO_FLOW;
const NO_BACKEND: OutcomeCode = OutcomeCode::OUTCOME_REFUSED_NO_BACKEND;
const TIME_EXCEEDED: OutcomeCode = OutcomeCode::OUTCOME_TIME_EXCEEDED;

/// 802.1Q, 802.1ad.
const Q: u16 = 0x8100;
const AD: u16 = 0x88a8;

/// None, one and two tags; with priorities, and that of VLAN 0 too.
const TAGS: &[&[Tag]] = &[
    &[],
    &[(Q, 5)],
    &[(Q, 0xa005)],
    &[(AD, 100)],
    &[(AD, 0x6fff), (Q, 0xe002)],
    &[(Q, 0xc000), (Q, 4095)],
];

fn tagged(settings: Settings) -> Settings {
    Settings {
        handles_vlan: true,
        ..settings
    }
}

/// All services, their backends behind these tags.
fn rig(settings: Settings, backend_tags: &[Tag]) -> Rig {
    let services = SERVED.map(|(listen, backends)| service(listen, &backends));
    let mut tables = tables(&config(services.into()));
    for address in &mut tables.addresses {
        address.answers_echo = 1;
    }
    let mut rig = Rig::with_tables(tables, settings);
    rig.move_backends(backend_tags);
    rig
}

/// Each way to send, each pair of tags, each service; no flow is there.
fn in_every_vlan(settings: impl Fn(Settings) -> Settings, check: impl Fn(&mut Exchange)) {
    for (way, sum) in WAYS {
        let mut rig = rig(settings(*way), &[]);
        let mut clients = 0..;
        for backend_tags in TAGS {
            rig.move_backends(backend_tags);
            for (client_tags, number) in TAGS.iter().zip(&mut clients) {
                for (listen, _) in SERVED {
                    let mut exchange = Exchange::new(&rig, listen, number).with_sum(*sum);
                    exchange.tags = [client_tags.to_vec(), backend_tags.to_vec()];
                    check(&mut exchange);
                }
            }
        }
    }
}

#[test]
fn a_flow_crosses_from_vlan_to_vlan_and_back() {
    if !root_or_skip("a_flow_crosses_from_vlan_to_vlan_and_back") {
        return;
    }
    in_every_vlan(tagged, |exchange| {
        exchange.open();
        for bytes in [0, 1, 7, 1000] {
            let frames = both(exchange, bytes);
            exchange.pass_both(&frames);
        }
        // Replies follow the client's last frame, priority and all, where its numbers
        // prove that it is the client's.
        for tags in TAGS {
            let first = exchange.tags[0].clone();
            exchange.tags[0] = tags.to_vec();
            exchange.forward(ACK);
            if exchange.protocol == Protocol::Udp {
                exchange.tags[0] = first;
            }
            exchange.reply(ACK);
        }
    });
}

#[test]
fn replies_leave_behind_what_says_nothing_of_them() {
    if !root_or_skip("replies_leave_behind_what_says_nothing_of_them") {
        return;
    }
    // VLAN 0 without a priority; and a frame that is dropped before others.
    let table: [(&[Tag], &[Tag]); 3] = [
        (&[(Q, 0x1005)], &[(Q, 5)]),
        (&[(Q, 0), (Q, 5)], &[(Q, 5)]),
        (&[(AD, 0x1000), (Q, 0)], &[(AD, 0)]),
    ];
    let rig = rig(tagged(GENERIC), &[]);
    for ((sent, replied), number) in table.iter().zip(0..) {
        let mut exchange = Exchange::new(&rig, WEB, number);
        exchange.tags[0] = sent.to_vec();
        exchange.forward(SYN);
        exchange.tags[0] = replied.to_vec();
        exchange.reply(SYN | ACK);
    }
}

#[test]
fn errors_and_fragments_cross_too() {
    if !root_or_skip("errors_and_fragments_cross_too") {
        return;
    }
    in_every_vlan(tagged, |exchange| {
        exchange.open();
        let icmp = errors(exchange.service.is_ipv4())[3];
        let id = u32::from(exchange.service.port());
        for about in both(exchange, 60) {
            for bytes in [8, WHOLE_PACKET] {
                translated(exchange, &about, None, icmp, bytes).check(exchange);
            }
            Fragmented::new(exchange, &about, id, &[24, 48]).check(exchange);
        }
    });
}

#[test]
fn answers_carry_the_tags_of_what_they_answer() {
    if !root_or_skip("answers_carry_the_tags_of_what_they_answer") {
        return;
    }
    for (way, sum) in WAYS {
        let mut rig = rig(tagged(*way), &[(Q, 77)]);
        for backend in &mut rig.tables.backends {
            backend.path.alive = false;
        }
        for service in 0..SERVED.len() {
            rig.datapath.write_maglev(&rig.tables, service).unwrap();
        }
        for tags in TAGS {
            for (listen, _) in SERVED {
                let mut exchange = Exchange::new(&rig, listen, 1).with_sum(*sum);
                exchange.tags[0] = tags.to_vec();
                for bytes in [0, 100] {
                    let mut frame = exchange.client_frame(ACK);
                    frame.payload = pattern(bytes);
                    if exchange.service.port() == 80 {
                        exchange.is_reset(&frame, NO_FLOW);
                    } else {
                        exchange.is_told(&frame, Told::PortUnreachable, NO_BACKEND);
                    }
                    *frame.hops() = 1;
                    exchange.is_told(&frame, Told::TimeExceeded, TIME_EXCEEDED);
                }
                let v4 = exchange.service.is_ipv4();
                let echo = |kind| {
                    let icmp = Icmp(kind, 0, [1, 2, 3, 4]);
                    let (client, vip) = (exchange.client.ip(), exchange.service.ip());
                    let mut frame = Frame::icmp((CLIENT_MAC, LB_MAC), client, vip, icmp);
                    frame.tags = tags.to_vec();
                    frame.payload = pattern(56);
                    frame
                };
                let request = echo(if v4 { 8 } else { 128 });
                let mut reply = echo(if v4 { 0 } else { 129 });
                (reply.to_mac, reply.from_mac) = (CLIENT_MAC, LB_MAC);
                reply.set_ends(request.destination(), request.source());
                let [request, reply] = [request, reply].map(|f| f.bytes(Sum::Complete));
                exchange.becomes(&request, &reply, OutcomeCode::OUTCOME_ECHO_REPLY);
            }
        }
    }
}

/// A backend's next hop is untagged, but the frames' tag is out of sight.
#[test]
fn an_untagged_frame_stays_so_where_its_tag_may_hide() {
    if !root_or_skip("an_untagged_frame_stays_so_where_its_tag_may_hide") {
        return;
    }
    let settings = |way| Settings {
        tags_may_hide: true,
        ..tagged(way)
    };
    in_every_vlan(settings, |exchange| {
        if exchange.tags[0].is_empty() {
            exchange.tags[1].clear();
        }
        exchange.forward(SYN);
        if exchange.tags[1].is_empty() {
            // Its replies show no tag, and so get none.
            exchange.tags[0].clear();
        }
        exchange.reply(SYN | ACK);
    });
}

#[test]
fn three_tags_cut_off_tags_and_tagged_arp_are_passed() {
    if !root_or_skip("three_tags_cut_off_tags_and_tagged_arp_are_passed") {
        return;
    }
    for (way, sum) in WAYS {
        let rig = rig(tagged(*way), &[]);
        for (listen, _) in SERVED {
            let mut exchange = Exchange::new(&rig, listen, 1).with_sum(*sum);
            exchange.open();
            for mut frame in both(&exchange, 10) {
                for tags in [&[(Q, 1), (Q, 2), (Q, 3)][..], &[(AD, 1), (AD, 2), (AD, 3)]] {
                    frame.tags = tags.to_vec();
                    exchange.is_passed(&frame.bytes(*sum));
                }
                for tags in [
                    &[(0x9100, 1)][..],
                    &[(Q, 1), (0x9100, 3)],
                    &[(Q, 1), (0x8863, 3)],
                ] {
                    frame.tags = tags.to_vec();
                    exchange.is_passed(&frame.bytes(*sum));
                }
                for tags in TAGS {
                    frame.tags = tags.to_vec();
                    let bytes = frame.bytes(*sum);
                    // Up to the ports, a byte before the end of which is no packet of ours.
                    for end in 14..frame.transport_at() + 4 {
                        exchange.is_passed(&bytes[..end]);
                    }
                    let mut arp = frame.link_header();
                    let kind = arp.len() - 2;
                    arp[kind..].copy_from_slice(&[8, 6]);
                    arp.extend([0, 1, 8, 0, 6, 4, 0, 1]);
                    arp.extend(pattern(38));
                    exchange.is_passed(&arp);
                }
            }
        }
    }
}

#[test]
fn tagged_frames_are_passed_where_none_are_handled() {
    if !root_or_skip("tagged_frames_are_passed_where_none_are_handled") {
        return;
    }
    for (way, sum) in WAYS {
        let rig = rig(*way, &[]);
        for (listen, _) in SERVED {
            let mut exchange = Exchange::new(&rig, listen, 1).with_sum(*sum);
            exchange.open();
            for tags in &TAGS[1..] {
                for mut frame in both(&exchange, 10) {
                    frame.tags = tags.to_vec();
                    exchange.is_passed(&frame.bytes(*sum));
                }
            }
        }
    }
}
