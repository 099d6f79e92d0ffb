// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! How flows begin, and which ones may end for it.

use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use xdp_proxy::abi::{self, OutcomeCode, PORT_BITS};

use crate::judge::{Fate, refused};
use crate::play::{Checked, ensure};
use crate::wire::*;
use crate::world::*;

/// The flows on the ports of a source address that share what is below: GROUP_SLOTS
/// in a row.
#[derive(Debug)]
struct Crowd {
    source: IpAddr,
    ports: usize,
    live: usize,
    unconfirmed: usize,
    /// The number of the unconfirmed flow whose turn it is to make room: in the order
    /// in which ports are taken, from the last one that was.
    next: Option<u64>,
    /// The rank of the flow that makes room first where no port is free.
    idlest: Option<Rank>,
}

/// Who makes room before whom, the highest first, and the half hours of silence.
type Rank = (u8, u32);

impl Crowd {
    /// The unconfirmed flows have all of their share: half.
    fn is_crowded(&self) -> bool {
        self.unconfirmed >= (self.ports / 2).max(1)
    }

    fn is_full(&self) -> bool {
        self.is_crowded() || self.live == self.ports
    }
}

impl World {
    /// So long without a packet that its port may be given to another.
    /// Or its backend is gone.
    pub fn is_late(&self, flow: &Flow, pressed: bool) -> bool {
        let patient = flow.established || flow.answered && flow.tuple.protocol == UDP;
        let age = self.now - flow.seen;
        match pressed {
            _ if self.is_gone(flow) => true,
            _ if flow.established && flow.finished.contains(&true) => age > HALF_CLOSED,
            _ if patient => age > ESTABLISHED,
            true => 4 * age > UNANSWERED,
            false => age > UNANSWERED,
        }
    }

    /// None: it makes no room, as it is busy, or as that makes none in a crowd.
    fn rank(&self, flow: &Flow, crowded: bool) -> Option<Rank> {
        let idle = self.now - flow.seen;
        match flow.established {
            false => Some((1, idle)),
            true if crowded || idle == 0 => None,
            true if flow.finished.contains(&true) => Some((2, idle)),
            true => Some((0, idle)),
        }
    }

    fn is_idlest(&self, flow: &Flow, crowds: &[Crowd]) -> bool {
        let of_source = |crowd: &&Crowd| crowd.source == flow.source.ip();
        let ranks = crowds.iter().filter(of_source).map(|crowd| crowd.idlest);
        let idlest = ranks.max().flatten();
        idlest.is_some() && self.rank(flow, false) == idlest
    }

    /// Notes which flows the program has ended, and that it might.
    pub fn ended(&mut self, may: impl Fn(&World, &Flow) -> bool) -> Checked {
        for place in 0..self.flows.len() {
            let Some(flow) = &self.flows[place] else {
                continue;
            };
            let record = self.maps.flow(self.slot(place));
            let is_its = record.hash == flow.hash && record.family != 0;
            if !flow.retired && (!is_its || record.retired != 0) {
                ensure!(may(self, flow), "this flow was ended: {flow:?}");
                self.retire(place);
            }
            if !is_its {
                self.forget(place);
            }
        }
        Ok(())
    }

    /// What became of a packet that asked for a new flow.
    pub fn begun(&mut self, tuple: Tuple, service: usize, out: &[u8]) -> Checked<Fate> {
        let path = self.path_of(&tuple, service, out);
        let mut crowds: Vec<Crowd> = Vec::new();
        for backend in self.takers(service) {
            for source in self.sources_of(service, backend) {
                if !crowds.iter().any(|crowd| crowd.source == source) {
                    crowds.extend(self.crowds(source));
                }
            }
        }
        let is_full = |source: IpAddr| {
            let mut of_source = crowds.iter().filter(|crowd| crowd.source == source);
            of_source.all(Crowd::is_full)
        };
        let pressed = crowds.iter().all(Crowd::is_full);
        self.ended(|world, flow| {
            let makes_room = |crowd: &Crowd| crowd.is_crowded() && crowd.next == Some(flow.number);
            pressed && (world.is_late(flow, true) || world.is_idlest(flow, &crowds))
                || is_full(flow.source.ip()) && crowds.iter().any(makes_room)
        })?;
        let Some((place, backend)) = path else {
            let sources = crowds.iter().map(|crowd| crowd.source);
            let mut after = sources.flat_map(|source| self.crowds(source));
            ensure!(
                after.all(|crowd| crowd.is_full() && crowd.idlest.is_none()),
                "no port was found, though one is free or makes room: {crowds:?}"
            );
            let outcome = OutcomeCode::OUTCOME_REFUSED_SNAT_EXHAUSTED;
            return Ok(refused(tuple.protocol, outcome));
        };
        let (index, port) = (self.slot(place) >> PORT_BITS, self.slot(place) as u16);
        let source = self.rig.tables.sources[index].address;
        let crowds = self.crowds(source);
        self.last_taken.insert((index, group_of(port)), port);
        ensure!(
            !crowds[group_of(port) - group_of(*PORTS.start())].is_crowded(),
            "more unconfirmed flows than their share: {crowds:?}"
        );
        if let Some(flow) = &self.flows[place] {
            ensure!(flow.retired, "the port has a flow already: {flow:?}");
            self.forget(place);
        }
        let slot = self.slot(place);
        let record = self.maps.flow(slot);
        ensure!(
            self.sources_of(service, backend).contains(&source),
            "{source} is no source of service {service}"
        );
        self.flows_begun += 1;
        self.flows[place] = Some(Flow {
            tuple,
            backend,
            source: SocketAddr::new(source, slot as u16),
            mac: [0; 6],
            tags: Tags::default(),
            answered: false,
            answered_other: false,
            early: false,
            established: false,
            finished: [false; 2],
            acknowledged: [false; 2],
            reset: [false; 2],
            next: [0; 2],
            begun: (self.now, Instant::now()),
            partial: [false; 2],
            retired: false,
            seen: self.now,
            number: self.flows_begun,
            hash: record.hash,
        });
        self.by_tuple.insert(tuple, place);
        self.backends[backend - 1].flows_begun += 1;
        Ok(Fate::Forwarded(place))
    }

    fn crowds(&self, source: IpAddr) -> Vec<Crowd> {
        let index = self.source_index(source).expect("a source of ours");
        let ports: Vec<u16> = PORTS.collect();
        let groups = ports.chunk_by(|one, next| group_of(*one) == group_of(*next));
        let crowd = |ports: &[u16]| {
            let flow_at = |port: u16| {
                let place = index * PORTS.len() + usize::from(port - PORTS.start());
                self.flows[place].as_ref().filter(|flow| !flow.retired)
            };
            let last = self.last_taken.get(&(index, group_of(ports[0])));
            let after = ports.iter().position(|port| Some(port) == last);
            let (first, rest) = ports.split_at(after.map_or(0, |last| last + 1));
            let in_turn = [rest, first].concat();
            let live: Vec<&Flow> = in_turn.into_iter().filter_map(flow_at).collect();
            let unconfirmed = live.iter().filter(|flow| !flow.established);
            let mut crowd = Crowd {
                source,
                ports: ports.len(),
                live: live.len(),
                unconfirmed: unconfirmed.clone().count(),
                next: unconfirmed.map(|flow| flow.number).next(),
                idlest: None,
            };
            let crowded = crowd.is_crowded();
            let ranks = live.iter().filter_map(|flow| self.rank(flow, crowded));
            crowd.idlest = ranks.max();
            crowd
        };
        groups.map(crowd).collect()
    }

    /// The place and backend of a new flow whose first packet came out as `out`;
    /// None: that is something else.
    fn path_of(&self, tuple: &Tuple, service: usize, out: &[u8]) -> Option<(usize, usize)> {
        let packet = Packet::of(out, self.rig.settings.handles_vlan)?;
        if packet.protocol != tuple.protocol {
            return None;
        }
        let (source, to) = packet.ends(out);
        let mut takers = self.takers(service);
        let backend = takers.find(|backend| self.backend_end(*backend, tuple) == to)?;
        Some((self.place(source)?, backend))
    }
}

fn group_of(port: u16) -> usize {
    usize::from(port) / abi::GROUP_SLOTS
}
