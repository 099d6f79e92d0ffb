// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! File or flags -> a validated [`Config`]. Nothing outside this module reads
//! configuration text. Errors name the file and key, or the flag, and the mend.

mod describe;
mod draft;
mod file;
mod health;
mod host;
mod value;

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

pub use describe::{Footprint, describe};
pub use health::check_word;
pub use host::HostPorts;
pub use value::{MODES, TIMEOUT_MAX, TIMEOUT_MIN, duration_text, scheduler_word};

use crate::excerpt::{Quoted, one_line};
use crate::service::{BACKENDS_MAX, Config, Mode, SERVICES_MAX, SOURCES_MAX, Service};
use draft::Draft;
use file::FileConfig;

/// The characters of an error, at most: room for a list of ports that is to be copied.
const ERROR_CHARS_MAX: usize = 8000;

/// What the user wrote, where, and the mend; one line. Bad usage: exit code 2.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError(String);

impl ConfigError {
    /// `place` is a file, a key in it or a flag; control characters are escaped.
    pub(crate) fn new(place: &str, problem: impl fmt::Display) -> ConfigError {
        ConfigError(one_line(&format!("{place}: {problem}"), ERROR_CHARS_MAX))
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for ConfigError {}

/// What to serve, as the command line says it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Input {
    /// Goes before the file's `interface`.
    pub interface: Option<String>,
    /// Goes before the file's `mode`.
    pub mode: Option<Mode>,
    pub services: Services,
}

/// Where the services are described.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Services {
    /// In a TOML file.
    File(PathBuf),
    /// In flags: one `VIP:PORTS[/tcp|/udp]` and a number of `ADDR[:PORT][,weight=N]`.
    Flags {
        listen: Vec<String>,
        backends: Vec<String>,
    },
}

/// Each flow's packets are counted unless the file says otherwise.
const FLOW_COUNTERS: bool = true;

/// The configuration that the command line asks for. `host` gives the default
/// source ports and what explicit ones must stay clear of.
pub fn load(input: &Input, host: &HostPorts) -> Result<Config, ConfigError> {
    let mut config = match &input.services {
        Services::File(path) => parse(
            &path.display().to_string(),
            &file::read(Path::new(path))?,
            host,
        )?,
        Services::Flags { listen, backends } => from_flags(listen, backends, host)?,
    };
    if let Some(name) = &input.interface {
        let interface = value::interface(name);
        config.interface = Some(
            interface
                .map_err(|problem| ConfigError::new(&format!("-i {}", Quoted(name)), problem))?,
        );
    }
    config.mode = input.mode.unwrap_or(config.mode);
    Ok(config)
}

/// The same again, for a daemon that has other things to do than to wait for a file.
pub fn reload(input: &Input, host: &HostPorts) -> Result<Config, ConfigError> {
    if let Services::File(path) = &input.services {
        file::must_not_wait(path)?;
    }
    load(input, host)
}

/// The configuration in a file's text. `name` is the file's, for errors.
pub fn parse(name: &str, text: &str, host: &HostPorts) -> Result<Config, ConfigError> {
    let FileConfig {
        interface,
        mode,
        flow_counters,
        service,
    } = file::parse(name, text)?;
    let top = |key: &str, text: &str, problem| {
        ConfigError::new(&format!("{name}: {key} {}", Quoted(text)), problem)
    };
    let interface = interface
        .map(|text| value::interface(&text).map_err(|problem| top("interface", &text, problem)))
        .transpose()?;
    let mode = mode
        .map(|text| value::choice(&MODES, &text).map_err(|problem| top("mode", &text, problem)))
        .transpose()?;
    let drafts = service.into_iter().enumerate();
    let drafts: Vec<Draft> = drafts
        .map(|(i, keys)| Draft::from_file(name, i, keys))
        .collect();
    let services = validate(name, &drafts, host)?;
    Ok(Config {
        interface,
        mode: mode.unwrap_or_default(),
        flow_counters: flow_counters.unwrap_or(FLOW_COUNTERS),
        services,
    })
}

fn from_flags(
    listen: &[String],
    backends: &[String],
    host: &HostPorts,
) -> Result<Config, ConfigError> {
    let listen = match listen {
        [listen] => listen,
        [] => {
            let mend = "is missing; give it and --backend, or a file with -c FILE";
            return Err(ConfigError::new("--listen", mend));
        }
        _ => {
            let problem = format!(
                "is given {} times; for several services use -c FILE",
                listen.len()
            );
            return Err(ConfigError::new("--listen", problem));
        }
    };
    let drafts = [Draft::from_flags(listen, backends)?];
    Ok(Config {
        interface: None,
        mode: Mode::default(),
        flow_counters: FLOW_COUNTERS,
        services: validate("--backend", &drafts, host)?,
    })
}

/// The services of the drafts, if each is valid in itself and beside the others.
/// `place` is where services are added or removed, for errors.
fn validate(place: &str, drafts: &[Draft], host: &HostPorts) -> Result<Vec<Service>, ConfigError> {
    if drafts.is_empty() {
        return Err(ConfigError::new(
            place,
            "has no [[service]]; give at least one",
        ));
    }
    at_most(SERVICES_MAX, drafts.len(), place, "services")?;
    let services: Vec<Service> = drafts
        .iter()
        .map(|draft| draft.service(host))
        .collect::<Result<_, _>>()?;
    let backends = services.iter().map(|service| service.backends.len()).sum();
    at_most(BACKENDS_MAX, backends, place, "backends")?;
    let sources: HashSet<&IpAddr> = services
        .iter()
        .flat_map(|service| &service.source)
        .collect();
    at_most(SOURCES_MAX, sources.len(), place, "source addresses")?;

    are_distinct(drafts, &services)?;
    share_sources(drafts, &services)?;
    do_not_loop(drafts, &services)?;
    Ok(services)
}

fn at_most(max: usize, count: usize, place: &str, what: &str) -> Result<(), ConfigError> {
    if count <= max {
        return Ok(());
    }
    Err(ConfigError::new(
        place,
        format!("{count} {what} are more than the {max} that fit; remove some"),
    ))
}

/// No two services have the same name or listen on the same VIP and port,
/// unless one of them goes before the other.
fn are_distinct(drafts: &[Draft], services: &[Service]) -> Result<(), ConfigError> {
    let mut names = HashSet::new();
    for (i, (draft, service)) in drafts.iter().zip(services).enumerate() {
        let mut before = services[..i].iter();
        if let Some(first) = before.find(|first| first.listen.collides_with(&service.listen)) {
            let Service { name, listen, .. } = first;
            let problem = if *listen == service.listen {
                format!("service {name:?} listens there already; put their backends together")
            } else {
                format!(
                    "service {name:?} has {listen}, which overlaps; take the ports of one out of the other"
                )
            };
            return Err(draft.listen_error(problem));
        }
        if !names.insert(&service.name) {
            let problem = "another service has this name; give them different ones";
            return Err(draft.error("name", Some(&service.name), problem.into()));
        }
    }
    Ok(())
}

/// Services that share a source address take ports from one table of flows, so
/// that their source ports are the same. Those without an address share the default.
fn share_sources(drafts: &[Draft], services: &[Service]) -> Result<(), ConfigError> {
    let mut firsts: HashMap<Option<IpAddr>, &Service> = HashMap::new();
    for (draft, service) in drafts.iter().zip(services) {
        let default = service.source.is_empty().then_some(None);
        for source in service.source.iter().copied().map(Some).chain(default) {
            let first = *firsts.entry(source).or_insert(service);
            if first.source_ports != service.source_ports {
                let shared = source.map_or("the default source".into(), |source| {
                    format!("source {source}")
                });
                let problem = format!(
                    "service {:?} shares {shared} and has {}; give both the same source_ports or \
                     different sources",
                    first.name, first.source_ports
                );
                return Err(draft.error(
                    "source_ports",
                    Some(&service.source_ports.to_string()),
                    problem,
                ));
            }
        }
    }
    Ok(())
}

/// No backend has the address of a VIP: its packets would come back to us for ever.
fn do_not_loop(drafts: &[Draft], services: &[Service]) -> Result<(), ConfigError> {
    let vips: HashMap<IpAddr, &Service> = services
        .iter()
        .rev()
        .map(|service| (service.listen.vip, service))
        .collect();
    for (draft, service) in drafts.iter().zip(services) {
        for (i, backend) in service.backends.iter().enumerate() {
            if let Some(vip) = vips.get(&backend.address.ip()) {
                let problem = format!(
                    "{} is the VIP of service {:?}, packets would loop; give the address of a server",
                    vip.listen.vip, vip.name
                );
                return Err(draft.backend_error(i, problem));
            }
        }
    }
    Ok(())
}
