// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! ns/packet by BPF_PROG_TEST_RUN: in each round every case takes its turn, the
//! empty program right before it on the same frames.

use std::collections::HashSet;
use std::os::fd::AsFd as _;
use std::rc::Rc;

use anyhow::{Context as _, Result, ensure};
use libbpf_rs::query::ProgInfoIter;
use xdp_proxy::abi::OutcomeCode;

use crate::Effort;
use crate::bpf::Driver;
use crate::cases;
use crate::common::rig::Rig;
use crate::results::{PacketCase, PacketRound, Program};
use crate::stream::{Kind, Reply, Stream};

/// One kind of packet in one state of the tables.
pub struct Case {
    pub name: String,
    pub rig: Rc<Rig>,
    pub stream: Stream,
    /// What becomes of every one of its packets.
    pub outcome: OutcomeCode,
    /// Where the packets open flows: what ends each of them again.
    pub ended_by: Option<Stream>,
}

impl Case {
    pub fn new(
        name: impl Into<String>,
        rig: &Rc<Rig>,
        stream: Stream,
        outcome: OutcomeCode,
    ) -> Case {
        Case {
            name: name.into(),
            rig: Rc::clone(rig),
            stream,
            outcome,
            ended_by: None,
        }
    }
}

pub fn driver(rig: &Rig, stream: &Stream) -> Result<Driver> {
    Driver::load(stream, Some(rig.datapath.program().as_fd()), 0)
}

/// A case, ready to run.
struct Ready {
    case: Case,
    driver: Driver,
    ended_by: Option<Driver>,
    /// The number of the next flow that never was.
    next_flow: u32,
    measured: PacketCase,
}

/// How often new flows are opened in a round: each run waits for all CPUs
/// (synchronize_rcu), some 10 ms.
const NEW_FLOW_RUNS: u32 = 10;

/// New flows have numbers above all that the cases establish.
pub const FIRST_NEW_FLOW: u32 = 1 << 20;

impl Ready {
    fn new(case: Case, packets: u32) -> Result<Ready> {
        let driver = driver(&case.rig, &case.stream)?;
        let ended_by = case.ended_by.as_ref();
        Ok(Ready {
            driver,
            ended_by: ended_by
                .map(|end| self::driver(&case.rig, end))
                .transpose()?,
            next_flow: FIRST_NEW_FLOW,
            measured: PacketCase {
                name: case.name.clone(),
                flows: case.stream.flows,
                backends: case.rig.tables.backends.len() as u32,
                packets_per_round: packets,
                rounds: Vec::new(),
            },
            case,
        })
    }

    fn round(&mut self) -> Result<()> {
        let packets = self.measured.packets_per_round;
        let before = self.case.rig.counter(self.case.outcome);
        let empty_ns = self.driver.run_empty(packets)?;
        let (ns, ran) = match &self.ended_by {
            None => (self.driver.run_tested(&self.case.rig, packets)?, packets),
            Some(_) => self.new_flows(packets)?,
        };
        let counted = self.case.rig.counter(self.case.outcome) - before;
        ensure!(
            counted == u64::from(ran),
            "{counted} of {ran} packets had the outcome {:?}: {:?}",
            self.case.outcome,
            self.case.rig.counters().packets()
        );
        self.measured.rounds.push(PacketRound { empty_ns, ns });
        Ok(())
    }

    /// Opens flows and ends them again, a few at a time, so that the table is as
    /// full as the case says; only the opening is timed.
    fn new_flows(&mut self, packets: u32) -> Result<(f64, u32)> {
        let ended_by = self.ended_by.as_ref().context("flows that end")?;
        let step = self.case.stream.flows;
        let mut runs = Vec::new();
        for _ in 0..NEW_FLOW_RUNS.min(packets.div_ceil(step)) {
            self.driver.begin_at(self.next_flow)?;
            runs.push(self.driver.run_tested(&self.case.rig, step)?);
            ended_by.begin_at(self.next_flow)?;
            ended_by.run_tested(&self.case.rig, step)?;
            self.next_flow += step;
        }
        let mean = runs.iter().sum::<f64>() / runs.len() as f64;
        // The packets that end flows are forwarded, too.
        Ok((mean, 2 * step * runs.len() as u32))
    }
}

/// Flows 0 to `flows` from SYN to established; as their backends see them. A part
/// at a time, as the unconfirmed flows may not have all of the ports.
pub fn establish(rig: &Rig, kind: Kind, flows: u32) -> Result<Vec<Reply>> {
    const PART: u32 = 4096;
    let mut replies = Vec::new();
    for first in (0..flows).step_by(PART as usize) {
        let part = PART.min(flows - first);
        let run = |stream: &Stream| {
            let driver = driver(rig, stream)?;
            driver.begin_at(if stream.is_of_clients() { first } else { 0 })?;
            driver.run_tested(rig, stream.flows)
        };
        let mut free = rig.datapath.free_ports(0)?;
        run(&kind.syn().of_clients(part))?;
        let still: HashSet<u16> = rig.datapath.free_ports(0)?.into_iter().collect();
        free.retain(|port| !still.contains(port));
        ensure!(
            free.len() == part as usize,
            "{} flows began, not {part}",
            free.len()
        );
        let begun = replies.len();
        let mut flows = Vec::new();
        for port in free {
            let flow = rig.datapath.flow(0, port)?;
            let reply = Reply {
                backend: rig.tables.backends[usize::from(flow.backend) - 1]
                    .backend
                    .address,
                port,
            };
            flows.push((flow.begun, reply));
        }
        // In the order of their clients.
        flows.sort_by_key(|(begun, _)| *begun);
        replies.extend(flows.into_iter().map(|(_, reply)| reply));
        run(&kind.syn_ack().of_backends(&replies[begun..]))?;
        run(&kind.of_clients(part))?;
    }
    Ok(replies)
}

pub fn measure(effort: &Effort) -> Result<Vec<PacketCase>> {
    let cases = cases::all(effort).context("preparing the cases")?;
    let mut ready = Vec::new();
    for case in cases {
        let name = case.name.clone();
        ready
            .push(Ready::new(case, effort.packets).with_context(|| format!("preparing {name:?}"))?);
    }
    for round in 1..=effort.packet_rounds {
        for case in &mut ready {
            case.round()
                .with_context(|| format!("measuring {:?}", case.case.name))?;
        }
        effort.progress("ns/packet", round, effort.packet_rounds);
    }
    Ok(ready.into_iter().map(|ready| ready.measured).collect())
}

/// What the kernel says of the program for one TCP service over IPv4.
pub fn program() -> Result<Program> {
    let rig = cases::plain_rig(2);
    let id = rig.datapath.program_id()?;
    let program = ProgInfoIter::default()
        .find(|program| program.id == id)
        .context("finding the program among the kernel's")?;
    Ok(Program {
        verified_instructions: program.verified_insns,
        jited_bytes: jited_bytes(&rig)?,
    })
}

/// Without its code, of which libbpf-rs asks for room only when told.
fn jited_bytes(rig: &Rig) -> Result<u32> {
    use std::os::fd::AsRawFd as _;
    let mut info = libbpf_sys::bpf_prog_info::default();
    let mut bytes = size_of_val(&info) as u32;
    let fd = rig.datapath.program().as_fd().as_raw_fd();
    // SAFETY: `info` has the `bytes` that are given.
    let code =
        unsafe { libbpf_sys::bpf_obj_get_info_by_fd(fd, (&raw mut info).cast(), &mut bytes) };
    ensure!(
        code == 0,
        "asking for the program's size: {}",
        std::io::Error::from_raw_os_error(-code)
    );
    Ok(info.jited_prog_len)
}
