// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! Every connection's fate, and which failures policy explains.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, ErrorKind};
use std::time::{Duration, Instant};

/// What a connection was for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// One request.
    Short,
    /// A request now and then, all to one backend.
    Kept,
    /// 1 MiB, taken slowly.
    Download,
}

impl Kind {
    pub const ALL: [Kind; 3] = [Kind::Short, Kind::Kept, Kind::Download];

    pub fn name(self) -> &'static str {
        match self {
            Kind::Short => "short",
            Kind::Kept => "kept",
            Kind::Download => "download",
        }
    }
}

/// One connection that failed.
#[derive(Debug)]
pub struct Failure {
    pub kind: Kind,
    pub began: Instant,
    pub ended: Instant,
    /// Who had answered on it, if anybody had.
    pub backend: Option<String>,
    pub fault: Fault,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    Refused,
    Reset,
    EndedEarly,
    TimedOut,
    Other(String),
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Fault {
        match error.kind() {
            ErrorKind::ConnectionRefused => Fault::Refused,
            ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => Fault::Reset,
            ErrorKind::UnexpectedEof => Fault::EndedEarly,
            ErrorKind::TimedOut => Fault::TimedOut,
            _ => Fault::Other(error.to_string()),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Fault::Refused => "refused",
            Fault::Reset => "reset",
            Fault::EndedEarly => "ended early",
            Fault::TimedOut => "timed out",
            Fault::Other(why) => why,
        })
    }
}

/// A time without a server, or without a daemon.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    pub from: Instant,
    /// `None`: it goes on.
    pub until: Option<Instant>,
}

impl Span {
    pub fn since(from: Instant) -> Span {
        Span { from, until: None }
    }
}

/// A backend's server was killed, and later started again.
#[derive(Clone, Debug)]
pub struct Outage {
    pub backend: String,
    pub span: Span,
}

/// What happened to the connections, and around them.
#[derive(Default)]
pub struct Ledger {
    pub served: BTreeMap<Kind, u64>,
    pub failures: Vec<Failure>,
    pub outages: Vec<Outage>,
    /// While no daemon ran nobody checked the backends.
    pub without_daemon: Vec<Span>,
}

impl Ledger {
    /// Whether policy explains the failure: its server was killed under it, or it was
    /// sent to a server before that could be known to be dead. Nothing else may fail.
    pub fn explains(&self, failure: &Failure, detection: Duration) -> bool {
        let by_a_death = [Fault::Refused, Fault::Reset, Fault::EndedEarly];
        by_a_death.contains(&failure.fault)
            && self.outages.iter().any(|outage| {
                let is_it = |backend: &String| *backend == outage.backend;
                failure.backend.as_ref().is_none_or(is_it)
                    && failure.ended >= outage.span.from
                    && failure.began <= self.known_by(outage, detection)
            })
    }

    /// When the outage must have been known at the latest. A daemon that starts counts
    /// from the beginning.
    fn known_by(&self, outage: &Outage, detection: Duration) -> Instant {
        let mut known = outage.span.from + detection;
        for gap in &self.without_daemon {
            let end = gap.until.unwrap_or_else(Instant::now);
            if gap.from < known && end > outage.span.from {
                known = end + detection;
            }
        }
        known.min(outage.span.until.unwrap_or(known))
    }
}
