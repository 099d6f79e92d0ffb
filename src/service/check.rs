// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! How backends are checked, and what follows from it.

use std::fmt;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use super::Protocol;

use serde::{Deserialize, Serialize};

/// What a backend is asked, and how often.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    pub kind: CheckKind,
    /// Where; `None`: the port that the backend serves on.
    pub port: Option<u16>,
    /// From the beginning of one check to that of the next.
    pub interval: Duration,
    /// At most `interval`.
    pub timeout: Duration,
    /// Checks in a row that must succeed for a backend to be up again.
    pub rise: u32,
    /// Checks in a row that must fail for it to be down.
    pub fall: u32,
}

impl Check {
    /// Whether more belongs to it than stands here.
    pub fn reads_authorities(&self) -> bool {
        matches!(&self.kind, CheckKind::Https(_, trust) if *trust != Trust::Anyone)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CheckKind {
    /// It takes a connection.
    Tcp,
    /// It answers a request with one of these codes.
    Http(HttpCheck),
    Https(HttpCheck, Trust),
    /// It answers a datagram.
    Udp(UdpCheck),
}

impl CheckKind {
    /// What its packets are of.
    pub fn protocol(&self) -> Protocol {
        match self {
            CheckKind::Tcp | CheckKind::Http(_) | CheckKind::Https(..) => Protocol::Tcp,
            CheckKind::Udp(_) => Protocol::Udp,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpCheck {
    pub path: String,
    /// `None`: the backend's address.
    pub host: Option<String>,
    pub status: StatusCodes,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UdpCheck {
    pub payload: Vec<u8>,
    /// What the answer must have in it; empty: any answer will do.
    pub reply: Vec<u8>,
}

/// Whose certificate a backend may have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Trust {
    /// Anybody's.
    #[default]
    Anyone,
    /// One that an authority has signed which the host trusts.
    Host,
    /// One that an authority in this file of PEM has signed.
    File(PathBuf),
}

/// Codes of HTTP that count as success: within 100 to 599, in the order written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StatusCodes(pub Vec<RangeInclusive<u16>>);

impl StatusCodes {
    pub fn contains(&self, code: u16) -> bool {
        self.0.iter().any(|range| range.contains(&code))
    }
}

impl Default for StatusCodes {
    fn default() -> StatusCodes {
        StatusCodes(vec![200..=399])
    }
}

impl fmt::Display for StatusCodes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, range) in self.0.iter().enumerate() {
            let comma = if i == 0 { "" } else { "," };
            let (first, last) = (range.start(), range.end());
            match first == last {
                true => write!(f, "{comma}{first}")?,
                false => write!(f, "{comma}{first}-{last}")?,
            }
        }
        Ok(())
    }
}

/// What becomes of flows whose backend can't serve them any more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    pub on_failure: OnFailure,
    pub all_down: AllDown,
    /// How long the flows of a backend that drains may go on; `None`: to their end.
    pub drain_timeout: Option<Duration>,
}

/// What becomes of the flows of a backend that is down.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum OnFailure {
    /// They end with the client's next packet: TCP by a RST, UDP begins anew elsewhere.
    #[default]
    Reset,
    Keep,
}

/// Where new flows go when every backend is down.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum AllDown {
    /// Nowhere: the client is told.
    #[default]
    Reject,
    /// To all that can be reached.
    IgnoreHealth,
}

/// What checks have said of a backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Health {
    /// Nothing so far, or there are none: it counts as up.
    #[default]
    Unknown,
    Up,
    Down,
}
