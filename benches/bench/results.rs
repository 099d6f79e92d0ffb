// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! What a run measured: the shape of bench/results/*.json. A field is added with
//! `#[serde(default)]` and none changes its meaning, so that old files stay
//! readable; what breaks that raises [`SHAPE`].

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize};

pub const SHAPE: u32 = 1;

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Results {
    pub shape: u32,
    /// UTC, as 2026-01-31T12:00:00Z.
    pub date: String,
    /// Few and short rounds: nothing to compare with.
    pub quick: bool,
    pub machine: Machine,
    pub versions: Versions,
    pub program: Program,
    /// ns/packet (BPF_PROG_TEST_RUN), a case each.
    pub packets: Vec<PacketCase>,
    /// Packets/s of live frames, a point each.
    pub live: Vec<LivePoint>,
    /// wrk, a kind of load and a contender each.
    pub requests: Vec<RequestCase>,
    pub memory: Vec<Memory>,
    /// From the start of the process to its line "ready:"; one a start.
    pub start_ms: Vec<f64>,
    /// Of 1,000 services, one of them changed; one a reload.
    pub reload_ms: Vec<f64>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Machine {
    pub processor: String,
    pub cpus: usize,
    pub memory_mib: u64,
    /// `uname -sr`.
    pub kernel: String,
    /// What lscpu says of the hypervisor, or "none".
    pub hypervisor: String,
    /// Per cache: "L1d 64 KiB".
    pub caches: Vec<String>,
    /// Load average over a minute, before the first measurement and after the last.
    pub load_before: f64,
    pub load_after: f64,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Versions {
    /// `git describe`, with -dirty where files were changed.
    pub xdp_proxy: String,
    pub clang: String,
    pub wrk: String,
    pub nginx: String,
    pub haproxy: String,
    pub nftables: String,
}

/// The program for one TCP service over IPv4, checksums whole.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Program {
    /// Walked by the verifier; 0 where the kernel does not tell.
    pub verified_instructions: u32,
    pub jited_bytes: u32,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PacketCase {
    pub name: String,
    /// Flows that packets are of, in turn.
    pub flows: u32,
    /// Backends of the service.
    pub backends: u32,
    pub packets_per_round: u32,
    pub rounds: Vec<PacketRound>,
}

/// Both by the same wrapper on the same frames, one right after the other.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PacketRound {
    pub empty_ns: f64,
    pub ns: f64,
    /// Where each packet is timed: those of both programs that are in no mean, since they
    /// took over 20 us, as somebody else had the processor.
    #[serde(default)]
    pub left_out: u32,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LivePoint {
    /// "native" or "generic": how the load balancer is attached.
    pub mode: String,
    pub flows: u32,
    pub backends: u32,
    pub frames_per_round: u32,
    pub rounds: Vec<LiveRound>,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LiveRound {
    /// Of a program that only swaps the MACs.
    pub swap_macs_per_s: f64,
    pub packets_per_s: f64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RequestCase {
    pub load: String,
    pub contender: String,
    pub connections: u32,
    pub rounds: Vec<RequestRound>,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RequestRound {
    pub requests_per_s: f64,
    pub p50_us: f64,
    pub p99_us: f64,
    pub p999_us: f64,
    /// User, system and softirq time of the whole machine: client, servers and all.
    pub cpu_us_per_request: f64,
    /// Of a connection opened while there is no other: from connect() to the
    /// answer's first byte, the median. `None`: not measured with this load.
    pub first_byte_us: Option<f64>,
}

/// What runs on the load balancer's host, with that many connections open.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Memory {
    pub contender: String,
    pub connections: u32,
    /// Resident, shared pages by their share (smaps_rollup's Pss).
    pub process_bytes: u64,
    /// Of BPF maps (fdinfo's memlock).
    pub maps_bytes: u64,
}

impl Results {
    pub fn read(path: &Path) -> Result<Results> {
        let text =
            fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
        let results: Results = serde_json::from_str(&text)
            .with_context(|| format!("{} is no result of this benchmark", path.display()))?;
        ensure!(
            results.shape == SHAPE,
            "{} has shape {}, and this benchmark reads shape {SHAPE}",
            path.display(),
            results.shape
        );
        Ok(results)
    }

    pub fn write(&self, path: &Path) -> Result<()> {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
        }
        let mut text = serde_json::to_string_pretty(self)?;
        text.push('\n');
        fs::write(path, text).with_context(|| format!("writing {}", path.display()))
    }

    /// Of the cases' packets through the empty program, the median.
    pub fn multiple(&self, case: &str) -> Option<f64> {
        let case = self.packets.iter().find(|known| known.name == case)?;
        Some(case.multiple())
    }

    /// A contender's rate as a share of another's in the same round, the median.
    pub fn request_ratio(&self, load: &str, contender: &str, other: &str) -> Option<f64> {
        self.compare(load, contender, other, |one, other| {
            one.requests_per_s / other.requests_per_s
        })
    }

    /// Processor time per request beyond another contender's in the same round, in
    /// microseconds, the median.
    pub fn added_us(&self, load: &str, contender: &str, other: &str) -> Option<f64> {
        self.compare(load, contender, other, |one, other| {
            one.cpu_us_per_request - other.cpu_us_per_request
        })
    }

    fn compare(
        &self,
        load: &str,
        contender: &str,
        other: &str,
        compare: impl Fn(&RequestRound, &RequestRound) -> f64,
    ) -> Option<f64> {
        let of = |contender: &str| {
            let mut cases = self.requests.iter();
            cases.find(|case| case.load == load && case.contender == contender)
        };
        let (one, other) = (of(contender)?, of(other)?);
        let pairs = one.rounds.iter().zip(&other.rounds);
        Some(median(pairs.map(|(one, other)| compare(one, other))))
    }
}

impl PacketCase {
    pub fn multiple(&self) -> f64 {
        median(self.rounds.iter().map(|round| round.ns / round.empty_ns))
    }

    pub fn ns(&self) -> f64 {
        median(self.rounds.iter().map(|round| round.ns))
    }
}

impl LivePoint {
    pub fn ratio(&self) -> f64 {
        median(
            self.rounds
                .iter()
                .map(|round| round.packets_per_s / round.swap_macs_per_s),
        )
    }

    pub fn packets_per_s(&self) -> f64 {
        median(self.rounds.iter().map(|round| round.packets_per_s))
    }
}

impl RequestCase {
    pub fn median(&self, value: impl Fn(&RequestRound) -> f64) -> f64 {
        median(self.rounds.iter().map(value))
    }
}

/// The middle one, or between the two in the middle; NaN of nothing.
pub fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => values[n / 2],
        n => (values[n / 2 - 1] + values[n / 2]) / 2.0,
    }
}
