// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! The configuration is read again, and the difference applied.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Instant;

use anyhow::{Result, bail};
use nix::libc::malloc_trim;
use nix::unistd::{AccessFlags, access};

use super::routes::{held_vip, refuse_vips};
use super::world::Surroundings;
use super::{CHECKS_DEADLINE, Daemon, SETTLE_DEADLINE, succession};
use crate::config::{self, HostPorts};
use crate::datapath::Undecided;
use crate::health::{self, Target};
use crate::manager;
use crate::service::{Backend, Config, Listen, Service};
use crate::tables::Plan;
use crate::vlan::Trunk;

impl Daemon {
    /// Reads the configuration again and applies the difference. Logs and returns
    /// what was done.
    ///
    /// # Errors
    /// The configuration has an error or asks for what can't be changed: nothing was.
    pub(super) async fn reload(&mut self) -> Result<String> {
        let started = Instant::now();
        manager::reloading();
        let reloaded = self.try_reload().await;
        match &reloaded {
            Ok(change) => {
                tracing::info!("reloaded in {} ms: {change}", started.elapsed().as_millis());
            }
            Err(error) if error.is::<Undecided>() => {
                tracing::error!("whether it is reloaded will turn out: {error:#}");
            }
            Err(error) => tracing::error!("not reloaded, nothing was changed: {error:#}"),
        }
        manager::ready(&self.summary());
        give_memory_back();
        reloaded
    }

    /// Warns where a reload could not read the file that the start has read, with
    /// capabilities that are given up.
    pub(super) fn report_unreadable(&self) {
        if let config::Services::File(path) = &self.input.services
            && let Err(error) = access(path, AccessFlags::R_OK)
        {
            tracing::warn!(
                "{}: a reload won't be able to read it without more capabilities ({}): let this \
                 user read it",
                path.display(),
                error.desc()
            );
        }
    }

    async fn try_reload(&mut self) -> Result<String> {
        if let config::Services::Flags { .. } = self.input.services {
            bail!("it was started with --listen and --backend: there is no file to read again");
        }
        let config = config::reload(&self.input, &HostPorts::read()?)?;
        let plan = health::Plan::new(&config)?;
        let fixed = [
            ("interface", config.interface == self.config.interface),
            ("mode", config.mode == self.config.mode),
        ];
        if let Some((key, _)) = fixed.iter().find(|(_, same)| !same) {
            bail!("{key} can't be changed while it runs: start again");
        }

        self.look_after().await;
        if self.absent {
            bail!(
                "{0} is gone: reload again once it is back, or end what waits for it with \
                 `xdp-proxy stop -i {0}`",
                self.interface.name
            );
        }
        let mut neighbours = self.follow_neighbours(&self.interface, &config).await?;
        let known = |target: &Target| self.checks.health(target).unwrap_or_default();
        let checks = self.checks.followed_by(plan, known);
        tokio::join!(
            neighbours.settle(SETTLE_DEADLINE),
            checks.settle(CHECKS_DEADLINE)
        );
        let trunk = Trunk::look(&self.interface).await?;
        let default_source = held_vip(&config, &self.interface).await?;
        let surroundings = Surroundings {
            interface: self.interface.clone(),
            trunk,
            neighbours,
            checks,
        };
        refuse_vips(&config, &surroundings.interface, &surroundings.neighbours).await?;
        let informants = surroundings.informants();
        let Plan { tables, notices } =
            succession::plan(&config, informants, self.before(), default_source).await?;
        let change = [difference(&self.config, &config)]
            .into_iter()
            .chain(notices)
            .collect::<Vec<_>>()
            .join("; ");
        self.follow(config, tables, Some(surroundings))?;
        self.report().await;
        Ok(change)
    }
}

/// What the old tables took goes back to the kernel now, not when it suits the allocator.
fn give_memory_back() {
    // SAFETY: it looks at free memory alone.
    unsafe { malloc_trim(0) };
}

/// What differs between two configurations, in a line.
fn difference(old: &Config, new: &Config) -> String {
    if old == new {
        return "nothing differs".into();
    }
    // Without backends and the place in the file, which are no change of a service.
    let services = |config: &Config| -> BTreeMap<Listen, Service> {
        let bare = |service: &Service| Service {
            backends: Vec::new(),
            ..service.clone()
        };
        let services = config.services.iter();
        services
            .map(|service| (service.listen, bare(service)))
            .collect()
    };
    let backends = |config: &Config| -> BTreeMap<(Listen, SocketAddr), Backend> {
        let services = config.services.iter();
        services
            .flat_map(|service| {
                let backends = service.backends.iter();
                backends.map(|backend| ((service.listen, backend.address), *backend))
            })
            .collect()
    };
    let switch = match (old.flow_counters, new.flow_counters) {
        (false, true) => "flow_counters on; ",
        (true, false) => "flow_counters off; ",
        _ => "",
    };
    format!(
        "{switch}services: {}; backends: {}",
        counts(&services(old), &services(new)),
        counts(&backends(old), &backends(new))
    )
}

fn counts<K: Ord, V: PartialEq>(old: &BTreeMap<K, V>, new: &BTreeMap<K, V>) -> String {
    let missing = |from: &BTreeMap<K, V>, keys: &BTreeMap<K, V>| {
        keys.keys().filter(|key| !from.contains_key(key)).count()
    };
    let changed = |(key, value): &(&K, &V)| old.get(key).is_some_and(|old| old != *value);
    format!(
        "{} added, {} removed, {} changed",
        missing(old, new),
        missing(new, old),
        new.iter().filter(changed).count()
    )
}
