// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! A loaded program that packets are run through by BPF_PROG_TEST_RUN.

use std::cell::Cell;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use libbpf_rs::query::{ProgInfoIter, ProgInfoQueryOptions};
use libbpf_rs::{MapCore as _, MapFlags, MapHandle, ProgramInput};
use xdp_proxy::abi::types::{self, flow_state};
use xdp_proxy::abi::{self, OutcomeCode};
use xdp_proxy::datapath::{self, Datapath, Settings};
use xdp_proxy::service::{
    Backend, Config, Forwarding, Listen, ListenPorts, Mode, Policy, PortRanges, Protocol,
    Scheduler, Service, Timeouts,
};
use xdp_proxy::stats::Counters;
use xdp_proxy::tables::{BackendTable, Path, Tables};

use super::frame::Tag;

pub const LB_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
pub const CLIENT_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0xc];
pub const SOURCE: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 5);
pub const SOURCE_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 5);
pub const VIP: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 5);
pub const MTU_BYTES: u32 = 1500;

/// The longest IP packet, its link header and padding.
pub const FRAME_BYTES_MAX: usize = 66_000;
/// Of which BPF_PROG_TEST_RUN puts so many into the first buffer.
pub const FIRST_BUFFER_BYTES: usize = 3520;

pub const XDP_DROP: u32 = 1;
pub const XDP_PASS: u32 = 2;
pub const XDP_TX: u32 = 3;

/// The MAC that backend 10.0.0.N or fd00::N has in the rig.
pub fn backend_mac(address: IpAddr) -> [u8; 6] {
    match address {
        IpAddr::V4(v4) => [2, 0, 0, 1, 0, v4.octets()[3]],
        IpAddr::V6(v6) => [2, 0, 0, 1, 6, v6.octets()[15]],
    }
}

pub struct Rig {
    pub datapath: Datapath,
    pub tables: Tables,
    pub settings: Settings,
    /// Packets that were run.
    pub ran: Cell<u64>,
}

/// Exact accounting: whatever a test did, every packet was counted once.
impl Drop for Rig {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            let packets = self.counters().packets();
            assert_eq!(packets.received, self.ran.get(), "{packets:?}");
            let sent: u64 = packets.sent.values().sum();
            let dropped: u64 = packets.dropped.values().sum();
            assert_eq!(packets.passed + sent + dropped, packets.received);
        }
    }
}

/// Nobody's sums are left to be completed: a physical interface.
pub const WHOLE: Settings = Settings {
    hash_seed: 7,
    partial_checksums: false,
    complete_checksums: false,
    handles_vlan: false,
    tags_may_hide: false,
    one_buffer: false,
    offload_to: None,
};

/// veth in generic mode: the kernel completes the sums.
pub const GENERIC: Settings = Settings {
    partial_checksums: true,
    ..WHOLE
};

/// veth in native mode: the program completes the sums.
pub const NATIVE: Settings = Settings {
    complete_checksums: true,
    ..GENERIC
};

/// What the program did with a packet.
#[derive(Debug)]
pub struct Ran {
    pub verdict: u32,
    pub frame: Vec<u8>,
}

/// `listen` is "10.0.0.5:80", "[fd00::5]:8000-8099", "10.0.0.5:*" or any of them
/// with "/udp". A backend without a port keeps the one that the client connects to.
pub fn service(listen: &str, backends: &[(&str, u16)]) -> Service {
    let (listen, protocol) = match listen.strip_suffix("/udp") {
        Some(listen) => (listen, Protocol::Udp),
        None => (listen, Protocol::Tcp),
    };
    let (vip, ports) = listen.rsplit_once(':').expect("ports");
    let port = |text: &str| text.parse::<u16>().expect("a port");
    let listen = Listen {
        vip: vip.trim_matches(['[', ']']).parse().expect("an address"),
        ports: match ports.split_once('-') {
            Some((first, last)) => ListenPorts::new(port(first), port(last)),
            None if ports == "*" => ListenPorts::Any,
            None => ListenPorts::One(port(ports)),
        },
        protocol,
    };
    Service {
        name: listen.to_string(),
        listen,
        forwarding: Forwarding::Nat,
        scheduler: Scheduler::Maglev,
        source: vec![],
        source_ports: PortRanges::beside(32768..=60999).expect("ports"),
        timeouts: Timeouts::of(protocol),
        health: None,
        policy: Policy::default(),
        backends: backends
            .iter()
            .map(|(address, weight)| Backend {
                address: address
                    .parse()
                    .unwrap_or_else(|_| SocketAddr::new(address.parse().expect("an address"), 0)),
                weight: *weight,
            })
            .collect(),
    }
}

pub fn config(services: Vec<Service>) -> Config {
    Config {
        interface: None,
        mode: Mode::Auto,
        flow_counters: false,
        services,
    }
}

/// Every backend is reached directly, from [`SOURCE`] or [`SOURCE_V6`], and answers.
pub fn tables(config: &Config) -> Tables {
    let tick = datapath::tick().expect("the kernel's tick");
    Tables::new(config, tick, |towards| Path {
        mac: Some(backend_mac(towards.address)),
        tags: Default::default(),
        source: Some(match towards.address {
            IpAddr::V4(_) => SOURCE.into(),
            IpAddr::V6(_) => SOURCE_V6.into(),
        }),
        alive: true,
    })
    .expect("tables")
}

impl Rig {
    pub fn new(config: &Config, settings: Settings) -> Rig {
        Rig::with_tables(tables(config), settings)
    }

    pub fn with_tables(tables: Tables, settings: Settings) -> Rig {
        let mut rig = Rig {
            datapath: Datapath::load(&tables, &settings).expect("loading the datapath"),
            tables,
            settings,
            ran: Cell::new(0),
        };
        rig.write_mtu(MTU_BYTES);
        rig
    }

    /// All backends are behind these tags.
    pub fn move_backends(&mut self, tags: &[Tag]) {
        let tag = |place: usize| tags.get(place).map_or(0, |(p, c)| abi::vlan_tag(*p, *c));
        for index in 1..=self.tables.backends.len() {
            self.tables.backends[index - 1].path.tags = [tag(0), tag(1)];
            self.datapath.write_backend(&self.tables, index).unwrap();
        }
    }

    /// A program with these settings takes the place of the one that runs, with its flows.
    pub fn take_over(&mut self, settings: Settings) {
        for source in &mut self.tables.sources {
            source.fresh = false;
        }
        let old = Some(&*self.datapath);
        let next = Datapath::load_after(old, &self.tables, &settings);
        self.datapath = next.expect("loading the next datapath");
        self.settings = settings;
        self.write_mtu(MTU_BYTES);
    }

    pub fn write_mtu(&mut self, mtu_bytes: u32) {
        self.datapath
            .write_interface(LB_MAC, mtu_bytes)
            .expect("writing the interface");
    }

    /// No ICMP error was sent to anybody, as far as the limits know.
    pub fn forget_told(&self) {
        let program = self.datapath.program_id().expect("the program's id");
        let options = ProgInfoQueryOptions::default().include_map_ids(true);
        let ids = ProgInfoIter::with_query_opts(options)
            .find(|info| info.id == program)
            .expect("the program is loaded")
            .map_ids;
        let bss = ids
            .into_iter()
            .map(|id| MapHandle::from_map_id(id).expect("a map of the program"))
            .find(|map| map.name().to_string_lossy().ends_with(".bss"))
            .expect("the program's data");
        let value = bss.lookup(&[0; 4], MapFlags::ANY);
        let mut value = value.expect("reading it").expect("an array's entry");
        assert_eq!(value.len(), size_of::<types::bss>());
        let place = value.as_mut_ptr().cast::<types::bss>();
        // SAFETY: as many bytes as that, of which every pattern is a value.
        let mut data = unsafe { place.read_unaligned() };
        data.icmp_until.fill(0);
        data.icmp_tokens = 16;
        // SAFETY: the same.
        unsafe { place.write_unaligned(data) };
        bss.update(&[0; 4], &value, MapFlags::ANY)
            .expect("writing it");
    }

    pub fn run(&self, frame: &[u8]) -> Ran {
        // An answer may have more headers.
        let mut out = vec![0; frame.len() + 100];
        let (verdict, frame) = self.run_into(frame, &mut out);
        Ran {
            verdict,
            frame: frame.to_vec(),
        }
    }

    /// The same without an allocation: the verdict, and the frame within `out`.
    pub fn run_into<'a>(&self, frame: &'a [u8], out: &'a mut [u8]) -> (u32, &'a [u8]) {
        let input = ProgramInput {
            data_in: Some(frame),
            data_out: Some(out),
            ..Default::default()
        };
        let output = self
            .datapath
            .program()
            .test_run(input)
            .expect("running a packet");
        self.ran.set(self.ran.get() + 1);
        (
            output.return_value,
            output.data.expect("the packet comes back"),
        )
    }

    /// The index (from 1) of a backend.
    pub fn backend_index(&self, address: SocketAddr) -> usize {
        let place = |table: &BackendTable| table.backend.address == address;
        let index = self.tables.backends.iter().position(place);
        index.unwrap_or_else(|| panic!("{address} is no backend")) + 1
    }

    /// All counters as they stand.
    pub fn counters(&self) -> Counters {
        self.datapath
            .counters(self.tables.backends.len())
            .expect("counters")
    }

    /// How many flows of the first source address are unconfirmed, as the count
    /// and the records say; and how many made room.
    pub fn unconfirmed(&self) -> (u32, u64) {
        let (counted, evicted) = self.datapath.unconfirmed(0).expect("the count");
        let flows = self.tables.sources[0].ports.iter().filter(|port| {
            let flow = self.datapath.flow(0, *port).expect("a record");
            let unconfirmed = flow_state::FLOW_UNCONFIRMED.0 as u8;
            flow.family != 0 && flow.retired == 0 && flow.state == unconfirmed
        });
        assert_eq!(counted as usize, flows.count(), "the count and the records");
        (counted, evicted)
    }

    pub fn counter(&self, code: OutcomeCode) -> u64 {
        self.datapath.counter(code).expect("a counter")
    }
}
