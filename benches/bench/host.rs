// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! Memory, idle and with many connections open, and the time that a start and a
//! reload take.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Instant;

use anyhow::{Context as _, Result};

use crate::Effort;
use crate::common::lab::{HTTP1, HTTP2, LB, Lab, TWO};
use crate::requests::{Contender, binary};
use crate::results::Memory;

const CONTENDERS: [Contender; 3] = [
    Contender::Generic,
    Contender::Haproxy,
    Contender::NginxStream,
];

/// Services of the configuration that is reloaded, of two backends each.
const SERVICES: u16 = 1000;

/// Pss of all processes on `lb` in KiB, and the bytes of their BPF maps.
const MEMORY: &str = r#"
pids=$(ip netns pids lb)
for pid in $pids; do cat /proc/$pid/smaps_rollup; done | awk '/^Pss:/ { sum += $2 } END { print sum * 1024 }'
for pid in $pids; do grep -hs -e ^memlock -e ^map_id /proc/$pid/fdinfo/* || true; done |
	awk '/^memlock/ { bytes = $2 } /^map_id/ && !seen[$2]++ { sum += bytes } END { print sum + 0 }'
"#;

fn memory(lab: &Lab, contender: Contender, connections: u32) -> Result<Memory> {
    let text = lab.script(MEMORY);
    let mut numbers = text.split_whitespace().map(str::parse::<f64>);
    let mut next = || -> Result<u64> {
        let number = numbers
            .next()
            .with_context(|| format!("two numbers in {text:?}"))?;
        Ok(number.with_context(|| format!("a number in {text:?}"))? as u64)
    };
    Ok(Memory {
        contender: contender.name().to_owned(),
        connections,
        process_bytes: next()?,
        maps_bytes: next()?,
    })
}

/// Each has had a request answered, and stays open.
fn open(server: SocketAddr, count: u32) -> Result<Vec<TcpStream>> {
    let one = || -> std::io::Result<TcpStream> {
        let mut stream = TcpStream::connect(server)?;
        stream.write_all(b"GET / HTTP/1.1\r\nHost: lab\r\n\r\n")?;
        stream.read_exact(&mut [0])?;
        Ok(stream)
    };
    let streams: std::io::Result<Vec<TcpStream>> = (0..count).map(|_| one()).collect();
    streams.with_context(|| format!("opening {count} connections to {server}"))
}

pub fn memories(lab: &Lab, effort: &Effort) -> Result<Vec<Memory>> {
    let mut memories = Vec::new();
    for contender in CONTENDERS {
        let running = contender.start(lab)?;
        memories.push(memory(lab, contender, 0)?);
        let streams = lab.within("client", || open(contender.address(), effort.open))?;
        memories.push(memory(lab, contender, effort.open)?);
        drop(streams);
        contender.stop(lab, running);
    }
    Ok(memories)
}

/// Milliseconds from the start of the process (with `nsenter` and `ip netns
/// exec`, some 10 ms) to its line "ready:".
pub fn starts(lab: &Lab, effort: &Effort) -> Result<Vec<f64>> {
    let line = format!("{} run {TWO}", binary(lab)?);
    let mut starts = Vec::new();
    for _ in 0..effort.starts {
        let balancer = lab.balance_by(&line);
        starts.push(balancer.ready_after.as_secs_f64() * 1e3);
        balancer.end();
    }
    Ok(starts)
}

/// As many services as a reload is measured with; the first one's backends have the
/// weights given.
fn many_services(weights: [u16; 2]) -> String {
    let service = |number: u16| {
        let weights = if number == 0 { weights } else { [1, 1] };
        let backends = [HTTP1, HTTP2].into_iter().zip(weights);
        let backends: String = backends
            .map(|(address, weight)| {
                format!("[[service.backend]]\naddress = \"{address}\"\nweight = {weight}\n")
            })
            .collect();
        format!(
            "[[service]]\nlisten = \"{LB}:{}\"\n{backends}",
            2000 + number
        )
    };
    (0..SERVICES).map(service).collect()
}

/// Milliseconds from the start of `reload` (with `nsenter` and `ip netns exec`) to its
/// end, after one of many services was changed.
pub fn reloads(lab: &Lab, effort: &Effort) -> Result<Vec<f64>> {
    let file = lab.write("many.toml", &many_services([1, 1]));
    let binary = binary(lab)?;
    let balancer = lab.balance_by(&format!("{binary} run -c {file}"));
    let mut reloads = Vec::new();
    for number in 0..effort.starts {
        lab.write("many.toml", &many_services([1 + number as u16 % 2, 2]));
        let begun = Instant::now();
        lab.at("lb", &format!("{binary} reload"));
        reloads.push(begun.elapsed().as_secs_f64() * 1e3);
    }
    balancer.end();
    Ok(reloads)
}
