// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! A loaded program that packets are run through by BPF_PROG_TEST_RUN.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use libbpf_rs::ProgramInput;
use xdp_proxy::abi::OutcomeCode;
use xdp_proxy::datapath::{self, Datapath, Settings};
use xdp_proxy::service::{
    Backend, Config, Forwarding, Listen, Mode, PortRanges, Protocol, Scheduler, Service, Timeouts,
};
use xdp_proxy::tables::{Path, Tables};

pub const LB_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
pub const CLIENT_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0xc];
pub const SOURCE: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 5);
pub const VIP: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 5);
pub const MTU_BYTES: u32 = 1500;

pub const XDP_DROP: u32 = 1;
pub const XDP_PASS: u32 = 2;
pub const XDP_TX: u32 = 3;

/// The MAC that backend 10.0.0.N has in the rig.
pub fn backend_mac(address: IpAddr) -> [u8; 6] {
    let IpAddr::V4(v4) = address else {
        panic!("{address}")
    };
    [2, 0, 0, 1, 0, v4.octets()[3]]
}

pub struct Rig {
    pub datapath: Datapath,
    pub tables: Tables,
}

/// What the program did with a packet.
#[derive(Debug)]
pub struct Ran {
    pub verdict: u32,
    pub frame: Vec<u8>,
}

pub fn service(listen: &str, backends: &[(&str, u16)]) -> Service {
    let listen: std::net::SocketAddr = listen.parse().expect("an address");
    let listen = Listen {
        vip: listen.ip(),
        port: listen.port(),
        protocol: Protocol::Tcp,
    };
    Service {
        name: listen.to_string(),
        listen,
        forwarding: Forwarding::Nat,
        scheduler: Scheduler::Maglev,
        source: vec![],
        source_ports: PortRanges::beside(32768..=60999).expect("ports"),
        timeouts: Timeouts::default(),
        backends: backends
            .iter()
            .map(|(address, weight)| Backend {
                address: address.parse().expect("an address"),
                weight: *weight,
            })
            .collect(),
    }
}

pub fn config(services: Vec<Service>) -> Config {
    Config {
        interface: None,
        mode: Mode::Auto,
        services,
    }
}

impl Rig {
    /// Every backend is reached directly, from [`SOURCE`], and answers.
    pub fn new(config: &Config, settings: Settings) -> Rig {
        let tick = datapath::tick().expect("the kernel's tick");
        let tables = Tables::new(config, tick, |address| Path {
            mac: Some(backend_mac(address)),
            source: Some(SOURCE.into()),
            alive: true,
        })
        .expect("tables");
        Rig::with_tables(tables, settings)
    }

    pub fn with_tables(tables: Tables, settings: Settings) -> Rig {
        let mut datapath = Datapath::load(&tables, &settings).expect("loading the datapath");
        datapath
            .write_interface(LB_MAC, MTU_BYTES)
            .expect("writing the interface");
        Rig { datapath, tables }
    }

    pub fn run(&self, frame: &[u8]) -> Ran {
        let mut out = vec![0; 4096];
        let input = ProgramInput {
            data_in: Some(frame),
            data_out: Some(&mut out),
            ..Default::default()
        };
        let output = self
            .datapath
            .program()
            .test_run(input)
            .expect("running a packet");
        let bytes = output.data.expect("the packet comes back").len();
        let verdict = output.return_value;
        out.truncate(bytes);
        Ran {
            verdict,
            frame: out,
        }
    }

    pub fn counter(&self, code: OutcomeCode) -> u64 {
        self.datapath
            .counters(self.tables.backends.len())
            .expect("counters")
            .of(code)
    }
}

pub const SECOND: Duration = Duration::from_secs(1);
