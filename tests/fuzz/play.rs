// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! One step: the packet runs, what came out is compared, and the flows are
//! what they must be after it.

use std::net::SocketAddr;

use xdp_proxy::abi::OutcomeCode;
use xdp_proxy::abi::types::{flow_state, heard};

use crate::common::frame::{ACK, FIN, RST, SYN};
use crate::common::rig::*;
use crate::expect::{How, Kind, error};
use crate::judge::*;
use crate::wire::*;
use crate::world::*;

pub type Checked<T = ()> = Result<T, String>;

macro_rules! ensure {
    ($holds:expr, $($word:tt)*) => {
        if !$holds {
            return Err(format!($($word)*));
        }
    };
}
pub(crate) use ensure;

impl World {
    pub fn step(&mut self, step: &Step) -> Checked {
        match step {
            Step::Frame(frame) => return self.run(frame),
            Step::Hours(hours) => self.hours_pass(*hours),
            Step::Seconds => self.seconds_pass(),
            Step::Sweep => {
                self.rig.datapath.sweep().expect("sweeping");
                self.ended(|world, flow| world.is_late(flow, false))?;
                let late = self.flows.iter().flatten();
                let mut late = late.filter(|f| !f.retired && self.is_late(f, false));
                ensure!(late.next().is_none(), "the sweep spared {:?}", late.next());
            }
            Step::News(backend, path, health) => self.news(*backend, *path, *health),
            Step::Limit(limited) => self.icmp_limited = *limited,
        }
        Ok(())
    }

    fn run(&mut self, frame: &[u8]) -> Checked {
        if self.frames.is_multiple_of(64) {
            self.seconds_may_pass();
        }
        let judgement = self.judge(frame);
        self.maps.limit_icmp(self.icmp_limited);
        let mut buffer = std::mem::take(&mut self.out);
        buffer.resize(FRAME_BYTES_MAX, 0);
        let (verdict, out) = self.rig.run_into(frame, &mut buffer);
        let bytes = out.len();
        self.frames += 1;
        let checked = self.check(frame, &judgement, verdict, &buffer[..bytes]);
        self.out = buffer;
        checked.map_err(|error| format!("{error}\nthe packet should be {:?}", judgement.fate))
    }

    fn check(&mut self, frame: &[u8], judgement: &Judgement, verdict: u32, out: &[u8]) -> Checked {
        if let Some(place) = judgement.ends {
            self.forget(place);
        }
        let fate = match judgement.fate {
            Fate::Begins(tuple, service) => {
                let packet = judgement.packet.expect("it has a tuple");
                let fate = self.begun(tuple, service, out)?;
                if let Fate::Forwarded(place) = fate {
                    self.learn_link(frame, &packet, place);
                    // What was there before stays.
                    let record = self.maps.flow(self.slot(place));
                    self.flow_mut(place).next[1] = record.backend_next;
                    if packet.protocol == TCP {
                        let [sequence, _] = numbers_of(frame, &packet);
                        self.flow_mut(place).next[0] = sequence.wrapping_add(1);
                    }
                }
                self.unanswered(&packet, fate)
            }
            fate => fate,
        };
        let fate = self.uncut(frame, judgement.packet.as_ref(), fate);
        let (wanted, outcome) = match fate {
            Fate::Passed => (XDP_PASS, OutcomeCode::OUTCOME_PASSED),
            Fate::Dropped(outcome) => (XDP_DROP, outcome),
            Fate::Told(_, _) if self.icmp_limited && verdict == XDP_DROP => {
                (XDP_DROP, OutcomeCode::OUTCOME_DROPPED_ICMP_LIMIT)
            }
            Fate::Forwarded(_) | Fate::Begins(..) => (XDP_TX, OutcomeCode::OUTCOME_FORWARDED),
            Fate::Returned(_) => (XDP_TX, OutcomeCode::OUTCOME_RETURNED),
            Fate::Reset(outcome) | Fate::Told(outcome, _) => (XDP_TX, outcome),
            Fate::Error(..) => (XDP_TX, OutcomeCode::OUTCOME_ICMP_ERROR),
            Fate::Echo => (XDP_TX, OutcomeCode::OUTCOME_ECHO_REPLY),
        };
        self.count(outcome);
        ensure!(
            verdict == wanted,
            "the verdict on {outcome:?} is {verdict}, not {wanted}"
        );
        if verdict != XDP_TX {
            ensure!(out == frame, "what was not sent was changed: {}", hex(out));
            if let (Fate::Passed, true, Some(packet)) =
                (fate, judgement.remembers, judgement.packet)
            {
                self.fragments
                    .insert(FragmentKey::of(&packet), Decision::Passed);
            }
            return Ok(());
        }
        let packet = judgement.packet.expect("what is not parsed is not sent");
        match fate {
            Fate::Forwarded(place) => self.want_forwarded(frame, &packet, place, out)?,
            Fate::Returned(place) => self.want_returned(frame, &packet, place, out)?,
            Fate::Error(place, end) => self.want_error_to(frame, &packet, place, end, out),
            Fate::Echo => self.want_echo(frame, &packet, out),
            Fate::Reset(_) => self.want_reset(frame, &packet, out),
            Fate::Told(_, told) => self.want_told(frame, &packet, told),
            _ => unreachable!("it is not sent"),
        }
        if out != self.want {
            let differs = |(i, (a, b)): (usize, (&u8, &u8))| (a != b).then_some(i);
            let places: Vec<_> = (out.iter().zip(&self.want).enumerate())
                .filter_map(differs)
                .collect();
            return Err(format!(
                "as {outcome:?} this came out:\n{}\nand not this, which differs at {places:?}:\n{}",
                hex(out),
                hex(&self.want)
            ));
        }
        match fate {
            Fate::Forwarded(place) | Fate::Returned(place) => self.check_record(place),
            _ => Ok(()),
        }
    }

    /// What a frame to the backend or to the client of a flow leaves by: MAC,
    /// tags, source and destination.
    fn towards(&self, end: End, place: usize) -> (([u8; 6], Tags), (SocketAddr, SocketAddr)) {
        let flow = self.flow(place);
        match end {
            End::Backend => {
                let path = self.path(flow.backend);
                let mac = path.mac.expect("it is reachable");
                let ends = (flow.source, self.backend_end(flow.backend, &flow.tuple));
                ((mac, Tags::of_words(path.tags)), ends)
            }
            End::Client => (
                (flow.mac, flow.tags),
                (flow.tuple.service, flow.tuple.client),
            ),
        }
    }

    fn want_sent(
        &mut self,
        frame: &[u8],
        packet: &Packet,
        (from, to): (End, End),
        place: usize,
        out: &[u8],
    ) -> Checked {
        let (link, ends) = self.towards(to, place);
        let link = (link.0, self.tags_out(frame, packet, link.1));
        let kind = match packet.part {
            Part::Later => Kind::Unsummed,
            _ => self.kind(frame, packet, self.flow(place).partial[from as usize]),
        };
        let id = self.id_of(packet, place, from, out)?;
        self.want_rewritten(frame, packet, link, ends, How { kind, id }, out);
        self.track(from, frame, packet, place, kind);
        if from == End::Client
            && packet.part != Part::Later
            && self.proves_client(frame, packet, place)
        {
            self.learn_link(frame, packet, place);
        }
        Ok(())
    }

    fn want_forwarded(
        &mut self,
        frame: &[u8],
        packet: &Packet,
        place: usize,
        out: &[u8],
    ) -> Checked {
        self.want_sent(frame, packet, (End::Client, End::Backend), place, out)?;
        let backend = self.flow(place).backend;
        let counters = &mut self.backends[backend - 1];
        counters.forwarded_packets += 1;
        counters.forwarded_bytes += counted_bytes(frame, packet);
        Ok(())
    }

    fn want_returned(
        &mut self,
        frame: &[u8],
        packet: &Packet,
        place: usize,
        out: &[u8],
    ) -> Checked {
        self.want_sent(frame, packet, (End::Backend, End::Client), place, out)?;
        let backend = self.flow(place).backend;
        let counters = &mut self.backends[backend - 1];
        counters.returned_packets += 1;
        counters.returned_bytes += counted_bytes(frame, packet);
        Ok(())
    }

    fn want_error_to(&mut self, frame: &[u8], packet: &Packet, place: usize, to: End, out: &[u8]) {
        let (link, ends) = self.towards(to, place);
        let link = (link.0, self.tags_out(frame, packet, link.1));
        self.want_error(frame, packet, link, ends, out);
    }

    /// The identification that a fragment leaves with: the program's choice for
    /// the first one, which no other datagram has that may be on its way.
    fn id_of(
        &mut self,
        packet: &Packet,
        place: usize,
        from: End,
        out: &[u8],
    ) -> Checked<Option<u32>> {
        let key = FragmentKey::of(packet);
        match packet.part {
            Part::Whole => Ok(None),
            Part::Later => match self.fragments.get(&key) {
                Some(Decision::Sent(.., id)) => Ok(Some(*id)),
                other => Err(format!("this can't follow {other:?}")),
            },
            Part::First => {
                let sent = Packet::of(out, self.rig.settings.handles_vlan);
                let id = sent.map_or(0, |sent| sent.id);
                let number = self.flow(place).number;
                let others = self.fragments.iter().filter(|(other, _)| **other != key);
                for (_, decision) in others {
                    let clashes = matches!(decision, Decision::Sent(.., other) if *other == id);
                    ensure!(!clashes, "two datagrams have the identification {id:#x}");
                }
                let decision = Decision::Sent(place, number, from, id);
                self.fragments.insert(key, decision);
                Ok(Some(id))
            }
        }
    }

    /// The tags that a frame goes on with.
    fn tags_out(&self, frame: &[u8], packet: &Packet, tags: Tags) -> Tags {
        let settings = &self.rig.settings;
        match packet.l3 {
            _ if !settings.handles_vlan => Tags::default(),
            ETHERNET if settings.tags_may_hide => Tags::of(frame, packet.l3),
            _ => tags,
        }
    }

    /// Where the flow's replies go.
    pub fn learn_link(&mut self, frame: &[u8], packet: &Packet, place: usize) {
        let flow = self.flow_mut(place);
        flow.mac = frame[6..12].try_into().expect("6 bytes");
        flow.tags = Tags::replied(frame, packet.l3);
    }

    /// The packet's numbers are those of the flow, which no stranger knows.
    fn proves_client(&self, frame: &[u8], packet: &Packet, place: usize) -> bool {
        let flow = self.flow(place);
        let [sequence, acknowledged] = match packet.protocol {
            TCP => numbers_of(frame, packet),
            _ => return false,
        };
        flow.established
            && flags_of(frame, packet) & ACK != 0
            && is_near(sequence, flow.next[0])
            && is_near(acknowledged, flow.next[1])
    }

    /// What a packet tells of its flow's state.
    fn track(&mut self, end: End, frame: &[u8], packet: &Packet, place: usize, kind: Kind) {
        let now = self.now;
        let tcp = self.flow(place).tuple.protocol == TCP;
        let partial_checksums = self.rig.settings.partial_checksums;
        let flow = self.flow_mut(place);
        if partial_checksums && kind != Kind::Unsummed && packet.part == Part::Whole {
            flow.partial[end as usize] = kind == Kind::Partial;
        }
        if flow.retired {
            // A backend that goes on did not believe the RST.
            if end == End::Backend && tcp && flags_of(frame, packet) & (RST | FIN) == 0 {
                flow.seen = now;
            }
            return;
        }
        match packet.part {
            Part::Later => (),
            _ if tcp => self.track_segment(end, frame, packet, place),
            _ => self.track_datagram(end, place),
        }
        let flow = self.flow_mut(place);
        // Where it ended with this packet, its time is that of its end.
        if flow.established || end == End::Client || !tcp {
            flow.seen = now;
        }
    }

    fn track_datagram(&mut self, end: End, place: usize) {
        let now = self.now;
        let record = self.maps.flow(self.slot(place));
        let flow = self.flow_mut(place);
        let confirmed = record.state == flow_state::FLOW_ESTABLISHED.0 as u8;
        let (begun, clock) = flow.begun;
        // About a second after it began, who can tell?
        let elapsed = clock.elapsed().as_secs_f64() > 0.9 && confirmed;
        match end {
            End::Backend => flow.answered = true,
            End::Client => flow.established |= flow.answered && (now > begun || elapsed),
        }
    }

    fn track_segment(&mut self, end: End, frame: &[u8], packet: &Packet, place: usize) {
        let sum_is_right = self.sum_is_right(frame, packet);
        let flow = self.flow_mut(place);
        let flags = flags_of(frame, packet);
        let [sequence, acknowledged] = numbers_of(frame, packet);
        let payload = payload_of(frame, packet);
        let (this, other) = (end as usize, 1 - end as usize);
        let is_client = end == End::Client;

        if flags & RST != 0 {
            let fits = match end {
                // It ends the earlier connection; the SYN comes again.
                End::Client if flow.answered_other && !flow.established => {
                    flow.answered_other = false;
                    false
                }
                End::Client => is_near(sequence, flow.next[0]),
                End::Backend if flow.answered => is_near(sequence, flow.next[1]),
                End::Backend => {
                    flags & ACK != 0 && acknowledged.wrapping_sub(flow.next[0]) <= 65_536
                }
            };
            flow.reset[this] |= fits && packet.part == Part::Whole && sum_is_right;
        } else if !flow.established && is_client {
            let beyond = acknowledged.wrapping_sub(flow.next[1]);
            if flags & SYN != 0 {
                flow.next[0] = sequence.wrapping_add(1);
            } else {
                flow.established = flow.answered
                    && flags & ACK != 0
                    && (beyond == 0 || flow.early && beyond <= 65_536);
            }
        } else if !flow.established {
            if flags & (SYN | ACK) == SYN | ACK {
                flow.next[1] = sequence.wrapping_add(1);
                (flow.answered, flow.answered_other) = (true, false);
            } else if !flow.answered {
                flow.answered_other = true;
            } else if !flow.early && payload > 0 {
                (flow.next[1], flow.early) = (sequence, true);
            }
        }
        if flow.established && flags & (SYN | RST) == 0 {
            let last = sequence.wrapping_add(payload);
            let further = last.wrapping_sub(flow.next[this]) as i32;
            if !is_near(sequence, flow.next[this]) {
                // Not of this connection.
            } else if flags & FIN != 0 {
                flow.next[this] = last.wrapping_add(1);
                flow.finished[this] = true;
            } else if further >= if flow.finished[this] { 1 } else { 16_384 } {
                flow.next[this] = last;
                flow.finished[this] = false;
            }
            if flow.finished[other] && flags & ACK != 0 && acknowledged == flow.next[other] {
                flow.acknowledged[this] = true;
            }
        }
        let both = flow.finished == [true; 2] && flow.acknowledged == [true; 2];
        if both || flow.reset != [false; 2] {
            self.retire(place);
        }
    }

    /// As far as can be told: what is still to be completed is.
    fn sum_is_right(&self, frame: &[u8], packet: &Packet) -> bool {
        let at = packet.checksum_at();
        let is = field(frame, at);
        self.rig.settings.partial_checksums && is == packet.partial_sum()
            || error(is, packet.right_sum_to_end(frame)) == 0
    }

    pub fn flow(&self, place: usize) -> &Flow {
        self.flows[place].as_ref().expect("a flow is there")
    }

    pub fn flow_mut(&mut self, place: usize) -> &mut Flow {
        self.flows[place].as_mut().expect("a flow is there")
    }

    pub fn retire(&mut self, place: usize) {
        let now = self.now;
        let flow = self.flow_mut(place);
        if !flow.retired {
            flow.retired = true;
            flow.seen = now;
            let backend = flow.backend;
            self.backends[backend - 1].flows_ended += 1;
        }
    }

    pub fn forget(&mut self, place: usize) {
        self.retire(place);
        let flow = self.flows[place].take().expect("a flow is there");
        self.by_tuple.remove(&flow.tuple);
    }

    /// The program's record says of the flow what it should.
    fn check_record(&self, place: usize) -> Checked {
        let flow = self.flow(place);
        let record = self.maps.flow(self.slot(place));
        let [client, backend] = [record.from_client, record.from_backend];
        let has = |said: u8, bit: heard| u32::from(said) & bit.0 != 0;
        let both = |bit: heard| [has(client, bit), has(backend, bit)];
        let state = (
            (flow.established, flow.retired),
            (flow.answered, flow.answered_other, flow.early),
            (flow.finished, flow.acknowledged, flow.reset, flow.partial),
            (flow.tuple.protocol == TCP).then_some(flow.next),
        );
        let recorded = (
            (
                record.state == flow_state::FLOW_ESTABLISHED.0 as u8,
                record.retired != 0,
            ),
            (
                has(backend, heard::HEARD_ANSWER),
                has(backend, heard::HEARD_OTHER),
                has(backend, heard::HEARD_EARLY),
            ),
            (
                both(heard::HEARD_FIN),
                both(heard::HEARD_FIN_ACKED),
                both(heard::HEARD_RST),
                both(heard::HEARD_PARTIAL),
            ),
            (flow.tuple.protocol == TCP).then_some([record.client_next, record.backend_next]),
        );
        ensure!(
            state == recorded,
            "the flow should be {flow:?}, and its record is {record:?}"
        );
        ensure!(
            record.hash == flow.hash && usize::from(record.backend) == flow.backend,
            "the flow is {flow:?}, and its record another's: {record:?}"
        );
        Ok(())
    }
}

/// A blind sender would hardly guess it.
pub fn is_near(number: u32, known: u32) -> bool {
    let apart = number.wrapping_sub(known) as i32;
    (-131_072..131_072).contains(&apart)
}

/// Of a segment: its sequence number, and what it acknowledges.
pub fn numbers_of(frame: &[u8], packet: &Packet) -> [u32; 2] {
    [4, 8].map(|at| {
        let bytes = &frame[packet.l4 + at..packet.l4 + at + 4];
        u32::from_be_bytes(bytes.try_into().expect("4 bytes"))
    })
}

fn payload_of(frame: &[u8], packet: &Packet) -> u32 {
    let header = usize::from(frame[packet.l4 + 12] >> 4) * 4;
    (packet.end - packet.l4 - header) as u32
}

/// Where there is a little padding in the first buffer, none is sought in others.
fn counted_bytes(frame: &[u8], packet: &Packet) -> u64 {
    let first = frame.len().min(FIRST_BUFFER_BYTES);
    match first.checked_sub(packet.end) {
        Some(0..60) => first as u64,
        _ => frame.len() as u64,
    }
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
