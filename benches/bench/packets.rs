// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! ns/packet by BPF_PROG_TEST_RUN: in each round every case takes its turn, the
//! empty program right before it on the same frames.

use std::cell::RefCell;
use std::collections::HashSet;
use std::os::fd::AsFd as _;
use std::rc::Rc;

use anyhow::{Context as _, Result, ensure};
use libbpf_rs::query::ProgInfoIter;
use xdp_proxy::abi::OutcomeCode;

use crate::Effort;
use crate::bpf::{Driver, ENDING, OPENING};
use crate::cases;
use crate::common::rig::Rig;
use crate::results::{PacketCase, PacketRound, Program};
use crate::stream::{Kind, Reply, Stream};

/// Which of a case's packets its figure is of.
#[derive(Clone, Copy, PartialEq)]
pub enum Figure {
    All,
    /// Those that open a flow, in turns with those that end one, in a long run.
    Opening,
    /// The others of that run.
    Ending,
    /// Those that open a flow, in short runs, each after a pause.
    AfterPause,
}

/// What cases share.
pub type SharedRig = Rc<RefCell<Rig>>;

/// One kind of packet in one state of the tables.
pub struct Case {
    pub name: String,
    pub rig: SharedRig,
    pub stream: Stream,
    /// What becomes of every one of its packets.
    pub outcome: OutcomeCode,
    pub figure: Figure,
}

impl Case {
    pub fn new(
        name: impl Into<String>,
        rig: &SharedRig,
        stream: Stream,
        outcome: OutcomeCode,
    ) -> Case {
        Case {
            name: name.into(),
            rig: Rc::clone(rig),
            stream,
            outcome,
            figure: Figure::All,
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
    measured: PacketCase,
}

/// How often flows are opened after a pause in a round: each run waits for all CPUs
/// (synchronize_rcu), some 10 ms.
const PAUSES: u32 = 10;

/// New flows have numbers above all that the cases establish.
const FIRST_NEW_FLOW: u32 = 1 << 20;

impl Ready {
    fn new(case: Case, packets: u32) -> Result<Ready> {
        let driver = driver(&case.rig.borrow(), &case.stream)?;
        let backends = case.rig.borrow().tables.backends.len() as u32;
        Ok(Ready {
            driver,
            measured: PacketCase {
                name: case.name.clone(),
                flows: case.stream.flows,
                backends,
                packets_per_round: packets,
                rounds: Vec::new(),
            },
            case,
        })
    }

    fn round(&mut self) -> Result<()> {
        let packets = self.measured.packets_per_round;
        if self.case.figure != Figure::All {
            // As the daemon does once a second: flows that were far and have ended are
            // looked for no more.
            self.case.rig.borrow_mut().datapath.sweep()?;
        }
        let rig = &*self.case.rig.borrow();
        let (ran, counted) = (rig.ran.get(), rig.counter(self.case.outcome));
        let empty_ns = self.driver.run_empty(packets)?;
        let (ns, left_out) = match self.case.figure {
            Figure::All => (self.driver.run_tested(rig, packets)?, 0),
            Figure::Opening => self.in_turns(OPENING, empty_ns)?,
            Figure::Ending => self.in_turns(ENDING, empty_ns)?,
            Figure::AfterPause => (self.after_pauses()?, 0),
        };
        let (ran, counted) = (
            rig.ran.get() - ran,
            rig.counter(self.case.outcome) - counted,
        );
        ensure!(
            counted == ran,
            "{counted} of {ran} packets had the outcome {:?}: {:?}",
            self.case.outcome,
            rig.counters().packets()
        );
        self.measured.rounds.push(PacketRound {
            empty_ns,
            ns,
            left_out,
        });
        Ok(())
    }

    /// The number of a flow that never was.
    fn new_flow(&self) -> u32 {
        // None begins without a packet.
        FIRST_NEW_FLOW + self.case.rig.borrow().ran.get() as u32
    }

    /// Opens the case's flows, from the one with this number on.
    fn open_flows(&self, first: u32) -> Result<f64> {
        self.driver.begin_at(first)?;
        self.driver
            .run_tested(&self.case.rig.borrow(), self.case.stream.flows)
    }

    /// The time of a packet of this kind while, in one run, flows are opened and ended
    /// in turns, so many as the case has always open; and how many packets were left out.
    fn in_turns(&self, kind: usize, empty_ns: f64) -> Result<(f64, u32)> {
        let (rig, open) = (&*self.case.rig.borrow(), self.case.stream.flows);
        let pairs = self.measured.packets_per_round / 2;
        let first = self.new_flow();
        self.open_flows(first)?;
        let empty = self.driver.turns_empty(first + open, 2 * pairs)?;
        let tested = self.driver.turns_tested(rig, first + open, 2 * pairs)?;
        self.driver.end_flows(rig, first + pairs, open)?;
        // So what reading the clock takes is not in it.
        let ns = empty_ns + tested[kind].mean_ns() - empty[kind].mean_ns();
        let timed: u64 = tested.iter().chain(&empty).map(|kind| kind.frames).sum();
        // Nobody sees what the last packet of a run takes.
        Ok((ns, 2 * (2 * pairs - 1) - timed as u32))
    }

    /// Opens the case's flows and ends them again, some times; only the opening is timed.
    fn after_pauses(&self) -> Result<f64> {
        let mut ns = 0.0;
        for _ in 0..PAUSES {
            let first = self.new_flow();
            ns += self.open_flows(first)?;
            self.driver
                .end_flows(&self.case.rig.borrow(), first, self.case.stream.flows)?;
        }
        Ok(ns / f64::from(PAUSES))
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
            let client = flow.client.map(u32::from_be);
            flows.push((client, u16::from_be(flow.client_port), reply));
        }
        // In the order of their clients, whose numbers they are.
        flows.sort_by_key(|(client, port, _)| (*client, *port));
        replies.extend(flows.into_iter().map(|(.., reply)| reply));
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
    let rig = &rig.borrow();
    let id = rig.datapath.program_id()?;
    let program = ProgInfoIter::default()
        .find(|program| program.id == id)
        .context("finding the program among the kernel's")?;
    Ok(Program {
        verified_instructions: program.verified_insns,
        jited_bytes: jited_bytes(rig)?,
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
