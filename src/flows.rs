// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! What `flows` tells: the flow table, read from the maps, as JSON and as text.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};

use crate::abi::{self, State};
use crate::datapath::{self, Maps};
use crate::status::counted;
use crate::tables::Tables;

/// The flows of one interface that were asked for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Flows {
    pub interface: String,
    /// As many were asked for; `flows` may be cut by a limit.
    pub count: u64,
    pub flows: Vec<Flow>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Flow {
    pub service: String,
    /// "tcp" or "udp".
    pub protocol: String,
    pub client: SocketAddr,
    /// What the client connects to.
    pub vip: SocketAddr,
    /// What the backend sees.
    pub source: SocketAddr,
    pub backend: SocketAddr,
    pub state: State,
    /// Since the last packet that kept it alive.
    pub idle_seconds: u64,
    /// Of a flow that began while flows' packets were counted.
    pub counters: Option<FlowCounters>,
}

/// What a flow has had. Bytes are whole frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowCounters {
    pub age_seconds: u64,
    pub forwarded_packets: u64,
    pub forwarded_bytes: u64,
    pub returned_packets: u64,
    pub returned_bytes: u64,
}

/// Which flows are asked for: those that are all of it.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// By its name, or by what it listens on.
    pub service: Option<String>,
    pub backend: Option<End>,
    pub client: Option<End>,
    pub state: Option<State>,
    /// So many, at most.
    pub limit: Option<usize>,
}

/// An address, with a port or without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct End {
    address: IpAddr,
    port: Option<u16>,
}

impl std::str::FromStr for End {
    type Err = String;

    fn from_str(text: &str) -> Result<End, String> {
        if let Ok(end) = text.parse::<SocketAddr>() {
            return Ok(End {
                address: end.ip(),
                port: Some(end.port()),
            });
        }
        let bare = text
            .strip_prefix('[')
            .and_then(|text| text.strip_suffix(']'));
        match bare.unwrap_or(text).parse() {
            Ok(address) => Ok(End {
                address,
                port: None,
            }),
            Err(_) => {
                Err("give an address, as 192.0.2.10, 192.0.2.10:80 or [2001:db8::1]:80".into())
            }
        }
    }
}

impl End {
    fn is(self, end: SocketAddr) -> bool {
        self.address == end.ip() && self.port.is_none_or(|port| port == end.port())
    }
}

impl Filter {
    fn takes(&self, flow: &Flow) -> bool {
        self.service
            .as_ref()
            .is_none_or(|name| *name == flow.service)
            && self.backend.is_none_or(|backend| backend.is(flow.backend))
            && self.client.is_none_or(|client| client.is(flow.client))
            && self.state.is_none_or(|state| state == flow.state)
    }

    /// Names the service as the flows do.
    fn settle(&mut self, tables: &Tables) -> Result<()> {
        let Some(wanted) = &self.service else {
            return Ok(());
        };
        let mut services = tables.services.iter();
        let named = services
            .find(|service| service.name == *wanted || service.listen.to_string() == *wanted);
        let Some(named) = named else {
            let names: Vec<&str> = tables.services.iter().map(|s| s.name.as_str()).collect();
            bail!(
                "there is no service {wanted:?}: there are {}",
                names.join(", ")
            );
        };
        self.service = Some(named.name.clone());
        Ok(())
    }
}

impl Flows {
    /// Reads the flows of an interface.
    ///
    /// # Errors
    /// There is no such service; or the maps can't be read.
    pub fn read(interface: &str, maps: &Maps, mut filter: Filter) -> Result<Flows> {
        let tables = maps.tables()?;
        filter.settle(&tables)?;
        let clock = Clock {
            now: datapath::jiffies_now()?,
            tick: datapath::tick()?,
        };
        let mut all = Flows {
            interface: interface.to_owned(),
            count: 0,
            flows: Vec::new(),
        };
        maps.each_flow(|slot, record, counters| {
            let flow = flow(&tables, &clock, slot, record, counters);
            if let Some(flow) = flow.filter(|flow| filter.takes(flow)) {
                all.count += 1;
                if filter.limit.is_none_or(|limit| all.flows.len() < limit) {
                    all.flows.push(flow);
                }
            }
        })?;
        Ok(all)
    }
}

struct Clock {
    now: u32,
    tick: Duration,
}

impl Clock {
    /// Seconds since a moment in jiffies; what is from the future is young.
    fn since(&self, moment: u32) -> u64 {
        (self.tick * self.ticks_since(moment)).as_secs()
    }

    fn ticks_since(&self, moment: u32) -> u32 {
        let ticks = self.now.wrapping_sub(moment);
        if ticks > u32::MAX / 2 { 0 } else { ticks }
    }
}

/// `None`: the slot has no flow, or one whose time is over.
fn flow(
    tables: &Tables,
    clock: &Clock,
    slot: u32,
    record: &abi::flow,
    counters: Option<&abi::flow_counters>,
) -> Option<Flow> {
    let state = abi::state_of(record)?;
    let backend = usize::from(record.backend).checked_sub(1)?;
    let backend = tables.backends.get(backend)?;
    let service = tables.services.get(backend.service)?;
    if state == State::Closing && clock.ticks_since(record.seen) > service.entry.closing {
        return None;
    }
    let vip = *tables.vips.get(usize::from(record.vip).checked_sub(1)?)?;
    let source = tables
        .sources
        .get((slot >> abi::PORT_BITS) as usize)?
        .address;
    let (client, client_port, service_port) = abi::ends_of(record, vip);
    let backend_port = match backend.backend.address.port() {
        0 => service_port,
        port => port,
    };
    Some(Flow {
        service: service.name.clone(),
        protocol: service.listen.protocol.to_string(),
        client: SocketAddr::new(client, client_port),
        vip: SocketAddr::new(vip, service_port),
        source: SocketAddr::new(source, slot as u16),
        backend: SocketAddr::new(backend.backend.address.ip(), backend_port),
        state,
        idle_seconds: clock.since(record.seen),
        counters: counters.and_then(|counters| {
            let [forwarded_packets, returned_packets] = counters.packets();
            Some(FlowCounters {
                age_seconds: clock.since(counters.begun()?),
                forwarded_packets,
                forwarded_bytes: counters.forwarded_bytes,
                returned_packets,
                returned_bytes: counters.returned_bytes,
            })
        }),
    })
}

impl fmt::Display for Flows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = self.flows.len() as u64;
        let part = if shown < self.count {
            format!(", {shown} of them shown")
        } else {
            String::new()
        };
        let count = counted(self.count, "flow");
        writeln!(f, "{}: {count}{part}", self.interface)?;
        if self.flows.is_empty() {
            return Ok(());
        }
        writeln!(
            f,
            "  {:<22} {:<22} {:<22} {:<22} {:<12} {:>7} {:>7} {:>12} {:>12} {:>14} {:>14}",
            "CLIENT",
            "VIP",
            "SOURCE",
            "BACKEND",
            "STATE",
            "AGE",
            "IDLE",
            "PACKETS TO",
            "PACKETS FROM",
            "BYTES TO",
            "BYTES FROM"
        )?;
        for flow in &self.flows {
            let counted = |value: fn(&FlowCounters) -> u64| {
                let value = flow.counters.as_ref().map(value);
                value.map_or_else(|| "-".to_owned(), |value| value.to_string())
            };
            writeln!(
                f,
                "  {:<22} {:<22} {:<22} {:<22} {:<12} {:>7} {:>7} {:>12} {:>12} {:>14} {:>14}",
                flow.client.to_string(),
                format!("{}/{}", flow.vip, flow.protocol),
                flow.source.to_string(),
                flow.backend.to_string(),
                flow.state.to_string(),
                counted(|counters| counters.age_seconds),
                flow.idle_seconds,
                counted(|counters| counters.forwarded_packets),
                counted(|counters| counters.returned_packets),
                counted(|counters| counters.forwarded_bytes),
                counted(|counters| counters.returned_bytes)
            )?;
        }
        Ok(())
    }
}
