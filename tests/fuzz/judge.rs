// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! What must become of a frame, from its bytes and the flows alone.

use std::net::{IpAddr, SocketAddr};

use xdp_proxy::abi::OutcomeCode;
use xdp_proxy::service::Health;

use crate::common::frame::{ACK, FIN, RST, SYN};
use crate::common::icmp::Told;
use crate::common::rig::{FIRST_BUFFER_BYTES, LB_MAC, MTU_BYTES};
use crate::wire::*;
use crate::world::*;

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fate {
    Passed,
    Dropped(OutcomeCode),
    /// Of the flow in this place.
    Forwarded(usize),
    Returned(usize),
    /// It begins a flow of this service, if there is a port for it.
    Begins(Tuple, usize),
    Reset(OutcomeCode),
    Told(OutcomeCode, Told),
    /// An error about the flow in this place goes to that end.
    Error(usize, End),
    Echo,
}

pub struct Judgement {
    pub packet: Option<Packet>,
    /// The place of a flow that the packet ends for good, whatever becomes of it.
    pub ends: Option<usize>,
    pub fate: Fate,
    /// It is a first fragment, whose fate is that of the others.
    pub remembers: bool,
}

/// The sender is told that nobody serves its packet.
pub fn refused(protocol: u8, outcome: OutcomeCode) -> Fate {
    match protocol {
        TCP => Fate::Reset(outcome),
        _ => Fate::Told(outcome, Told::PortUnreachable),
    }
}

/// No other host has it (RFC 1122, section 3.2.1.3).
fn is_nobodys(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_loopback() || v4.octets()[0] == 0 || v4.octets()[0] >= 224,
        IpAddr::V6(v6) => {
            v6.is_loopback()
                || v6.is_multicast()
                || v6.is_unspecified()
                || v6.to_ipv4_mapped().is_some()
        }
    }
}

/// TCP's flags; of a sane packet.
pub fn flags_of(frame: &[u8], packet: &Packet) -> u8 {
    match packet.protocol {
        TCP if packet.part != Part::Later => frame[packet.l4 + 13],
        _ => 0,
    }
}

/// Asks for a new flow.
fn opens(frame: &[u8], packet: &Packet) -> bool {
    packet.protocol == UDP || flags_of(frame, packet) & (SYN | ACK | RST | FIN) == SYN
}

impl World {
    /// It says that it comes from us, or from no host.
    fn is_martian(&self, packet: &Packet) -> bool {
        is_nobodys(packet.from) || self.is_ours(packet.from)
    }

    /// What becomes of an answer that is not given.
    pub fn unanswered(&self, packet: &Packet, fate: Fate) -> Fate {
        let answers = !self.is_martian(packet);
        match fate {
            // Its time was over.
            Fate::Dropped(OutcomeCode::OUTCOME_DROPPED_ICMP_LIMIT) if !answers => {
                Fate::Dropped(OutcomeCode::OUTCOME_DROPPED_MARTIAN)
            }
            Fate::Reset(_) | Fate::Told(..) | Fate::Echo if !answers => {
                Fate::Dropped(OutcomeCode::OUTCOME_DROPPED_MARTIAN)
            }
            Fate::Reset(_) if packet.part == Part::First => {
                Fate::Dropped(OutcomeCode::OUTCOME_DROPPED_FRAGMENT)
            }
            fate => fate,
        }
    }

    /// In generic mode a frame in several buffers can't be cut.
    pub fn can_cut(&self, frame: &[u8]) -> bool {
        frame.len() <= FIRST_BUFFER_BYTES || self.rig.settings.complete_checksums
    }

    /// What becomes of an answer that the frame can't be cut to.
    pub fn uncut(&self, frame: &[u8], packet: Option<&Packet>, fate: Fate) -> Fate {
        let is_long = packet.is_some_and(|packet| packet.end - packet.l3 > MTU_BYTES as usize);
        match fate {
            Fate::Reset(_) if is_long && !self.can_cut(frame) => {
                Fate::Dropped(OutcomeCode::OUTCOME_DROPPED_NO_ROOM)
            }
            Fate::Told(..) if !self.can_cut(frame) => {
                // The limit is asked before, and may let some pass.
                let limit = OutcomeCode::OUTCOME_DROPPED_ICMP_LIMIT;
                let limited = self.icmp_limited && self.has_moved(limit);
                Fate::Dropped(if limited {
                    limit
                } else {
                    OutcomeCode::OUTCOME_DROPPED_NO_ROOM
                })
            }
            fate => fate,
        }
    }

    pub fn serves(&self, protocol: u8) -> bool {
        protocol == TCP || protocol == UDP && self.rig.tables.serves_udp
    }

    pub fn judge(&self, frame: &[u8]) -> Judgement {
        let packet = Packet::of(frame, self.rig.settings.handles_vlan);
        let passed = Judgement {
            packet,
            ends: None,
            fate: Fate::Passed,
            remembers: false,
        };
        match packet {
            Some(packet) if frame[..6] == LB_MAC => {
                if packet.v6 && !self.rig.tables.serves_ipv6 || !self.is_ours(packet.to) {
                    return passed;
                }
                let icmp = if packet.v6 { ICMPV6 } else { ICMP };
                let (ends, fate) = match packet.part {
                    Part::Whole if packet.protocol == icmp => {
                        (None, self.judge_icmp(frame, &packet))
                    }
                    Part::Later => (None, self.judge_later(frame, &packet)),
                    _ if !self.serves(packet.protocol) || frame.len() < packet.l4 + 4 => {
                        return passed;
                    }
                    _ => self.judge_ours(frame, &packet),
                };
                Judgement {
                    ends,
                    fate: self.unanswered(&packet, fate),
                    remembers: packet.part == Part::First,
                    ..passed
                }
            }
            _ => passed,
        }
    }

    /// A fragment without ports follows the first one of its datagram.
    fn judge_later(&self, frame: &[u8], packet: &Packet) -> Fate {
        // Destination options may stand before what we serve, out of sight.
        let is_hidden = packet.v6 && packet.protocol == DESTINATION_OPTIONS;
        if !self.serves(packet.protocol) && !is_hidden {
            return Fate::Passed;
        }
        match self.fragments.get(&FragmentKey::of(packet)) {
            Some(Decision::Passed) => Fate::Passed,
            Some(Decision::Sent(place, number, end, _)) => match &self.flows[*place] {
                Some(flow) if flow.number == *number && !packet.is_sane(frame) => {
                    Fate::Dropped(OutcomeCode::OUTCOME_DROPPED_MALFORMED)
                }
                // No ICMP error about a later fragment (RFC 1122, section 3.2.2).
                Some(flow) if flow.number == *number && packet.hops <= 1 => {
                    Fate::Dropped(OutcomeCode::OUTCOME_DROPPED_ICMP_LIMIT)
                }
                Some(flow) if flow.number == *number => match end {
                    End::Client => self.forwarded(*place),
                    End::Backend => Fate::Returned(*place),
                },
                _ => Fate::Dropped(OutcomeCode::OUTCOME_DROPPED_FRAGMENT),
            },
            None if packet.protocol == DESTINATION_OPTIONS => Fate::Passed,
            None => Fate::Dropped(OutcomeCode::OUTCOME_DROPPED_FRAGMENT),
        }
    }

    fn judge_icmp(&self, frame: &[u8], packet: &Packet) -> Fate {
        let Some(icmp) = frame.get(packet.l4..packet.l4 + 8) else {
            return Fate::Passed;
        };
        if packet.end < packet.l4 + 8 {
            return Fate::Passed;
        }
        match (packet.v6, icmp[0]) {
            (false, 8) | (true, 128) if self.answers_echo(packet.to) => {
                match packet.is_sane(frame) {
                    true => Fate::Echo,
                    false => Fate::Dropped(OutcomeCode::OUTCOME_DROPPED_MALFORMED),
                }
            }
            (false, 3 | 11 | 12) | (true, 1..=4) => self.judge_error(frame, packet),
            _ => Fate::Passed,
        }
    }

    fn judge_error(&self, frame: &[u8], packet: &Packet) -> Fate {
        let Some(quoted) = Packet::quoted(frame, packet) else {
            return Fate::Passed;
        };
        if !self.serves(quoted.protocol) || quoted.from != packet.to {
            return Fate::Passed;
        }
        let (from, to) = quoted.ends(frame);
        let tuple = Tuple {
            protocol: quoted.protocol,
            client: to,
            service: from,
        };
        let alive = |place: &usize| !self.is_over(self.flow(*place));
        let fate = if let Some(place) = self.flow_of_backend(quoted.protocol, to, from) {
            Fate::Error(place, End::Client)
        } else if let Some(place) = self.by_tuple.get(&tuple).copied().filter(alive) {
            match self.forwarded(place) {
                Fate::Forwarded(place) => Fate::Error(place, End::Backend),
                dropped => return dropped,
            }
        } else {
            return Fate::Passed;
        };
        if !packet.is_sane(frame) {
            Fate::Dropped(OutcomeCode::OUTCOME_DROPPED_MALFORMED)
        } else if packet.hops <= 1 {
            // No error about an error.
            Fate::Dropped(OutcomeCode::OUTCOME_DROPPED_ICMP_LIMIT)
        } else if !self.is_plausible(frame, packet, &quoted, &fate) {
            Fate::Dropped(OutcomeCode::OUTCOME_DROPPED_UNPROVEN)
        } else {
            fate
        }
    }

    /// The error is about a segment that passed lately, or tells of no path MTU that is
    /// smaller than any.
    fn is_plausible(&self, frame: &[u8], packet: &Packet, quoted: &Packet, fate: &Fate) -> bool {
        let icmp = &frame[packet.l4..packet.l4 + 8];
        let mtu = match (packet.v6, icmp[0], icmp[1]) {
            (false, 3, 4) => number(icmp, 6),
            (true, 2, _) if number(icmp, 4) == 0 => number(icmp, 6),
            _ => 0,
        };
        if mtu != 0 && mtu < 1280 && (quoted.protocol == UDP || packet.v6) {
            return false;
        }
        // The packet came from the end that the error does not go to.
        let sent = match *fate {
            Fate::Error(place, End::Client) => self.flow(place).next[0],
            Fate::Error(place, End::Backend) => self.flow(place).next[1],
            _ => return true,
        };
        let at = quoted.l4 + 4;
        let sequence = u32::from_be_bytes(frame[at..at + 4].try_into().expect("4 bytes"));
        let apart = sequence.wrapping_sub(sent) as i32;
        quoted.protocol == UDP || (-(1 << 20)..131_072).contains(&apart)
    }

    fn forwarded(&self, place: usize) -> Fate {
        match self.path(self.flow(place).backend).mac {
            Some(_) => Fate::Forwarded(place),
            None => Fate::Dropped(OutcomeCode::OUTCOME_DROPPED_NO_NEIGHBOUR),
        }
    }

    /// Of a packet with ports to an address of ours.
    fn judge_ours(&self, frame: &[u8], packet: &Packet) -> (Option<usize>, Fate) {
        let (from, to) = packet.ends(frame);
        let tuple = Tuple {
            protocol: packet.protocol,
            client: from,
            service: to,
        };
        let of_backend = self.flow_of_backend(packet.protocol, from, to);
        let of_client = self.by_tuple.get(&tuple).copied();
        let service = self.service_of(packet.protocol, to);
        let no_flow = of_backend.is_none() && of_client.is_none();
        let fate = if no_flow && service.is_none() {
            Fate::Passed
        } else if !packet.is_sane(frame) {
            Fate::Dropped(OutcomeCode::OUTCOME_DROPPED_MALFORMED)
        } else if packet.hops <= 1 {
            Fate::Told(OutcomeCode::OUTCOME_TIME_EXCEEDED, Told::TimeExceeded)
        } else if let Some(place) = of_backend {
            Fate::Returned(place)
        } else {
            return self.judge_clients(frame, packet, tuple, of_client, service);
        };
        (None, fate)
    }

    fn judge_clients(
        &self,
        frame: &[u8],
        packet: &Packet,
        tuple: Tuple,
        place: Option<usize>,
        service: Option<usize>,
    ) -> (Option<usize>, Fate) {
        let opens = opens(frame, packet);
        let flow = place.map(|place| self.flows[place].as_ref().expect("a flow"));
        // The client's own RST ends the flow where it is.
        let resets = packet.protocol == TCP && flags_of(frame, packet) & RST != 0;
        let gone = flow.is_some_and(|flow| !resets && self.is_gone(flow));
        if let (Some(flow), Some(place)) = (flow, place)
            && !gone
            && !self.is_left(flow, opens)
        {
            return (None, self.forwarded(place));
        }
        let Some(service) = service else {
            return (place, Fate::Passed);
        };
        let fate = if !opens && gone {
            refused(packet.protocol, OutcomeCode::OUTCOME_REFUSED_BACKEND_GONE)
        } else if !opens && flags_of(frame, packet) & RST != 0 {
            Fate::Dropped(OutcomeCode::OUTCOME_DROPPED_NO_FLOW)
        } else if !opens {
            refused(packet.protocol, OutcomeCode::OUTCOME_REFUSED_NO_FLOW)
        } else if self.is_martian(packet) {
            Fate::Dropped(OutcomeCode::OUTCOME_DROPPED_MARTIAN)
        } else if self.takers(service).next().is_none() {
            refused(packet.protocol, OutcomeCode::OUTCOME_REFUSED_NO_BACKEND)
        } else {
            Fate::Begins(tuple, service)
        };
        (place, fate)
    }

    /// Closed so long ago that it is no flow any more.
    fn is_over(&self, flow: &Flow) -> bool {
        flow.retired && self.now - flow.seen > CLOSING
    }

    /// A client's packet is not of this flow of its tuple, but of the next one.
    fn is_left(&self, flow: &Flow, opens: bool) -> bool {
        flow.retired && opens || self.is_over(flow)
    }

    /// Its backend is down; of UDP, silence of the next hop is enough.
    pub fn is_gone(&self, flow: &Flow) -> bool {
        let table = &self.rig.tables.backends[flow.backend - 1];
        table.condition.health == Health::Down || flow.tuple.protocol == UDP && !table.path.alive
    }

    fn flow_of_backend(&self, protocol: u8, from: SocketAddr, to: SocketAddr) -> Option<usize> {
        let place = self.place(to)?;
        let flow = self.flows[place].as_ref()?;
        let is_its = flow.tuple.protocol == protocol
            && self.backend_end(flow.backend, &flow.tuple) == from
            && !self.is_over(flow);
        is_its.then_some(place)
    }
}
