// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! A service as it was written, whether in the file or in flags, and how its
//! parts are named in errors.

use std::collections::HashSet;
use std::net::IpAddr;

use super::file::{FileBackend, FileService, FileTimeouts};
use super::value::{self, ALL_DOWNS, FORWARDINGS, ON_FAILURES, SCHEDULERS};
use super::{ConfigError, HostPorts};
use crate::excerpt::Quoted;
use crate::service::{
    Backend, Listen, Policy, PortRanges, Protocol, Service, Timeouts, WEIGHT_MAX,
};

/// A service's keys as text.
pub(super) struct Draft {
    /// In front of a key in errors: `web.toml: service "web": `, or `--` for flags.
    scope: String,
    pub(super) keys: FileService,
    /// The backends' values to show in errors, in the order of the keys.
    shown: Vec<String>,
}

impl Draft {
    /// The service at the position given (from 0) of the file.
    pub(super) fn from_file(file: &str, position: usize, keys: FileService) -> Draft {
        let scope = match &keys.name {
            Some(name) => format!("{file}: service {}: ", Quoted(name)),
            None => format!("{file}: service {}: ", position + 1),
        };
        let shown = keys
            .backend
            .iter()
            .map(|backend| backend.address.clone().unwrap_or_default());
        Draft {
            scope,
            shown: shown.collect(),
            keys,
        }
    }

    /// The service that `--listen` and the `--backend`s make.
    pub(super) fn from_flags(listen: &str, backends: &[String]) -> Result<Draft, ConfigError> {
        let mut draft = Draft {
            scope: "--".into(),
            keys: FileService {
                listen: Some(listen.into()),
                ..FileService::default()
            },
            shown: backends.to_vec(),
        };
        for text in backends {
            let (address, weight) = value::backend_flag(text)
                .map_err(|problem| draft.error("backend", Some(text), problem))?;
            draft.keys.backend.push(FileBackend {
                address: Some(address.into()),
                weight,
            });
        }
        Ok(draft)
    }

    /// An error at one of the service's keys, with the value if one is there.
    pub(super) fn error(&self, key: &str, value: Option<&str>, problem: String) -> ConfigError {
        let value = value.map_or_else(String::new, |value| format!(" {}", Quoted(value)));
        ConfigError::new(&format!("{}{key}{value}", self.scope), problem)
    }

    /// An error at the backend at the position given (from 0).
    pub(super) fn backend_error(&self, position: usize, problem: String) -> ConfigError {
        self.error("backend", Some(&self.shown[position]), problem)
    }

    /// An error at `listen`.
    pub(super) fn listen_error(&self, problem: String) -> ConfigError {
        self.error("listen", self.keys.listen.as_deref(), problem)
    }

    /// The service, valid in itself; other services are not looked at.
    pub(super) fn service(&self, host: &HostPorts) -> Result<Service, ConfigError> {
        let name = self.key("name", &self.keys.name, value::name)?;
        let Some(listen) = self.key("listen", &self.keys.listen, value::listen)? else {
            let problem = "is missing; give the VIP and its port, as in \"192.0.2.1:80\", \
                           \"192.0.2.1:8000-8099\" or \"192.0.2.1:*\" for any port";
            return Err(self.listen_error(problem.into()));
        };
        let forwarding = |text: &str| value::choice(&FORWARDINGS, text);
        let scheduler = |text: &str| value::choice(&SCHEDULERS, text);
        Ok(Service {
            name: name.unwrap_or_else(|| listen.to_string()),
            listen,
            forwarding: self
                .key("forwarding", &self.keys.forwarding, forwarding)?
                .unwrap_or_default(),
            scheduler: self
                .key("scheduler", &self.keys.scheduler, scheduler)?
                .unwrap_or_default(),
            source: self.source(listen)?,
            source_ports: self.source_ports(host)?,
            timeouts: self.timeouts(listen.protocol)?,
            health: self.health(listen, host)?,
            policy: self.policy()?,
            backends: self.backends(listen)?,
        })
    }

    /// The value of a key that may be left out.
    pub(super) fn key<T>(
        &self,
        key: &str,
        text: &Option<String>,
        parse: impl Fn(&str) -> value::Result<T>,
    ) -> Result<Option<T>, ConfigError> {
        let parse =
            |text: &String| parse(text).map_err(|problem| self.error(key, Some(text), problem));
        text.as_ref().map(parse).transpose()
    }

    fn source(&self, listen: Listen) -> Result<Vec<IpAddr>, ConfigError> {
        let mut source = Vec::new();
        for text in &self.keys.source {
            let error = |problem| self.error("source", Some(text), problem);
            let address = value::address(text).map_err(error)?;
            same_family(listen, address).map_err(error)?;
            if source.contains(&address) {
                return Err(error("is given twice; remove one".into()));
            }
            source.push(address);
        }
        Ok(source)
    }

    fn source_ports(&self, host: &HostPorts) -> Result<PortRanges, ConfigError> {
        let key = "source_ports";
        let Some(ports) = self.key(key, &self.keys.source_ports, value::port_ranges)? else {
            return PortRanges::beside(host.local.clone()).ok_or_else(|| host.no_port_left());
        };
        match host.taken_from(&ports) {
            None => Ok(ports),
            Some(taken) => {
                let problem = format!(
                    "the host gives {taken} to its own connections; choose others, or keep them \
                     from it: sysctl -w net.ipv4.ip_local_reserved_ports={}",
                    host.reserved_with(&taken)
                );
                Err(self.error(key, self.keys.source_ports.as_deref(), problem))
            }
        }
    }

    fn timeouts(&self, protocol: Protocol) -> Result<Timeouts, ConfigError> {
        let FileTimeouts {
            unanswered,
            established,
            half_closed,
            closing,
        } = &self.keys.timeouts;
        let default = Timeouts::of(protocol);
        let timeout = |key: &str, written: &Option<toml::Value>, default| {
            let text = written.as_ref().map(value::text);
            let timeout = self.key(&format!("timeouts.{key}"), &text, value::timeout)?;
            Ok(timeout.unwrap_or(default))
        };
        Ok(Timeouts {
            unanswered: timeout("unanswered", unanswered, default.unanswered)?,
            established: timeout("established", established, default.established)?,
            half_closed: timeout("half_closed", half_closed, default.half_closed)?,
            closing: timeout("closing", closing, default.closing)?,
        })
    }

    fn policy(&self) -> Result<Policy, ConfigError> {
        let on_failure = |text: &str| value::choice(&ON_FAILURES, text);
        let all_down = |text: &str| value::choice(&ALL_DOWNS, text);
        let drain_timeout = self.keys.drain_timeout.as_ref().map(value::text);
        Ok(Policy {
            on_failure: self
                .key("on_failure", &self.keys.on_failure, on_failure)?
                .unwrap_or_default(),
            all_down: self
                .key("all_down", &self.keys.all_down, all_down)?
                .unwrap_or_default(),
            drain_timeout: self
                .key("drain_timeout", &drain_timeout, value::timeout_or_never)?
                .flatten(),
        })
    }

    fn backends(&self, listen: Listen) -> Result<Vec<Backend>, ConfigError> {
        let mut backends = Vec::with_capacity(self.keys.backend.len());
        let mut seen = HashSet::new();
        for (i, written) in self.keys.backend.iter().enumerate() {
            let error = |problem| self.backend_error(i, problem);
            let Some(text) = &written.address else {
                return Err(error(
                    "address is missing, as in address = \"192.0.2.10:80\"".into(),
                ));
            };
            let address = value::backend_address(text, listen.ports).map_err(error)?;
            same_family(listen, address.ip()).map_err(error)?;
            let weight = written.weight.map_or(Ok(1), value::weight).map_err(error)?;
            let backend = Backend { address, weight };
            if !seen.insert(address) {
                let problem = format!("{backend} is a backend of this service already; remove one");
                return Err(error(problem));
            }
            backends.push(backend);
        }
        if backends.is_empty() {
            return Err(self.error("backend", None, "is missing; give at least one".into()));
        }
        if backends.iter().all(|backend| backend.weight == 0) {
            let problem = format!("every weight is 0; give one of them 1 to {WEIGHT_MAX}");
            return Err(self.error("backend", None, problem));
        }
        Ok(backends)
    }
}

/// Packets are not translated between IPv4 and IPv6.
fn same_family(listen: Listen, address: IpAddr) -> value::Result<()> {
    if listen.vip.is_ipv4() == address.is_ipv4() {
        return Ok(());
    }
    let family = |address: IpAddr| if address.is_ipv4() { "IPv4" } else { "IPv6" };
    Err(format!(
        "{address} is {}, the VIP {} is {}; give both of one family",
        family(address),
        listen.vip,
        family(listen.vip)
    ))
}
