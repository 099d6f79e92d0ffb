// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! What the kernel's verifier says of the program.

use libbpf_rs::query::ProgInfoIter;
use xdp_proxy::abi::PROGRAM_NAME;
use xdp_proxy::datapath::Settings;

use crate::common::rig::*;
use crate::common::root_or_skip;

/// Far below the kernel's limit of a million, so that other kernels and
/// compilers, which count otherwise, load it too.
const INSTRUCTIONS_MAX: u32 = 50_000;

#[test]
fn the_verifier_walks_few_instructions_whatever_the_settings() {
    if !root_or_skip("the_verifier_walks_few_instructions_whatever_the_settings") {
        return;
    }
    // What is served is compiled in as well.
    for listens in [
        &["10.0.0.5:80"][..],
        &["10.0.0.5:80/udp"],
        &["[fd00::5]:80"],
        &["10.0.0.5:80/udp", "[fd00::5]:80"],
    ] {
        for partial_checksums in [false, true] {
            for complete_checksums in [false, true] {
                let settings = Settings {
                    partial_checksums,
                    complete_checksums,
                    ..WHOLE
                };
                println!(
                    "{listens:?}, partial {partial_checksums}, complete {complete_checksums}:"
                );
                verified_instructions(listens, settings);
            }
        }
    }
}

fn verified_instructions(listens: &[&str], settings: Settings) {
    let services = listens
        .iter()
        .map(|listen| {
            let backend = if listen.starts_with('[') {
                "[fd00::2]:80"
            } else {
                "10.0.0.2:80"
            };
            service(listen, &[(backend, 1)])
        })
        .collect();
    let rig = Rig::new(&config(services), settings);
    let id = rig.datapath.program_id().unwrap();
    let program = ProgInfoIter::default()
        .find(|program| program.id == id)
        .expect("the program is loaded");
    assert_eq!(program.name, PROGRAM_NAME);
    println!("    {} instructions verified", program.verified_insns);
    assert!(program.verified_insns <= INSTRUCTIONS_MAX);
}
