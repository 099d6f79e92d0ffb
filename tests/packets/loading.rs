// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! What the kernel's verifier says of the program.

use std::collections::BTreeSet;
use std::mem::MaybeUninit;

use libbpf_rs::AsRawLibbpf as _;
use libbpf_rs::skel::{OpenSkel as _, SkelBuilder as _};
use xdp_proxy::abi::XdpProxySkelBuilder;
use xdp_proxy::datapath::{self, Settings};
use xdp_proxy::service::{Scheduler, Service};
use xdp_proxy::tables::Tables;

use crate::common::rig::*;
use crate::common::root_or_skip;

/// Far below the kernel's limit of a million, so that other kernels and
/// compilers, which count otherwise, load it too.
const INSTRUCTIONS_MAX: u32 = 100_000;

/// What the verifier's log says of the program; the count that newer kernels keep takes
/// maps that are filled.
fn verified_by_the_log(tables: &Tables, settings: &Settings) -> u32 {
    /// BPF_LOG_STATS, in the kernel's linux/bpf_verifier.h.
    const STATISTICS: u32 = 4;
    let several_buffers = !settings.one_buffer && datapath::knows_several_buffers();
    let mut log = vec![0u8; 64 << 10];
    let mut object = MaybeUninit::uninit();
    let mut open = XdpProxySkelBuilder::default().open(&mut object).unwrap();
    let rodata = open.maps.rodata_data.as_mut().unwrap();
    rodata.address_mask = 1;
    rodata.listener_mask = 1;
    rodata.port_filter = tables.port_filter();
    rodata.first_port = tables.first_port();
    rodata.several_sources = tables.has_several_sources().into();
    rodata.relisted = tables.is_relisted().into();
    rodata.sources_v4 = tables.sources_of(false);
    rodata.sources_v6 = tables.sources_of(true);
    rodata.place_bits = tables.packing().bits;
    rodata.places_bytes = tables.packing().places_bytes() as u32;
    rodata.serves_ipv6 = tables.serves_ipv6.into();
    rodata.serves_udp = tables.serves_udp.into();
    rodata.counts_loads = tables.counts_loads.into();
    rodata.counts_in_flows = tables.counts_in_flows.into();
    rodata.serves_port_ranges = (!tables.listeners.port_maps.is_empty()).into();
    rodata.partial_checksums = settings.partial_checksums.into();
    rodata.complete_checksums = settings.complete_checksums.into();
    rodata.several_buffers = several_buffers.into();
    rodata.handles_vlan = settings.handles_vlan.into();
    rodata.tags_may_hide = settings.tags_may_hide.into();
    let bytes = tables.packing().value_bytes() as u32;
    open.maps.maglevs.set_value_size(bytes).expect("a size");
    let program = &mut open.progs.xdp_proxy;
    if several_buffers {
        program.set_flags(libbpf_sys::BPF_F_XDP_HAS_FRAGS);
    }
    program.set_log_level(STATISTICS);
    // SAFETY: the log outlives the load, which is the last to write to it.
    let error = unsafe {
        libbpf_sys::bpf_program__set_log_buf(
            program.as_libbpf_object().as_ptr(),
            log.as_mut_ptr().cast(),
            log.len() as libbpf_sys::size_t,
        )
    };
    assert_eq!(error, 0);
    let loaded = open.load().map(drop);
    let log = String::from_utf8_lossy(&log);
    let log = log.split('\0').next().unwrap();
    assert!(loaded.is_ok(), "loading the program: {loaded:?}: {log}");
    let (_, rest) = log.split_once("processed ").expect("statistics");
    let (count, _) = rest.split_once(" insns").expect("a count");
    count.parse().expect("a number")
}

/// What may be compiled in: a place in each of these lists.
#[derive(Clone, Copy)]
struct Choice {
    listens: usize,
    /// Of the settings about checksums, and about tags, each needs the one before.
    checksums: usize,
    tags: usize,
    scheduler: usize,
    /// One, or several where the kernel knows them.
    buffers: usize,
}

const LISTENS: [&[&str]; 8] = [
    &["10.0.0.5:80"],
    &["10.0.0.5:80/udp"],
    &["[fd00::5]:80"],
    &["10.0.0.5:80/udp", "[fd00::5]:80"],
    &["10.0.0.5:*"],
    &["10.0.0.5:*/udp"],
    &["[fd00::5]:*"],
    &["10.0.0.5:*/udp", "[fd00::5]:80"],
];
const SCHEDULERS: [Scheduler; 2] = [Scheduler::Maglev, Scheduler::LeastConnections];

impl Choice {
    /// Every combination.
    fn all() -> Vec<Choice> {
        let mut all = vec![];
        for listens in 0..LISTENS.len() {
            for (checksums, tags) in (0..9).map(|both| (both / 3, both % 3)) {
                all.extend((0..4).map(|both| Choice {
                    listens,
                    checksums,
                    tags,
                    scheduler: both / 2,
                    buffers: both % 2,
                }));
            }
        }
        all
    }

    fn places(&self) -> [usize; 5] {
        let Choice {
            listens,
            checksums,
            tags,
            scheduler,
            buffers,
        } = *self;
        [listens, checksums, tags, scheduler, buffers]
    }

    /// As few of them as have together whatever two lists can have.
    fn pairs() -> Vec<Choice> {
        let mut all = Choice::all();
        all.retain(|choice| {
            let [listens, checksums, tags, scheduler, buffers] = choice.places();
            tags == (listens + checksums) % 3
                && scheduler == (listens / 3 + checksums) % 2
                && buffers == (listens + checksums) % 2
        });
        all
    }

    fn verified_instructions(&self) -> u32 {
        let (listens, scheduler) = (LISTENS[self.listens], SCHEDULERS[self.scheduler]);
        let settings = Settings {
            one_buffer: self.buffers == 0,
            partial_checksums: self.checksums > 0,
            complete_checksums: self.checksums > 1,
            handles_vlan: self.tags > 0,
            tags_may_hide: self.tags > 1,
            ..WHOLE
        };
        let verified = verified_instructions(listens, scheduler, settings);
        println!("{verified} for {listens:?}, {scheduler:?} with {settings:?}");
        verified
    }
}

fn walks_few_instructions(choices: &[Choice]) {
    let verified = choices.iter().map(Choice::verified_instructions);
    let verified: Vec<u32> = verified.collect();
    let (least, most) = (
        verified.iter().min().unwrap(),
        verified.iter().max().unwrap(),
    );
    println!(
        "at most {most} instructions verified in {} programs",
        choices.len()
    );
    assert!(*least > 0 && *most <= INSTRUCTIONS_MAX, "{verified:?}");
}

#[test]
fn the_verifier_walks_few_instructions_whatever_the_settings() {
    if root_or_skip("the_verifier_walks_few_instructions_whatever_the_settings") {
        walks_few_instructions(&Choice::all());
    }
}

/// For kernels that are emulated, where all of them take a minute.
#[test]
fn the_verifier_walks_few_instructions_with_any_two_of_the_settings() {
    if root_or_skip("the_verifier_walks_few_instructions_with_any_two_of_the_settings") {
        walks_few_instructions(&Choice::pairs());
    }
}

#[test]
fn any_two_of_the_settings_are_met_in_the_pairs() {
    let of = |choices: Vec<Choice>| -> BTreeSet<[usize; 4]> {
        let two = |choice: Choice| {
            let places = choice.places();
            (0..places.len()).flat_map(move |a| (0..a).map(move |b| [a, places[a], b, places[b]]))
        };
        choices.into_iter().flat_map(two).collect()
    };
    assert_eq!(of(Choice::pairs()), of(Choice::all()));
}

fn verified_instructions(listens: &[&str], scheduler: Scheduler, settings: Settings) -> u32 {
    let services = listens
        .iter()
        .map(|listen| {
            let backend = if listen.starts_with('[') {
                "fd00::2"
            } else {
                "10.0.0.2"
            };
            Service {
                scheduler,
                ..service(listen, &[(backend, 1)])
            }
        })
        .collect();
    verified_by_the_log(&tables(&config(services)), &settings)
}
