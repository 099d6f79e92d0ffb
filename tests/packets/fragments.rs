// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! Fragments: the later ones follow the first, all with a new identification,
//! and what the receiver puts together is what the sender took apart.

use std::collections::HashSet;
use std::thread::sleep;
use std::time::Duration;

use etherparse::IpNumber;
use xdp_proxy::abi::{self, OutcomeCode};

use crate::common::exchange::*;
use crate::common::fragment::*;
use crate::common::frame::*;
use crate::common::icmp::Told;
use crate::common::random::at_most;
use crate::common::rig::*;
use crate::common::served::*;
use crate::common::{cpus, pin, root_or_skip};

const FORWARDED: OutcomeCode = OutcomeCode::OUTCOME_FORWARDED;
const FRAGMENT: OutcomeCode = OutcomeCode::OUTCOME_DROPPED_FRAGMENT;
const MALFORMED: OutcomeCode = OutcomeCode::OUTCOME_DROPPED_MALFORMED;
const LIMIT: OutcomeCode = OutcomeCode::OUTCOME_DROPPED_ICMP_LIMIT;

const HOP: IpNumber = IpNumber::IPV6_HEADER_HOP_BY_HOP;
const DESTINATION: IpNumber = IpNumber::IPV6_DESTINATION_OPTIONS;

#[test]
fn fragments_reach_the_other_end_and_make_the_same_datagram() {
    if !root_or_skip("fragments_reach_the_other_end_and_make_the_same_datagram") {
        return;
    }
    in_every_way(|exchange| {
        let mut ids = HashSet::new();
        for (bytes, cuts) in [
            (600, &[64][..]),
            (601, &[24, 32, 40, 296, 592]),
            (1400, &[1400]),
            (3000, &[1480, 2960]),
        ] {
            for frame in both(exchange, bytes) {
                let fragmented = Fragmented::new(exchange, &frame, 7, cuts);
                assert!(ids.insert(fragmented.check(exchange)), "an id used again");
                // The middle ones come in any order, and again.
                let id = fragmented.begins(exchange);
                for number in (1..=cuts.len()).rev().chain(1..=cuts.len()) {
                    fragmented.follows(exchange, id, number);
                }
            }
        }
    });
}

#[test]
fn options_and_extension_headers_of_fragments_are_kept() {
    if !root_or_skip("options_and_extension_headers_of_fragments_are_kept") {
        return;
    }
    in_every_way(|exchange| {
        let marked = |before: &[Extension], behind: &[Extension]| {
            let mark = [Extension::Fragment(0, true, 0)];
            [before, &mark, behind].concat()
        };
        let (hop, destination) = (extension(HOP, 8), extension(DESTINATION, 24));
        for frame in both(exchange, 300) {
            let with = |chain: &[Extension]| {
                let mut frame = frame.clone();
                match &mut frame.network {
                    Network::V4(ip) => ip.options = [148, 4, 0, 0, 1, 1, 1, 0].into(),
                    Network::V6(_, extensions) => *extensions = chain.to_vec(),
                }
                Fragmented::new(exchange, &frame, 9, &[64, 160])
            };
            with(&marked(std::slice::from_ref(&hop), &[])).check(exchange);
            if frame.source().is_ipv6() {
                with(&marked(&[hop.clone(), destination.clone()], &[])).check(exchange);
                // In the first fragment alone; the others name it all the same.
                with(&marked(&[], std::slice::from_ref(&destination))).all_go_on(exchange);
                with(&marked(
                    std::slice::from_ref(&hop),
                    std::slice::from_ref(&destination),
                ))
                .all_go_on(exchange);
            }
        }
    });
}

#[test]
fn a_first_fragment_begins_a_flow() {
    if !root_or_skip("a_first_fragment_begins_a_flow") {
        return;
    }
    in_every_way(|exchange| {
        for number in 2..5 {
            let mut new = Exchange::new(exchange.rig, &exchange.listen(), number);
            let mut frame = new.client_frame(SYN);
            frame.payload = pattern(200);
            let first = &frame.fragments(Sum::Complete, 1, &[80])[0];
            // By the way that it went, all of it is compared.
            let ran = new.counted(first, FORWARDED);
            new.path = Some(Path::of(&ran.frame));
            Fragmented::new(&new, &frame, 1, &[80]).check(&new);
            new.sum = exchange.sum;
            new.reply(SYN | ACK);
        }
    });
}

/// Their addresses become one: the receiver must not mix their fragments.
#[test]
fn clients_that_chose_one_identification_never_share_one() {
    if !root_or_skip("clients_that_chose_one_identification_never_share_one") {
        return;
    }
    in_every_way(|exchange| {
        let mut all: Vec<_> = (1..20)
            .map(|number| {
                let mut one = Exchange::new(exchange.rig, &exchange.listen(), number);
                one.forward(SYN);
                let mut frame = one.client_frame(ACK);
                frame.payload = pattern(100);
                (Fragmented::new(&one, &frame, 77, &[40, 80]), one, 0)
            })
            .collect();
        let mut ids = HashSet::new();
        for (fragmented, one, id) in &mut all {
            *id = fragmented.begins(one);
            assert!(ids.insert(*id), "{id} is given twice");
        }
        for number in [2, 1] {
            for (fragmented, one, id) in &all {
                fragmented.follows(one, *id, number);
            }
        }
    });
}

#[test]
fn a_later_fragment_whose_first_did_not_go_on_is_dropped() {
    if !root_or_skip("a_later_fragment_whose_first_did_not_go_on_is_dropped") {
        return;
    }
    in_every_way(|exchange| {
        // IPv6 counts the identifications of all protocols together.
        let ids = u32::from(exchange.service.port()) * 100;
        for (frame, id) in both(exchange, 100).into_iter().zip(ids..) {
            let fragmented = Fragmented::new(exchange, &frame, id, &[40, 80]);
            for late in &fragmented.fragments[1..] {
                exchange.is_dropped(late, FRAGMENT);
            }
            let new = fragmented.begins(exchange);
            fragmented.follows(exchange, new, 2);
            // Of another datagram: its identification, or its ends differ.
            let other = Fragmented::new(exchange, &frame, id + 2, &[40, 80]);
            exchange.is_dropped(&other.fragments[1], FRAGMENT);
        }
        let mut stranger = Exchange::new(exchange.rig, &exchange.listen(), 8);
        stranger.sum = exchange.sum;
        let mut frame = stranger.client_frame(ACK);
        frame.payload = pattern(100);
        let fragments = frame.fragments(Sum::Complete, ids, &[40]);
        exchange.is_dropped(&fragments[1], FRAGMENT);
        // Of no flow: what a RST would answer is dropped.
        if stranger.service.port() == 80 {
            exchange.is_dropped(&fragments[0], FRAGMENT);
            exchange.is_dropped(&fragments[1], FRAGMENT);
        }
    });
}

#[test]
fn later_fragments_of_what_is_not_ours_are_passed() {
    if !root_or_skip("later_fragments_of_what_is_not_ours_are_passed") {
        return;
    }
    in_every_way(|exchange| {
        let mut frame = exchange.client_frame(ACK);
        frame.payload = pattern(100);
        frame.set_ends(
            exchange.client,
            std::net::SocketAddr::new(exchange.service.ip(), 9),
        );
        for fragment in frame.fragments(Sum::Complete, 3, &[40, 80]) {
            exchange.is_passed(&fragment);
        }
        // The next one of this identification is ours.
        let mut frame = exchange.client_frame(ACK);
        frame.payload = pattern(100);
        Fragmented::new(exchange, &frame, 3, &[40, 80]).check(exchange);
    });
}

/// Another protocol may stand behind the destination options.
#[test]
fn fragments_that_hide_another_protocol_are_passed() {
    if !root_or_skip("fragments_that_hide_another_protocol_are_passed") {
        return;
    }
    in_every_way(|exchange| {
        if exchange.service.is_ipv4() {
            return;
        }
        let (from, to) = (exchange.client.ip(), exchange.service.ip());
        let mut frame = Frame::icmp((CLIENT_MAC, LB_MAC), from, to, Icmp(128, 0, [0; 4]));
        frame.payload = pattern(100);
        *frame.extensions() = vec![Extension::Fragment(0, true, 0), extension(DESTINATION, 8)];
        for fragment in frame.fragments(Sum::Complete, 4, &[40, 80]) {
            exchange.is_passed(&fragment);
        }
    });
}

#[test]
fn two_seconds_after_the_first_the_others_are_dropped() {
    if !root_or_skip("two_seconds_after_the_first_the_others_are_dropped") {
        return;
    }
    let rig = rig(GENERIC);
    let mut all: Vec<_> = SERVED
        .iter()
        .map(|(listen, _)| {
            let mut exchange = Exchange::new(&rig, listen, 1);
            exchange.open();
            exchange
        })
        .collect();
    let fragmented: Vec<_> = all
        .iter_mut()
        .flat_map(|exchange| both(exchange, 99).map(|frame| (&*exchange, frame)))
        .zip(0..)
        .map(|((exchange, frame), id)| (exchange, Fragmented::new(exchange, &frame, id, &[32])))
        .collect();
    let ids: Vec<u32> = fragmented.iter().map(|(e, f)| f.begins(e)).collect();
    sleep(Duration::from_millis(500));
    for ((exchange, fragmented), id) in fragmented.iter().zip(ids) {
        fragmented.follows(exchange, id, 1);
    }
    sleep(Duration::from_millis(1600));
    for (exchange, fragmented) in &fragmented {
        exchange.is_dropped(&fragmented.fragments[1], FRAGMENT);
    }
}

/// The port has another flow now: its backend never gets a stranger's fragment.
#[test]
fn a_later_fragment_of_a_flow_that_is_gone_is_dropped() {
    if !root_or_skip("a_later_fragment_of_a_flow_that_is_gone_is_dropped") {
        return;
    }
    for (listen, backends) in SERVED {
        let mut service = service(listen, &backends);
        service.source_ports = xdp_proxy::service::PortRanges::new(vec![2000..=2001]).unwrap();
        let rig = Rig::new(&config(vec![service]), GENERIC);
        let mut exchange = Exchange::new(&rig, listen, 1);
        exchange.forward(SYN);
        let [forth, back] =
            both(&exchange, 99).map(|frame| Fragmented::new(&exchange, &frame, 6, &[32]));
        forth.check(&exchange);
        back.check(&exchange);
        // Its port goes to others: the oldest makes room.
        for number in 2..6 {
            Exchange::new(&rig, listen, number).forward(SYN);
        }
        for fragmented in [forth, back] {
            exchange.is_dropped(&fragmented.fragments[1], FRAGMENT);
        }
    }
}

/// The flow has the same port and tuple, but another backend: addresses and
/// checksum of the one would not fit the other's fragments.
#[test]
fn a_later_fragment_is_not_of_its_clients_next_flow() {
    if !root_or_skip("a_later_fragment_is_not_of_its_clients_next_flow") {
        return;
    }
    for (listen, backends) in SERVED {
        if !listen.ends_with("/udp") {
            continue;
        }
        let mut service = service(listen, &backends);
        service.source_ports = xdp_proxy::service::PortRanges::new(vec![2000..=2000]).unwrap();
        let mut rig = Rig::new(&config(vec![service]), GENERIC);
        let mut exchange = Exchange::new(&rig, listen, 1);
        exchange.open();
        let fragmented =
            both(&exchange, 99).map(|frame| Fragmented::new(&exchange, &frame, 6, &[32]));
        for datagram in &fragmented {
            datagram.check(&exchange);
        }
        let path = exchange.path();
        let index = rig.backend_index(path.backend);
        rig.tables.backends[index - 1].path.alive = false;
        rig.datapath.write_backend(&rig.tables, index).unwrap();
        rig.datapath.write_maglev(&rig.tables, 0).unwrap();
        let mut next = Exchange::new(&rig, listen, 1);
        next.forward(SYN);
        assert_eq!(next.path().source, path.source);
        assert_ne!(next.path().backend, path.backend);
        for datagram in &fragmented {
            next.is_dropped(&datagram.fragments[1], FRAGMENT);
        }
    }
}

#[test]
fn a_fragment_whose_time_is_over_is_answered_if_it_is_the_first() {
    if !root_or_skip("a_fragment_whose_time_is_over_is_answered_if_it_is_the_first") {
        return;
    }
    in_every_way(|exchange| {
        for mut frame in both(exchange, 200) {
            let fragmented = Fragmented::new(exchange, &frame, 5, &[48]);
            fragmented.begins(exchange);
            for hops in [0, 1] {
                *frame.hops() = hops;
                let fragments = frame.fragments(Sum::Complete, 5, &[48]);
                exchange.is_dropped(&fragments[1], LIMIT);
                let fragment_header = if frame.source().is_ipv4() { 0 } else { 8 };
                exchange.is_answered(
                    &fragments[0],
                    frame.transport_at() + fragment_header,
                    Told::TimeExceeded,
                    None,
                    OutcomeCode::OUTCOME_TIME_EXCEEDED,
                );
            }
        }
    });
}

#[test]
fn a_first_fragment_without_a_whole_header_is_malformed() {
    if !root_or_skip("a_first_fragment_without_a_whole_header_is_malformed") {
        return;
    }
    in_every_way(|exchange| {
        if exchange.service.port() == 53 {
            return;
        }
        for frame in both(exchange, 200) {
            for cut in [8, 16] {
                let fragments = frame.fragments(Sum::Complete, 11, &[cut]);
                exchange.is_dropped(&fragments[0], MALFORMED);
                exchange.is_dropped(&fragments[1], FRAGMENT);
            }
            // Options that reach into the next one.
            let mut frame = frame.clone();
            frame.tcp().set_options_raw(&[1; 12]).unwrap();
            let fragments = frame.fragments(Sum::Complete, 12, &[24]);
            exchange.is_dropped(&fragments[0], MALFORMED);
            Fragmented::new(exchange, &frame, 12, &[32]).check(exchange);
        }
    });
}

#[test]
fn later_fragments_whose_length_contradicts_the_frame_are_malformed() {
    if !root_or_skip("later_fragments_whose_length_contradicts_the_frame_are_malformed") {
        return;
    }
    in_every_way(|exchange| {
        for frame in both(exchange, 200) {
            let fragmented = Fragmented::new(exchange, &frame, 13, &[40]);
            let id = fragmented.begins(exchange);
            let later = &fragmented.fragments[1];
            exchange.is_dropped(&later[..later.len() - 1], MALFORMED);
            fragmented.follows(exchange, id, 1);
        }
    });
}

/// What a CPU remembered last is not yet on the kernel's list of whom to forget
/// (LOCAL_FREE_TARGET of kernel/bpf/bpf_lru_list.c), and stays until that CPU
/// remembers more.
const PENDING: usize = 128;

/// Memory is bounded: the newest datagrams are the ones that are remembered, whichever CPU
/// sees them.
#[test]
fn many_first_fragments_leave_room_for_the_newest() {
    if !root_or_skip("many_first_fragments_leave_room_for_the_newest") {
        return;
    }
    let rig = rig(WHOLE);
    let firsts = at_most(20_000) as u32;
    let cpus = cpus();
    for (listen, _) in SERVED {
        pin(cpus[0]);
        let mut exchange = Exchange::new(&rig, listen, 1);
        exchange.open();
        let mut frame = exchange.client_frame(ACK);
        frame.payload = pattern(64);
        for id in 0..firsts {
            if id == 500 {
                pin(cpus[cpus.len() - 1]);
            }
            assert_eq!(
                rig.run(&frame.fragments(Sum::Complete, id, &[48])[0])
                    .verdict,
                XDP_TX
            );
        }
        let fragmented = Fragmented::new(&exchange, &frame, firsts, &[48]);
        fragmented.check(&exchange);
        // As many as fit on every CPU's share are surely there.
        let later = |id| {
            let fragments = frame.fragments(Sum::Complete, id, &[48]);
            rig.run(&fragments[1]).verdict
        };
        let newest = (firsts.saturating_sub(1000)..firsts).filter(|id| later(*id) == XDP_TX);
        let oldest = (0..1000.min(firsts)).filter(|id| later(*id) == XDP_TX);
        let (newest, oldest) = (newest.count(), oldest.count());
        println!("{newest} of the newest 1000, {oldest} of the oldest 1000");
        assert_eq!(newest, 1000.min(firsts as usize));
        if firsts as usize > 2 * abi::FRAGMENTED {
            assert!(oldest <= PENDING, "{oldest}");
        }
    }
}
