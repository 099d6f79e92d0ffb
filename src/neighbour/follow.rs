// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! The task that follows routes and neighbours and publishes what changes.

use std::collections::BTreeMap;
use std::future::pending;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use anyhow::{Context, Result};
use futures_util::FutureExt;
use rtnetlink::packet_route::route::RouteType;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tracing::{debug, info, warn};

use super::arp::Arp;
use super::hop::{Ask, Hop, INTERVAL};
use super::netlink::{Event, Events, Netlink};
use super::reach::{Path, log, reach};
use super::{DisplayMac, Interface, Mac, Reach, State, refused};

/// Questions closer together than this are sent at once.
const GRAIN: Duration = Duration::from_millis(5);
/// First questions are spread over [`INTERVAL`], but lie at most INTERVAL/64 apart.
const SPREAD_MIN: u32 = 64;
/// From one reading of everything to the next, while the routes keep changing.
const READ_PAUSE: Duration = Duration::from_millis(200);
/// Everything is read again so often even if no notification came: some
/// changes have none (ICMP redirects, sysctls).
const READ_ANYWAY: Duration = Duration::from_secs(30);

pub struct Follower {
    netlink: Netlink,
    events: Events,
    /// `None`: refused, the kernel has to ask.
    arp: Option<Arp>,
    interface: Interface,
    paths: BTreeMap<IpAddr, Path>,
    hops: BTreeMap<IpAddr, Hop>,
    /// When everything is to be read from the kernel again, and when it last was.
    read_at: Instant,
    read_last: Instant,
    /// When the next hop is to be asked, at the earliest.
    ask_at: Instant,
    state: watch::Sender<State>,
}

impl Follower {
    pub async fn start(
        interface: &Interface,
        addresses: Vec<IpAddr>,
    ) -> Result<(Follower, watch::Receiver<State>)> {
        let arp = Arp::open(interface.index);
        if let Err(error) = &arp {
            warn!(
                "no ARP socket on {} ({error}; it takes CAP_NET_RAW): the kernel is told to ask for the \
                 neighbours' MACs instead, and a changed MAC may go unnoticed for a minute",
                interface.name
            );
        }
        let reach = addresses.iter().map(|address| {
            (
                *address,
                Reach::Unresolved {
                    why: format!("{address} was not looked up yet"),
                    source: None,
                },
            )
        });
        let (state, receiver) = watch::channel(State {
            interface: interface.clone(),
            reach: reach.collect(),
            undecided: addresses.len(),
            ended: None,
        });
        let now = Instant::now();
        let mut follower = Follower {
            // Notifications first, so that nothing falls between them and the reading.
            events: Events::open().context("opening a netlink socket for notifications")?,
            netlink: Netlink::open().context("opening a netlink socket")?,
            arp: arp.ok(),
            interface: interface.clone(),
            paths: addresses
                .into_iter()
                .map(|address| {
                    (
                        address,
                        Path::Blocked {
                            why: String::new(),
                            source: None,
                        },
                    )
                })
                .collect(),
            hops: BTreeMap::new(),
            read_at: now,
            read_last: now,
            ask_at: now,
            state,
        };
        follower.read().await?;
        follower.publish();
        Ok((follower, receiver))
    }

    pub async fn run(mut self) {
        let why = loop {
            let changed = tokio::select! {
                event = self.events.next() => match event {
                    Some(event) => self.take_all(event),
                    None => break "the kernel's notifications broke off".to_owned(),
                },
                (address, mac) = answer(self.arp.as_ref(), self.interface.mac) => {
                    let hop = self.hops.get_mut(&IpAddr::V4(address));
                    Ok(hop.is_some_and(|hop| hop.answered(mac, Instant::now())))
                }
                () = sleep_until(self.ask_at) => Ok(self.ask().await),
                () = sleep_until(self.read_at) => self.read_again().await,
            };
            match changed {
                Ok(true) => self.publish(),
                Ok(false) => {}
                Err(Gone) => {
                    break format!(
                        "the interface {} was deleted or moved away",
                        self.interface.name
                    );
                }
            }
        };
        self.end(why);
    }

    /// Takes in an event and all that wait behind it, so that an address is
    /// not published with what the next event contradicts. True if something changed.
    fn take_all(&mut self, first: Event) -> Result<bool, Gone> {
        let mut changed = self.take(first)?;
        while let Some(Some(event)) = self.events.next().now_or_never() {
            changed |= self.take(event)?;
        }
        Ok(changed)
    }

    fn take(&mut self, event: Event) -> Result<bool, Gone> {
        match event {
            Event::Gone(index) if index == self.interface.index => return Err(Gone),
            Event::Neighbour(interface, address, entry) if interface == self.interface.index => {
                let hop = self.hops.get_mut(&address);
                return Ok(hop.is_some_and(|hop| hop.learn(entry, Instant::now())));
            }
            Event::Neighbour(..) => {}
            Event::Link(link) => {
                // A link that goes down takes routes with it, without a notification for each.
                self.read_soon();
                if link.index == self.interface.index {
                    return Ok(self.set_interface(*link));
                }
            }
            Event::Gone(_) | Event::Routes | Event::Lost => self.read_soon(),
        }
        Ok(false)
    }

    fn read_soon(&mut self) {
        self.read_at = self
            .read_at
            .min((self.read_last + READ_PAUSE).max(Instant::now() + GRAIN));
    }

    fn set_interface(&mut self, now: Interface) -> bool {
        let was = std::mem::replace(&mut self.interface, now);
        let now = &self.interface;
        if was.mac != now.mac {
            info!(
                "{} has changed its MAC from {} to {}",
                now.name,
                DisplayMac(was.mac),
                DisplayMac(now.mac)
            );
        }
        match (was.up, now.up) {
            (true, false) => warn!("{} is down", now.name),
            (false, true) => info!("{} is up", now.name),
            _ => {}
        }
        let (changed, up) = (was != *now, now.up && !was.up);
        if up {
            for (hop, due) in self.hops.values_mut().zip(spread(self.paths.len())) {
                hop.hurry(due);
            }
            self.ask_at = Instant::now();
        }
        changed
    }

    async fn read_again(&mut self) -> Result<bool, Gone> {
        match self.read().await {
            Ok(()) => Ok(true),
            Err(error) if gone(&error) => Err(Gone),
            Err(error) => {
                warn!(
                    "reading routes and neighbours on {} failed, trying again: {error}",
                    self.interface.name
                );
                self.read_at = Instant::now() + Duration::from_secs(1);
                Ok(false)
            }
        }
    }

    /// Reads the interface, the routes and the neighbour table.
    async fn read(&mut self) -> io::Result<()> {
        let interface = self.netlink.interface(self.interface.index).await?;
        self.set_interface(interface);

        let mut found = Vec::with_capacity(self.paths.len());
        for address in self.paths.keys() {
            let path = self.path(*address).await?;
            let asker = match path {
                Path::Via { next_hop, source } => self.asker(*address, next_hop, source).await,
                Path::Blocked { .. } => None,
            };
            found.push((*address, path, asker));
        }
        let table = self.netlink.neighbours(self.interface.index).await?;

        let mut hops = BTreeMap::new();
        let mut due = spread(found.len());
        for (address, path, asker) in found {
            if let Path::Via { next_hop, .. } = path {
                let hop = hops.entry(next_hop).or_insert_with(|| {
                    let known = self.hops.remove(&next_hop);
                    known
                        .unwrap_or_else(|| Hop::new(asker, due.next().unwrap_or_else(Instant::now)))
                });
                hop.set_asker(asker);
            }
            self.paths.insert(address, path);
        }
        self.hops = hops;
        let now = Instant::now();
        for (address, hop) in &mut self.hops {
            hop.learn(table.get(address).copied(), now);
        }
        self.read_last = now;
        self.read_at = now + READ_ANYWAY;
        self.ask_at = now;
        Ok(())
    }

    async fn path(&self, address: IpAddr) -> io::Result<Path> {
        let blocked = |why, source| Ok(Path::Blocked { why, source });
        let route = match self.netlink.route(address, None).await {
            Err(error) if refused(&error) => {
                return blocked(format!("no route to {address}"), None);
            }
            route => route?,
        };
        let here = &self.interface;
        match (route.kind, route.source) {
            (RouteType::Local, _) => blocked(format!("{address} is an address of this host"), None),
            (RouteType::Unicast, source) if route.interface != here.index => {
                let other = self.netlink.interface(route.interface).await?;
                blocked(
                    format!(
                        "{address} is reached through {}, not {}",
                        other.name, here.name
                    ),
                    source,
                )
            }
            (RouteType::Unicast, Some(source)) => Ok(Path::Via {
                next_hop: route.gateway.unwrap_or(address),
                source,
            }),
            (RouteType::Unicast, None) => blocked(
                format!("{} has no address to reach {address} from", here.name),
                None,
            ),
            _ => blocked(format!("{address} is no address of one host"), None),
        }
    }

    /// Who asks for the next hop by ARP: the address that reaches the next hop
    /// itself, which need not be the one that reaches what lies behind it.
    async fn asker(&self, address: IpAddr, next_hop: IpAddr, source: IpAddr) -> Option<Ipv4Addr> {
        self.arp.as_ref()?;
        let asker = if next_hop == address {
            Some(source)
        } else {
            let route = self
                .netlink
                .route(next_hop, Some(self.interface.index))
                .await;
            route.ok().and_then(|route| route.source).or(Some(source))
        };
        match (next_hop, asker) {
            (IpAddr::V4(_), Some(IpAddr::V4(asker))) => Some(asker),
            _ => None,
        }
    }

    /// Asks the hops that are due. True if one was given up.
    async fn ask(&mut self) -> bool {
        let now = Instant::now();
        let mut changed = false;
        let mut next = now + INTERVAL;
        for (address, hop) in &mut self.hops {
            if hop.due() <= now + GRAIN {
                changed |= hop.expire(now);
                let sent = match (hop.ask(now), self.arp.as_ref(), *address) {
                    (Ask::Arp(asker, at), Some(arp), IpAddr::V4(target)) => {
                        arp.ask(self.interface.mac, asker, target, at)
                    }
                    (Ask::Create, ..) => {
                        let created = self.netlink.create(self.interface.index, *address).await;
                        if created.is_ok() {
                            changed |= hop.learn(Some(Default::default()), now);
                        }
                        created
                    }
                    (Ask::Refresh, ..) => {
                        self.netlink.refresh(self.interface.index, *address).await
                    }
                    _ => Ok(()),
                };
                if let Err(error) = sent {
                    debug!("asking for {address}: {error}");
                }
            }
            next = next.min(hop.due());
        }
        self.ask_at = next.max(now + GRAIN);
        changed
    }

    /// Publishes and logs what differs from what is published.
    fn publish(&self) {
        let mut undecided = 0;
        let mut changes = Vec::new();
        let state = self.state.borrow();
        for (address, path) in &self.paths {
            let old = state.reach.get(address);
            let (new, decided) = reach(&self.interface, &self.hops, *address, path);
            undecided += usize::from(!decided);
            // A new way is not known to be worse before it is known.
            let kept = !decided && matches!(old, Some(Reach::Resolved { .. }));
            if old != Some(&new) && !kept {
                if decided {
                    log(*address, old, &new);
                }
                changes.push((*address, new));
            }
        }
        let same =
            changes.is_empty() && undecided == state.undecided && self.interface == state.interface;
        drop(state);
        if !same {
            self.state.send_modify(|state| {
                state.reach.extend(changes);
                state.undecided = undecided;
                state.interface.clone_from(&self.interface);
            });
        }
    }

    fn end(self, why: String) {
        warn!("{why}");
        self.state.send_modify(|state| {
            for reach in state.reach.values_mut() {
                *reach = Reach::Unresolved {
                    why: why.clone(),
                    source: reach.source(),
                };
            }
            state.interface.up = false;
            state.undecided = 0;
            state.ended = Some(why);
        });
    }
}

/// The interface is gone.
struct Gone;

fn gone(error: &io::Error) -> bool {
    error.raw_os_error() == Some(nix::libc::ENODEV)
}

async fn answer(arp: Option<&Arp>, own: Mac) -> (Ipv4Addr, Mac) {
    match arp {
        Some(arp) => arp.answer(own).await,
        None => pending().await,
    }
}

/// When to ask each of `count` hops next, so that the questions are no burst.
fn spread(count: usize) -> impl Iterator<Item = Instant> {
    let now = Instant::now();
    let step = INTERVAL / u32::try_from(count).unwrap_or(u32::MAX).max(SPREAD_MIN);
    (0..).map(move |i| now + step * i)
}
