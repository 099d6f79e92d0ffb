// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! ICMP errors about flows (RFC 5508), byte for byte; and ICMP that is none.

use std::net::{IpAddr, SocketAddr};
use std::thread::sleep;
use std::time::Duration;

use etherparse::IpNumber;
use xdp_proxy::abi::OutcomeCode;

use crate::common::exchange::*;
use crate::common::frame::*;
use crate::common::icmp::*;
use crate::common::rig::*;
use crate::common::root_or_skip;
use crate::common::served::*;

const LIMIT: OutcomeCode = OutcomeCode::OUTCOME_DROPPED_ICMP_LIMIT;
const MALFORMED: OutcomeCode = OutcomeCode::OUTCOME_DROPPED_MALFORMED;
const NO_NEIGHBOUR: OutcomeCode = OutcomeCode::OUTCOME_DROPPED_NO_NEIGHBOUR;

const HOP: IpNumber = IpNumber::IPV6_HEADER_HOP_BY_HOP;
const DESTINATION: IpNumber = IpNumber::IPV6_DESTINATION_OPTIONS;

fn router(exchange: &Exchange) -> IpAddr {
    let router = match exchange.service.ip() {
        IpAddr::V4(_) => "192.0.2.99",
        IpAddr::V6(_) => "2001:db8::99",
    };
    router.parse().unwrap()
}

#[test]
fn an_error_about_a_flow_goes_to_the_end_that_can_act_on_it() {
    if !root_or_skip("an_error_about_a_flow_goes_to_the_end_that_can_act_on_it") {
        return;
    }
    in_every_way(|exchange| {
        let v4 = exchange.service.is_ipv4();
        for about in both(exchange, 73) {
            for reporter in [Some(router(exchange)), None] {
                for icmp in errors(v4) {
                    for bytes in [8, 16, 18, 19, 20, 64, WHOLE_PACKET] {
                        translated(exchange, &about, reporter, icmp, bytes).check(exchange);
                    }
                }
            }
        }
    });
}

#[test]
fn options_and_extension_headers_of_the_error_and_of_its_quote_are_kept() {
    if !root_or_skip("options_and_extension_headers_of_the_error_and_of_its_quote_are_kept") {
        return;
    }
    in_every_way(|exchange| {
        let v4 = exchange.service.is_ipv4();
        let change = |frame: &mut Frame| match &mut frame.network {
            Network::V4(ip) => ip.options = [148, 4, 0, 0, 1, 1, 1, 0].into(),
            Network::V6(_, extensions) => {
                *extensions = vec![extension(HOP, 8), extension(DESTINATION, 24)];
            }
        };
        for mut about in both(exchange, 12) {
            for icmp in errors(v4) {
                for bytes in [8, WHOLE_PACKET] {
                    let mut plain = translated(exchange, &about, None, icmp, bytes);
                    change(&mut plain.error);
                    change(&mut plain.wanted);
                    plain.check(exchange);
                    let mut with_options = about.clone();
                    change(&mut with_options);
                    translated(exchange, &with_options, None, icmp, bytes).check(exchange);
                }
            }
            // A first fragment is quoted as it left.
            match &mut about.network {
                Network::V4(ip) => ip.more_fragments = true,
                Network::V6(_, extensions) => extensions.push(Extension::Fragment(0, true, 99)),
            }
            translated(exchange, &about, None, errors(v4)[5], WHOLE_PACKET).check(exchange);
        }
    });
}

#[test]
fn no_checksum_in_the_quote_stays_none_and_0_becomes_ffff() {
    if !root_or_skip("no_checksum_in_the_quote_stays_none_and_0_becomes_ffff") {
        return;
    }
    in_every_way(|exchange| {
        if exchange.service.port() != 53 {
            return;
        }
        let icmp = errors(exchange.service.is_ipv4())[1];
        for mut about in both(exchange, 4) {
            about.unsummed = true;
            translated(exchange, &about, None, icmp, WHOLE_PACKET).check(exchange);
            // The client's own sum is computed as 0.
            about.unsummed = false;
            about.payload = vec![0, 0, 0xab, 0xcd];
            let left = about.complete_sum();
            about.payload[..2].copy_from_slice(&left.to_be_bytes());
            translated(exchange, &about, None, icmp, WHOLE_PACKET).check(exchange);
        }
    });
}

#[test]
fn a_wrong_checksum_of_the_error_or_of_the_quote_stays_wrong_by_the_same() {
    if !root_or_skip("a_wrong_checksum_of_the_error_or_of_the_quote_stays_wrong_by_the_same") {
        return;
    }
    in_every_way(|exchange| {
        let icmp = errors(exchange.service.is_ipv4())[0];
        for about in both(exchange, 40) {
            // The quoted data is another than was summed.
            let mut changed = translated(exchange, &about, None, icmp, WHOLE_PACKET);
            for payload in changed.payloads() {
                *payload.last_mut().unwrap() ^= 0x5a;
            }
            changed.check(exchange);
            let right = translated(exchange, &about, None, icmp, WHOLE_PACKET);
            let [mut error, mut wanted] =
                [&right.error, &right.wanted].map(|f| f.bytes(Sum::Complete));
            for frame in [&mut error, &mut wanted] {
                *frame.last_mut().unwrap() ^= 0x5a;
            }
            exchange.becomes(&error, &wanted, OutcomeCode::OUTCOME_ICMP_ERROR);
        }
    });
}

#[test]
fn an_error_whose_time_is_over_is_dropped() {
    if !root_or_skip("an_error_whose_time_is_over_is_dropped") {
        return;
    }
    in_every_way(|exchange| {
        let icmp = errors(exchange.service.is_ipv4())[1];
        for about in both(exchange, 8) {
            for hops in [0, 1] {
                let mut error = translated(exchange, &about, None, icmp, 8).error;
                *error.hops() = hops;
                exchange.is_dropped(&error.bytes(Sum::Complete), LIMIT);
            }
        }
    });
}

#[test]
fn an_error_about_no_flow_of_ours_is_passed() {
    if !root_or_skip("an_error_about_no_flow_of_ours_is_passed") {
        return;
    }
    in_every_way(|exchange| {
        let passes = |frame: &Frame| exchange.is_passed(&frame.bytes(Sum::Complete));
        let v4 = exchange.service.is_ipv4();
        let icmp = errors(v4)[1];
        let stranger = Exchange::new(exchange.rig, &exchange.listen(), 9).with_path(Path {
            source: SocketAddr::new(exchange.path().source.ip(), 1),
            ..exchange.path()
        });
        for about in both(&stranger, 30) {
            passes(&translated(&stranger, &about, None, icmp, WHOLE_PACKET).error);
        }
        for about in both(exchange, 30) {
            let right = translated(exchange, &about, None, icmp, WHOLE_PACKET);
            // Not to who sent what is quoted.
            let mut astray = right.error.clone();
            let other: IpAddr = if v4 { "10.0.0.6" } else { "fd00::6" }.parse().unwrap();
            astray.set_ends(right.error.source(), SocketAddr::new(other, 0));
            passes(&astray);
            let mut other_quoted = right.error.clone();
            let source_at = if v4 { 12 } else { 8 };
            other_quoted.payload[source_at + 3] ^= 1;
            passes(&other_quoted);
            // A later fragment is quoted: it has no ports.
            let mut later = right.error.clone();
            if v4 {
                later.payload[6..8].copy_from_slice(&[0, 9]);
            } else {
                let mut about = about.clone();
                about.set_ends(about.destination(), about.source());
                about.extensions().push(Extension::Fragment(9, false, 7));
                later.payload = about.packet(Sum::Complete);
            }
            passes(&later);
            // ICMP, or another protocol, is quoted.
            for next in [1, 58, 132, 50] {
                let mut unknown = right.error.clone();
                unknown.payload[if v4 { 9 } else { 6 }] = next;
                passes(&unknown);
            }
            // Another version is quoted.
            let mut version = right.error.clone();
            version.payload[0] ^= 0x20;
            passes(&version);
        }
    });
}

/// Less than 8 bytes of the transport (RFC 792) name no flow; behind the
/// packet's end, in what pads the frame, there are none.
#[test]
fn an_error_whose_quote_is_cut_off_is_passed() {
    if !root_or_skip("an_error_whose_quote_is_cut_off_is_passed") {
        return;
    }
    in_every_way(|exchange| {
        let icmp = errors(exchange.service.is_ipv4())[1];
        for about in both(exchange, 30) {
            let whole = translated(exchange, &about, None, icmp, 8).error;
            for bytes in 0..whole.payload.len() {
                let mut cut = whole.clone();
                cut.padding = cut.payload.split_off(bytes);
                exchange.is_passed(&cut.bytes(Sum::Complete));
                cut.padding.clear();
                exchange.is_passed(&cut.bytes(Sum::Complete));
            }
            let bytes = whole.bytes(Sum::Complete);
            let icmp_at = whole.transport_at();
            for end in icmp_at - 8..icmp_at + 8 {
                exchange.is_passed(&bytes[..end]);
            }
            // The packet is longer than the frame.
            let mut short = whole.clone();
            short.payload.extend([0; 4]);
            let bytes = short.bytes(Sum::Complete);
            exchange.is_dropped(&bytes[..bytes.len() - 1], MALFORMED);
        }
    });
}

#[test]
fn an_error_about_a_closing_flow_is_translated() {
    if !root_or_skip("an_error_about_a_closing_flow_is_translated") {
        return;
    }
    in_every_way(|exchange| {
        if exchange.service.port() == 80 {
            exchange.close();
        }
        let icmp = errors(exchange.service.is_ipv4())[0];
        for about in both(exchange, 0) {
            translated(exchange, &about, None, icmp, WHOLE_PACKET).check(exchange);
        }
    });
}

#[test]
fn an_error_about_a_flow_that_is_over_is_passed() {
    if !root_or_skip("an_error_about_a_flow_that_is_over_is_passed") {
        return;
    }
    for (listen, backends) in SERVED {
        if listen.ends_with("/udp") {
            continue; // no datagram ends a flow
        }
        let mut service = service(listen, &backends);
        service.timeouts.closing = Duration::from_millis(50);
        let rig = Rig::new(&config(vec![service]), GENERIC);
        let mut exchange = Exchange::new(&rig, listen, 1);
        exchange.open();
        exchange.close();
        sleep(Duration::from_millis(120));
        let icmp = errors(exchange.service.is_ipv4())[0];
        for about in both(&exchange, 0) {
            let error = translated(&exchange, &about, None, icmp, 8).error;
            exchange.is_passed(&error.bytes(Sum::Complete));
        }
    }
}

#[test]
fn an_error_for_a_backend_without_a_mac_is_dropped() {
    if !root_or_skip("an_error_for_a_backend_without_a_mac_is_dropped") {
        return;
    }
    for (listen, _) in SERVED {
        let mut rig = rig(GENERIC);
        let mut exchange = Exchange::new(&rig, listen, 1);
        exchange.open();
        let path = exchange.path();
        let index = rig.backend_index(path.backend);
        rig.tables.backends[index - 1].path.mac = None;
        rig.datapath.write_backend(&rig.tables, index).unwrap();
        let exchange = Exchange::new(&rig, listen, 1).with_path(path);
        let icmp = errors(exchange.service.is_ipv4())[0];
        let [to_backend, to_client] = both(&exchange, 0);
        translated(&exchange, &to_backend, None, icmp, 8).check(&exchange);
        let error = translated(&exchange, &to_client, None, icmp, 8).error;
        exchange.is_dropped(&error.bytes(Sum::Complete), NO_NEIGHBOUR);
    }
}

/// Redirects, source quench, neighbours, queries and replies, of any hop limit.
#[test]
fn icmp_that_is_no_error_is_passed() {
    if !root_or_skip("icmp_that_is_no_error_is_passed") {
        return;
    }
    in_every_way(|exchange| {
        let kinds: &[u8] = match exchange.service.ip() {
            IpAddr::V4(_) => &[0, 4, 5, 8, 9, 10, 13, 14, 17, 18, 40, 255],
            IpAddr::V6(_) => &[0, 5, 100, 127, 128, 129, 130, 133, 134, 135, 136, 137, 255],
        };
        for about in both(exchange, 0) {
            for kind in kinds {
                let icmp = Icmp(*kind, 0, [0; 4]);
                for hops in [1, 64, 255] {
                    let mut frame = translated(exchange, &about, None, icmp, 8).error;
                    *frame.hops() = hops;
                    exchange.is_passed(&frame.bytes(Sum::Complete));
                }
            }
        }
    });
}
