// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! The results as tables.

use crate::requests::Contender;
use crate::results::{Results, median};
use crate::targets;

pub fn print(results: &Results) {
    let machine = &results.machine;
    println!(
        "{}, {} CPUs, {} MiB, {}, hypervisor {}, {}; load {:.2} before, {:.2} after",
        machine.processor,
        machine.cpus,
        machine.memory_mib,
        machine.kernel,
        machine.hypervisor,
        machine.caches.join(", "),
        machine.load_before,
        machine.load_after
    );
    let versions = &results.versions;
    println!(
        "xdp-proxy {}; {}; {}; {}; {}; {}",
        versions.xdp_proxy,
        versions.clang,
        versions.wrk,
        versions.nginx,
        versions.haproxy,
        versions.nftables
    );
    if results.program.jited_bytes > 0 {
        println!(
            "the program: {} instructions verified, {} bytes of machine code",
            results.program.verified_instructions, results.program.jited_bytes
        );
    }
    packets(results);
    live(results);
    requests(results);
    host(results);
    targets::print(results);
}

fn packets(results: &Results) {
    if results.packets.is_empty() {
        return;
    }
    println!(
        "\n{:44} {:>8} {:>9} {:>16}",
        "ns/packet", "ns", "of empty", "least to most"
    );
    for case in &results.packets {
        let multiples = || case.rounds.iter().map(|round| round.ns / round.empty_ns);
        let (least, most) = (
            multiples().fold(f64::MAX, f64::min),
            multiples().fold(0.0, f64::max),
        );
        println!(
            "{:44} {:>8.1} {:>9.2} {:>8.2} {:>7.2}",
            case.name,
            case.ns(),
            case.multiple(),
            least,
            most
        );
    }
    let rounds = || results.packets.iter().flat_map(|case| &case.rounds);
    let left_out: u32 = rounds().map(|round| round.left_out).sum();
    if left_out > 0 {
        println!("in no mean, as each took over 20 us: {left_out} packets");
    }
}

fn live(results: &Results) {
    if results.live.is_empty() {
        return;
    }
    println!(
        "\n{:44} {:>12} {:>14}",
        "live frames over veth, one CPU", "packets/s", "of MAC swap"
    );
    for point in &results.live {
        let what = format!(
            "{}, {} flows, {} backends",
            point.mode, point.flows, point.backends
        );
        println!(
            "{what:44} {:>12.0} {:>14.2}",
            point.packets_per_s(),
            point.ratio()
        );
    }
}

fn requests(results: &Results) {
    let mut load = "";
    for case in &results.requests {
        if case.load != load {
            load = &case.load;
            println!(
                "\n{:24} {:>10} {:>9} {:>8} {:>8} {:>8} {:>10} {:>8} {:>12}",
                load,
                "requests/s",
                "of direct",
                "p50 us",
                "p99 us",
                "p99.9 us",
                "CPU us/req",
                "added us",
                "1st byte us"
            );
        }
        let direct = Contender::Direct.name();
        let share = results.request_ratio(load, &case.contender, direct);
        let added = results.added_us(load, &case.contender, direct);
        let first_byte = median(case.rounds.iter().filter_map(|round| round.first_byte_us));
        let first_byte = if first_byte.is_nan() {
            String::new()
        } else {
            format!("{first_byte:.0}")
        };
        println!(
            "{:24} {:>10.0} {:>9.2} {:>8.0} {:>8.0} {:>8.0} {:>10.1} {:>8.1} {first_byte:>12}",
            case.contender,
            case.median(|round| round.requests_per_s),
            share.unwrap_or(f64::NAN),
            case.median(|round| round.p50_us),
            case.median(|round| round.p99_us),
            case.median(|round| round.p999_us),
            case.median(|round| round.cpu_us_per_request),
            added.unwrap_or(f64::NAN),
        );
    }
}

fn host(results: &Results) {
    if !results.memory.is_empty() {
        println!(
            "\n{:24} {:>12} {:>12} {:>10}",
            "memory", "connections", "process MB", "maps MB"
        );
    }
    for memory in &results.memory {
        println!(
            "{:24} {:>12} {:>12.1} {:>10.1}",
            memory.contender,
            memory.connections,
            memory.process_bytes as f64 / 1e6,
            memory.maps_bytes as f64 / 1e6
        );
    }
    for (what, times) in [("start", &results.start_ms), ("reload", &results.reload_ms)] {
        if !times.is_empty() {
            println!("\n{what}: {:.0} ms", median(times.iter().copied()));
        }
    }
}
