// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! One next hop: what the kernel's neighbour table and the hop's own answers
//! say about its MAC, and when to ask again. Pure: the caller brings
//! the time, the news, and sends what [`Hop::ask`] wants sent.

use std::net::IpAddr;
use std::time::Duration;

use tokio::time::Instant;

use super::Mac;

/// From an answer to the next question. With [`WAIT`] it bounds how long a
/// changed MAC goes unnoticed.
pub const INTERVAL: Duration = Duration::from_millis(400);
/// From a question to the next one while the answer is missing.
const WAIT: Duration = Duration::from_millis(100);
/// Questions [`WAIT`] apart, before [`INTERVAL`] is kept again.
const HURRIED: u32 = 3;
/// A hop never heard of that is silent for so long is nobody.
const NEVER: Duration = Duration::from_secs(1);
/// A hop with a MAC that is silent for so long is gone.
const GONE: Duration = Duration::from_secs(3);
/// Between questions to a hop that is gone, and to the kernel where it asks for us.
const SLOW: Duration = Duration::from_secs(1);
/// Between attempts to make an entry in the kernel's table, which may be full.
const CREATE: Duration = Duration::from_secs(5);

/// An entry of the kernel's neighbour table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    /// `None` while the kernel is asking or has given up.
    pub mac: Option<Mac>,
    /// Set by the user or by a routing daemon; not ours to doubt.
    pub fixed: bool,
    /// The kernel asked and nobody answered.
    pub failed: bool,
}

/// What to send now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    Nobody,
    /// Make the kernel create its entry and resolve it.
    Create,
    /// Make the kernel resolve the entry it has again.
    Refresh,
    /// Ask the hop itself, from this address, at this MAC; `None`: everyone.
    Hop(IpAddr, Option<Mac>),
}

#[derive(Debug)]
pub struct Hop {
    /// The address that questions come from; `None`: the kernel has to ask.
    asker: Option<IpAddr>,
    kernel: Option<Entry>,
    /// The freshest of what the kernel and the hop itself said.
    mac: Option<Mac>,
    silent: bool,
    /// When the hop last answered; at first, when it is first asked.
    heard: Instant,
    /// Questions since the last answer.
    unanswered: u32,
    created: Option<Instant>,
    /// The kernel had no room for an entry when it last was to make one.
    refused: bool,
    due: Instant,
}

impl Hop {
    /// A hop to be asked for the first time at `due`.
    pub fn new(asker: Option<IpAddr>, due: Instant) -> Hop {
        Hop {
            asker,
            kernel: None,
            mac: None,
            silent: false,
            heard: due,
            unanswered: 0,
            created: None,
            refused: false,
            due,
        }
    }

    pub fn mac(&self) -> Option<Mac> {
        self.mac
    }

    /// Nobody answered for too long.
    pub fn silent(&self) -> bool {
        self.silent
    }

    /// Asked, and still to be waited for.
    pub fn undecided(&self) -> bool {
        self.mac.is_none() && !self.silent && !self.fixed()
    }

    /// Its entry is not ours to doubt.
    pub fn fixed(&self) -> bool {
        self.kernel.is_some_and(|entry| entry.fixed)
    }

    /// The kernel's table has no room for it: what this host itself sends there is lost.
    pub fn starved(&self) -> bool {
        self.refused && !self.silent
    }

    /// The kernel had no room for the entry that [`Ask::Create`] wanted. True if that is new.
    pub fn refuse(&mut self) -> bool {
        !std::mem::replace(&mut self.refused, true)
    }

    pub fn due(&self) -> Instant {
        self.due
    }

    pub fn set_asker(&mut self, asker: Option<IpAddr>) {
        self.asker = asker;
    }

    /// To be asked at `due` at the latest: the link has come up.
    pub fn hurry(&mut self, due: Instant) {
        self.due = self.due.min(due);
    }

    /// What the kernel's table says now; `None`: it has no entry. Only a MAC
    /// that differs from the table's last one is news: the kernel may hold on
    /// to an old MAC (for a second after each change of an entry, `locktime`)
    /// while the hop has told us the new one. True if what is published of it changed.
    pub fn learn(&mut self, entry: Option<Entry>, now: Instant) -> bool {
        let before = (self.mac, self.silent, self.starved());
        let was = std::mem::replace(&mut self.kernel, entry);
        self.refused &= entry.is_none();
        if was.is_some() && entry.is_none() {
            // It is made again at once: without it, this host can't send there.
            (self.created, self.due) = (None, now);
        }
        let was_fixed = was.is_some_and(|entry| entry.fixed);
        match entry {
            Some(entry) if entry.fixed => (self.mac, self.silent) = (entry.mac, false),
            Some(entry) => {
                let news =
                    entry.mac.is_some() && (was_fixed || entry.mac != was.and_then(|was| was.mac));
                if news {
                    (self.mac, self.silent) = (entry.mac, false);
                    (self.heard, self.unanswered) = (now, 0);
                } else if was_fixed {
                    *self = Hop {
                        kernel: self.kernel,
                        ..Hop::new(self.asker, now)
                    };
                } else if self.asker.is_none() && entry.mac.is_none() {
                    (self.mac, self.silent) = (None, self.silent || entry.failed);
                }
            }
            None if was_fixed => *self = Hop::new(self.asker, now),
            // The kernel's entry took with it what the kernel knew, also of a silence.
            None if self.asker.is_none() => (self.mac, self.silent) = (None, false),
            None => {}
        }
        before != (self.mac, self.silent, self.starved())
    }

    /// The hop answered with `mac`; `None`: at the one that was asked. Without
    /// `overrides` it does not count against another that is known. True if the
    /// MAC or the silence changed.
    pub fn answered(&mut self, mac: Option<Mac>, overrides: bool, now: Instant) -> bool {
        let mac = mac.or(self.mac);
        let contradicts = self.mac.is_some() && mac != self.mac;
        if self.fixed() || mac.is_none() || (contradicts && !overrides) {
            return false;
        }
        let before = (self.mac, self.silent);
        (self.mac, self.silent) = (mac, false);
        (self.heard, self.unanswered) = (now, 0);
        self.due = now + INTERVAL;
        before != (self.mac, self.silent)
    }

    /// Gives the hop up if it has been silent for too long. True if it has just been.
    pub fn expire(&mut self, now: Instant) -> bool {
        let patience = if self.mac.is_some() { GONE } else { NEVER };
        let expired = self.asker.is_some()
            && !self.fixed()
            && !self.silent
            && self.unanswered > 0
            && now.saturating_duration_since(self.heard) >= patience;
        if expired {
            (self.mac, self.silent) = (None, true);
        }
        expired
    }

    /// What to send at `now`, when [`Hop::due`] has come; sets the next time.
    /// The MAC that is known is asked first, which troubles nobody else, and
    /// everyone when it did not answer. An entry in the kernel's table is made
    /// only for who has answered: the table is small (`gc_thresh`), one for all
    /// network namespaces of the host, and entries for nobody would push out
    /// those of others, even `noarp` ones that a user set.
    pub fn ask(&mut self, now: Instant) -> Ask {
        if self.fixed() {
            self.due = now + SLOW;
            return Ask::Nobody;
        }
        let asked = self.unanswered;
        self.unanswered = asked.saturating_add(1);
        self.due = now
            + match asked {
                _ if self.silent || self.asker.is_none() => SLOW,
                0..HURRIED => WAIT,
                _ => INTERVAL,
            };
        let create = self.kernel.is_none()
            && (self.mac.is_some() || self.asker.is_none())
            && self.created.is_none_or(|at| now - at >= CREATE);
        match self.asker {
            _ if create => {
                self.created = Some(now);
                Ask::Create
            }
            None => Ask::Refresh,
            Some(asker) => Ask::Hop(asker, self.mac.filter(|_| asked == 0)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: Mac = [2, 0, 0, 0, 0, 1];
    const NEW: Mac = [2, 0, 0, 0, 0, 2];
    const ME: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));

    fn dynamic(mac: Option<Mac>) -> Option<Entry> {
        Some(Entry {
            mac,
            ..Entry::default()
        })
    }

    /// Asks whenever it is due until `end`; what was asked, and when.
    fn asked(hop: &mut Hop, start: Instant, end: Duration) -> Vec<(u128, Ask)> {
        let mut log = Vec::new();
        while hop.due() < start + end {
            let now = hop.due();
            hop.expire(now);
            log.push(((now - start).as_millis(), hop.ask(now)));
        }
        log
    }

    #[test]
    fn the_known_mac_is_asked_first_and_then_everyone() {
        let start = Instant::now();
        let mut hop = Hop::new(Some(ME), start);
        assert!(hop.learn(dynamic(Some(OLD)), start));
        assert!(!hop.answered(Some(OLD), true, start));
        let expected: Vec<_> = [
            (400, Some(OLD)),
            (500, None),
            (600, None),
            (700, None),
            (1100, None),
        ]
        .map(|(at, mac)| (at, Ask::Hop(ME, mac)))
        .into();
        assert_eq!(
            asked(&mut hop, start, Duration::from_millis(1200)),
            expected
        );
        assert_eq!(hop.mac(), Some(OLD));
        assert!(hop.answered(Some(NEW), true, start));
        assert_eq!(hop.mac(), Some(NEW));
    }

    #[test]
    fn a_silent_hop_is_given_up_and_comes_back() {
        let start = Instant::now();
        let mut hop = Hop::new(Some(ME), start);
        let silence = asked(&mut hop, start, Duration::from_millis(900));
        assert!(silence.iter().all(|(_, ask)| *ask == Ask::Hop(ME, None)));
        assert!(hop.undecided());
        asked(&mut hop, start, Duration::from_millis(1200));
        assert!(hop.silent() && !hop.undecided());

        let back = start + Duration::from_secs(60);
        assert!(hop.answered(Some(OLD), true, back));
        assert_eq!(hop.ask(back), Ask::Create);
        hop.answered(Some(OLD), true, back);
        asked(&mut hop, back, Duration::from_millis(2900));
        assert_eq!(hop.mac(), Some(OLD));
        asked(&mut hop, back, Duration::from_millis(3200));
        assert!(hop.silent() && hop.mac().is_none());
    }

    #[test]
    fn the_kernels_old_mac_is_no_news() {
        let start = Instant::now();
        let mut hop = Hop::new(Some(ME), start);
        hop.learn(dynamic(Some(OLD)), start);
        assert!(hop.answered(Some(NEW), true, start));
        assert!(!hop.learn(dynamic(Some(OLD)), start));
        assert_eq!(hop.mac(), Some(NEW));
        assert!(!hop.learn(dynamic(Some(NEW)), start));
        assert!(hop.learn(dynamic(Some(OLD)), start));
    }

    #[test]
    fn an_answer_may_name_no_mac_or_yield_to_the_known_one() {
        let start = Instant::now();
        let mut hop = Hop::new(Some(ME), start);
        assert!(!hop.answered(None, true, start) && hop.undecided());
        assert!(hop.answered(Some(OLD), false, start));
        assert!(!hop.answered(Some(NEW), false, start));
        let late = start + Duration::from_secs(1);
        assert!(!hop.answered(None, true, late));
        assert_eq!((hop.mac(), hop.due()), (Some(OLD), late + INTERVAL));
        assert!(hop.answered(Some(NEW), true, late));
        assert_eq!(hop.mac(), Some(NEW));
    }

    #[test]
    fn a_fixed_entry_is_neither_doubted_nor_asked() {
        let start = Instant::now();
        let fixed = Some(Entry {
            mac: Some(OLD),
            fixed: true,
            failed: false,
        });
        let mut hop = Hop::new(Some(ME), start);
        assert!(hop.learn(fixed, start));
        assert!(!hop.answered(Some(NEW), true, start));
        assert!(
            asked(&mut hop, start, Duration::from_secs(9))
                .iter()
                .all(|(_, ask)| *ask == Ask::Nobody)
        );
        assert_eq!(hop.mac(), Some(OLD));
        assert!(hop.learn(None, start) && hop.undecided());
    }

    #[test]
    fn an_entry_that_the_kernel_dropped_is_made_again_at_once_or_there_is_no_room() {
        let start = Instant::now();
        let mut hop = Hop::new(Some(ME), start);
        hop.answered(Some(OLD), true, start);
        assert_eq!(hop.ask(start), Ask::Create);
        hop.learn(dynamic(Some(OLD)), start);
        hop.answered(Some(OLD), true, start);
        assert!(!hop.learn(None, start) && !hop.starved());
        assert_eq!((hop.due(), hop.ask(start)), (start, Ask::Create));
        assert!(hop.refuse() && hop.starved() && !hop.refuse());
        assert_eq!(hop.ask(start), Ask::Hop(ME, None));
        assert_eq!(hop.mac(), Some(OLD));
        assert_eq!(hop.ask(start + CREATE), Ask::Create);
        assert!(hop.learn(Some(Entry::default()), start) && !hop.starved());
    }

    #[test]
    fn without_an_asker_the_kernel_decides() {
        let start = Instant::now();
        let mut hop = Hop::new(None, start);
        assert_eq!(hop.ask(start), Ask::Create);
        hop.learn(Some(Entry::default()), start);
        assert_eq!(hop.ask(start), Ask::Refresh);
        assert!(hop.undecided());
        assert!(
            hop.learn(
                Some(Entry {
                    failed: true,
                    ..Entry::default()
                }),
                start
            ) && hop.silent()
        );
        assert!(!hop.learn(Some(Entry::default()), start) && hop.silent());
        assert!(hop.learn(None, start) && hop.undecided());
        assert_eq!(hop.ask(start), Ask::Create);
        assert!(hop.learn(dynamic(Some(NEW)), start));
        assert_eq!(hop.mac(), Some(NEW));
    }
}
