// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! Keeps the program on its interface: attaches it again when somebody took it off or
//! the interface was made anew, and waits while it can't. The maps, and with them the
//! flows, are there all the time.

use anyhow::Result;

use super::routes::{addresses_with_flows, backend_addresses, vips};
use super::{Daemon, SETTLE_DEADLINE};
use crate::attach::{self, Look};
use crate::neighbour::{self, Interface, Neighbours};
use crate::service::Config;
use crate::vlan::Trunk;

/// What is complained of here.
const PRESENCE: &str = "the program on its interface";
const ASKING: &str = "asking what is attached";
const FOLLOWING: &str = "following the neighbours";

impl Daemon {
    /// Looks whether the program is where it should be, and brings it back if it can.
    pub(super) async fn look_after(&mut self) {
        if self.absent {
            self.return_to_interface().await;
            return;
        }
        let look = self.look();
        if !matches!(look, Look::Unknown(_)) {
            self.troubles.end(ASKING);
            let other = matches!(&look, Look::Other(other) if other.may_be_ours());
            self.taken_over |= self.handed_over && other;
            self.handed_over = false;
        }
        if self.taken_over {
            return;
        }
        match look {
            Look::Ours => self.troubles.forget(PRESENCE),
            Look::Gone => self.leave(),
            Look::Nothing => match self.come_back() {
                Ok(()) => {
                    self.troubles.forget(PRESENCE);
                    tracing::warn!(
                        "{}: somebody detached program {}: attached again, its flows are kept",
                        self.interface.name,
                        self.attachment.program_id()
                    );
                }
                Err(error) => match self.look() {
                    // An interface that is deleted loses its program first.
                    Look::Gone => self.leave(),
                    Look::Ours => self.troubles.forget(PRESENCE),
                    _ => self.troubles.complain(
                        PRESENCE,
                        format!(
                            "{}: nothing is balanced: attaching program {} again: {error:#}",
                            self.interface.name,
                            self.attachment.program_id()
                        ),
                    ),
                },
            },
            Look::Other(other) => {
                let words = format!("nothing is balanced: {other}; flows are kept");
                self.troubles.complain(PRESENCE, words);
            }
            // What was known last may be so still.
            Look::Unknown(error) => drop(self.troubles.note(ASKING, Err::<(), _>(error))),
        }
        if self.deaf && !self.absent {
            self.listen_again().await;
        }
    }

    /// The interface is not there any more.
    fn leave(&mut self) {
        self.absent = true;
        attach::tidy_pins();
        let words = format!(
            "{} is gone (its index is nobody's any more): waiting for it, and nothing is balanced \
             meanwhile; flows are kept",
            self.interface.name
        );
        self.troubles.complain(PRESENCE, words);
    }

    async fn return_to_interface(&mut self) {
        let Ok(interface) = neighbour::interface(&self.interface.name).await else {
            return;
        };
        let name = interface.name.clone();
        let returned = async {
            let neighbours = self.follow_neighbours(&interface, &self.config).await?;
            let trunk = Trunk::look(&interface).await?;
            self.come_to(interface, trunk, neighbours)
        };
        if let Err(error) = returned.await {
            let words = format!("{name} is not what it was: {error:#}");
            self.troubles.complain(PRESENCE, words);
            return;
        }
        self.neighbours.settle(SETTLE_DEADLINE).await;
        self.troubles.forget(PRESENCE);
        tracing::warn!(
            "{name} is back: program {} attached again, its flows are kept",
            self.attachment.program_id()
        );
        self.apply(|_| ());
    }

    /// Follows the neighbours again, on the interface that is there as before.
    async fn listen_again(&mut self) {
        let followed = self.follow_neighbours(&self.interface, &self.config).await;
        let Some(mut neighbours) = self.troubles.note(FOLLOWING, followed) else {
            return;
        };
        neighbours.settle(SETTLE_DEADLINE).await;
        (self.neighbours, self.deaf) = (neighbours, false);
        self.apply(|_| ());
    }

    /// How backends are reached: those of a configuration, and those that flows are with.
    pub(super) async fn follow_neighbours(
        &self,
        interface: &Interface,
        config: &Config,
    ) -> Result<Neighbours> {
        let busy = self.before().backends_with_flows()?;
        let mut addresses = backend_addresses(config);
        addresses.extend(addresses_with_flows(&self.tables, |index| {
            busy.contains(&index)
        }));
        Neighbours::follow(interface, addresses, vips(config, &self.tables)).await
    }
}
