// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! One value's text -> the value. Flags and the file come through here, so that
//! both give the same errors. An error is the problem and the mend in one line;
//! the caller puts in front of it where the value was written.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::time::Duration;

use crate::excerpt::Quoted;
use crate::service::{
    AllDown, Forwarding, Listen, ListenPorts, Mode, OnFailure, PortRanges, Protocol, Scheduler,
    StatusCodes, WEIGHT_MAX,
};

/// What could not be made of a text, and the mend.
pub(super) type Result<T> = std::result::Result<T, String>;

/// The words of the values that are one of a few.
pub const MODES: [(&str, Mode); 4] = [
    ("auto", Mode::Auto),
    ("generic", Mode::Generic),
    ("native", Mode::Native),
    ("offload", Mode::Offload),
];
pub(super) const FORWARDINGS: [(&str, Forwarding); 1] = [("nat", Forwarding::Nat)];
pub(super) const SCHEDULERS: [(&str, Scheduler); 5] = [
    ("maglev", Scheduler::Maglev),
    ("source-hash", Scheduler::SourceHash),
    ("round-robin", Scheduler::RoundRobin),
    ("random", Scheduler::Random),
    ("least-connections", Scheduler::LeastConnections),
];

pub(super) const ON_FAILURES: [(&str, OnFailure); 2] =
    [("reset", OnFailure::Reset), ("keep", OnFailure::Keep)];
pub(super) const ALL_DOWNS: [(&str, AllDown); 2] = [
    ("reject", AllDown::Reject),
    ("ignore-health", AllDown::IgnoreHealth),
];
/// The word for a timeout that there is not.
pub(super) const NEVER: &str = "never";

/// What was written, if it should have been a string. A number without a unit is a
/// likely mistake that deserves an error of its own.
pub(super) fn text(written: &toml::Value) -> String {
    match written {
        toml::Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// The value that the word stands for.
pub(super) fn choice<T: Copy>(words: &[(&str, T)], text: &str) -> Result<T> {
    if let Some((_, value)) = words.iter().find(|(word, _)| *word == text) {
        return Ok(*value);
    }
    Err(match words {
        [(only, _)] => format!("only \"{only}\" is supported so far"),
        _ => {
            let known: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
            format!("must be one of {}", known.join(", "))
        }
    })
}

/// The word that stands for the value; empty if none does.
pub(super) fn word<T: PartialEq>(words: &[(&'static str, T)], value: T) -> &'static str {
    words
        .iter()
        .find(|(_, known)| *known == value)
        .map_or("", |(word, _)| *word)
}

/// The word of a scheduler.
pub fn scheduler_word(scheduler: Scheduler) -> &'static str {
    word(&SCHEDULERS, scheduler)
}

/// `VIP:PORTS[/tcp|/udp]`, the ports being `80`, `8000-8099` or `*`.
pub(super) fn listen(text: &str) -> Result<Listen> {
    let (endpoint, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let protocol = match protocol {
        "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        _ => {
            return Err(format!(
                "{} is no protocol; write /tcp, /udp or nothing",
                Quoted(protocol)
            ));
        }
    };
    let (host, ports) = split_ports(endpoint)?;
    let vip = address(host)?;
    let listen = |ports| Listen {
        vip,
        ports,
        protocol,
    };
    match ports {
        Some(ports) => Ok(listen(listen_ports(ports)?)),
        None => {
            let [one, range, any] = [
                ListenPorts::One(80),
                ListenPorts::Range(8000, 8099),
                ListenPorts::Any,
            ]
            .map(listen);
            let others = format!("{one}, a range as in {range}, or {any} for any port");
            Err(match with_port_in_brackets(host) {
                Some(meant) => format!(
                    "the port is missing: without brackets all of it is the address; write \
                     {meant}/{protocol}, or {others}"
                ),
                None => format!("the port is missing; write {others}"),
            })
        }
    }
}

fn listen_ports(text: &str) -> Result<ListenPorts> {
    if text == "*" {
        return Ok(ListenPorts::Any);
    }
    range(text, ", a range as in 8000-8099, or * for any port")
        .map(|range| ListenPorts::new(*range.start(), *range.end()))
}

/// `ADDR[:PORT]` of a service on these ports; without a port it has the
/// service's.
pub(super) fn backend_address(text: &str, ports: ListenPorts) -> Result<SocketAddr> {
    let (host, written) = split_ports(text)?;
    let address = address(host)?;
    let written = written.map(port).transpose()?;
    let port = match (ports.one(), written) {
        (Some(own), written) => written.unwrap_or(own),
        (None, None) => 0,
        (None, Some(port)) => {
            return Err(format!(
                "the service has several ports, and its backends keep the one that the client \
                 connects to; leave :{port} out"
            ));
        }
    };
    Ok(SocketAddr::new(address, port))
}

/// The parts of `ADDR[:PORT][,weight=N]`: the address's text and the weight.
pub(super) fn backend_flag(text: &str) -> Result<(&str, Option<i64>)> {
    let mut parts = text.split(',');
    let address = parts.next().unwrap_or_default();
    let mut weight = None;
    for option in parts {
        let Some(("weight", number)) = option.split_once('=') else {
            return Err(format!(
                "{} is no option of a backend; only weight=N is known",
                Quoted(option)
            ));
        };
        if weight.is_some() {
            return Err("the weight is given twice".into());
        }
        let number = number.parse().map_err(|_| weight_range())?;
        weight = Some(number);
    }
    Ok((address, weight))
}

/// A backend's weight, 0 to [`WEIGHT_MAX`].
pub(super) fn weight(number: i64) -> Result<u16> {
    u16::try_from(number)
        .ok()
        .filter(|weight| *weight <= WEIGHT_MAX)
        .ok_or_else(weight_range)
}

fn weight_range() -> String {
    format!("the weight must be from 0 to {WEIGHT_MAX}")
}

/// A host's address; IPv6 with or without brackets.
pub(super) fn address(text: &str) -> Result<IpAddr> {
    let unbracketed = text
        .strip_prefix('[')
        .and_then(|text| text.strip_suffix(']'));
    let parsed = match unbracketed {
        Some(inside) => inside.parse::<Ipv6Addr>().map(IpAddr::V6),
        None => text.parse::<IpAddr>(),
    };
    let address = parsed.map_err(|_| {
        format!(
            "{} is no IP address; write it as in 192.0.2.1 or 2001:db8::1 (names are not looked \
             up)",
            Quoted(text)
        )
    })?;
    let kind = match address {
        _ if address.is_unspecified() => "the unspecified address",
        _ if address.is_loopback() => "a loopback address",
        _ if address.is_multicast() => "a multicast address",
        IpAddr::V4(v4) if v4.is_broadcast() => "the broadcast address",
        IpAddr::V4(v4) if v4.octets()[0] >= 240 => "a reserved address (class E)",
        IpAddr::V4(v4) if v4.octets()[0] == 0 => "an address of no host (0.0.0.0/8)",
        IpAddr::V6(v6) if v6.is_unicast_link_local() => "a link-local address",
        IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => "an IPv4 address in IPv6's clothes",
        _ => return Ok(address),
    };
    Err(format!("{address} is {kind}; give the address of one host"))
}

/// The address and the ports of `ADDR[:PORTS]`.
/// # Errors
/// IPv6 with ports is not bracketed: with most ports it would be another address.
fn split_ports(text: &str) -> Result<(&str, Option<&str>)> {
    let is_bare = text.parse::<Ipv6Addr>().is_ok() || text.ends_with(']');
    match text.rsplit_once(':') {
        Some((host, ports)) if !is_bare => match host.parse::<Ipv6Addr>() {
            Ok(_) => Err(format!(
                "an IPv6 address with a port stands in brackets; write [{host}]:{ports}"
            )),
            Err(_) => Ok((host, Some(ports))),
        },
        _ => Ok((text, None)),
    }
}

/// What an IPv6 address was meant to be whose last part may be a port.
fn with_port_in_brackets(text: &str) -> Option<String> {
    let (host, port) = text.rsplit_once(':')?;
    (host.parse::<Ipv6Addr>().is_ok() && self::port(port).is_ok())
        .then(|| format!("[{host}]:{port}"))
}

fn port(text: &str) -> Result<u16> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    match text.parse() {
        Ok(port @ 1..) if digits => Ok(port),
        _ if digits => Err("the port must be from 1 to 65535".into()),
        _ => Err(format!(
            "{} is no port; give a number from 1 to 65535",
            Quoted(text)
        )),
    }
}

/// `80` or `8000-8099`; `others` is what else may stand in its place, for errors.
fn range(text: &str, others: &str) -> Result<RangeInclusive<u16>> {
    let port = |text: &str| port(text.trim()).map_err(|problem| problem + others);
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (port(first)?, port(last)?);
    if first > last {
        return Err(format!("{first}-{last} is empty; write {last}-{first}"));
    }
    Ok(first..=last)
}

/// Ports and ranges of ports: `1024-32767,61000-65535`.
pub(super) fn port_ranges(text: &str) -> Result<PortRanges> {
    let mut ranges = Vec::new();
    for part in text.split(',') {
        ranges.push(range(part, "")?);
    }
    PortRanges::new(ranges).ok_or_else(|| "no port is left; give at least one".into())
}

/// The shortest and longest timeout.
pub const TIMEOUT_MIN: Duration = Duration::from_millis(1);
pub const TIMEOUT_MAX: Duration = Duration::from_secs(20 * 24 * 60 * 60);

/// The units of durations in milliseconds, longest first.
const UNITS_MS: [(&str, u64); 5] = [
    ("d", 86_400_000),
    ("h", 3_600_000),
    ("m", 60_000),
    ("s", 1000),
    ("ms", 1),
];

/// A timeout with its unit, from [`TIMEOUT_MIN`] to [`TIMEOUT_MAX`]: `100ms`, `5s`, `2h`.
pub(super) fn timeout(text: &str) -> Result<Duration> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    if number.is_empty() {
        return Err("is no duration; write a whole number and a unit, as in \"5s\"".into());
    }
    let Some((_, unit_ms)) = UNITS_MS.iter().find(|(name, _)| *name == unit) else {
        let problem = if unit.is_empty() {
            "has no unit"
        } else {
            "has an unknown unit"
        };
        return Err(format!(
            "{problem}; write ms, s, m, h or d after a whole number, as in \"5s\""
        ));
    };
    let ms = number
        .parse()
        .ok()
        .and_then(|number: u64| number.checked_mul(*unit_ms));
    ms.map(Duration::from_millis)
        .filter(|duration| (TIMEOUT_MIN..=TIMEOUT_MAX).contains(duration))
        .ok_or_else(|| {
            let (min, max) = (duration_text(TIMEOUT_MIN), duration_text(TIMEOUT_MAX));
            format!("must be from {min} to {max}")
        })
}

/// The same, or "never".
pub(super) fn timeout_or_never(text: &str) -> Result<Option<Duration>> {
    match text {
        NEVER => Ok(None),
        _ => timeout(text).map(Some),
    }
}

/// What servers take of a path, at least (RFC 9110, section 4.1), and of a name of DNS with a
/// port.
const PATH_BYTES_MAX: usize = 8000;
const HOST_BYTES_MAX: usize = 261;

fn not_longer(text: &str, bytes_max: usize) -> Result<()> {
    match text.len() {
        length if length > bytes_max => {
            Err(format!("has {length} bytes; give at most {bytes_max}"))
        }
        _ => Ok(()),
    }
}

/// What a request of HTTP asks for.
pub(super) fn http_path(text: &str) -> Result<String> {
    if !text.starts_with('/') || text.contains(|c: char| !c.is_ascii_graphic()) {
        return Err("is no path; begin it with / and write no blanks in it".into());
    }
    not_longer(text, PATH_BYTES_MAX)?;
    Ok(text.to_string())
}

/// A host's name or address, with a port or without.
pub(super) fn http_host(text: &str) -> Result<String> {
    let fits = |c: char| c.is_ascii_alphanumeric() || "-._:[]".contains(c);
    if text.is_empty() || !text.contains(fits) || text.contains(|c| !fits(c)) {
        return Err("is no host; write a name as in www.example.com".into());
    }
    not_longer(text, HOST_BYTES_MAX)?;
    Ok(text.to_string())
}

/// Codes of HTTP: `200,204,300-399`.
pub(super) fn status_codes(text: &str) -> Result<StatusCodes> {
    let code = |text: &str| {
        let code = text.trim().parse::<u16>().ok();
        code.filter(|code| (100..=599).contains(code))
    };
    let range = |text: &str| {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let range = code(first)?..=code(last)?;
        (!range.is_empty()).then_some(range)
    };
    let ranges: Option<Vec<_>> = text.split(',').map(range).collect();
    ranges
        .map(StatusCodes)
        .ok_or_else(|| "must be codes from 100 to 599, as in \"200\" or \"200,300-399\"".into())
}

/// What a datagram of a check may have, at most.
const BYTES_MAX: usize = 1024;

/// The bytes of a text, or those that `hex:` is followed by.
pub(super) fn bytes(text: &str) -> Result<Vec<u8>> {
    let bytes = match text.strip_prefix("hex:") {
        None => text.as_bytes().to_vec(),
        Some(digits) => hex(digits)
            .ok_or("has no whole bytes behind hex: in it; write two digits for each".to_string())?,
    };
    match bytes.len() {
        0 => Err("is empty; give at least one byte".into()),
        length if length > BYTES_MAX => {
            Err(format!("has {length} bytes; give at most {BYTES_MAX}"))
        }
        _ => Ok(bytes),
    }
}

fn hex(digits: &str) -> Option<Vec<u8>> {
    let digits = digits.chars().map(|digit| digit.to_digit(16));
    let digits: Vec<u32> = digits.collect::<Option<_>>()?;
    let pairs = digits.chunks(2);
    pairs
        .map(|pair| match pair {
            [high, low] => Some((high * 16 + low) as u8),
            _ => None,
        })
        .collect()
}

/// What [`bytes`] reads as the same.
pub(super) fn bytes_text(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) if !text.contains(char::is_control) && !text.starts_with("hex:") => text.into(),
        _ => bytes.iter().fold("hex:".into(), |text: String, byte| {
            text + &format!("{byte:02x}")
        }),
    }
}

/// A duration of whole milliseconds in the longest unit that fits: what
/// [`timeout`] reads as the same duration.
pub fn duration_text(duration: Duration) -> String {
    let ms = duration.as_millis();
    let fits = |(_, unit_ms): &&(&str, u64)| ms.is_multiple_of(u128::from(*unit_ms));
    let (unit, unit_ms) = UNITS_MS.iter().find(fits).unwrap_or(&("ms", 1));
    format!("{}{unit}", ms / u128::from(*unit_ms))
}

/// A network interface's name, as Linux allows it (dev_valid_name in net/core/dev.c).
pub(super) fn interface(text: &str) -> Result<String> {
    const LENGTH_MAX: usize = 15;
    let reserved = text == "." || text == "..";
    let unfit = |c: char| c == '/' || c == ':' || c.is_whitespace() || c.is_control();
    if text.is_empty() || text.len() > LENGTH_MAX || reserved || text.contains(unfit) {
        return Err("is no name of an interface; `ip link` lists them".into());
    }
    Ok(text.to_string())
}

/// A service's name, at most: it stands in many lines of logs and `status`.
const NAME_BYTES_MAX: usize = 255;

/// A service's name: not empty, one line.
pub(super) fn name(text: &str) -> Result<String> {
    if text.is_empty() {
        return Err("is empty; give a name or leave the key out".into());
    }
    if text.contains(char::is_control) {
        return Err("has a control character in it; use printable ones".into());
    }
    not_longer(text, NAME_BYTES_MAX)?;
    Ok(text.to_string())
}
