// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! Keeps the program on its interface: attaches it again when somebody took it off or
//! the interface was made anew, and waits while it can't. The maps, and with them the
//! flows, are there all the time.

use anyhow::Result;

use super::routes::{addresses_with_flows, backend_addresses, vips};
use super::{Daemon, SETTLE_DEADLINE};
use crate::attach::{self, Look};
use crate::neighbour::{self, Neighbours};
use crate::vlan::Trunk;

impl Daemon {
    /// Looks whether the program is where it should be, and brings it back if it can.
    pub(super) async fn look_after(&mut self) -> Result<()> {
        if self.absent {
            self.return_to_interface().await?;
            return Ok(());
        }
        match self.attachment.look() {
            Look::Ours => self.trouble = None,
            Look::Gone => self.leave("its index is nobody's any more"),
            Look::Nothing => match self.attachment.attach_again(&self.datapath) {
                Ok(()) => {
                    self.trouble = None;
                    tracing::warn!(
                        "{}: somebody detached program {}: attached again, its flows are kept",
                        self.interface.name,
                        self.program_id
                    );
                }
                Err(error) => self.complain(format!(
                    "{}: nothing is balanced: attaching program {} again: {error:#}",
                    self.interface.name, self.program_id
                )),
            },
            Look::Other(other) => {
                self.complain(format!("nothing is balanced: {other}; flows are kept"));
            }
        }
        Ok(())
    }

    /// The interface is not there any more.
    pub(super) fn leave(&mut self, why: &str) {
        self.absent = true;
        attach::tidy_pins();
        self.complain(format!(
            "{} is gone ({why}): waiting for it, and nothing is balanced meanwhile; flows are kept",
            self.interface.name
        ));
    }

    async fn return_to_interface(&mut self) -> Result<()> {
        let Ok(interface) = neighbour::interface(&self.interface.name).await else {
            return Ok(());
        };
        let counters = self.datapath.counters(self.tables.backends.len())?;
        let has_flows = |index: usize| counters.backends[index - 1].flows() > 0;
        let mut addresses = backend_addresses(&self.config);
        addresses.extend(addresses_with_flows(&self.tables, has_flows));
        let moved = async {
            let neighbours = Neighbours::follow(&interface, addresses, vips(&self.config)).await?;
            let trunk = Trunk::look(&interface).await?;
            self.datapath
                .write_interface(interface.mac, interface.mtu)?;
            self.attachment.move_to(&interface, &self.datapath)?;
            anyhow::Ok((neighbours, trunk))
        };
        let (mut neighbours, trunk) = match moved.await {
            Ok(moved) => moved,
            Err(error) => {
                self.complain(format!("{} is not what it was: {error:#}", interface.name));
                return Ok(());
            }
        };
        neighbours.settle(SETTLE_DEADLINE).await;
        (self.neighbours, self.trunk) = (neighbours, trunk);
        (self.absent, self.trouble) = (false, None);
        tracing::warn!(
            "{} is back: program {} attached again, its flows are kept",
            interface.name,
            self.program_id
        );
        self.apply(|_| ())
    }

    /// Says what is wrong, once.
    fn complain(&mut self, trouble: String) {
        if self.trouble.as_ref() != Some(&trouble) {
            tracing::error!("{trouble}");
            self.trouble = Some(trouble);
        }
    }
}
