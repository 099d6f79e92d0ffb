// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! Drain by command: a backend keeps its flows and gets no new ones.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Result, bail};

use super::Daemon;
use crate::status::counted;
use crate::tables::{BackendTable, Tenure};

impl Daemon {
    /// Drains a backend, in one service or in all that have it, or ends that. Returns
    /// what became of it, by line.
    ///
    /// # Errors
    /// There is no such backend or service.
    pub(super) fn drain(
        &mut self,
        backend: &str,
        service: Option<&str>,
        drains: bool,
    ) -> Result<String> {
        let indexes = self.find(backend, service)?;
        let counters = self.datapath.counters(self.tables.backends.len())?;
        self.apply(|tables| {
            for index in &indexes {
                tables.backends[index - 1].condition.drained = drains;
            }
        });
        let mut done = String::new();
        for index in indexes {
            let table = &self.tables.backends[index - 1];
            let name = format!("{} of {}", table.backend, self.service_name(table));
            let flows = counted(counters.backends[index - 1].flows(), "flow");
            let line = if drains {
                format!("{name} drains: {flows} left")
            } else if table.backend.weight == 0 {
                format!("{name} still drains, as its weight is 0: {flows} left")
            } else if let Some(why) = self.why_not(table) {
                format!("{name} drains no more, but gets no flows: {why}")
            } else {
                format!("{name} gets flows")
            };
            tracing::info!("by command: {line}");
            done += &(line + "\n");
            if drains && !self.takes_flows(table.service) {
                done += &format!(
                    "warning: {} has no backend for new flows: clients are refused\n",
                    self.service_name(table)
                );
            }
        }
        if !self.unwritten.is_empty() {
            done += "warning: the maps can't be written now: it counts from when they can\n";
        }
        Ok(done)
    }

    fn takes_flows(&self, service: usize) -> bool {
        let mut backends = self.tables.services[service].backends.iter();
        backends.any(|index| self.tables.takes_flows(*index))
    }

    /// The indexes of the backends that are meant.
    fn find(&self, text: &str, service: Option<&str>) -> Result<Vec<usize>> {
        if let Some(name) = service
            && !self.config.services.iter().any(|known| known.name == name)
        {
            let names = self.config.services.iter().map(|known| known.name.as_str());
            bail!(
                "there is no service {name:?}, but {}",
                names.collect::<Vec<_>>().join(", ")
            );
        }
        let tables = (1..).zip(&self.tables.backends);
        let here: Vec<(usize, &BackendTable)> = tables
            .filter(|(_, table)| {
                table.tenure == Tenure::Configured
                    && service.is_none_or(|name| self.service_name(table) == name)
            })
            .collect();
        let indexes = here.iter().filter(|(_, table)| is_meant(table, text));
        let indexes: Vec<usize> = indexes.map(|(index, _)| *index).collect();
        if indexes.is_empty() {
            let mut known: Vec<String> = here
                .iter()
                .map(|(_, table)| table.backend.to_string())
                .collect();
            known.sort();
            known.dedup();
            bail!("there is no backend {text:?}, but {}", known.join(", "));
        }
        Ok(indexes)
    }
}

/// By address and port, or by address alone.
fn is_meant(table: &BackendTable, text: &str) -> bool {
    let address = table.backend.address;
    let host = text.trim_start_matches('[').trim_end_matches(']');
    text.parse::<SocketAddr>()
        .is_ok_and(|meant| meant == address)
        || host
            .parse::<IpAddr>()
            .is_ok_and(|meant| meant == address.ip())
}
