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
    for partial_checksums in [false, true] {
        for complete_checksums in [false, true] {
            let settings = Settings {
                partial_checksums,
                complete_checksums,
                ..WHOLE
            };
            let services = vec![service("10.0.0.5:80", &[("10.0.0.2:80", 1)])];
            let rig = Rig::new(&config(services), settings);
            let id = rig.datapath.program_id().unwrap();
            let program = ProgInfoIter::default()
                .find(|program| program.id == id)
                .expect("the program is loaded");
            assert_eq!(program.name, PROGRAM_NAME);
            println!(
                "partial {partial_checksums}, complete {complete_checksums}: \
                 {} instructions verified",
                program.verified_insns
            );
            assert!(program.verified_insns <= INSTRUCTIONS_MAX);
        }
    }
}
