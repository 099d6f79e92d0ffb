// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! The task that follows routes and neighbours and publishes what changes.

use std::collections::{BTreeMap, BTreeSet, btree_map};
use std::future::pending;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use futures_util::FutureExt;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tracing::{debug, error, info, warn};

use super::astray::astray;
use super::clients::Clients;
use super::hop::{Ask, Hop, INTERVAL};
use super::netlink::{Event, Events, Netlink};
use super::path::{self, Path};
use super::probe::{Answer, Prober};
use super::reach::{full, limit, log, reach, words};
use super::{DisplayMac, Interface, Mac, Reach, State, gone, no_room};
use crate::repeats::{Repeats, WINDOW};
use crate::service::Towards;

/// Questions closer together than this are sent at once.
const GRAIN: Duration = Duration::from_millis(5);
/// First questions are spread over [`INTERVAL`], but lie at most INTERVAL/64 apart.
const SPREAD_MIN: u32 = 64;
/// From one reading of everything to the next, while the routes keep changing.
const READ_PAUSE: Duration = Duration::from_millis(200);
/// So many follow each other at once before that, as one change has several notifications.
const READS_AT_ONCE: u32 = 5;
/// From one news to the next: what flaps costs no more than that.
const PUBLISH_PAUSE: Duration = Duration::from_millis(10);
/// Everything is read again so often even if no notification came: some
/// changes have none (ICMP redirects, sysctls).
const READ_ANYWAY: Duration = Duration::from_secs(30);
/// So long after the kernel last had no room for an entry, its table is no longer full.
const CALM: Duration = Duration::from_secs(5);

pub struct Follower {
    netlink: Netlink,
    events: Events,
    /// `None`: refused, the kernel has to ask.
    prober: Option<Prober>,
    interface: Interface,
    paths: BTreeMap<Towards, Path>,
    /// By the index of the device that leads to them.
    hops: BTreeMap<(u32, IpAddr), Hop>,
    vips: BTreeSet<IpAddr>,
    clients: Clients,
    /// When what changed of them is to be told.
    tell_at: Option<Instant>,
    /// What interfaces have, and what all hosts of their networks have.
    held: BTreeSet<IpAddr>,
    /// Those that the program gets no packets of, and why.
    astray: BTreeMap<IpAddr, String>,
    /// When everything is to be read from the kernel again.
    read_at: Instant,
    /// When all readings so far were [`READ_PAUSE`] apart.
    read_paid: Instant,
    /// When the next hop is to be asked, at the earliest.
    ask_at: Instant,
    /// The limits of the kernel's neighbour tables that are full, and when each last was.
    full: BTreeMap<&'static str, Instant>,
    /// The last reading failed.
    troubled: bool,
    /// News that wait for their time, and when that is.
    unpublished: bool,
    publish_at: Instant,
    /// Lines about one of them in the log.
    repeats: Repeats<Subject>,
    state: watch::Sender<State>,
}

impl Follower {
    pub async fn start(
        interface: &Interface,
        addresses: Vec<Towards>,
        vips: BTreeSet<IpAddr>,
    ) -> Result<(Follower, watch::Receiver<State>)> {
        let prober = Prober::open();
        if let Err(error) = &prober {
            warn!(
                "no packet sockets ({error}; they take CAP_NET_RAW): the kernel is told to ask for the \
                 neighbours' MACs instead, and a changed MAC may go unnoticed for a minute"
            );
        }
        let reach = addresses.iter().map(|towards| {
            (
                towards.clone(),
                Reach::Unresolved {
                    why: format!("{} was not looked up yet", towards.address),
                    source: None,
                },
            )
        });
        let (state, receiver) = watch::channel(State {
            interface: interface.clone(),
            reach: reach.collect(),
            held: BTreeSet::new(),
            astray: BTreeMap::new(),
            replies: Arc::default(),
            starved: BTreeSet::new(),
            undecided: addresses.len(),
            ended: None,
        });
        let now = Instant::now();
        let mut follower = Follower {
            // Notifications first, so that nothing falls between them and the reading.
            events: Events::open().context("opening a netlink socket for notifications")?,
            netlink: Netlink::open().context("opening a netlink socket")?,
            prober: prober.ok(),
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
            clients: Clients::new(vips.clone()),
            tell_at: None,
            vips,
            held: BTreeSet::new(),
            astray: BTreeMap::new(),
            read_at: now,
            read_paid: now,
            ask_at: now,
            full: BTreeMap::new(),
            troubled: false,
            unpublished: false,
            publish_at: now,
            repeats: Repeats::default(),
            state,
        };
        follower.read().await?;
        follower.publish();
        Ok((follower, receiver))
    }

    pub async fn run(mut self) {
        loop {
            let changed = tokio::select! {
                event = self.events.next() => match event {
                    Some(event) => self.take_all(event),
                    // What is known may be so still.
                    None => return self.break_off("the kernel's notifications broke off"),
                },
                answer = answer(self.prober.as_ref(), self.interface.mac) => {
                    let hop = self.hops.get_mut(&(answer.device, answer.address));
                    let (mac, overrides) = (answer.mac, answer.overrides);
                    Ok(hop.is_some_and(|hop| hop.answered(mac, overrides, Instant::now())))
                }
                () = sleep_until(self.ask_at) => Ok(self.ask().await),
                () = sleep_until(self.read_at) => self.read_again().await,
                () = sleep_until(self.publish_at), if self.unpublished => Ok(true),
                () = sleep_until(self.tell_at.unwrap_or(self.read_at)), if self.tell_at.is_some() => {
                    Ok(true)
                }
            };
            match changed {
                Ok(true) => self.publish_in_time(),
                Ok(false) => {}
                Err(Gone) => return self.end(),
            }
        }
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
            Event::Neighbour(device, address, entry) => {
                let mut changed = self.clients.learn(device, address, entry);
                if let Some(hop) = self.hops.get_mut(&(device, address)) {
                    changed |= hop.learn(entry, Instant::now());
                    self.ask_at = self.ask_at.min(hop.due());
                }
                return Ok(changed);
            }
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
        let now = Instant::now();
        let waits = self.read_paid.saturating_duration_since(now);
        let waits = waits.saturating_sub(READ_PAUSE * (READS_AT_ONCE - 1));
        self.read_at = self.read_at.min(now + waits.max(GRAIN));
    }

    fn set_interface(&mut self, now: Interface) -> bool {
        let was = std::mem::replace(&mut self.interface, now);
        let now = &self.interface;
        let tells = (was.mac, was.up) != (now.mac, now.up)
            && self.repeats.may_tell(&Subject::Interface, std_now());
        if was.mac != now.mac && tells {
            info!(
                "{} has changed its MAC from {} to {}",
                now.name,
                DisplayMac(was.mac),
                DisplayMac(now.mac)
            );
        }
        match (was.up, now.up) {
            (true, false) if tells => warn!("{} is down", now.name),
            (false, true) if tells => info!("{} is up", now.name),
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
        let before = self.astray.clone();
        match self.read().await {
            Ok(()) => {
                self.tell_of_astray(&before);
                if std::mem::take(&mut self.troubled) {
                    info!(
                        "routes and neighbours on {} are read again",
                        self.interface.name
                    );
                }
                Ok(true)
            }
            Err(error) if gone(&error) && self.is_gone().await => Err(Gone),
            Err(error) => {
                if !std::mem::replace(&mut self.troubled, true) {
                    warn!(
                        "reading routes and neighbours on {} failed, trying again: {error}",
                        self.interface.name
                    );
                }
                // The connection itself may have broken.
                if let Ok(netlink) = Netlink::open() {
                    self.netlink = netlink;
                }
                self.read_at = Instant::now() + Duration::from_secs(1);
                Ok(false)
            }
        }
    }

    /// It is the interface that is gone, and not another one that a path goes through.
    async fn is_gone(&self) -> bool {
        let now = self.netlink.interface(self.interface.index).await;
        now.is_err_and(|error| gone(&error))
    }

    fn tell_of_astray(&mut self, before: &BTreeMap<IpAddr, String>) {
        for vip in before.keys().chain(self.astray.keys()) {
            let (was, is) = (before.get(vip), self.astray.get(vip));
            if was == is || !self.repeats.may_tell(&Subject::Vip(*vip), std_now()) {
                continue;
            }
            match is {
                Some(why) => error!("{why}"),
                None => info!("VIP {vip} is no more on a device with another MAC"),
            }
        }
    }

    /// Reads the interface, the addresses, the routes and the neighbour tables.
    async fn read(&mut self) -> io::Result<()> {
        let interface = self.netlink.interface(self.interface.index).await?;
        self.set_interface(interface);
        let own = self.netlink.addresses().await?;
        self.held = self.netlink.held().await?;
        self.astray = astray(&self.netlink, &self.interface, &own, &self.vips).await?;

        let mut found = Vec::with_capacity(self.paths.len());
        let mut tables = BTreeMap::new();
        for towards in self.paths.keys() {
            let path = path::find(&self.netlink, &self.interface, &own, towards).await?;
            if let Path::Via { device, .. } = &path
                && !tables.contains_key(&device.index)
            {
                let table = self.netlink.neighbours(device.index).await?;
                tables.insert(device.index, table);
            }
            let asker = match self.prober {
                Some(_) => path::asker(&self.netlink, towards.address, &path).await,
                None => None,
            };
            found.push((towards.clone(), path, asker));
        }

        let read_clients = self.clients.read(&self.interface, &own).await?;
        let mut routers = Vec::new();
        for (device, router) in self.clients.routers() {
            if let btree_map::Entry::Vacant(table) = tables.entry(device) {
                table.insert(self.netlink.neighbours(device).await?);
            }
            let asker = match self.prober {
                Some(_) => path::asker_on(&self.netlink, device, router).await,
                None => None,
            };
            routers.push(((device, router), asker));
        }

        let mut hops = BTreeMap::new();
        let mut due = spread(found.len() + routers.len());
        for (towards, path, asker) in found {
            if let Path::Via {
                device, next_hop, ..
            } = &path
            {
                let key = (device.index, *next_hop);
                let hop = hops.entry(key).or_insert_with(|| {
                    let known = self.hops.remove(&key);
                    known
                        .unwrap_or_else(|| Hop::new(asker, due.next().unwrap_or_else(Instant::now)))
                });
                hop.set_asker(asker);
            }
            self.paths.insert(towards, path);
        }
        for (key, asker) in routers {
            let hop = hops.entry(key).or_insert_with(|| {
                let known = self.hops.remove(&key);
                known.unwrap_or_else(|| Hop::new(asker, due.next().unwrap_or_else(Instant::now)))
            });
            if asker.is_some() {
                hop.set_asker(asker);
            }
        }
        self.hops = hops;
        let now = Instant::now();
        for ((device, address), hop) in &mut self.hops {
            let table = tables.get(device);
            hop.learn(table.and_then(|table| table.get(address)).copied(), now);
        }
        self.read_paid = self.read_paid.max(now) + READ_PAUSE;
        self.read_at = read_clients
            .unwrap_or(now + READ_ANYWAY)
            .min(now + READ_ANYWAY);
        self.ask_at = now;
        Ok(())
    }

    /// Asks the hops that are due. True if one was given up, or finds no room.
    async fn ask(&mut self) -> bool {
        let now = Instant::now();
        let mut changed = false;
        let mut next = now + INTERVAL;
        for ((device, address), hop) in &mut self.hops {
            let (device, address) = (*device, *address);
            if hop.due() <= now + GRAIN {
                changed |= hop.expire(now);
                let sent = match (hop.ask(now), self.prober.as_ref()) {
                    (Ask::Hop(asker, at), Some(prober)) => {
                        prober.ask(device, self.interface.mac, asker, address, at)
                    }
                    (Ask::Create, _) => {
                        let created = self.netlink.create(device, address).await;
                        match &created {
                            Ok(()) => changed |= hop.learn(Some(Default::default()), now),
                            Err(error) if no_room(error) => {
                                changed |= hop.refuse();
                                let limit = limit(address);
                                if self.full.insert(limit, now).is_none() {
                                    warn!("{}", full(address, limit));
                                }
                            }
                            Err(_) => {}
                        }
                        created
                    }
                    (Ask::Refresh, _) => self.netlink.refresh(device, address).await,
                    _ => Ok(()),
                };
                if let Err(error) = sent {
                    debug!("asking for {address}: {error}");
                }
            }
            next = next.min(hop.due());
        }
        self.ask_at = next.max(now + GRAIN);
        self.sum_up();
        let starved = self.hops.values().any(Hop::starved);
        self.full.retain(|limit, last| {
            let full = starved || now - *last < CALM;
            if !full {
                info!("the kernel's neighbour table ({limit}) has room again");
            }
            full
        });
        changed
    }

    /// Tells how often that changed of which not every change was told.
    fn sum_up(&mut self) {
        for (subject, count) in self.repeats.over(std_now()) {
            let within = format!("{count} more times within {} s", WINDOW.as_secs());
            match subject {
                Subject::Interface => {
                    let now = &self.interface;
                    let state = if now.up { "up" } else { "down" };
                    let mac = DisplayMac(now.mac);
                    warn!("{} changed {within}: it is {state} at {mac}", now.name);
                }
                Subject::Vip(vip) => {
                    let now = self.astray.get(&vip);
                    let now = now.map_or("is where it should be", String::as_str);
                    warn!("the device that has VIP {vip} changed {within}: {now}");
                }
                Subject::Towards(towards) => {
                    let address = towards.address;
                    let state = self.state.borrow();
                    let now = state.reach.get(&towards);
                    let now = now.map_or_else(String::new, |reach| words(address, reach));
                    warn!("how {address} is reached changed {within}: {address} {now}");
                }
            }
        }
    }

    fn publish_in_time(&mut self) {
        let now = Instant::now();
        self.unpublished = now < self.publish_at;
        if !self.unpublished {
            self.publish();
            self.publish_at = now + PUBLISH_PAUSE;
        }
    }

    /// Publishes and logs what differs from what is published.
    fn publish(&mut self) {
        let mut undecided = 0;
        let mut starved = BTreeSet::new();
        let mut changes = Vec::new();
        let state = self.state.borrow();
        self.clients.log(&self.hops);
        let may_tell_at = self.clients.may_tell_at();
        self.tell_at = (Instant::now() < may_tell_at).then_some(may_tell_at);
        let replies = match self.tell_at {
            Some(_) => None,
            None => self.clients.news(&self.hops, &state.replies),
        };
        for (towards, path) in &self.paths {
            let old = state.reach.get(towards);
            let address = towards.address;
            let (new, decided) = reach(&self.interface, &self.hops, address, path);
            undecided += usize::from(!decided);
            if let Path::Via {
                device, next_hop, ..
            } = path
                && let Some(hop) = self.hops.get(&(device.index, *next_hop))
                && hop.starved()
            {
                starved.insert(address);
            }
            // A new way is not known to be worse before it is known.
            let kept = !decided && matches!(old, Some(Reach::Resolved { .. }));
            if old != Some(&new) && !kept {
                let subject = Subject::Towards(towards.clone());
                if decided && self.repeats.may_tell(&subject, std_now()) {
                    log(address, old, &new);
                }
                changes.push((towards.clone(), new));
            }
        }
        let same = changes.is_empty()
            && replies.is_none()
            && undecided == state.undecided
            && starved == state.starved
            && self.held == state.held
            && self.astray == state.astray
            && self.interface == state.interface;
        drop(state);
        if !same {
            self.state.send_modify(|state| {
                state.reach.extend(changes);
                state.undecided = undecided;
                state.starved = starved;
                if let Some(replies) = replies {
                    state.replies = replies;
                }
                state.held.clone_from(&self.held);
                state.astray.clone_from(&self.astray);
                state.interface.clone_from(&self.interface);
            });
        }
    }

    fn break_off(self, why: &str) {
        warn!("{why}");
        self.state.send_modify(|state| {
            state.undecided = 0;
            state.ended = Some(why.to_owned());
        });
    }

    /// The interface is gone, and with it every way through it.
    fn end(self) {
        let why = format!(
            "the interface {} was deleted or moved away",
            self.interface.name
        );
        warn!("{why}");
        self.state.send_modify(|state| {
            for reach in state.reach.values_mut() {
                *reach = Reach::Unresolved {
                    why: why.clone(),
                    source: reach.source(),
                };
            }
            state.interface.up = false;
            state.starved.clear();
            state.undecided = 0;
            state.ended = Some(why);
        });
    }
}

/// The interface is gone.
struct Gone;

/// What a line of the log is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Subject {
    Interface,
    Towards(Towards),
    Vip(IpAddr),
}

fn std_now() -> std::time::Instant {
    Instant::now().into_std()
}

async fn answer(prober: Option<&Prober>, own: Mac) -> Answer {
    match prober {
        Some(prober) => prober.answer(own).await,
        None => pending().await,
    }
}

/// When to ask each of `count` hops next, so that the questions are no burst.
fn spread(count: usize) -> impl Iterator<Item = Instant> {
    let now = Instant::now();
    let step = INTERVAL / u32::try_from(count).unwrap_or(u32::MAX).max(SPREAD_MIN);
    (0..).map(move |i| now + step * i)
}
