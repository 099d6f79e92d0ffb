// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! Cases as data: how the flow table got into its state, a packet in, the
//! verdict, every byte out, the counters that moved and that no other did.

use std::panic::{AssertUnwindSafe, catch_unwind};

use xdp_proxy::abi::OutcomeCode;
use xdp_proxy::datapath::Settings;
use xdp_proxy::stats::Counters;

use super::exchange::*;
use super::frame::*;
use super::icmp::*;
use super::rig::*;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Client,
    Backend,
}

/// A packet of a case's connection. `edit` changes fields, and lengths and
/// checksums follow; `damage` changes the finished bytes.
#[derive(Clone, Copy)]
pub struct Packet {
    from: End,
    flags: u8,
    payload_bytes: usize,
    edit: fn(&mut Frame),
    damage: fn(&mut Vec<u8>),
}

pub const fn client(flags: u8) -> Packet {
    Packet {
        from: End::Client,
        flags,
        payload_bytes: 0,
        edit: |_| (),
        damage: |_| (),
    }
}

pub const fn backend(flags: u8) -> Packet {
    Packet {
        from: End::Backend,
        ..client(flags)
    }
}

impl Packet {
    pub const fn payload(self, payload_bytes: usize) -> Packet {
        Packet {
            payload_bytes,
            ..self
        }
    }

    pub const fn edit(self, edit: fn(&mut Frame)) -> Packet {
        Packet { edit, ..self }
    }

    pub const fn damage(self, damage: fn(&mut Vec<u8>)) -> Packet {
        Packet { damage, ..self }
    }

    fn frame(&self, connection: &Exchange) -> Frame {
        let mut frame = match self.from {
            End::Client => connection.client_frame(self.flags),
            End::Backend => connection.backend_frame(self.flags),
        };
        frame.payload = pattern(self.payload_bytes);
        (self.edit)(&mut frame);
        frame
    }

    fn bytes(&self, frame: &Frame, sum: Sum) -> Vec<u8> {
        let mut bytes = frame.bytes(sum);
        (self.damage)(&mut bytes);
        bytes
    }
}

/// What must become of the last packet.
#[derive(Clone, Copy, Debug)]
pub enum Expect {
    /// To the host, byte for byte.
    Passed,
    /// To the flow's backend from the flow's port, each the same as before.
    Forwarded,
    /// To a backend from another port than before.
    ForwardedAnew,
    /// To the client.
    Returned,
    /// A RST with this sequence number and, where the ACK flag is set, that
    /// acknowledgement number.
    Reset(OutcomeCode, u32, Option<u32>),
    Dropped(OutcomeCode),
    /// The sender learns that the packet's time to live ran out.
    TimeExceeded,
}

pub struct Case {
    name: &'static str,
    before: &'static [Packet],
    packet: Packet,
    expect: Expect,
    flows_begun: u64,
    flows_ended: u64,
}

pub const fn case(
    name: &'static str,
    before: &'static [Packet],
    packet: Packet,
    expect: Expect,
) -> Case {
    Case {
        name,
        before,
        packet,
        expect,
        flows_begun: 0,
        flows_ended: 0,
    }
}

impl Case {
    pub const fn begins(self) -> Case {
        Case {
            flows_begun: 1,
            ..self
        }
    }

    pub const fn ends(self) -> Case {
        Case {
            flows_ended: 1,
            ..self
        }
    }

    fn check(&self, rig: &Rig, number: u32, sum: Sum) {
        let mut connection = Exchange::new(rig, WEB, number).with_sum(sum);
        for packet in self.before {
            let frame = packet.frame(&connection);
            let ran = rig.run(&packet.bytes(&frame, sum));
            assert_eq!(ran.verdict, XDP_TX, "an earlier packet: {frame:?}");
            if packet.from == End::Client {
                connection.client_mac = frame.from_mac;
                connection.path = Some(Path::of(&ran.frame));
            }
        }
        let frame = self.packet.frame(&connection);
        let sent = self.packet.bytes(&frame, sum);

        let before = rig.counters();
        let ran = rig.run(&sent);
        let after = rig.counters();

        let earlier = connection.path;
        let (verdict, code, bytes) = match self.expect {
            Expect::Passed => (XDP_PASS, OutcomeCode::OUTCOME_PASSED, sent),
            Expect::Forwarded | Expect::ForwardedAnew => {
                if earlier.is_none() || matches!(self.expect, Expect::ForwardedAnew) {
                    connection.path = Some(Path::of(&ran.frame));
                }
                let out = connection.forwarded(&frame).bytes(connection.sum_out());
                (XDP_TX, OutcomeCode::OUTCOME_FORWARDED, out)
            }
            Expect::Returned => {
                let out = connection.returned(&frame).bytes(connection.sum_out());
                (XDP_TX, OutcomeCode::OUTCOME_RETURNED, out)
            }
            Expect::Reset(code, sequence, acknowledgement) => {
                let mut reset = connection.reset(&frame);
                let tcp = reset.tcp();
                tcp.sequence_number = sequence;
                tcp.acknowledgment_number = acknowledgement.unwrap_or(0);
                set_flags(tcp, RST | if acknowledgement.is_some() { ACK } else { 0 });
                (XDP_TX, code, reset.bytes(connection.sum_out()))
            }
            Expect::Dropped(code) => (XDP_DROP, code, sent),
            Expect::TimeExceeded => {
                let completed = connection.sum_out() == Sum::Partial;
                let completed_at = completed.then(|| frame.checksum_at());
                let at = frame.transport_at();
                let told = icmp_answer(&sent, at, Told::TimeExceeded, completed_at);
                (XDP_TX, OutcomeCode::OUTCOME_TIME_EXCEEDED, told)
            }
        };
        let path = connection.path;
        assert_eq!(ran.verdict, verdict, "verdict");
        assert_eq!(ran.frame, bytes, "every byte out");
        if let Expect::ForwardedAnew = self.expect {
            assert_ne!(path, earlier, "another port");
        }
        let moved = self.moved(&before, code, &bytes, path, rig);
        assert_eq!(after, moved, "the counters that moved");
    }

    /// What the counters must be after the packet.
    fn moved(
        &self,
        before: &Counters,
        code: OutcomeCode,
        frame: &[u8],
        path: Option<Path>,
        rig: &Rig,
    ) -> Counters {
        let mut counters = before.clone();
        counters.outcomes[code.0 as usize] += 1;
        let Some(path) = path else {
            return counters;
        };
        let index = rig.backend_index(path.backend);
        let backend = &mut counters.backends[index - 1];
        if code == OutcomeCode::OUTCOME_FORWARDED {
            backend.forwarded_packets += 1;
            backend.forwarded_bytes += frame.len() as u64;
        }
        if code == OutcomeCode::OUTCOME_RETURNED {
            backend.returned_packets += 1;
            backend.returned_bytes += frame.len() as u64;
        }
        backend.flows_begun += self.flows_begun;
        backend.flows_ended += self.flows_ended;
        counters
    }
}

/// Every way in which the same packets may come: the program's settings, and
/// what the senders put into the checksum field.
pub const WAYS: &[(Settings, Sum)] = &[
    (WHOLE, Sum::Complete),
    (GENERIC, Sum::Complete),
    (GENERIC, Sum::Partial),
    (NATIVE, Sum::Complete),
    (NATIVE, Sum::Partial),
];

/// Checks every case in every one of the [`WAYS`], each from a client of its
/// own, and names those that fail.
pub fn check(cases: &[Case]) {
    let mut failed = Vec::new();
    for (settings, sum) in WAYS {
        let services = vec![service(
            "10.0.0.5:80",
            &[("10.0.0.2:80", 1), ("10.0.0.3:8080", 1)],
        )];
        let rig = Rig::new(&config(services), *settings);
        for (case, number) in cases.iter().zip(1..) {
            if catch_unwind(AssertUnwindSafe(|| case.check(&rig, number, *sum))).is_err() {
                failed.push(format!("{:?} with {sum:?} sums, {settings:?}", case.name));
            }
        }
    }
    assert!(failed.is_empty(), "failed cases:\n{}", failed.join("\n"));
    println!("{} cases, each in {} ways", cases.len(), WAYS.len());
}
