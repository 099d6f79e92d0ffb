// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! What the kernel's rules and routes make of packets from one address, for every
//! destination at once. Pure.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteNextHopFlags, RoutePreference,
    RouteType, RouteVia,
};
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage};

/// Addresses that begin alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Prefix {
    /// How many bits count; first, so that a wider one comes before a narrower one.
    bits: u8,
    /// IPv4 in the upper 32 bits.
    first: u128,
    is_ipv4: bool,
}

impl Prefix {
    /// Bits of the address behind the first so many don't count.
    pub fn new(address: IpAddr, bits: u8) -> Prefix {
        let (first, most) = match address {
            IpAddr::V4(v4) => (u128::from(u32::from(v4)) << 96, 32),
            IpAddr::V6(v6) => (v6.into(), 128),
        };
        Prefix {
            bits: bits.min(most),
            first,
            is_ipv4: address.is_ipv4(),
        }
        .cut(bits.min(most))
    }

    /// Everything of a family.
    pub fn all(is_ipv4: bool) -> Prefix {
        Prefix {
            bits: 0,
            first: 0,
            is_ipv4,
        }
    }

    fn cut(self, bits: u8) -> Prefix {
        Prefix {
            bits,
            first: self.first & mask(bits),
            ..self
        }
    }

    pub fn contains(&self, other: &Prefix) -> bool {
        self.is_ipv4 == other.is_ipv4
            && self.bits <= other.bits
            && self.first == other.first & mask(self.bits)
    }

    /// From itself to everything, of these lengths.
    fn wider(self, lengths: &BTreeSet<u8>) -> impl Iterator<Item = Prefix> {
        let lengths = lengths.range(..=self.bits).rev();
        lengths.map(move |bits| self.cut(*bits))
    }

    pub fn bits(&self) -> u8 {
        self.bits
    }

    pub fn address(&self) -> IpAddr {
        self.ip(self.first)
    }

    /// Ones where bits count.
    pub fn mask(&self) -> IpAddr {
        self.ip(mask(self.bits))
    }

    fn ip(&self, bits: u128) -> IpAddr {
        match self.is_ipv4 {
            true => Ipv4Addr::from((bits >> 96) as u32).into(),
            false => Ipv6Addr::from(bits).into(),
        }
    }
}

fn mask(bits: u8) -> u128 {
    u128::MAX.checked_shl(128 - u32::from(bits)).unwrap_or(0)
}

/// How packets leave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Way {
    /// Not at all, or nothing that is known here says how.
    Unknown,
    /// The destination is in the network of the device of this index.
    OnLink(u32),
    /// By one of these: the device's index, and the router.
    Via(Vec<(u32, IpAddr)>),
}

/// A route of the kernel's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    pub table: u32,
    pub prefix: Prefix,
    /// The lowest counts: metric, and the preference that an IPv6 router advertised.
    pub rank: (u32, u8),
    /// `None`: the next rule is asked.
    pub way: Option<Way>,
}

impl Route {
    /// `None`: it is for no packet that goes to another host, or never used.
    pub fn of(message: &RouteMessage) -> Option<Route> {
        let header = &message.header;
        let skipped = RouteFlags::Dead | RouteFlags::Cloned;
        if header.tos != 0 || header.flags.intersects(skipped) || header.source_prefix_length != 0 {
            return None;
        }
        let way = match header.kind {
            RouteType::Unicast => None,
            RouteType::BlackHole | RouteType::Unreachable | RouteType::Prohibit => {
                Some(Some(Way::Unknown))
            }
            RouteType::Throw => Some(None),
            _ => return None,
        };
        let is_ipv4 = header.address_family == rtnetlink::packet_route::AddressFamily::Inet;
        let mut route = Route {
            table: header.table.into(),
            prefix: Prefix::all(is_ipv4),
            rank: (0, 0),
            way: None,
        };
        let mut hops = Vec::new();
        let mut own = (0, None);
        let mut changed = false;
        for attribute in &message.attributes {
            match attribute {
                RouteAttribute::Table(table) => route.table = *table,
                RouteAttribute::Priority(metric) => route.rank.0 = *metric,
                RouteAttribute::Preference(preference) => {
                    route.rank.1 = match preference {
                        RoutePreference::High => 0,
                        RoutePreference::Low => 2,
                        _ => 1,
                    };
                }
                RouteAttribute::Destination(address) => {
                    route.prefix = Prefix::new(ip(address)?, header.destination_prefix_length);
                }
                RouteAttribute::Oif(index) => own.0 = *index,
                RouteAttribute::Gateway(address) => own.1 = ip(address),
                RouteAttribute::Via(via) => own.1 = via_ip(via),
                RouteAttribute::EncapType(_) | RouteAttribute::Encap(_) => changed = true,
                RouteAttribute::MultiPath(all) => {
                    for hop in all {
                        if hop.flags.contains(RouteNextHopFlags::Dead) {
                            continue;
                        }
                        let mut gateway = None;
                        for attribute in &hop.attributes {
                            match attribute {
                                RouteAttribute::Gateway(address) => gateway = ip(address),
                                RouteAttribute::Via(via) => gateway = via_ip(via),
                                RouteAttribute::EncapType(_) | RouteAttribute::Encap(_) => {
                                    changed = true;
                                }
                                _ => {}
                            }
                        }
                        hops.push((hop.interface_index, gateway));
                    }
                }
                _ => {}
            }
        }
        if hops.is_empty() {
            hops.push(own);
        }
        route.way = way.unwrap_or_else(|| {
            let on_link = hops.iter().find(|(_, gateway)| gateway.is_none());
            Some(match on_link {
                _ if changed => Way::Unknown,
                Some((device, _)) => Way::OnLink(*device),
                None => {
                    let routers = hops.iter();
                    Way::Via(
                        routers
                            .filter_map(|(device, router)| Some((*device, (*router)?)))
                            .collect(),
                    )
                }
            })
        });
        Some(route)
    }
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some((*address).into()),
        RouteAddress::Inet6(address) => Some((*address).into()),
        _ => None,
    }
}

fn via_ip(via: &RouteVia) -> Option<IpAddr> {
    match via {
        RouteVia::Inet(address) => Some((*address).into()),
        RouteVia::Inet6(address) => Some((*address).into()),
        _ => None,
    }
}

/// What a rule has done where it matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Asks a table; what it finds with so few bits does not count.
    Table(u32, Option<u8>),
    /// Goes on at the rule of this priority.
    Goto(u32),
    Next,
    /// Nothing goes there; or it hangs on what is not known here.
    Unknown,
}

/// A rule of the kernel's, as for packets that this host sends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    pub is_ipv4: bool,
    pub priority: u32,
    pub from: Prefix,
    pub to: Prefix,
    /// It matches what it otherwise would not.
    pub inverted: bool,
    /// It never matches, were it not inverted.
    pub foreign: bool,
    pub action: Action,
}

impl Rule {
    pub fn of(message: &RuleMessage) -> Option<Rule> {
        use rtnetlink::packet_route::AddressFamily;
        let header = &message.header;
        let is_ipv4 = match header.family {
            AddressFamily::Inet => true,
            AddressFamily::Inet6 => false,
            _ => return None,
        };
        let mut rule = Rule {
            is_ipv4,
            priority: 0,
            from: Prefix::all(is_ipv4),
            to: Prefix::all(is_ipv4),
            inverted: header.flags.contains(RuleFlags::Invert),
            foreign: header.tos != 0,
            action: Action::Next,
        };
        let (mut table, mut least, mut target) = (header.table.into(), None, None);
        let (mut mark, mut mark_bits) = (0, None);
        let mut uncertain = false;
        for attribute in &message.attributes {
            match attribute {
                RuleAttribute::Priority(priority) => rule.priority = *priority,
                RuleAttribute::Source(address) => rule.from = Prefix::new(*address, header.src_len),
                RuleAttribute::Destination(address) => {
                    rule.to = Prefix::new(*address, header.dst_len);
                }
                RuleAttribute::Table(number) => table = *number,
                RuleAttribute::SuppressPrefixLen(bits) => least = u8::try_from(*bits).ok(),
                RuleAttribute::SuppressIfGroup(group) => uncertain |= *group != u32::MAX,
                RuleAttribute::Goto(priority) => target = Some(*priority),
                RuleAttribute::FwMark(value) => mark = *value,
                RuleAttribute::FwMask(bits) => mark_bits = Some(*bits),
                // What the host sends comes from the loopback, and no socket is bound.
                RuleAttribute::Iifname(name) => rule.foreign |= name != "lo",
                RuleAttribute::Oifname(_) => rule.foreign = true,
                RuleAttribute::L3MDev(true) => rule.foreign = true,
                RuleAttribute::TunId(id) => rule.foreign |= *id != 0,
                RuleAttribute::UidRange(_)
                | RuleAttribute::IpProtocol(_)
                | RuleAttribute::SourcePortRange(_)
                | RuleAttribute::DestinationPortRange(_) => uncertain = true,
                _ => {}
            }
        }
        rule.foreign |= mark & mark_bits.unwrap_or(u32::MAX) != 0;
        rule.action = match header.action {
            _ if uncertain => Action::Unknown,
            RuleAction::ToTable => Action::Table(table, least),
            RuleAction::Goto => target.map_or(Action::Next, Action::Goto),
            RuleAction::Nop => Action::Next,
            _ => Action::Unknown,
        };
        Some(rule)
    }

    fn matches(&self, from: &Prefix, to: &Prefix) -> bool {
        (!self.foreign && self.from.contains(from) && self.to.contains(to)) != self.inverted
    }
}

/// One routing table.
#[derive(Default)]
struct Table {
    routes: HashMap<Prefix, ((u32, u8), Option<Way>)>,
    /// Of the prefixes.
    lengths: BTreeSet<u8>,
}

/// The rules and routes of one family.
pub struct Fib {
    /// By priority.
    rules: Vec<Rule>,
    tables: BTreeMap<u32, Table>,
}

impl Fib {
    pub fn new(rules: impl IntoIterator<Item = Rule>, routes: Vec<Route>) -> Fib {
        let mut rules = Vec::from_iter(rules);
        // Rules of one priority stay in the kernel's order.
        rules.sort_by_key(|rule| rule.priority);
        let mut tables: BTreeMap<u32, Table> = BTreeMap::new();
        for Route {
            table,
            prefix,
            rank,
            way,
        } in routes
        {
            let table = tables.entry(table).or_default();
            match table.routes.get_mut(&prefix) {
                Some((known, _)) if *known < rank => {}
                // IPv6's default routes of several routers are routes of their own.
                Some((known, Some(Way::Via(routers)))) if *known == rank => {
                    if let Some(Way::Via(more)) = way {
                        routers.extend(more);
                    }
                }
                Some((known, _)) if *known == rank => {}
                _ => {
                    table.routes.insert(prefix, (rank, way));
                    table.lengths.insert(prefix.bits);
                }
            }
        }
        Fib { rules, tables }
    }

    /// Which of the rules may match packets from an address: where two addresses have the
    /// same, the routes are the same.
    pub fn view(&self, from: IpAddr) -> Vec<bool> {
        let from = Prefix::new(from, 128);
        let rules = self.rules.iter();
        rules
            .map(|rule| rule.inverted || rule.matches(&from, &rule.to))
            .collect()
    }

    /// Where packets from an address go, the narrowest prefixes first: what none of them
    /// contains is unknown. `known` tells of a way what it comes to.
    pub fn ways<W: PartialEq + Clone>(
        &self,
        from: IpAddr,
        known: impl Fn(&Way) -> W,
    ) -> Vec<(Prefix, W)> {
        let is_ipv4 = from.is_ipv4();
        let from = Prefix::new(from, 128);
        let mut prefixes = BTreeSet::from([Prefix::all(is_ipv4)]);
        for rule in &self.rules {
            if let Action::Table(table, _) = rule.action
                && let Some(table) = self.tables.get(&table)
            {
                prefixes.extend(table.routes.keys());
            }
            prefixes.insert(rule.to);
        }
        // From wide to narrow: one that says the same as the next wider one says nothing.
        let unknown = known(&Way::Unknown);
        let lengths = prefixes.iter().map(|prefix| prefix.bits).collect();
        let mut ways: BTreeMap<Prefix, W> = BTreeMap::new();
        for prefix in prefixes {
            let way = self.way(&from, &prefix).map_or(unknown.clone(), &known);
            let before = prefix.wider(&lengths).find_map(|wider| ways.get(&wider));
            if *before.unwrap_or(&unknown) != way {
                ways.insert(prefix, way);
            }
        }
        ways.into_iter().rev().collect()
    }

    /// The way to every address of a prefix that is in no narrower one of any table or rule.
    fn way(&self, from: &Prefix, to: &Prefix) -> Option<&Way> {
        let mut place = 0;
        while let Some(rule) = self.rules.get(place) {
            place += 1;
            if !rule.matches(from, to) {
                continue;
            }
            match rule.action {
                Action::Next => {}
                Action::Unknown => return None,
                // The kernel takes only targets that come later.
                Action::Goto(target) => {
                    let later = self.rules.iter().position(|rule| rule.priority >= target);
                    place = later.unwrap_or(self.rules.len()).max(place);
                }
                Action::Table(table, least) => {
                    let Some(table) = self.tables.get(&table) else {
                        continue;
                    };
                    let mut wider = to.wider(&table.lengths);
                    let found =
                        wider.find_map(|wider| Some((wider.bits, table.routes.get(&wider)?)));
                    match found {
                        Some((bits, (_, Some(way)))) if least.is_none_or(|least| bits > least) => {
                            return Some(way);
                        }
                        _ => {}
                    }
                }
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VIP: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 5));
    const OTHER: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 6));
    const R1: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
    const R2: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);

    fn prefix(text: &str) -> Prefix {
        let (address, bits) = text.split_once('/').unwrap();
        Prefix::new(address.parse().unwrap(), bits.parse().unwrap())
    }

    fn via(router: Ipv4Addr) -> Way {
        Way::Via(vec![(2, router.into())])
    }

    fn route(table: u32, to: &str, metric: u32, way: Option<Way>) -> Route {
        Route {
            table,
            prefix: prefix(to),
            rank: (metric, 0),
            way,
        }
    }

    fn rule(priority: u32, action: Action) -> Rule {
        Rule {
            is_ipv4: true,
            priority,
            from: Prefix::all(true),
            to: Prefix::all(true),
            inverted: false,
            foreign: false,
            action,
        }
    }

    fn main_table() -> Vec<Route> {
        vec![
            route(254, "10.0.0.0/24", 0, Some(Way::OnLink(2))),
            route(254, "0.0.0.0/0", 0, Some(via(R1))),
        ]
    }

    fn ways(fib: &Fib, from: IpAddr) -> Vec<(Prefix, Way)> {
        fib.ways(from, Way::clone)
    }

    #[test]
    fn a_usual_host_has_two_ways_the_narrow_one_first() {
        let fib = Fib::new(vec![rule(32766, Action::Table(254, None))], main_table());
        assert_eq!(
            ways(&fib, VIP),
            [
                (prefix("10.0.0.0/24"), Way::OnLink(2)),
                (prefix("0.0.0.0/0"), via(R1))
            ]
        );
    }

    #[test]
    fn a_rule_by_source_counts_for_that_source_alone() {
        let mut by_source = rule(100, Action::Table(7, None));
        by_source.from = prefix("10.0.0.6/32");
        let mut routes = main_table();
        routes.push(route(7, "0.0.0.0/0", 0, Some(via(R2))));
        let fib = Fib::new(
            vec![rule(32766, Action::Table(254, None)), by_source],
            routes,
        );
        assert_ne!(fib.view(VIP), fib.view(OTHER));
        assert_eq!(ways(&fib, VIP)[1].1, via(R1));
        assert_eq!(ways(&fib, OTHER), [(prefix("0.0.0.0/0"), via(R2))]);
    }

    #[test]
    fn what_a_rule_suppresses_or_a_table_throws_back_is_asked_of_the_next() {
        let routes = vec![
            route(254, "0.0.0.0/0", 0, Some(via(R1))),
            route(254, "10.9.0.0/16", 0, Some(via(R1))),
            route(7, "0.0.0.0/0", 0, Some(via(R2))),
            route(7, "10.8.0.0/16", 0, None),
            route(8, "10.8.0.0/16", 0, Some(Way::OnLink(3))),
        ];
        let fib = Fib::new(
            vec![
                rule(1, Action::Table(254, Some(0))),
                rule(2, Action::Table(7, None)),
                rule(3, Action::Table(8, None)),
            ],
            routes,
        );
        assert_eq!(
            ways(&fib, VIP),
            [
                (prefix("10.9.0.0/16"), via(R1)),
                (prefix("10.8.0.0/16"), Way::OnLink(3)),
                (prefix("0.0.0.0/0"), via(R2)),
            ]
        );
    }

    #[test]
    fn the_lowest_metric_wins_and_equal_routers_share() {
        let mut routes = main_table();
        routes.push(route(254, "0.0.0.0/0", 5, Some(via(R2))));
        let main = || vec![rule(1, Action::Table(254, None))];
        assert_eq!(ways(&Fib::new(main(), routes), VIP)[1].1, via(R1));
        let mut routes = main_table();
        routes.push(route(254, "0.0.0.0/0", 0, Some(via(R2))));
        let both = Way::Via(vec![(2, R1.into()), (2, R2.into())]);
        assert_eq!(ways(&Fib::new(main(), routes), VIP)[1].1, both);
    }

    #[test]
    fn rules_go_on_elsewhere_are_inverted_or_hang_on_what_is_not_known() {
        let routes = || {
            let mut routes = main_table();
            routes.push(route(7, "0.0.0.0/0", 0, Some(via(R2))));
            routes
        };
        let main = || rule(50, Action::Table(254, None));
        let skips = Fib::new(
            vec![
                rule(1, Action::Goto(50)),
                rule(2, Action::Table(7, None)),
                main(),
            ],
            routes(),
        );
        assert_eq!(ways(&skips, VIP)[1].1, via(R1));

        let mut not_to = rule(1, Action::Table(7, None));
        (not_to.to, not_to.inverted) = (prefix("10.0.0.0/8"), true);
        let inverted = Fib::new(vec![not_to, main()], routes());
        assert_eq!(
            ways(&inverted, VIP),
            [
                (prefix("10.0.0.0/24"), Way::OnLink(2)),
                (prefix("10.0.0.0/8"), via(R1)),
                (prefix("0.0.0.0/0"), via(R2)),
            ]
        );

        let mut foreign = rule(1, Action::Table(7, None));
        foreign.foreign = true;
        let fib = Fib::new(vec![foreign, main()], routes());
        assert_eq!(ways(&fib, VIP)[1].1, via(R1));

        let mut by_port = rule(1, Action::Unknown);
        by_port.to = prefix("10.3.0.0/16");
        let fib = Fib::new(vec![by_port, main()], routes());
        assert_eq!(ways(&fib, VIP)[1], (prefix("10.3.0.0/16"), Way::Unknown));
    }

    #[test]
    fn a_prefix_that_says_nothing_new_is_left_out() {
        let mut routes = main_table();
        routes.push(route(254, "10.7.0.0/16", 0, Some(via(R1))));
        routes.push(route(254, "10.7.7.0/24", 0, Some(Way::Unknown)));
        let fib = Fib::new(vec![rule(1, Action::Table(254, None))], routes);
        let prefixes: Vec<_> = ways(&fib, VIP)
            .into_iter()
            .map(|(prefix, _)| prefix)
            .collect();
        let expected = ["10.7.7.0/24", "10.0.0.0/24", "0.0.0.0/0"].map(prefix);
        assert_eq!(prefixes, expected);
    }

    #[test]
    fn prefixes_of_both_families_are_cut_to_their_bits() {
        let narrow = prefix("fd00:1:2:3::4/128");
        assert!(prefix("fd00:1::/32").contains(&narrow));
        assert!(!prefix("fd00:2::/32").contains(&narrow));
        assert_eq!(prefix("10.1.2.3/8"), prefix("10.0.0.0/8"));
        assert_eq!(
            prefix("10.1.2.3/20").mask(),
            IpAddr::from([255, 255, 240, 0])
        );
        assert_eq!(prefix("0.0.0.0/0").mask(), IpAddr::from([0, 0, 0, 0]));
        assert!(!Prefix::all(false).contains(&prefix("10.0.0.0/8")));
    }
}
