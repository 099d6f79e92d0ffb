// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! How flows begin, and which ones may end for it.

use std::net::{IpAddr, SocketAddr};

use xdp_proxy::abi::{OutcomeCode, PORT_BITS};

use crate::judge::{Fate, refused};
use crate::play::{Checked, ensure};
use crate::wire::*;
use crate::world::*;

/// The flows of a source address.
#[derive(Debug)]
struct Crowd {
    source: IpAddr,
    live: usize,
    unconfirmed: usize,
    /// The number of the unconfirmed flow that began first.
    oldest: Option<u64>,
}

impl Crowd {
    /// The unconfirmed flows have all of their share.
    fn is_crowded(&self) -> bool {
        self.unconfirmed >= UNCONFIRMED_MAX
    }

    fn is_full(&self) -> bool {
        self.is_crowded() || self.live == PORTS.len()
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
            _ if patient => age > ESTABLISHED,
            true => 4 * age > UNANSWERED,
            false => age > UNANSWERED,
        }
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
                    crowds.push(self.crowd(source));
                }
            }
        }
        let pressed = crowds.iter().all(Crowd::is_full);
        self.ended(|world, flow| {
            let mut crowds = crowds.iter();
            let crowd = crowds.find(|crowd| crowd.source == flow.source.ip());
            crowd.is_some_and(|crowd| {
                let makes_room = crowd.is_crowded() && crowd.oldest == Some(flow.number);
                world.is_late(flow, pressed) || makes_room
            })
        })?;
        let Some((place, backend)) = path else {
            let mut after = crowds.iter().map(|crowd| (crowd, self.crowd(crowd.source)));
            let is_refused =
                |(before, after): (&Crowd, Crowd)| before.is_crowded() || after.live == PORTS.len();
            ensure!(
                after.all(is_refused),
                "no port was found, though one is free: {crowds:?}"
            );
            let outcome = OutcomeCode::OUTCOME_REFUSED_SNAT_EXHAUSTED;
            return Ok(refused(tuple.protocol, outcome));
        };
        if let Some(flow) = &self.flows[place] {
            ensure!(flow.retired, "the port has a flow already: {flow:?}");
            self.forget(place);
        }
        let slot = self.slot(place);
        let record = self.maps.flow(slot);
        let source = self.rig.tables.sources[slot >> PORT_BITS];
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
            established: false,
            finished: [false; 2],
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

    fn crowd(&self, source: IpAddr) -> Crowd {
        let mut crowd = Crowd {
            source,
            live: 0,
            unconfirmed: 0,
            oldest: None,
        };
        let index = self.source_index(source).expect("a source of ours");
        let places = index * PORTS.len()..(index + 1) * PORTS.len();
        let live = self.flows[places].iter().flatten().filter(|f| !f.retired);
        for flow in live {
            crowd.live += 1;
            if !flow.established {
                crowd.unconfirmed += 1;
                let oldest = crowd.oldest.get_or_insert(flow.number);
                *oldest = flow.number.min(*oldest);
            }
        }
        crowd
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
