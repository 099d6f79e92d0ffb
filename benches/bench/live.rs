// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! Packets/s of live frames over a veth, all on one CPU: `wire` sends, `lb` has
//! the program under test, and what it sends back is counted on `wire`.

use std::os::fd::AsFd as _;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};
use libbpf_rs::{Xdp, XdpFlags};
use nix::net::if_::if_nametoindex;
use nix::sched::{CloneFlags, unshare};
use xdp_proxy::datapath::{Hook, detach_fd};

use crate::Effort;
use crate::bpf::Driver;
use crate::cases::{MANY_FLOWS, live_rig};
use crate::common::rig::Rig;
use crate::packets::establish;
use crate::results::{LivePoint, LiveRound};
use crate::stream::SEGMENT;

/// What is still under way when the last frame was sent arrives within this.
const ARRIVAL: Duration = Duration::from_secs(2);

struct Wire {
    lb: u32,
    wire: u32,
    /// Its `count_frame` is on `wire`.
    counter: Driver,
}

fn ip(line: &str) -> Result<()> {
    let mut words = line.split_whitespace();
    let program = words.next().context("a command")?;
    let output = Command::new(program).args(words).output();
    let output = output.with_context(|| format!("starting {program}"))?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{line}: {error}");
    Ok(())
}

impl Wire {
    /// In the network namespace of this thread, where nothing else sends.
    fn new() -> Result<Wire> {
        ip("sysctl -qw net.ipv6.conf.default.disable_ipv6=1")?;
        ip("ip link add lb address 02:00:00:00:00:01 type veth peer name wire")?;
        // Its receive queue is then known to XDP, which live frames need.
        ip("ethtool -K lb gro on")?;
        ip("ip link set lb up")?;
        ip("ip link set wire up")?;
        let (lb, wire) = (if_nametoindex("lb")?, if_nametoindex("wire")?);
        let counter = Driver::load(&SEGMENT.of_clients(1), None, 0)?;
        Xdp::new(counter.program("count_frame")?.as_fd())
            .attach(wire as i32, XdpFlags::DRV_MODE)
            .context("attaching count_frame")?;
        Ok(Wire { lb, wire, counter })
    }

    /// Frames per second there and back; every one must come back.
    fn rate(&self, driver: &Driver, mode: Hook, frames: u32) -> Result<f64> {
        let (program, interface) = match mode {
            Hook::Native => ("send_frame", 0),
            _ => ("receive_frame", self.lb),
        };
        self.counter.begin_at(0)?;
        driver.begin_at(0)?;
        let start = Instant::now();
        driver.run_live(program, interface, frames)?;
        while self.counter.arrived()? < u64::from(frames) && start.elapsed() < ARRIVAL {
            thread::sleep(Duration::from_micros(100));
        }
        let taken = start.elapsed();
        let arrived = self.counter.arrived()?;
        ensure!(
            arrived == u64::from(frames),
            "{arrived} of {frames} frames arrived"
        );
        Ok(f64::from(frames) / taken.as_secs_f64())
    }

    fn round(&self, rig: &Rig, driver: &Driver, mode: Hook, frames: u32) -> Result<LiveRound> {
        let flags = || match mode {
            Hook::Native => XdpFlags::DRV_MODE,
            _ => XdpFlags::SKB_MODE,
        };
        let swap = driver.program("swap_macs")?;
        let swap = Xdp::new(swap.as_fd());
        swap.attach(self.lb as i32, flags())
            .context("attaching swap_macs")?;
        let swap_macs_per_s = self.rate(driver, mode, frames).context("swapping MACs")?;
        swap.detach(self.lb as i32, flags())
            .context("detaching swap_macs")?;

        rig.datapath.attach(self.lb, mode)?;
        let packets_per_s = self.rate(driver, mode, frames)?;
        rig.ran.set(rig.ran.get() + u64::from(frames));
        detach_fd(self.lb, rig.datapath.program().as_fd(), mode)?;
        Ok(LiveRound {
            swap_macs_per_s,
            packets_per_s,
        })
    }
}

/// Mode, flows and backends of each point.
fn points(effort: &Effort) -> Vec<(Hook, u32, usize)> {
    let mut points = vec![
        (Hook::Native, 1, 2),
        (Hook::Native, MANY_FLOWS, 2),
        (Hook::Generic, 1, 2),
        (Hook::Generic, MANY_FLOWS, 2),
    ];
    if !effort.quick {
        points.extend([10, 100, 1000, 4096, 16_384].map(|flows| (Hook::Native, flows, 2)));
        points.extend([10, 100, 1000].map(|backends| (Hook::Native, MANY_FLOWS, backends)));
    }
    points
}

fn measure_here(effort: &Effort) -> Result<Vec<LivePoint>> {
    let wire = Wire::new().context("making a veth")?;
    let mut ready = Vec::new();
    for (mode, flows, backends) in points(effort) {
        let rig = live_rig(mode, backends);
        establish(&rig.borrow(), SEGMENT, flows)?;
        let driver = Driver::load(&SEGMENT.of_clients(flows), None, wire.wire)?;
        let point = LivePoint {
            mode: mode.name().to_owned(),
            flows,
            backends: backends as u32,
            frames_per_round: effort.frames,
            rounds: Vec::new(),
        };
        ready.push((rig, driver, mode, point));
    }
    for number in 1..=effort.live_rounds {
        for (rig, driver, mode, point) in &mut ready {
            let round = wire.round(&rig.borrow(), driver, *mode, effort.frames);
            point.rounds.push(round.with_context(|| {
                format!("live frames, {} mode, {} flows", point.mode, point.flows)
            })?);
        }
        effort.progress("live frames", number, effort.live_rounds);
    }
    Ok(ready.into_iter().map(|(_, _, _, point)| point).collect())
}

/// On a thread with a network namespace of its own, which ends with it.
pub fn measure(effort: &Effort) -> Result<Vec<LivePoint>> {
    thread::scope(|scope| {
        let run = || {
            unshare(CloneFlags::CLONE_NEWNET).context("making a network namespace")?;
            crate::pin_to_a_cpu()?;
            measure_here(effort)
        };
        scope.spawn(run).join()
    })
    .map_err(|_| anyhow!("measuring live frames: see above"))?
}
