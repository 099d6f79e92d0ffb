// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! A loaded program and what must be so in it: the flows that it should have.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use xdp_proxy::abi::{self, OutcomeCode};
use xdp_proxy::datapath;
use xdp_proxy::service::{Health, Service};
use xdp_proxy::stats::BackendCounters;
use xdp_proxy::tables::{Condition, Path};

use crate::common::rig::*;
pub use crate::flow::*;
use crate::maps::Maps;
pub use crate::rigs::*;

/// What a round does to the program, beside the packets.
#[derive(Clone, Debug)]
pub enum Step {
    Frame(Vec<u8>),
    Hours(u32),
    /// Longer than the decision on a first fragment is kept.
    Seconds,
    Sweep,
    /// Of the backend with this index.
    News(usize, Path, Health),
    /// The next ICMP answers may be more than the limit allows.
    Limit(bool),
}

pub struct World {
    pub rig: Rig,
    pub maps: Maps,
    pub served: Vec<Service>,
    pub ticks_per_hour: u32,
    /// Contents of a look-up table, by service and the backends that are in it.
    maglevs: HashMap<(usize, Vec<bool>), Vec<u8>>,
    paths: Vec<Path>,

    /// By source address and port.
    pub flows: Vec<Option<Flow>>,
    pub by_tuple: HashMap<Tuple, usize>,
    /// The port that was taken last, by source address and group.
    pub last_taken: HashMap<(usize, usize), u16>,
    pub fragments: HashMap<FragmentKey, Decision>,
    /// In half hours.
    pub now: u32,
    /// When seconds passed last.
    passed: Instant,
    pub icmp_limited: bool,
    pub flows_begun: u64,
    /// What must have been counted since the round began.
    pub outcomes: Vec<u64>,
    pub backends: Vec<BackendCounters>,
    pub before: Vec<BackendCounters>,
    pub outcomes_before: Vec<u64>,
    pub frames: u64,
    /// What must come out.
    pub want: Vec<u8>,
    /// Room for what comes out.
    pub out: Vec<u8>,
}

impl World {
    pub fn new(number: usize) -> World {
        let (served, settings) = rig_of(number);
        let mut tables = tables(&config(served.clone()));
        for table in &mut tables.backends {
            if settings.handles_vlan {
                table.path.tags = tags_of(table.backend.address.ip());
            }
        }
        // The second VIP is the program's alone, where it has two.
        for entry in &mut tables.addresses {
            entry.answers_echo = (entry.vip != 0 && entry.source == 0).into();
        }
        let sources = tables.sources.len();
        let rig = Rig::with_tables(tables, settings);
        let program = rig.datapath.program_id().expect("the program's id");
        let maps = Maps::new(program, sources);
        let tick = datapath::tick().expect("the kernel's tick");
        let paths = rig.tables.backends.iter().map(|b| b.path).collect();
        World {
            maps,
            served,
            ticks_per_hour: abi::jiffies(HOUR, tick),
            maglevs: HashMap::new(),
            paths,
            flows: Vec::new(),
            by_tuple: HashMap::new(),
            last_taken: HashMap::new(),
            fragments: HashMap::new(),
            now: 0,
            passed: Instant::now(),
            icmp_limited: false,
            flows_begun: 0,
            outcomes: Vec::new(),
            backends: Vec::new(),
            before: Vec::new(),
            outcomes_before: Vec::new(),
            frames: 0,
            want: Vec::new(),
            out: Vec::new(),
            rig,
        }
    }

    /// As after the program was loaded.
    pub fn reset(&mut self) {
        let slots = (0..self.rig.tables.sources.len() * PORTS.len()).map(|i| self.slot(i));
        self.maps.reset(slots);
        for (table, path) in self.rig.tables.backends.iter_mut().zip(&self.paths) {
            table.condition = Condition::default();
            table.path = *path;
        }
        self.flows = vec![None; self.rig.tables.sources.len() * PORTS.len()];
        self.by_tuple.clear();
        self.last_taken.clear();
        self.fragments.clear();
        self.now = 0;
        self.passed = Instant::now();
        self.icmp_limited = false;
        self.flows_begun = 0;
        let counters = self.rig.counters();
        self.outcomes = vec![0; counters.outcomes.len()];
        self.outcomes_before = counters.outcomes.to_vec();
        self.backends = vec![BackendCounters::default(); counters.backends.len()];
        self.before = counters.backends;
        self.frames = 0;
    }

    /// The place in `flows` of a source address and port; None: not of ours.
    pub fn place(&self, source: SocketAddr) -> Option<usize> {
        let index = self.source_index(source.ip())?;
        PORTS
            .contains(&source.port())
            .then(|| index * PORTS.len() + usize::from(source.port() - PORTS.start()))
    }

    /// The slot in the program's table.
    pub fn slot(&self, place: usize) -> usize {
        let port = usize::from(*PORTS.start()) + place % PORTS.len();
        (place / PORTS.len()) << abi::PORT_BITS | port
    }

    pub fn source_index(&self, address: IpAddr) -> Option<usize> {
        self.rig.tables.source_index(address)
    }

    pub fn is_ours(&self, address: IpAddr) -> bool {
        self.rig.tables.vips.contains(&address) || self.source_index(address).is_some()
    }

    /// A VIP that the host does not own.
    pub fn answers_echo(&self, address: IpAddr) -> bool {
        let words = abi::address_words(address);
        let entries = &self.rig.tables.addresses;
        entries
            .iter()
            .any(|entry| entry.answers_echo != 0 && entry.address == words)
    }

    /// The most particular one that has the port.
    pub fn service_of(&self, protocol: u8, to: SocketAddr) -> Option<usize> {
        let is_for = |service: &&Service| {
            let listen = service.listen;
            number_of(listen.protocol) == protocol
                && listen.vip == to.ip()
                && listen.ports.range().contains(&to.port())
        };
        let all = self.served.iter().enumerate();
        let ours = all.filter(|(_, service)| is_for(service));
        let best = ours.min_by_key(|(_, service)| service.listen.ports);
        best.map(|(index, _)| index)
    }

    /// The addresses that a service's flows to a backend come from.
    pub fn sources_of(&self, service: usize, backend: usize) -> Vec<IpAddr> {
        match &self.served[service].source[..] {
            [] => self.path(backend).source.into_iter().collect(),
            sources => sources.to_vec(),
        }
    }

    pub fn path(&self, backend: usize) -> Path {
        self.rig.tables.backends[backend - 1].path
    }

    /// Where packets of a client's tuple reach a backend.
    pub fn backend_end(&self, backend: usize, tuple: &Tuple) -> SocketAddr {
        let mut address = self.backend_address(backend);
        if address.port() == 0 {
            address.set_port(tuple.service.port());
        }
        address
    }

    pub fn backend_address(&self, backend: usize) -> SocketAddr {
        self.rig.tables.backends[backend - 1].backend.address
    }

    /// Who may get a new flow of a service.
    pub fn takers(&self, service: usize) -> impl Iterator<Item = usize> + '_ {
        let numbered = (1..).zip(&self.rig.tables.backends);
        numbered.filter_map(move |(index, table)| {
            let takes = table.service == service
                && table.backend.weight > 0
                && table.path.alive
                && table.condition.health != Health::Down
                && table.path.mac.is_some();
            takes.then_some(index)
        })
    }

    /// The ends of what we send for a packet between these ends of a flow.
    pub fn sent_as(
        &self,
        protocol: u8,
        from: SocketAddr,
        to: SocketAddr,
    ) -> Option<(SocketAddr, SocketAddr)> {
        let tuple = Tuple {
            protocol,
            client: from,
            service: to,
        };
        if let Some(place) = self.by_tuple.get(&tuple) {
            let flow = self.flows[*place].as_ref()?;
            return Some((flow.source, self.backend_end(flow.backend, &tuple)));
        }
        let flow = self.flows[self.place(to)?].as_ref()?;
        Some((flow.tuple.service, flow.tuple.client))
    }

    pub fn news(&mut self, backend: usize, path: Path, health: Health) {
        let table = &mut self.rig.tables.backends[backend - 1];
        let service = table.service;
        table.path = path;
        table.condition.health = health;
        self.rig
            .datapath
            .write_backend(&self.rig.tables, backend)
            .expect("writing a backend");
        let takers: Vec<bool> = (1..=self.rig.tables.backends.len())
            .map(|index| self.takers(service).any(|taker| taker == index))
            .collect();
        let contents = self
            .maglevs
            .entry((service, takers))
            .or_insert_with(|| self.rig.tables.packed_maglev(service));
        let place = self.rig.tables.services[service].entry.maglev;
        self.maps.write_maglev(place, contents);
    }

    /// Where a round takes as long as that, as on an emulated kernel, nobody can
    /// tell which decisions are kept.
    pub fn seconds_may_pass(&mut self) {
        if self.passed.elapsed() > Duration::from_secs(1) {
            self.seconds_pass();
        }
    }

    /// Too many for a decision on a fragment.
    pub fn seconds_pass(&mut self) {
        self.fragments.clear();
        self.passed = Instant::now();
        self.maps.age_fragments(self.ticks_per_hour / 1200);
    }

    pub fn hours_pass(&mut self, hours: u32) {
        self.seconds_pass();
        self.now += 2 * hours;
        for place in 0..self.flows.len() {
            self.maps
                .age_flow(self.slot(place), hours * self.ticks_per_hour);
        }
    }

    /// The program has counted more by this outcome than was said so far.
    pub fn has_moved(&self, outcome: OutcomeCode) -> bool {
        let place = outcome.0 as usize;
        self.maps.outcomes()[place] - self.outcomes_before[place] > self.outcomes[place]
    }

    pub fn count(&mut self, outcome: OutcomeCode) {
        self.outcomes[outcome.0 as usize] += 1;
    }
}
