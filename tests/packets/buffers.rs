// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! Frames in several buffers (XDP multi-buffer): jumbo frames, and GSO packets. What is
//! done with them is what is done with those in one buffer, but for two things in generic
//! mode, where the kernel can't cut them.

use xdp_proxy::abi::OutcomeCode;
use xdp_proxy::datapath::Settings;

use crate::common::case::WAYS;
use crate::common::exchange::*;
use crate::common::fragment::*;
use crate::common::frame::*;
use crate::common::icmp::*;
use crate::common::rig::*;
use crate::common::served::{self, SERVED, both};
use crate::common::several_buffers_or_skip;

const JUMBO_MTU_BYTES: u32 = 9000;
const MALFORMED: OutcomeCode = OutcomeCode::OUTCOME_DROPPED_MALFORMED;
const NO_FLOW: OutcomeCode = OutcomeCode::OUTCOME_REFUSED_NO_FLOW;
const NO_ROOM: OutcomeCode = OutcomeCode::OUTCOME_DROPPED_NO_ROOM;
const PAGE_BYTES: usize = 4096;

/// Each service with every kind of checksum, on an interface of this MTU.
fn in_every_way(mtu_bytes: u32, check: impl Fn(&mut Exchange, Settings)) {
    for (settings, sum) in WAYS {
        let mut rig = served::rig(*settings);
        rig.write_mtu(mtu_bytes);
        for (listen, _) in SERVED {
            check(
                &mut Exchange::new(&rig, listen, 1).with_sum(*sum),
                *settings,
            );
        }
    }
}

/// Lengths of a payload that ends about the borders of buffers and of blocks of the sum,
/// and about the MTU.
fn jumbo_lengths(headers_bytes: usize) -> Vec<usize> {
    let borders = [0, PAGE_BYTES].map(|bytes| FIRST_BUFFER_BYTES + bytes - headers_bytes);
    let longest = JUMBO_MTU_BYTES as usize + ETHERNET_BYTES - headers_bytes;
    borders
        .into_iter()
        .flat_map(|border| border - 9..border + 9)
        .chain((8..17).flat_map(|block| block * 512 - 29..block * 512 - 17))
        .chain(longest - 9..=longest)
        .collect()
}

fn headers_bytes(frame: &Frame) -> usize {
    frame.bytes(Sum::Complete).len() - frame.payload.len()
}

#[test]
fn jumbo_frames_go_both_ways_with_right_sums_however_they_come() {
    let test = "jumbo_frames_go_both_ways_with_right_sums_however_they_come";
    if !several_buffers_or_skip(test) {
        return;
    }
    in_every_way(JUMBO_MTU_BYTES, |exchange, _| {
        exchange.open();
        for bytes in jumbo_lengths(headers_bytes(&exchange.client_frame(ACK))) {
            let frames = both(exchange, bytes);
            exchange.pass_both(&frames);
        }
    });
}

/// Its sum is taken, over all buffers.
#[test]
fn a_jumbo_frame_in_the_coincidence_is_read_as_those_before() {
    let test = "a_jumbo_frame_in_the_coincidence_is_read_as_those_before";
    if !several_buffers_or_skip(test) {
        return;
    }
    in_every_way(JUMBO_MTU_BYTES, |exchange, _| {
        exchange.open();
        if exchange.listen().ends_with("/udp") {
            return;
        }
        for bytes in jumbo_lengths(headers_bytes(&exchange.client_frame(ACK))) {
            let mut frames = both(exchange, bytes);
            frames.iter_mut().for_each(Frame::coincide);
            exchange.pass_both(&frames);
        }
    });
}

/// In native mode, where no frame is longer than the MTU, that is one of the largest.
#[test]
fn packets_of_64_kb_go_both_ways() {
    if !several_buffers_or_skip("packets_of_64_kb_go_both_ways") {
        return;
    }
    for mtu_bytes in [MTU_BYTES, 65_535] {
        in_every_way(mtu_bytes, |exchange, settings| {
            if settings.complete_checksums && mtu_bytes == MTU_BYTES {
                return;
            }
            exchange.open();
            for bytes in [9217, 20_000, 40_001, 65_435] {
                let frames = both(exchange, bytes);
                exchange.pass_both(&frames);
            }
        });
    }
}

#[test]
fn bytes_in_all_buffers_are_counted() {
    if !several_buffers_or_skip("bytes_in_all_buffers_are_counted") {
        return;
    }
    in_every_way(JUMBO_MTU_BYTES, |exchange, _| {
        exchange.open();
        let counters = |exchange: &Exchange| {
            let index = exchange.rig.backend_index(exchange.path().backend);
            exchange.rig.counters().backends[index - 1]
        };
        for (bytes, padding_bytes) in [(8000, 0), (8000, 100), (3000, 1000), (100, 5000)] {
            let before = counters(exchange);
            let mut frames = both(exchange, bytes);
            for frame in &mut frames {
                frame.padding = vec![0; padding_bytes];
            }
            let frame_bytes = frames[0].bytes(Sum::Complete).len() as u64;
            exchange.forward_frame(&frames[0]);
            exchange.reply_frame(&frames[1]);
            let after = counters(exchange);
            for (before, after) in [
                (before.forwarded_bytes, after.forwarded_bytes),
                (before.returned_bytes, after.returned_bytes),
            ] {
                assert_eq!(after - before, frame_bytes, "{bytes} and {padding_bytes}");
            }
        }
    });
}

/// In generic mode the RST is as long as what it answers: with zeros behind it, over
/// which a sum that is still to be completed is the same.
#[test]
fn a_jumbo_frame_of_no_flow_is_answered_by_a_reset() {
    if !several_buffers_or_skip("a_jumbo_frame_of_no_flow_is_answered_by_a_reset") {
        return;
    }
    in_every_way(JUMBO_MTU_BYTES, |exchange, settings| {
        if exchange.listen().ends_with("/udp") {
            return;
        }
        let mut segment = exchange.client_frame(PSH | ACK);
        let headers_bytes = headers_bytes(&segment);
        let padded = jumbo_lengths(headers_bytes).into_iter();
        let padded = padded
            .map(|bytes| (bytes, 0))
            .chain([(100, 5000), (4000, 1)]);
        for (bytes, padding_bytes) in padded {
            segment.payload = pattern(bytes);
            segment.padding = vec![0xa5; padding_bytes];
            let came = segment.bytes(exchange.sum);
            let mut reset = exchange.reset(&segment);
            if !settings.complete_checksums && came.len() > FIRST_BUFFER_BYTES {
                reset.padding = vec![0; bytes + padding_bytes];
            }
            exchange.becomes(&came, &reset.bytes(exchange.sum_out()), NO_FLOW);
        }
    });
}

/// Its sender sends a single segment next, which is answered.
#[test]
fn a_gso_packet_of_no_flow_in_several_buffers_is_dropped() {
    let test = "a_gso_packet_of_no_flow_in_several_buffers_is_dropped";
    if !several_buffers_or_skip(test) {
        return;
    }
    in_every_way(MTU_BYTES, |exchange, settings| {
        if exchange.listen().ends_with("/udp") || settings.complete_checksums {
            return;
        }
        let mut segment = exchange.client_frame(PSH | ACK);
        for bytes in [4000, 60_000] {
            segment.payload = pattern(bytes);
            exchange.is_dropped(&segment.bytes(exchange.sum), NO_ROOM);
        }
        segment.payload = pattern(1440);
        exchange.is_reset(&segment, NO_FLOW);
    });
}

#[test]
fn a_jumbo_frame_whose_time_has_run_out_is_told_in_native_mode() {
    let test = "a_jumbo_frame_whose_time_has_run_out_is_told_in_native_mode";
    if !several_buffers_or_skip(test) {
        return;
    }
    in_every_way(JUMBO_MTU_BYTES, |exchange, settings| {
        exchange.open();
        for bytes in [3600, 8001, 8900] {
            for mut frame in both(exchange, bytes) {
                *frame.hops() = 1;
                if settings.complete_checksums {
                    let code = OutcomeCode::OUTCOME_TIME_EXCEEDED;
                    exchange.is_told(&frame, Told::TimeExceeded, code);
                } else {
                    std::thread::sleep(2 * xdp_proxy::datapath::tick().unwrap());
                    exchange.is_dropped(&frame.bytes(exchange.sum), NO_ROOM);
                }
            }
        }
    });
}

#[test]
fn a_jumbo_frame_that_is_not_ours_is_passed_byte_for_byte() {
    let test = "a_jumbo_frame_that_is_not_ours_is_passed_byte_for_byte";
    if !several_buffers_or_skip(test) {
        return;
    }
    in_every_way(JUMBO_MTU_BYTES, |exchange, _| {
        exchange.open();
        let [ours, _] = both(exchange, 8900);
        let estrange: [fn(&mut Frame); 3] = [
            |frame| frame.to_mac = [2, 0, 0, 9, 9, 9],
            |frame| {
                let mut to = frame.destination();
                to.set_port(81);
                frame.set_ends(frame.source(), to);
            },
            |frame| {
                let mut to = frame.destination();
                to.set_ip(frame.source().ip());
                frame.set_ends(frame.source(), to);
            },
        ];
        for estrange in estrange {
            let mut frame = ours.clone();
            estrange(&mut frame);
            exchange.is_passed(&frame.bytes(exchange.sum));
        }
    });
}

#[test]
fn a_jumbo_frame_cut_short_in_any_buffer_is_malformed() {
    let test = "a_jumbo_frame_cut_short_in_any_buffer_is_malformed";
    if !several_buffers_or_skip(test) {
        return;
    }
    in_every_way(JUMBO_MTU_BYTES, |exchange, _| {
        exchange.open();
        for frame in both(exchange, 8900) {
            let whole = frame.bytes(exchange.sum);
            for bytes in [
                whole.len() - 1,
                FIRST_BUFFER_BYTES + PAGE_BYTES,
                FIRST_BUFFER_BYTES + 1,
                FIRST_BUFFER_BYTES,
                FIRST_BUFFER_BYTES - 1,
            ] {
                exchange.is_dropped(&whole[..bytes], MALFORMED);
            }
        }
    });
}

#[test]
fn fragments_of_jumbo_frames_follow_their_first_one() {
    if !several_buffers_or_skip("fragments_of_jumbo_frames_follow_their_first_one") {
        return;
    }
    in_every_way(JUMBO_MTU_BYTES, |exchange, _| {
        exchange.open();
        for (frame, id) in both(exchange, 20_000).into_iter().zip(7..) {
            Fragmented::new(exchange, &frame, id, &[8800, 17_600]).check(exchange);
        }
    });
}

/// From no VLAN into one and two, which takes room before the frame.
#[test]
fn jumbo_frames_cross_from_vlan_to_vlan() {
    if !several_buffers_or_skip("jumbo_frames_cross_from_vlan_to_vlan") {
        return;
    }
    let tags = [vec![], vec![(0x8100, 5)], vec![(0x88a8, 100), (0x8100, 7)]];
    for (settings, sum) in WAYS {
        let settings = Settings {
            handles_vlan: true,
            ..*settings
        };
        let mut rig = served::rig(settings);
        rig.write_mtu(JUMBO_MTU_BYTES);
        for backend_tags in &tags {
            rig.move_backends(backend_tags);
            for (client_tags, number) in tags.iter().zip(1..) {
                for (listen, _) in SERVED {
                    let number = number + 10 * backend_tags.len() as u32;
                    let mut exchange = Exchange::new(&rig, listen, number).with_sum(*sum);
                    exchange.tags = [client_tags.clone(), backend_tags.clone()];
                    exchange.open();
                    let frames = both(&exchange, 8901);
                    exchange.pass_both(&frames);
                }
            }
        }
    }
}

/// The kernel gives no frame in several buffers to a program that does not ask for them.
#[test]
fn a_flow_goes_on_between_programs_for_one_buffer_and_for_several() {
    let test = "a_flow_goes_on_between_programs_for_one_buffer_and_for_several";
    if !several_buffers_or_skip(test) {
        return;
    }
    let mut rig = served::rig(NATIVE);
    let mut exchange = Exchange::new(&rig, WEB, 1);
    exchange.open();
    let path = exchange.path();
    for one_buffer in [true, false, true] {
        let settings = Settings {
            one_buffer,
            ..NATIVE
        };
        rig.take_over(settings);
        let mut exchange = Exchange::new(&rig, WEB, 1).with_path(path);
        for frame_bytes in [100, if one_buffer { 3000 } else { 8000 }] {
            let frames = both(&exchange, frame_bytes);
            exchange.pass_both(&frames);
        }
    }
}
