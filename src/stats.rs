// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! Counters: what each one means, and what is derived from a snapshot of them.
//! Pure.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

use crate::abi::{OutcomeCode, backend_counters};

/// What was done with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// To the host, untouched.
    Passed,
    /// Out of the interface that it came in by.
    Sent,
    Dropped,
}

/// An outcome that the datapath counts packets by.
pub struct Outcome {
    pub code: OutcomeCode,
    pub verdict: Verdict,
    /// Its name in `status`.
    pub name: &'static str,
}

macro_rules! outcomes {
    ($($outcome:ident $verdict:ident $name:literal,)*) => {
        &[$(Outcome { code: OutcomeCode::$outcome, verdict: Verdict::$verdict, name: $name }),*]
    };
}

/// Every outcome there is, in the order of src/bpf/abi.h, which explains them.
pub const OUTCOMES: &[Outcome] = outcomes![
    OUTCOME_PASSED Passed "passed",
    OUTCOME_FORWARDED Sent "forwarded",
    OUTCOME_RETURNED Sent "returned",
    OUTCOME_REFUSED_NO_FLOW Sent "refused_no_flow",
    OUTCOME_REFUSED_NO_BACKEND Sent "refused_no_backend",
    OUTCOME_REFUSED_SNAT_EXHAUSTED Sent "snat_exhausted",
    OUTCOME_REFUSED_BACKEND_GONE Sent "refused_backend_gone",
    OUTCOME_TIME_EXCEEDED Sent "time_exceeded",
    OUTCOME_ICMP_ERROR Sent "icmp_error",
    OUTCOME_ECHO_REPLY Sent "echo_reply",
    OUTCOME_DROPPED_MALFORMED Dropped "malformed",
    OUTCOME_DROPPED_FRAGMENT Dropped "fragment",
    OUTCOME_DROPPED_ICMP_LIMIT Dropped "icmp_limit",
    OUTCOME_DROPPED_NO_FLOW Dropped "no_flow",
    OUTCOME_DROPPED_NO_NEIGHBOUR Dropped "no_neighbour",
    OUTCOME_DROPPED_RACE Dropped "race",
    OUTCOME_DROPPED_NO_ROOM Dropped "no_room",
    OUTCOME_DROPPED_UNPROVEN Dropped "unproven",
    OUTCOME_DROPPED_MARTIAN Dropped "martian",
];

const _: () = {
    let mut i = 0;
    while i < OUTCOMES.len() {
        assert!(OUTCOMES[i].code.0 as usize == i + 1);
        i += 1;
    }
    assert!(OUTCOMES.len() + 1 == OutcomeCode::OUTCOMES.0 as usize);
};

/// A snapshot, all CPUs added up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Packets by outcome, indexed by the number in abi.h.
    pub outcomes: [u64; OutcomeCode::OUTCOMES.0 as usize],
    /// Of backend 1, 2, ...
    pub backends: Vec<BackendCounters>,
}

/// What went to and came from one backend. Bytes are whole frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackendCounters {
    pub forwarded_packets: u64,
    pub forwarded_bytes: u64,
    pub returned_packets: u64,
    pub returned_bytes: u64,
    pub flows_begun: u64,
    #[serde(skip)]
    pub flows_ended: u64,
}

impl BackendCounters {
    /// Adds another CPU's or backend's counters to these.
    pub fn add(&mut self, other: &BackendCounters) {
        self.forwarded_packets += other.forwarded_packets;
        self.forwarded_bytes += other.forwarded_bytes;
        self.returned_packets += other.returned_packets;
        self.returned_bytes += other.returned_bytes;
        self.flows_begun += other.flows_begun;
        self.flows_ended += other.flows_ended;
    }

    /// Flows that it has now; closing ones are not counted.
    pub fn flows(&self) -> u64 {
        self.flows_begun.saturating_sub(self.flows_ended)
    }
}

/// Where the packets went: `received` = `passed` + all of `sent` + all of `dropped`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Packets {
    pub received: u64,
    pub passed: u64,
    pub sent: BTreeMap<String, u64>,
    pub dropped: BTreeMap<String, u64>,
}

impl From<backend_counters> for BackendCounters {
    fn from(of_cpu: backend_counters) -> BackendCounters {
        BackendCounters {
            forwarded_packets: of_cpu.forwarded_packets,
            forwarded_bytes: of_cpu.forwarded_bytes,
            returned_packets: of_cpu.returned_packets,
            returned_bytes: of_cpu.returned_bytes,
            flows_begun: of_cpu.flows_begun,
            flows_ended: of_cpu.flows_ended,
        }
    }
}

impl From<BackendCounters> for backend_counters {
    fn from(all: BackendCounters) -> backend_counters {
        backend_counters {
            forwarded_packets: all.forwarded_packets,
            forwarded_bytes: all.forwarded_bytes,
            returned_packets: all.returned_packets,
            returned_bytes: all.returned_bytes,
            flows_begun: all.flows_begun,
            flows_ended: all.flows_ended,
        }
    }
}

impl Counters {
    /// Packets with one outcome.
    pub fn of(&self, code: OutcomeCode) -> u64 {
        self.outcomes[code.0 as usize]
    }

    pub fn packets(&self) -> Packets {
        let mut packets = Packets::default();
        for Outcome {
            code,
            verdict,
            name,
        } in OUTCOMES
        {
            let count = self.of(*code);
            packets.received += count;
            match verdict {
                Verdict::Passed => packets.passed += count,
                Verdict::Sent => drop(packets.sent.insert((*name).into(), count)),
                Verdict::Dropped => drop(packets.dropped.insert((*name).into(), count)),
            }
        }
        packets
    }
}
