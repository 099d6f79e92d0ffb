// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! Requests/s by wrk, from `client` of the lab: in each round every contender
//! takes its turn, and only one of them runs at a time: a rival must not pay for
//! an XDP program that it does not use.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde::Deserialize;

use crate::Effort;
use crate::common::lab::{Balancer, Lab, TWO};
use crate::results::{RequestCase, RequestRound, median};

pub const KEPT: &str = "keep-alive";
pub const OPENED: &str = "connection per request";
const KEPT_1M: &str = "keep-alive, 1 MB";
const OPENED_1M: &str = "connection per request, 1 MB";

/// Name, path, and whether every request has a connection of its own.
pub const LOADS: [(&str, &str, bool); 4] = [
    (KEPT, "/", false),
    (OPENED, "/", true),
    (KEPT_1M, "/1m", false),
    (OPENED_1M, "/1m", true),
];

const PATIENCE: Duration = Duration::from_secs(5);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contender {
    Direct,
    Generic,
    Native,
    Nftables,
    Haproxy,
    NginxStream,
    NginxKept,
    NginxOpened,
}

use Contender::*;

pub const CONTENDERS: [Contender; 8] = [
    Direct,
    Generic,
    Native,
    Nftables,
    Haproxy,
    NginxStream,
    NginxKept,
    NginxOpened,
];

/// What has to be stopped.
pub enum Running<'a> {
    Nothing,
    Balancer(Balancer<'a>),
}

impl Contender {
    pub const fn name(self) -> &'static str {
        match self {
            Direct => "direct",
            Generic => "xdp-proxy, generic",
            Native => "xdp-proxy, native",
            Nftables => "nftables DNAT",
            Haproxy => "HAProxy, mode tcp",
            NginxStream => "nginx stream",
            NginxKept => "nginx HTTP, keep-alive",
            NginxOpened => "nginx HTTP",
        }
    }

    pub fn address(self) -> SocketAddr {
        let (host, port) = match self {
            Direct => (2, 80),
            NginxOpened => (5, 81),
            _ => (5, 80),
        };
        SocketAddr::from(([10, 0, 0, host], port))
    }

    pub fn start(self, lab: &Lab) -> Result<Running<'_>> {
        let rivals = rivals();
        let rivals = rivals.display();
        let nginx = |file: &str, words: &[&str]| {
            let status = lab
                .command("lb", "nginx")
                .args([
                    "-e",
                    "/run/rivals/nginx.log",
                    "-c",
                    &format!("{rivals}/{file}"),
                ])
                .args(words)
                .status()?;
            ensure!(status.success(), "nginx: {status}");
            Ok(Running::Nothing)
        };
        match self {
            Direct => Ok(Running::Nothing),
            Generic | Native => {
                let mode = if self == Native { "native" } else { "generic" };
                if self == Native {
                    lab.script("native");
                }
                let binary = binary(lab)?;
                Ok(Running::Balancer(
                    lab.balance_by(&format!("{binary} run --mode {mode} {TWO}")),
                ))
            }
            Nftables => {
                lab.at("lb", "sysctl -qw net.ipv4.ip_forward=1");
                lab.at("lb", &format!("nft -f {rivals}/nftables.nft"));
                Ok(Running::Nothing)
            }
            Haproxy => {
                lab.at("lb", &format!("haproxy -D -f {rivals}/haproxy.cfg"));
                Ok(Running::Nothing)
            }
            NginxStream => {
                let module = "/usr/lib/nginx/modules/ngx_stream_module.so";
                let directive = format!("load_module {module};");
                // nginx.org's has it built in.
                let words = ["-g", directive.as_str()];
                let with = if Path::new(module).exists() {
                    &words[..]
                } else {
                    &[]
                };
                nginx("nginx-stream.conf", with)
            }
            NginxKept | NginxOpened => nginx("nginx-http.conf", &[]),
        }
    }

    pub fn stop(self, lab: &Lab, running: Running<'_>) {
        if let Running::Balancer(balancer) = running {
            balancer.end();
        }
        match self {
            Direct | Generic => (),
            // The rivals must not pay for it.
            Native => drop(lab.script("ip -n switch link set dev lb xdpdrv off")),
            Nftables => {
                lab.at("lb", "nft delete table ip bench");
                lab.at("lb", "sysctl -qw net.ipv4.ip_forward=0");
            }
            _ => drop(lab.script("end_processes lb")),
        }
    }
}

fn rivals() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("lab/rivals")
}

/// The load balancer that is measured: BINARY, or the one that was built with this.
pub fn binary(lab: &Lab) -> Result<String> {
    let Ok(path) = std::env::var("BINARY") else {
        return Ok(crate::common::lab::BINARY.to_owned());
    };
    let inside = "/run/xdp-proxy-given";
    fs::copy(&path, lab.path(inside)).with_context(|| format!("copying BINARY={path}"))?;
    Ok(inside.to_owned())
}

/// The lab with what the rivals need.
pub fn lab() -> Result<Lab> {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).context("asking for the limit of files")?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most).context("raising the limit of files")?;
    let lab = Lab::without_access_log();
    lab.script("mkdir -p /run/rivals");
    Ok(lab)
}

/// What benches/wrk.lua prints.
#[derive(Deserialize)]
struct Wrk {
    requests: u64,
    duration_us: u64,
    errors: u64,
    timeouts: u64,
    p50_us: f64,
    p99_us: f64,
    p999_us: f64,
}

fn wrk(lab: &Lab, effort: &Effort, url: &str, opened: bool) -> Result<(Wrk, f64)> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/wrk.lua");
    let mut command = lab.command("client", "wrk");
    command
        .args(["-t", "2", "-c", &effort.connections.to_string()])
        .args([
            "-d",
            &format!("{}s", effort.wrk_seconds),
            "--timeout",
            "10s",
        ])
        .args(["-s".as_ref(), script.as_os_str()]);
    if opened {
        command.args(["-H", "Connection: close"]);
    }
    let before = busy()?;
    let output = command.arg(url).output().context("starting wrk")?;
    let busy = busy()? - before;
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().rfind(|line| line.starts_with('{'));
    let line = line.with_context(|| {
        let error = String::from_utf8_lossy(&output.stderr);
        format!("wrk to {url} printed no figures: {text}{error}")
    })?;
    let wrk: Wrk = serde_json::from_str(line).context("reading wrk's figures")?;
    if wrk.errors + wrk.timeouts > 0 || wrk.requests == 0 {
        bail!("wrk to {url} counted errors: {line}");
    }
    Ok((wrk, busy.as_micros() as f64))
}

/// User, system and softirq time of all CPUs since the machine's start (proc(5)).
fn busy() -> Result<Duration> {
    let text = fs::read_to_string("/proc/stat").context("reading /proc/stat")?;
    let mut fields = text.split_whitespace().skip(1);
    let ticks: Vec<u64> = fields
        .by_ref()
        .take(7)
        .filter_map(|field| field.parse().ok())
        .collect();
    let &[user, nice, system, _idle, _iowait, irq, softirq] = &ticks[..] else {
        bail!("/proc/stat has no line of all CPUs");
    };
    let hz = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK)?.context("CLK_TCK")?;
    let ticks = user + nice + system + irq + softirq;
    Ok(Duration::from_secs_f64(ticks as f64 / hz as f64))
}

/// Microseconds from connect() to the answer's first byte, one after the other.
fn first_byte_us(server: SocketAddr, count: u32) -> Result<f64> {
    let once = || -> std::io::Result<f64> {
        let start = Instant::now();
        let mut stream = TcpStream::connect_timeout(&server, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(b"GET / HTTP/1.1\r\nHost: lab\r\nConnection: close\r\n\r\n")?;
        stream.read_exact(&mut [0])?;
        let taken = start.elapsed();
        stream.read_to_end(&mut Vec::new())?;
        Ok(taken.as_secs_f64() * 1e6)
    };
    let times: std::io::Result<Vec<f64>> = (0..count).map(|_| once()).collect();
    Ok(median(
        times.with_context(|| format!("a request to {server}"))?,
    ))
}

/// Drops what waits in TIME_WAIT (needs CONFIG_INET_DIAG_DESTROY): else a contender's SYN
/// that comes from a port of the one before has to wait a second at the backend.
fn forget_closed(lab: &Lab) {
    for host in ["client", "lb", "http1", "http2"] {
        lab.at(host, "ss -K -Htn state time-wait");
    }
}

fn round(
    lab: &Lab,
    effort: &Effort,
    contender: Contender,
    path: &str,
    opened: bool,
) -> Result<RequestRound> {
    let server = contender.address();
    forget_closed(lab);
    let running = contender.start(lab)?;
    // Also the first packet, which waits for ARP.
    lab.within("client", || first_byte_us(server, 5))?;
    let first_byte_us = match (path, opened) {
        ("/", true) => Some(lab.within("client", || first_byte_us(server, effort.first_bytes))?),
        _ => None,
    };
    let (wrk, busy_us) = wrk(lab, effort, &format!("http://{server}{path}"), opened)?;
    contender.stop(lab, running);
    let requests = wrk.requests as f64;
    Ok(RequestRound {
        requests_per_s: requests / (wrk.duration_us as f64 / 1e6),
        p50_us: wrk.p50_us,
        p99_us: wrk.p99_us,
        p999_us: wrk.p999_us,
        cpu_us_per_request: busy_us / requests,
        first_byte_us,
    })
}

pub fn measure(lab: &Lab, effort: &Effort) -> Result<Vec<RequestCase>> {
    let loads = if effort.quick {
        &LOADS[..2]
    } else {
        &LOADS[..]
    };
    let mut cases = Vec::new();
    for (load, path, opened) in loads {
        let first = cases.len();
        cases.extend(CONTENDERS.map(|contender| RequestCase {
            load: (*load).to_owned(),
            contender: contender.name().to_owned(),
            connections: effort.connections,
            rounds: Vec::new(),
        }));
        for number in 1..=effort.wrk_rounds {
            for (case, contender) in cases[first..].iter_mut().zip(CONTENDERS) {
                let round = round(lab, effort, contender, path, *opened);
                case.rounds
                    .push(round.with_context(|| format!("{load}: {}", contender.name()))?);
            }
            effort.progress(load, number, effort.wrk_rounds);
        }
    }
    Ok(cases)
}
