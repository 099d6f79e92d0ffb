// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! How this host would send from its VIPs to any client: by the routes and rules, the next
//! hops' MACs, and the neighbour entries of clients on link.

use std::collections::{BTreeMap, BTreeSet, HashMap, btree_map};
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tracing::{info, warn};

use super::fib::{Fib, Prefix, Route, Way};
use super::hop::{Entry, Hop};
use super::netlink::{Held, Netlink};
use super::{DisplayMac, Interface, Mac, Tag, path};

/// Routes that are read, at most: of more, as of the whole internet's, none is.
const ROUTES_MAX: usize = crate::abi::ROUTES_MAX;
/// Neighbour entries of clients that are kept, at most.
const NEIGHBOURS_MAX: usize = crate::abi::NEIGHBOURS;
/// From one published change to the next: what flaps costs no more.
const TELL_PAUSE: Duration = Duration::from_millis(100);
/// The same of lines in the log.
const LOG_PAUSE: Duration = Duration::from_secs(1);
/// A reading of the routes takes at most one part in so many of the time.
const READ_SHARE: u32 = 20;
/// After too many routes were found, they are not read again for so long.
const TOO_MANY_PAUSE: Duration = Duration::from_secs(300);

/// Whom a frame goes to on the interface.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Link {
    pub mac: Mac,
    /// Of the VLAN that he is in, outermost first.
    pub tags: Vec<Tag>,
}

/// How replies leave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReplyWay {
    /// Nothing is known: not by this interface, or nobody answers.
    Unknown,
    /// To the client itself.
    OnLink,
    /// By any of these routers.
    Via(Vec<Link>),
}

/// The kernel's entry for a client on link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientEntry {
    pub link: Link,
    /// The value of [`Replies::changes`] with which it became so; 0: from the beginning.
    pub changed: u32,
}

/// How replies from the VIPs reach clients.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Replies {
    /// Which of `fibs` counts for a VIP.
    pub fib_of: BTreeMap<IpAddr, usize>,
    /// The narrowest prefixes first; what is in none is unknown.
    pub fibs: Vec<Vec<(Prefix, ReplyWay)>>,
    pub entries: BTreeMap<IpAddr, ClientEntry>,
    /// The VLANs that the VIPs are in, which the interface or a device on it has.
    pub vip_tags: BTreeSet<Vec<Tag>>,
    /// Changes of entries so far.
    pub changes: u32,
}

/// A way by devices that are the interface or stacked on it.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Known {
    Unknown,
    OnLink,
    Via(Vec<(u32, IpAddr)>),
}

/// What the follower keeps of it.
pub struct Clients {
    vips: BTreeSet<IpAddr>,
    /// The interface, and the VLAN devices on it that routes name, with their tags.
    devices: BTreeMap<u32, Vec<Tag>>,
    fib_of: BTreeMap<IpAddr, usize>,
    fibs: Vec<Vec<(Prefix, Known)>>,
    entries: BTreeMap<IpAddr, ClientEntry>,
    vip_tags: BTreeSet<Vec<Tag>>,
    changes: u32,
    /// Until then, the routes are not read again.
    read_at: Instant,
    too_many: bool,
    told: Instant,
    /// The routers' MACs, as the log has them; `None`: silent.
    told_of: BTreeMap<(u32, IpAddr), Option<Mac>>,
    logged: Instant,
}

impl Clients {
    pub fn new(vips: BTreeSet<IpAddr>) -> Clients {
        let now = Instant::now();
        let long_ago = now.checked_sub(LOG_PAUSE).unwrap_or(now);
        Clients {
            vips,
            devices: BTreeMap::new(),
            fib_of: BTreeMap::new(),
            fibs: Vec::new(),
            entries: BTreeMap::new(),
            vip_tags: BTreeSet::new(),
            changes: 0,
            read_at: now,
            too_many: false,
            told: long_ago,
            told_of: BTreeMap::new(),
            logged: long_ago,
        }
    }

    /// Reads rules, routes, and the neighbours on link; the interfaces that have addresses
    /// are known. Returns when to read again, if this was too soon.
    pub async fn read(
        &mut self,
        here: &Interface,
        addresses: &[Held],
    ) -> io::Result<Option<Instant>> {
        let start = Instant::now();
        if start < self.read_at {
            return Ok(Some(self.read_at));
        }
        // A connection of its own: an answer that is too long ends with it.
        let netlink = Netlink::open()?;
        let (mut fib_of, mut fibs) = (BTreeMap::new(), Vec::new());
        let (mut devices, mut too_many) = (BTreeMap::new(), false);
        devices.insert(here.index, Some(Vec::new()));
        for is_ipv4 in [true, false] {
            let vips = self.vips.iter().copied();
            let vips = Vec::from_iter(vips.filter(|vip| vip.is_ipv4() == is_ipv4));
            if vips.is_empty() {
                continue;
            }
            let Some(routes) = netlink.routes(is_ipv4, ROUTES_MAX).await? else {
                too_many = true;
                continue;
            };
            for index in devices_of(&routes) {
                if let btree_map::Entry::Vacant(place) = devices.entry(index) {
                    place.insert(tags_of(&netlink, here, index).await?);
                }
            }
            let fib = Fib::new(netlink.rules(is_ipv4).await?, routes);
            let mut views = HashMap::new();
            for vip in vips {
                let index = *views.entry(fib.view(vip)).or_insert_with(|| {
                    fibs.push(fib.ways(vip, |way| known(way, &devices)));
                    fibs.len() - 1
                });
                fib_of.insert(vip, index);
            }
        }
        (self.fib_of, self.fibs) = (fib_of, fibs);
        self.devices = devices
            .into_iter()
            .filter_map(|(index, tags)| Some((index, tags?)))
            .collect();
        let vips = addresses.iter();
        let vips = vips.filter(|held| self.vips.contains(&held.address));
        let tags = vips.filter_map(|held| self.devices.get(&held.interface).cloned());
        self.vip_tags = tags.collect();
        self.read_entries(&netlink).await?;
        if too_many && !self.too_many {
            warn!(
                "the host has more than {ROUTES_MAX} routes: answers to clients go back to where \
                 their packets come from"
            );
        }
        self.too_many = too_many;
        let took = start.elapsed();
        self.read_at = Instant::now()
            + match too_many {
                true => TOO_MANY_PAUSE,
                false => took * READ_SHARE,
            };
        Ok(None)
    }

    async fn read_entries(&mut self, netlink: &Netlink) -> io::Result<()> {
        let mut entries = BTreeMap::new();
        for (device, tags) in &self.devices {
            let found = match netlink.neighbours(*device).await {
                Err(error) if super::gone(&error) => continue,
                found => found?,
            };
            for (address, entry) in found {
                if let Some(mac) = self.wants(address, entry) {
                    let tags = tags.clone();
                    let link = Link { mac, tags };
                    entries.insert(address, link);
                }
            }
        }
        let gone = |address: &IpAddr| !entries.contains_key(address);
        let gone: Vec<_> = self.entries.keys().copied().filter(gone).collect();
        for address in gone {
            self.entries.remove(&address);
        }
        // What is there from the beginning is no news.
        let is_news = self.changes > 0 || !self.entries.is_empty();
        for (address, link) in entries {
            self.put_entry(address, link, is_news);
        }
        Ok(())
    }

    fn wants(&self, address: IpAddr, entry: Entry) -> Option<Mac> {
        let mut vips = self.vips.iter();
        let served = vips.any(|vip| vip.is_ipv4() == address.is_ipv4());
        let mac = entry.mac.filter(|mac| super::is_of_one_host(*mac));
        mac.filter(|_| served)
    }

    fn put_entry(&mut self, address: IpAddr, link: Link, is_news: bool) -> bool {
        let known = self.entries.get(&address);
        if known.is_some_and(|known| known.link == link)
            || (known.is_none() && self.entries.len() >= NEIGHBOURS_MAX)
        {
            return false;
        }
        self.changes += u32::from(is_news);
        let changed = if is_news { self.changes } else { 0 };
        self.entries.insert(address, ClientEntry { link, changed });
        true
    }

    /// An entry of the kernel's table has changed; `None`: it has gone. True if that matters.
    pub fn learn(&mut self, device: u32, address: IpAddr, entry: Option<Entry>) -> bool {
        let Some(tags) = self.devices.get(&device) else {
            return false;
        };
        match entry.and_then(|entry| self.wants(address, entry)) {
            Some(mac) => {
                let tags = tags.clone();
                self.put_entry(address, Link { mac, tags }, true)
            }
            None => {
                let tags = tags.clone();
                let of_device = |known: &ClientEntry| known.link.tags == tags;
                self.entries.get(&address).is_some_and(of_device)
                    && self.entries.remove(&address).is_some()
            }
        }
    }

    /// The next hops that are to be asked for their MACs: the device's index, and the address.
    pub fn routers(&self) -> BTreeSet<(u32, IpAddr)> {
        let ways = self.fibs.iter().flatten();
        let routers = ways.filter_map(|(_, way)| match way {
            Known::Via(routers) => Some(routers.iter().copied()),
            _ => None,
        });
        let routers = routers.flatten().collect::<BTreeSet<_>>();
        routers.into_iter().take(crate::abi::NEXT_HOPS).collect()
    }

    /// When a change may be told at the earliest.
    pub fn may_tell_at(&self) -> Instant {
        self.told + TELL_PAUSE
    }

    /// What is to be published after the one that is: `None`: nothing.
    pub fn news(
        &mut self,
        hops: &BTreeMap<(u32, IpAddr), Hop>,
        published: &Replies,
    ) -> Option<Arc<Replies>> {
        let link = |(device, router): &(u32, IpAddr)| {
            let mac = hops.get(&(*device, *router)).and_then(Hop::mac)?;
            let tags = self.devices.get(device)?.clone();
            Some(Link { mac, tags })
        };
        let reply = |way: &Known| match way {
            Known::Unknown => ReplyWay::Unknown,
            Known::OnLink => ReplyWay::OnLink,
            Known::Via(routers) => {
                let links: BTreeSet<_> = routers.iter().filter_map(link).collect();
                match links.is_empty() {
                    true => ReplyWay::Unknown,
                    false => ReplyWay::Via(links.into_iter().collect()),
                }
            }
        };
        let fibs = self.fibs.iter().map(|fib| {
            let ways = fib.iter();
            ways.map(|(prefix, way)| (*prefix, reply(way))).collect()
        });
        let replies = Replies {
            fib_of: self.fib_of.clone(),
            fibs: fibs.collect(),
            entries: self.entries.clone(),
            vip_tags: self.vip_tags.clone(),
            changes: self.changes,
        };
        if replies == *published {
            return None;
        }
        self.told = Instant::now();
        Some(Arc::new(replies))
    }

    /// Tells what has become of routers.
    pub fn log(&mut self, hops: &BTreeMap<(u32, IpAddr), Hop>) {
        if self.logged.elapsed() < LOG_PAUSE {
            return;
        }
        let mut states = BTreeMap::new();
        for key in self.routers() {
            let hop = hops.get(&key);
            let before = self.told_of.get(&key).copied();
            let state = match hop.and_then(Hop::mac) {
                Some(mac) => Some(Some(mac)),
                None if hop.is_some_and(Hop::silent) => Some(None),
                None => before,
            };
            if state != before {
                self.logged = Instant::now();
                match state.flatten() {
                    Some(mac) => info!(
                        "answers to clients behind {} go to {}",
                        key.1,
                        DisplayMac(mac)
                    ),
                    None => warn!(
                        "the router {} does not answer: what would go by it goes back to where \
                         it comes from",
                        key.1
                    ),
                }
            }
            states.extend(state.map(|state| (key, state)));
        }
        self.told_of = states;
    }
}

/// The devices that routes name.
fn devices_of(routes: &[Route]) -> BTreeSet<u32> {
    let mut devices = BTreeSet::new();
    for route in routes {
        match &route.way {
            Some(Way::OnLink(device)) => drop(devices.insert(*device)),
            Some(Way::Via(routers)) => devices.extend(routers.iter().map(|(device, _)| *device)),
            Some(Way::Unknown) | None => {}
        }
    }
    devices
}

/// The tags of what a device sends by way of the interface; `None`: it does not.
async fn tags_of(netlink: &Netlink, here: &Interface, index: u32) -> io::Result<Option<Vec<Tag>>> {
    let device = match netlink.interface(index).await {
        Err(error) if super::gone(&error) => return Ok(None),
        device => device?,
    };
    if device.mac != here.mac {
        return Ok(None);
    }
    path::tags(netlink, &device, here.index).await
}

fn known(way: &Way, devices: &BTreeMap<u32, Option<Vec<Tag>>>) -> Known {
    let ours = |device: &u32| devices.get(device).is_some_and(Option::is_some);
    match way {
        Way::OnLink(device) if ours(device) => Known::OnLink,
        Way::Via(routers) => {
            let routers = routers.iter().filter(|(device, _)| ours(device));
            let routers = Vec::from_iter(routers.copied());
            match routers.is_empty() {
                true => Known::Unknown,
                false => Known::Via(routers),
            }
        }
        _ => Known::Unknown,
    }
}
