// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! How far from its home a flow is looked for: as far as any has gone that is there.

use std::thread;
use std::time::Duration;

use xdp_proxy::service::PortRanges;

use crate::common::exchange::*;
use crate::common::frame::*;
use crate::common::random::Random;
use crate::common::rig::*;
use crate::common::root_or_skip;

const FIRST_PORT: u16 = 2000;
const PORTS: u16 = 400;
const CLOSING: Duration = Duration::from_millis(10);
/// The first sees all flows, the second lets the groups forget what went before it, the
/// third what it saw itself.
const SWEEPS: usize = 3;

fn rig(sources: &[&str]) -> Rig {
    let mut service = service("10.0.0.5:80", &[("10.0.0.2:80", 1), ("10.0.0.3:80", 1)]);
    service.source = sources.iter().map(|s| s.parse().unwrap()).collect();
    service.source_ports = PortRanges::new(vec![FIRST_PORT..=FIRST_PORT + PORTS - 1]).unwrap();
    service.timeouts.closing = CLOSING;
    Rig::new(&config(vec![service]), WHOLE)
}

/// The sum over all groups, and the most of any.
fn reaches(rig: &Rig) -> (u32, u8) {
    let mut all = Vec::new();
    for source in rig.datapath.sources() {
        let groups = rig.datapath.groups(source).unwrap();
        all.extend(groups.into_iter().map(|(_, group)| group.reach));
    }
    (
        all.iter().map(|reach| u32::from(*reach)).sum(),
        *all.iter().max().unwrap(),
    )
}

fn sweep(rig: &mut Rig) {
    thread::sleep(CLOSING * 2);
    for _ in 0..SWEEPS {
        rig.datapath.sweep().unwrap();
    }
}

#[test]
fn a_flow_is_found_as_far_as_it_went_and_forgotten_when_it_has_ended() {
    if !root_or_skip("a_flow_is_found_as_far_as_it_went_and_forgotten_when_it_has_ended") {
        return;
    }
    for sources in [&["10.0.0.5"][..], &["10.0.0.10", "10.0.0.11", "10.0.0.12"]] {
        let mut rig = rig(sources);
        let mut random = Random(4);
        let mut flows: Vec<(u32, Path)> = Vec::new();
        let mut number = 0;
        for round in 0..12 {
            // Until there is no port left.
            loop {
                number += 1;
                let mut flow = Exchange::new(&rig, WEB, number);
                if !flow.try_open() {
                    break;
                }
                flows.push((number, flow.path()));
            }
            assert!(flows.len() * 100 >= usize::from(PORTS) * sources.len() * 95);
            let full = reaches(&rig);
            assert!(full.1 > 1, "some have gone far: {full:?}");
            let stay = [flows.len() * 9 / 10, flows.len() / 2, 3, 0][round % 4];
            random.shuffle(&mut flows);
            for (number, path) in flows.drain(stay..) {
                let mut flow = Exchange::new(&rig, WEB, number).with_path(path);
                flow.forward(RST);
            }
            sweep(&mut rig);
            for (number, path) in &flows {
                let mut flow = Exchange::new(&rig, WEB, *number).with_path(*path);
                flow.forward(PSH | ACK);
                flow.reply(PSH | ACK);
            }
            let left = reaches(&rig);
            println!("{sources:?}: reach {full:?} with all ports, {left:?} with {stay} flows");
            assert!(left.0 <= full.0);
            match stay {
                0 => assert_eq!(left, (0, 0)),
                3 => assert!(left.0 <= full.0 / 2, "{left:?} of {full:?}"),
                _ => (),
            }
        }
    }
}
