// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! What the service manager is told, where there is one that wants to know
//! (sd_notify(3)), and the watchdog that it keeps.

use std::future::pending;

use sd_notify::NotifyState;
use tokio::time::{Interval, MissedTickBehavior, interval};

/// How often the service manager is to be told that the daemon is alive.
pub struct Watchdog(Option<Interval>);

impl Watchdog {
    /// As the service manager asked for it: twice in each of its periods.
    pub fn as_asked() -> Watchdog {
        let period = sd_notify::watchdog_enabled().filter(|period| !period.is_zero());
        Watchdog(period.map(|period| {
            let mut pings = interval(period / 2);
            pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
            pings
        }))
    }

    /// Waits until a ping is due; for ever, if nobody asked. Cancel-safe.
    pub async fn due(&mut self) {
        match &mut self.0 {
            Some(pings) => drop(pings.tick().await),
            None => pending().await,
        }
    }
}

/// The daemon is alive. To be said by the loop whose hanging is to be noticed.
pub fn alive() {
    tell(&[NotifyState::Watchdog]);
}

/// Traffic is served; after a reload too, whatever came of it.
pub fn ready(status: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// What is served, in a line.
pub fn status(status: &str) {
    tell(&[NotifyState::Status(status)]);
}

pub fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(error) => tracing::warn!("reading the clock: {error}"),
    }
}

pub fn stopping() {
    tell(&[NotifyState::Stopping]);
}

/// Without a service manager this does nothing.
fn tell(state: &[NotifyState]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!("telling the service manager: {error}");
    }
}
