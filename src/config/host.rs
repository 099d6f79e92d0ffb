// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! The ports that the host gives to its own connections, which the source
//! ports of forwarded packets must stay clear of.

use std::fs;
use std::ops::RangeInclusive;

use anyhow::{Context, Result};

use super::ConfigError;
use crate::service::PortRanges;

const LOCAL: &str = "/proc/sys/net/ipv4/ip_local_port_range";
const RESERVED: &str = "/proc/sys/net/ipv4/ip_local_reserved_ports";

/// Two sysctl values of the network namespace (ip-sysctl.rst of the kernel).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPorts {
    /// `net.ipv4.ip_local_port_range`: where the host takes ports from.
    pub local: RangeInclusive<u16>,
    /// `net.ipv4.ip_local_reserved_ports`: the ports of it that it leaves alone.
    pub reserved: Vec<RangeInclusive<u16>>,
}

impl HostPorts {
    /// Reads both from /proc/sys. Errors name the file.
    pub fn read() -> Result<HostPorts> {
        let local = read(LOCAL, |text| {
            match *text.split_whitespace().collect::<Vec<_>>() {
                [first, last] => Some(first.parse().ok()?..=last.parse().ok()?),
                _ => None,
            }
        })?;
        let reserved = read(RESERVED, |text| {
            let parts = text.trim().split(',').filter(|part| !part.is_empty());
            parts.map(range).collect()
        })?;
        Ok(HostPorts { local, reserved })
    }

    /// The error of a default range that is empty.
    pub(super) fn no_port_left(&self) -> ConfigError {
        let place = format!(
            "net.ipv4.ip_local_port_range {:?}",
            format!("{} {}", self.local.start(), self.local.end())
        );
        let mend = "leaves no source port from 1024 up for forwarded packets; narrow it: \
                    sysctl -w net.ipv4.ip_local_port_range=\"32768 60999\"";
        ConfigError::new(&place, mend)
    }

    /// Whether the host has ports for connections that it begins.
    pub(super) fn has_own(&self) -> bool {
        let mut local = self.local.clone();
        local.any(|port| !self.keeps_off(port))
    }

    fn keeps_off(&self, port: u16) -> bool {
        self.reserved.iter().any(|range| range.contains(&port))
    }

    /// The error of checks that no port is left for.
    pub(super) fn no_port_for_checks(&self) -> ConfigError {
        let place = format!(
            "net.ipv4.ip_local_reserved_ports {:?}",
            PortRanges::new(self.reserved.clone()).map_or_else(String::new, |all| all.to_string())
        );
        let mend = "leaves the host no port to check backends from; leave it some, or give the \
                    service health = { type = \"none\" }";
        ConfigError::new(&place, mend)
    }

    /// Those of the ports that the host gives to its own connections.
    pub(super) fn taken_from(&self, ports: &PortRanges) -> Option<PortRanges> {
        let (first, last) = (*self.local.start(), *self.local.end());
        let both = ports
            .ranges()
            .iter()
            .map(|range| first.max(*range.start())..=last.min(*range.end()));
        let taken = both.flatten().filter(|port| !self.keeps_off(*port));
        PortRanges::new(taken.map(|port| port..=port).collect())
    }

    /// The value of `ip_local_reserved_ports` that keeps the ports from the
    /// host's own connections as well as those that it keeps now.
    pub(super) fn reserved_with(&self, ports: &PortRanges) -> String {
        let kept = self
            .reserved
            .iter()
            .chain(ports.ranges())
            .filter(|range| *range.end() > 0);
        let kept = kept
            .map(|range| (*range.start()).max(1)..=*range.end())
            .collect();
        PortRanges::new(kept).map_or_else(String::new, |ports| ports.to_string())
    }
}

fn read<T>(path: &str, parse: impl Fn(&str) -> Option<T>) -> Result<T> {
    let text = fs::read_to_string(path).with_context(|| format!("reading {path}"))?;
    parse(&text).with_context(|| format!("{path}: {:?} is not understood", text.trim()))
}

fn range(text: &str) -> Option<RangeInclusive<u16>> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    Some(first.parse().ok()?..=last.parse().ok()?)
}
