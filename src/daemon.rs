// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! What `run` does: configuration x neighbours -> the datapath's maps, until
//! it is told to end.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::abi;
use crate::attach::{self, Attachment};
use crate::config;
use crate::control::{Caller, Control, Request, Response};
use crate::datapath::{self, Datapath};
use crate::neighbour::{self, DisplayMac, Interface, Neighbours, Reach};
use crate::service::Config;
use crate::stats::BackendCounters;
use crate::status::{BackendStatus, ServiceStatus, Status};
use crate::tables::{BackendTable, Path, Tables};
use crate::vlan::Trunk;

/// How long the start waits for neighbours to answer.
const SETTLE_DEADLINE: Duration = Duration::from_millis(1300);
/// How often flows whose time is over are ended in silence.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

/// Serves the configuration until SIGINT, SIGTERM or `stop`.
///
/// # Errors
/// What kept it from serving; nothing is left attached then.
pub async fn run(config: Config) -> Result<()> {
    datapath::check_privilege()?;
    let interface = choose_interface(&config).await?;
    let control = Control::listen(&interface.name)?;
    let signals = Signals::new()?;
    let mut neighbours =
        Neighbours::follow(&interface, backend_addresses(&config), vips(&config)).await?;
    neighbours.settle(SETTLE_DEADLINE).await;

    let trunk = Trunk::look(&interface).await?;
    let default_source = held_vip(&config, &interface).await?;
    let mut tables = Tables::new(&config, datapath::tick()?, |address| {
        let path = path_of(reach_of(&neighbours, &trunk, address));
        Path {
            source: path.source.or(default_source),
            ..path
        }
    })?;
    tables.set_held(&neighbours.held());
    let (datapath, attachment) =
        attach::load_and_attach(&config, &tables, &interface, &trunk).await?;
    let mut daemon = Daemon {
        started: Instant::now(),
        program_id: datapath.program_id()?,
        config,
        tables,
        datapath,
        interface,
        trunk,
        neighbours,
        attachment,
    };
    daemon.report_foreign_sources().await?;
    daemon.report_unreachable();
    daemon.report_vlan_faults().await?;
    daemon.announce()?;
    let stopped = daemon.serve(control, signals).await?;
    let detached = daemon.attachment.detach();
    if let Some(caller) = stopped {
        let response = match &detached {
            Ok(()) => Response::Stopped,
            Err(error) => Response::Error(format!("{error:#}")),
        };
        drop(daemon);
        caller.answer_and_wait(response).await;
    }
    detached
}

/// The configured interface, else the one that holds a VIP, else the one that
/// routes to the first backend.
async fn choose_interface(config: &Config) -> Result<Interface> {
    if let Some(name) = &config.interface {
        return neighbour::interface(name).await;
    }
    for service in &config.services {
        let holder = neighbour::interface_with_address(service.listen.vip).await?;
        if let Some(interface) = holder {
            tracing::info!("{} holds {}", interface.name, service.listen.vip);
            return Ok(interface);
        }
    }
    let first = config.services[0].backends[0].address.ip();
    match neighbour::interface_towards(first).await? {
        Some(interface) => {
            tracing::info!("{} routes to {first}", interface.name);
            Ok(interface)
        }
        None => bail!(
            "no interface holds {}, and none routes to {first}: name one with -i",
            config.services[0].listen.vip
        ),
    }
}

/// The source to make a port table for where no route tells one yet, as while
/// the interface is down: the first VIP that it, or a VLAN device on it, holds.
async fn held_vip(config: &Config, interface: &Interface) -> Result<Option<IpAddr>> {
    for service in &config.services {
        let vip = service.listen.vip;
        if let Some(holder) = neighbour::interface_with_address(vip).await?
            && neighbour::tags_on(interface, &holder).await?.is_some()
        {
            return Ok(Some(vip));
        }
    }
    Ok(None)
}

fn backend_addresses(config: &Config) -> BTreeSet<IpAddr> {
    let services = config.services.iter();
    services
        .flat_map(|service| service.backends.iter().map(|backend| backend.address.ip()))
        .collect()
}

fn vips(config: &Config) -> BTreeSet<IpAddr> {
    let services = config.services.iter();
    services.map(|service| service.listen.vip).collect()
}

fn reach_of(neighbours: &Neighbours, trunk: &Trunk, address: IpAddr) -> Option<Reach> {
    let reach = neighbours.reach(address)?;
    Some(trunk.limit(address, reach))
}

fn path_of(reach: Option<Reach>) -> Path {
    match reach {
        Some(Reach::Resolved {
            mac, tags, source, ..
        }) => {
            let mut path = Path {
                mac: Some(mac),
                source: Some(source),
                alive: true,
                ..Path::default()
            };
            for (place, tag) in path.tags.iter_mut().zip(tags) {
                *place = abi::vlan_tag(tag.protocol, tag.id);
            }
            path
        }
        Some(Reach::Unresolved { source, .. }) => Path {
            source,
            ..Path::default()
        },
        None => Path::default(),
    }
}

struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Signals {
    fn new() -> Result<Signals> {
        let on = |kind| signal(kind).context("listening for signals");
        Ok(Signals {
            interrupt: on(SignalKind::interrupt())?,
            terminate: on(SignalKind::terminate())?,
            hangup: on(SignalKind::hangup())?,
        })
    }
}

struct Daemon {
    started: Instant,
    program_id: u32,
    config: Config,
    tables: Tables,
    // Detached before the maps go.
    attachment: Attachment,
    datapath: Datapath,
    interface: Interface,
    trunk: Trunk,
    neighbours: Neighbours,
}

impl Daemon {
    /// The one line on stdout.
    fn announce(&self) -> Result<()> {
        let services: Vec<String> = (0..self.config.services.len())
            .map(|index| {
                let members = self.tables.backends.iter().filter(|b| b.service == index);
                let (all, alive) = members.fold((0, 0), |(all, alive), b| {
                    (all + 1, alive + i32::from(b.path.alive))
                });
                let count = if alive == all {
                    format!("{all}")
                } else {
                    format!("{alive} of {all}")
                };
                let noun = if all == 1 { "backend" } else { "backends" };
                format!("{} -> {count} {noun}", self.config.services[index].listen)
            })
            .collect();
        let mut stdout = std::io::stdout().lock();
        writeln!(
            stdout,
            "ready: {} ({}) {}",
            self.interface.name,
            self.attachment.hook().name(),
            services.join(", ")
        )
        .and_then(|()| stdout.flush())
        .context("writing to stdout")
    }

    /// Nobody answers ARP for an address that no interface has.
    async fn report_foreign_sources(&self) -> Result<()> {
        let services = self.config.services.iter();
        let sources: BTreeSet<IpAddr> = services.flat_map(|s| s.source.iter().copied()).collect();
        for source in sources {
            if !neighbour::is_held(source).await? {
                let prefix = if source.is_ipv4() { 32 } else { 128 };
                tracing::warn!(
                    "source {source}: no interface has it, so that the backends' replies do not \
                     arrive: ip addr add {source}/{prefix} dev {}",
                    self.interface.name
                );
            }
        }
        Ok(())
    }

    fn report_unreachable(&self) {
        for backend in &self.tables.backends {
            if let Some(why) = self.obstacle(backend) {
                tracing::warn!("backend {} gets no flows: {why}", backend.backend);
            }
        }
    }

    /// Warns where the program does not see the tags that it would have to change.
    async fn report_vlan_faults(&self) -> Result<()> {
        let hook = self.attachment.hook();
        let mut faults = BTreeSet::new();
        for (index, service) in self.config.services.iter().enumerate() {
            let vip_tags = self.trunk.tags_of_vip(service.listen.vip).await?;
            for table in self.tables.backends.iter().filter(|b| b.service == index) {
                if let Some(Reach::Resolved { tags, .. }) = self.reach(table) {
                    faults.extend(self.trunk.fault(hook, &vip_tags, &tags));
                }
            }
        }
        for fault in faults {
            tracing::warn!("{fault}");
        }
        Ok(())
    }

    /// Returns who asked for the end, if it was a client of the control socket.
    async fn serve(
        &mut self,
        mut control: Control,
        mut signals: Signals,
    ) -> Result<Option<Caller>> {
        let mut sweep = tokio::time::interval(SWEEP_INTERVAL);
        sweep.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = signals.interrupt.recv() => return Ok(None),
                _ = signals.terminate.recv() => return Ok(None),
                _ = signals.hangup.recv() => {
                    tracing::warn!("SIGHUP: a running configuration can't be changed yet; nothing was");
                }
                changed = self.neighbours.changed() => {
                    changed.with_context(|| format!("serving on {}", self.interface.name))?;
                    self.apply()?;
                }
                Some((request, caller)) = control.call() => match request {
                    Request::Stop => return Ok(Some(caller)),
                    Request::Status => {
                        let response = match self.status() {
                            Ok(status) => Response::Status(Box::new(status)),
                            Err(error) => Response::Error(format!("{error:#}")),
                        };
                        drop(caller.answer(response));
                    }
                },
                _ = sweep.tick() => {
                    if !self.attachment.holds()? {
                        bail!(
                            "somebody detached the program (id {}) from {}: nothing is balanced \
                             any more; start again",
                            self.program_id,
                            self.interface.name
                        );
                    }
                    self.datapath.sweep()?;
                }
            }
        }
    }

    /// Brings the maps up to what the neighbours say.
    fn apply(&mut self) -> Result<()> {
        let interface = self.neighbours.interface();
        if (interface.mac, interface.mtu) != (self.interface.mac, self.interface.mtu) {
            self.datapath
                .write_interface(interface.mac, interface.mtu)?;
            tracing::info!(
                "{}: MAC {}, MTU {}",
                interface.name,
                DisplayMac(interface.mac),
                interface.mtu
            );
        }
        self.interface = interface;

        for place in self.tables.set_held(&self.neighbours.held()) {
            self.datapath.write_address(&self.tables, place)?;
        }

        let mut services = BTreeSet::new();
        for index in 1..=self.tables.backends.len() {
            let table = &self.tables.backends[index - 1];
            let backend = table.backend;
            let old = table.path;
            let new = table.path_after(path_of(self.reach(table)));
            if new == old {
                continue;
            }
            self.tables.backends[index - 1].path = new;
            self.datapath.write_backend(&self.tables, index)?;
            if new.alive != old.alive || new.source != old.source {
                services.insert(self.tables.backends[index - 1].service);
                match self.obstacle(&self.tables.backends[index - 1]) {
                    Some(why) => tracing::warn!("backend {backend} gets no new flows: {why}"),
                    None => tracing::info!("backend {backend} gets flows"),
                }
            }
        }
        for service in services {
            self.datapath.write_maglev(&self.tables, service)?;
        }
        Ok(())
    }

    fn status(&self) -> Result<Status> {
        let counters = self.datapath.counters(self.tables.backends.len())?;
        let mut services: Vec<ServiceStatus> = self
            .config
            .services
            .iter()
            .map(|service| ServiceStatus {
                name: service.name.clone(),
                listen: service.listen.to_string(),
                forwarding: "nat".into(),
                scheduler: config::scheduler_word(service.scheduler).into(),
                flows: 0,
                counters: BackendCounters::default(),
                backends: Vec::with_capacity(service.backends.len()),
            })
            .collect();
        for (table, counters) in self.tables.backends.iter().zip(&counters.backends) {
            let service = &mut services[table.service];
            service.counters.add(counters);
            service.flows = service.counters.flows();
            service.backends.push(self.backend_status(table, counters));
        }
        Ok(Status {
            interface: self.interface.name.clone(),
            mode: self.attachment.hook().name().into(),
            program_id: self.program_id,
            pid: std::process::id(),
            uptime_seconds: self.started.elapsed().as_secs(),
            flows_capacity: self.tables.capacity() as u64,
            services,
            packets: counters.packets(),
        })
    }

    fn reach(&self, table: &BackendTable) -> Option<Reach> {
        reach_of(&self.neighbours, &self.trunk, table.backend.address.ip())
    }

    /// Why a backend gets no new flows, if it does not.
    fn obstacle(&self, table: &BackendTable) -> Option<String> {
        match (self.reach(table), table.path.source) {
            (Some(Reach::Unresolved { why, .. }), _) => Some(why),
            (_, Some(source)) if !self.tables.sources.contains(&source) => Some(format!(
                "the address that reaches it is now {source}, which has no port table; start \
                 again to give it one"
            )),
            _ => None,
        }
    }

    fn backend_status(&self, table: &BackendTable, counters: &BackendCounters) -> BackendStatus {
        let next_hop = match self.reach(table) {
            Some(Reach::Resolved { next_hop, .. }) => Some(next_hop),
            _ => None,
        };
        let reason = self.obstacle(table);
        BackendStatus {
            address: table.backend.to_string(),
            weight: table.backend.weight,
            state: match reason {
                None => "up",
                Some(_) => "unreachable",
            }
            .into(),
            reason,
            mac: table.path.mac.map(|mac| DisplayMac(mac).to_string()),
            next_hop,
            source: table.path.source,
            sources: match &self.config.services[table.service].source[..] {
                [] => Vec::from_iter(table.path.source),
                configured => configured.to_vec(),
            },
            flows: counters.flows(),
            counters: *counters,
        }
    }
}
