// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! Memory, idle and with many connections open, and the time that a start takes.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};

use anyhow::{Context as _, Result};

use crate::Effort;
use crate::common::lab::{Lab, TWO};
use crate::requests::{Contender, binary};
use crate::results::Memory;

const CONTENDERS: [Contender; 3] = [
    Contender::Generic,
    Contender::Haproxy,
    Contender::NginxStream,
];

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
