// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! The routes to clients, as the program reads them.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use crate::abi;
use crate::neighbour::{Link, Prefix, Replies, ReplyWay};

/// What the maps say of the way from VIPs to clients.
#[derive(Clone, Debug, Default)]
pub struct Routes {
    /// The longest prefixes first; empty if there are more than fit.
    pub list: Vec<abi::route>,
    /// All of them, in that case.
    pub trie: BTreeMap<abi::RouteKey, u32>,
    pub next_hops: Vec<abi::next_hop>,
    /// By the VIP's index: which of the results of rules and routes counts for it.
    pub fib_of_vip: Vec<u32>,
    pub neighbours: BTreeMap<abi::NeighbourKey, abi::neighbour>,
    /// The highest number that a change of these has.
    pub changes: u32,
    /// Some of it had no room, and is unknown.
    pub is_cut: bool,
}

impl Routes {
    /// For the VIPs by their indexes. `takes` tells of a link whether frames to it get there.
    pub fn new(replies: &Replies, vips: &[IpAddr], takes: impl Fn(&Link) -> bool) -> Routes {
        let mut routes = Routes {
            changes: replies.changes,
            ..Routes::default()
        };
        let fib_of = |vip| replies.fib_of.get(vip).copied();
        // Behind all others is one without routes.
        let nowhere = replies.fibs.len();
        let fibs = vips.iter().map(|vip| fib_of(vip).unwrap_or(nowhere) as u32);
        routes.fib_of_vip = fibs.collect();

        let mut runs = HashMap::new();
        let mut ways = Vec::new();
        for (prefix, fib, way) in replies.fibs.iter().zip(0..).flat_map(|(fib, index)| {
            let all = fib.iter();
            all.map(move |(prefix, way)| (prefix, index, way))
        }) {
            let way = routes.way(way, &takes, &mut runs);
            ways.push((prefix, fib, way));
        }
        if ways.len() <= abi::ROUTES {
            let entries = ways.iter();
            let entry = |(prefix, fib, way): &(&Prefix, u16, u32)| {
                abi::route_entry(prefix.address(), prefix.mask(), *fib, *way)
            };
            routes.list = entries.map(entry).collect();
        } else if ways.len() <= abi::ROUTES_MAX {
            let entries = ways.into_iter().map(|(prefix, fib, way)| {
                let key = abi::route_key(prefix.address(), prefix.bits(), fib);
                (key, way)
            });
            routes.trie = entries.collect();
        } else {
            routes.is_cut = true;
        }
        let entries = replies.entries.iter();
        routes.neighbours = entries
            .filter(|(_, entry)| takes(&entry.link))
            .map(|(address, entry)| {
                let neighbour = abi::neighbour {
                    mac: entry.link.mac,
                    vlan: vlan(&entry.link),
                    pad: 0,
                    changed: entry.changed,
                };
                (abi::neighbour_key(*address), neighbour)
            })
            .collect();
        routes
    }

    /// The program's word for a way, whose next hops get a place in a row.
    fn way(
        &mut self,
        way: &ReplyWay,
        takes: impl Fn(&Link) -> bool,
        runs: &mut HashMap<Vec<Link>, u32>,
    ) -> u32 {
        let links = match way {
            ReplyWay::Unknown => return abi::WAY_UNKNOWN,
            ReplyWay::OnLink => return abi::WAY_ON_LINK,
            ReplyWay::Via(links) => links.iter().filter(|link| takes(link)),
        };
        let links: Vec<Link> = links.take(abi::HOPS_OF_ROUTE).cloned().collect();
        if let Some(known) = runs.get(&links) {
            return *known;
        }
        let fits = self.next_hops.len() + links.len() <= abi::NEXT_HOPS;
        self.is_cut |= !fits;
        if links.is_empty() || !fits {
            return abi::WAY_UNKNOWN;
        }
        let word = abi::way_by(self.next_hops.len(), links.len());
        let hops = links.iter().map(|link| abi::next_hop {
            mac: link.mac,
            vlan: vlan(link),
        });
        self.next_hops.extend(hops);
        runs.insert(links, word);
        word
    }

    /// VIPs differ in their routes.
    pub fn has_several_fibs(&self) -> bool {
        let first = self.fib_of_vip.first().copied().unwrap_or_default();
        first != 0 || self.fib_of_vip.iter().any(|fib| *fib != first)
    }
}

fn vlan(link: &Link) -> [u16; abi::VLAN_TAGS] {
    let mut vlan = [0; abi::VLAN_TAGS];
    for (place, tag) in vlan.iter_mut().zip(&link.tags) {
        *place = abi::packed_vlan(tag.protocol, tag.id);
    }
    vlan
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vip(last: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, last])
    }

    fn link(last: u8) -> Link {
        Link {
            mac: [2, 0, 0, 0, 0, last],
            tags: Vec::new(),
        }
    }

    fn replies(fibs: Vec<Vec<(Prefix, ReplyWay)>>) -> Replies {
        Replies {
            fib_of: (0..fibs.len()).map(|fib| (vip(fib as u8), fib)).collect(),
            fibs,
            ..Replies::default()
        }
    }

    fn usual() -> Vec<(Prefix, ReplyWay)> {
        vec![
            (Prefix::new(vip(0), 24), ReplyWay::OnLink),
            (Prefix::new(vip(0), 0), ReplyWay::Via(vec![link(1)])),
        ]
    }

    #[test]
    fn few_routes_are_a_list_and_many_a_trie() {
        let few = Routes::new(&replies(vec![usual()]), &[vip(0)], |_| true);
        let words: Vec<_> = few.list.iter().map(|route| route.way).collect();
        assert_eq!(words, [abi::WAY_ON_LINK, abi::way_by(0, 1)]);
        assert!(few.trie.is_empty() && !few.has_several_fibs() && !few.is_cut);

        let mut many = usual();
        many.extend((0..20).map(|net| {
            let prefix = Prefix::new(IpAddr::from([172, 16, net, 0]), 24);
            (prefix, ReplyWay::Via(vec![link(net % 2)]))
        }));
        let many = Routes::new(&replies(vec![many]), &[vip(0)], |_| true);
        assert!(many.list.is_empty() && many.trie.len() == 22);
        assert_eq!(many.next_hops.len(), 2, "each run of next hops stands once");
    }

    #[test]
    fn vips_with_other_routes_are_told_apart_and_unknown_ones_have_none() {
        let two = replies(vec![usual(), usual()]);
        let routes = Routes::new(&two, &[vip(1), vip(9), vip(0)], |_| true);
        assert_eq!(routes.fib_of_vip, [1, 2, 0]);
        assert!(routes.has_several_fibs());
        assert!(Routes::new(&two, &[vip(1)], |_| true).has_several_fibs());
        assert!(!Routes::new(&two, &[vip(0)], |_| true).has_several_fibs());
    }

    #[test]
    fn next_hops_out_of_reach_or_without_room_are_unknown() {
        let routes = Routes::new(&replies(vec![usual()]), &[vip(0)], |_| false);
        assert_eq!(routes.list[1].way, abi::WAY_UNKNOWN);
        assert!(!routes.is_cut);

        let all = (0..300u16).map(|net| {
            let [high, low] = net.to_be_bytes();
            let prefix = Prefix::new(IpAddr::from([172, high, low, 0]), 24);
            let mut link = link(low);
            link.mac[4] = high;
            (prefix, ReplyWay::Via(vec![link]))
        });
        let routes = Routes::new(&replies(vec![all.collect()]), &[vip(0)], |_| true);
        assert!(routes.is_cut && routes.next_hops.len() == abi::NEXT_HOPS);
        let unknown = routes.trie.values().filter(|way| **way == abi::WAY_UNKNOWN);
        assert_eq!(unknown.count(), 300 - abi::NEXT_HOPS);
    }
}
