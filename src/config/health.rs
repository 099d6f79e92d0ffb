// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! The keys of `health`, and what `check` prints of them.

use std::time::Duration;

use super::draft::Draft;
use super::value::{self, duration_text};
use super::{ConfigError, HostPorts};
use crate::service::{Check, CheckKind, HttpCheck, Listen, Protocol, Trust, UdpCheck};

const INTERVAL: Duration = Duration::from_secs(2);
/// Where the interval is not shorter.
const TIMEOUT: Duration = Duration::from_secs(1);
const RISE: u32 = 2;
const FALL: u32 = 3;

/// The words of `type`.
#[derive(Clone, Copy, PartialEq)]
enum Type {
    None,
    Tcp,
    Http,
    Https,
    Udp,
}

const TYPES: [(&str, Type); 5] = [
    ("none", Type::None),
    ("tcp", Type::Tcp),
    ("http", Type::Http),
    ("https", Type::Https),
    ("udp", Type::Udp),
];

impl Type {
    /// The keys that it knows beside those of all.
    fn keys(self) -> &'static [&'static str] {
        match self {
            Type::None | Type::Tcp => &[],
            Type::Http => &["path", "host", "status"],
            Type::Https => &["path", "host", "status", "verify", "ca"],
            Type::Udp => &["payload", "reply"],
        }
    }
}

/// Those that every type but `none` knows.
const COMMON_KEYS: [&str; 5] = ["port", "interval", "timeout", "rise", "fall"];

impl Draft {
    /// How the service's backends are checked: by a connection where nothing is
    /// said; not at all where nothing is said of what to ask or on which port.
    pub(super) fn health(
        &self,
        listen: Listen,
        host: &HostPorts,
    ) -> Result<Option<Check>, ConfigError> {
        let keys = &self.keys.health;
        let written = self.key("health.type", &keys.kind, |text| {
            value::choice(&TYPES, text)
        })?;
        let has_port = listen.ports.one().is_some() || keys.port.is_some();
        let kind = written.unwrap_or(match listen.protocol {
            Protocol::Tcp if has_port => Type::Tcp,
            _ => Type::None,
        });
        self.fits_type(kind, written.is_some())?;
        if kind == Type::None {
            return Ok(None);
        }
        if !has_port {
            let problem = "is missing: the service has several ports; name the one to check";
            return Err(self.error("health.port", None, problem.into()));
        }
        if !host.has_own() {
            return Err(host.no_port_for_checks());
        }
        let duration = |key: &str, written: &Option<toml::Value>| {
            self.key(
                &format!("health.{key}"),
                &written.as_ref().map(value::text),
                value::timeout,
            )
        };
        let interval = duration("interval", &keys.interval)?.unwrap_or(INTERVAL);
        let timeout = duration("timeout", &keys.timeout)?.unwrap_or(TIMEOUT.min(interval));
        if timeout > interval {
            let problem = format!(
                "is longer than health.interval, {}; make it at most as long",
                duration_text(interval)
            );
            return Err(self.error("health.timeout", Some(&duration_text(timeout)), problem));
        }
        Ok(Some(Check {
            kind: match kind {
                Type::None | Type::Tcp => CheckKind::Tcp,
                Type::Http => CheckKind::Http(self.http()?),
                Type::Https => CheckKind::Https(self.http()?, self.trust()?),
                Type::Udp => CheckKind::Udp(self.udp()?),
            },
            port: self
                .number("port", keys.port, u16::MAX.into())?
                .map(|port| port as u16),
            interval,
            timeout,
            rise: self.number("rise", keys.rise, 100)?.unwrap_or(RISE),
            fall: self.number("fall", keys.fall, 100)?.unwrap_or(FALL),
        }))
    }

    /// No key is given that the type does not know.
    fn fits_type(&self, kind: Type, written: bool) -> Result<(), ConfigError> {
        let word = value::word(&TYPES, kind);
        for key in self.keys.health.given() {
            if kind.keys().contains(&key) || kind != Type::None && COMMON_KEYS.contains(&key) {
                continue;
            }
            let knows = |(_, kind): &&(&str, Type)| kind.keys().contains(&key);
            let known: Vec<&str> = TYPES.iter().filter(knows).map(|(word, _)| *word).collect();
            let problem = match (written, &known[..]) {
                (true, []) => format!("means nothing to type \"{word}\"; remove one of them"),
                (true, known) => format!(
                    "is a key of type {}, not of \"{word}\"; remove it or change the type",
                    known.join(" and ")
                ),
                (false, known) => format!(
                    "needs health.type; give {}",
                    if known.is_empty() {
                        "tcp, http, https or udp".into()
                    } else {
                        known.join(" or ")
                    }
                ),
            };
            return Err(self.error(&format!("health.{key}"), None, problem));
        }
        Ok(())
    }

    /// From 1 to `max`.
    fn number(
        &self,
        key: &str,
        written: Option<i64>,
        max: u32,
    ) -> Result<Option<u32>, ConfigError> {
        let number = |number: i64| match u32::try_from(number) {
            Ok(number) if (1..=max).contains(&number) => Ok(number),
            _ => {
                let problem = format!("must be from 1 to {max}");
                Err(self.error(&format!("health.{key}"), Some(&number.to_string()), problem))
            }
        };
        written.map(number).transpose()
    }

    fn http(&self) -> Result<HttpCheck, ConfigError> {
        let keys = &self.keys.health;
        let status = keys.status.as_ref().map(value::text);
        Ok(HttpCheck {
            path: self
                .key("health.path", &keys.path, value::http_path)?
                .unwrap_or_else(|| "/".into()),
            host: self.key("health.host", &keys.host, value::http_host)?,
            status: self
                .key("health.status", &status, value::status_codes)?
                .unwrap_or_default(),
        })
    }

    fn trust(&self) -> Result<Trust, ConfigError> {
        let keys = &self.keys.health;
        match (keys.verify, &keys.ca) {
            (Some(false), Some(file)) => {
                let problem = "is of no use with verify = false; remove one of them";
                Err(self.error("health.ca", Some(file), problem.into()))
            }
            (_, Some(file)) if file.is_empty() => {
                let problem = "is empty; name a file of PEM";
                Err(self.error("health.ca", Some(file), problem.into()))
            }
            (_, Some(file)) => Ok(Trust::File(file.into())),
            (Some(true), None) => Ok(Trust::Host),
            (Some(false) | None, None) => Ok(Trust::Anyone),
        }
    }

    fn udp(&self) -> Result<UdpCheck, ConfigError> {
        let keys = &self.keys.health;
        let Some(payload) = self.key("health.payload", &keys.payload, value::bytes)? else {
            let problem = "is missing; give what the server answers, as text or as in \"hex:0a0b\"";
            return Err(self.error("health.payload", None, problem.into()));
        };
        Ok(UdpCheck {
            payload,
            reply: self
                .key("health.reply", &keys.reply, value::bytes)?
                .unwrap_or_default(),
        })
    }
}

/// The word of a check's type.
pub fn check_word(check: &Check) -> &'static str {
    let kind = match &check.kind {
        CheckKind::Tcp => Type::Tcp,
        CheckKind::Http(_) => Type::Http,
        CheckKind::Https(..) => Type::Https,
        CheckKind::Udp(_) => Type::Udp,
    };
    value::word(&TYPES, kind)
}

/// A check as an inline table of TOML, strings made by `string`.
pub(super) fn describe(check: &Option<Check>, string: impl Fn(&str) -> String) -> String {
    let Some(check) = check else {
        return format!("{{ type = {} }}", string("none"));
    };
    let mut keys = Vec::new();
    let mut add = |key: &str, value: String| keys.push(format!("{key} = {value}"));
    add("type", string(check_word(check)));
    if let CheckKind::Http(http) | CheckKind::Https(http, _) = &check.kind {
        add("path", string(&http.path));
        if let Some(host) = &http.host {
            add("host", string(host));
        }
        add("status", string(&http.status.to_string()));
    }
    match &check.kind {
        CheckKind::Https(_, trust) => {
            add("verify", (*trust != Trust::Anyone).to_string());
            if let Trust::File(file) = trust {
                add("ca", string(&file.display().to_string()));
            }
        }
        CheckKind::Udp(udp) => {
            add("payload", string(&value::bytes_text(&udp.payload)));
            if !udp.reply.is_empty() {
                add("reply", string(&value::bytes_text(&udp.reply)));
            }
        }
        CheckKind::Tcp | CheckKind::Http(_) => {}
    }
    if let Some(port) = check.port {
        add("port", port.to_string());
    }
    add("interval", string(&duration_text(check.interval)));
    add("timeout", string(&duration_text(check.timeout)));
    add("rise", check.rise.to_string());
    add("fall", check.fall.to_string());
    format!("{{ {} }}", keys.join(", "))
}
