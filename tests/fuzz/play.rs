// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! One step: the packet runs, what came out is compared, and the flows are
//! what they must be after it.

use std::net::SocketAddr;

use xdp_proxy::abi::OutcomeCode;
use xdp_proxy::abi::types::{answer, flow_state};

use crate::common::frame::{ACK, FIN, RST, SYN};
use crate::common::rig::*;
use crate::expect::{How, Kind};
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
                unanswered(&packet, self.begun(tuple, service, out)?)
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
        let flow = self.flow_mut(place);
        flow.mac = frame[6..12].try_into().expect("6 bytes");
        flow.tags = Tags::of(frame, packet.l3);
        let backend = flow.backend;
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

    /// What a packet tells of its flow's state.
    fn track(&mut self, end: End, frame: &[u8], packet: &Packet, place: usize, kind: Kind) {
        let now = self.now;
        let flags = flags_of(frame, packet);
        let tcp = packet.protocol == TCP;
        let partial_checksums = self.rig.settings.partial_checksums;
        let flow = self.flow_mut(place);
        if partial_checksums && kind != Kind::Unsummed && packet.part == Part::Whole {
            flow.partial[end as usize] = kind == Kind::Partial;
        }
        if flow.retired {
            // A backend that goes on did not believe the RST.
            if end == End::Backend && tcp && flags & (RST | FIN) == 0 {
                flow.seen = now;
            }
            return;
        }
        match end {
            End::Backend => {
                let first = !flow.answered && tcp;
                flow.answered_other = (first || flow.answered_other) && flags & SYN == 0;
                flow.answered = true;
            }
            End::Client if flow.answered && (!tcp || flags & ACK != 0) => flow.established = true,
            End::Client => (),
        }
        flow.finished[end as usize] |= flags & FIN != 0;
        if flow.established || end == End::Client || !tcp {
            flow.seen = now;
        }
        if flags & RST != 0 && end == End::Client && flow.answered_other && !flow.established {
            // It ends the earlier connection; the SYN comes again.
            (flow.answered, flow.answered_other) = (false, false);
        } else if flags & RST != 0 {
            flow.finished = [true; 2];
        }
        if flow.finished == [true; 2] {
            self.retire(place);
        }
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
        let state = [
            flow.established,
            flow.answered,
            flow.answered_other,
            flow.retired,
            flow.finished[0],
            flow.finished[1],
            flow.partial[0],
            flow.partial[1],
        ];
        let recorded = [
            record.state == flow_state::FLOW_ESTABLISHED.0 as u8,
            record.answered != answer::ANSWER_NONE.0 as u8,
            record.answered == answer::ANSWER_OTHER.0 as u8,
            record.retired != 0,
            record.finished & 1 != 0,
            record.finished & 2 != 0,
            record.partial & 1 != 0,
            record.partial & 2 != 0,
        ];
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
