// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! What the service manager is told, where there is one that wants to know
//! (sd_notify(3)), and the watchdog that it keeps.

use std::borrow::Cow;
use std::ffi::OsStr;
use std::future::pending;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use std::{env, io};

use sd_notify::NotifyState;
use tokio::time::{Interval, MissedTickBehavior, interval};

/// Of what is served, as much is told: a service manager drops a message of more than
/// 4,096 bytes as a whole, and with it that the daemon is ready.
const STATUS_BYTES_MAX: usize = 2000;

/// How long a service manager may take to take a message in. (The library that writes the
/// messages would wait for ever.)
const PATIENCE: Duration = Duration::from_millis(100);

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
    // The next one comes soon; without a socket none would have been asked for.
    let _ = send(&[NotifyState::Watchdog], None);
}

/// Traffic is served; after a reload too, whatever came of it.
pub fn ready(status: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(&bounded(status))]);
}

/// What is served, in a line.
pub fn status(status: &str) {
    tell(&[NotifyState::Status(&bounded(status))]);
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

/// In so many bytes, by whole services.
fn bounded(status: &str) -> Cow<'_, str> {
    const SEPARATOR: &str = ", ";
    if status.len() <= STATUS_BYTES_MAX {
        return status.into();
    }
    let mut end = STATUS_BYTES_MAX;
    while !status.is_char_boundary(end) {
        end -= 1;
    }
    end = status[..end].rfind(SEPARATOR).unwrap_or(end);
    let more = status[end..].matches(SEPARATOR).count().max(1);
    format!("{}, and {more} more", &status[..end]).into()
}

/// Without a service manager this does nothing. It waits no longer than a moment for one that
/// does not read.
fn tell(state: &[NotifyState]) {
    static FAILED: AtomicBool = AtomicBool::new(false);
    let told = send(state, Some(PATIENCE));
    let failed = told.is_err();
    if let Err(error) = told
        && !FAILED.load(Ordering::Relaxed)
    {
        tracing::warn!("telling the service manager: {error}");
    }
    FAILED.store(failed, Ordering::Relaxed);
}

fn send(state: &[NotifyState], patience: Option<Duration>) -> io::Result<()> {
    let Some(manager) = env::var_os("NOTIFY_SOCKET") else {
        return Ok(());
    };
    let address = match manager.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        path => SocketAddr::from_pathname(OsStr::from_bytes(path))?,
    };
    let socket = UnixDatagram::unbound()?;
    match patience {
        Some(patience) => socket.set_write_timeout(Some(patience))?,
        None => socket.set_nonblocking(true)?,
    }
    let message: String = state.iter().map(|state| format!("{state}\n")).collect();
    socket.send_to_addr(message.as_bytes(), &address)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_status_is_cut_between_services_and_tells_how_many_more_there_are() {
        let services: Vec<String> = (0..300).map(|i| format!("service {i}")).collect();
        let all = services.join(", ");
        let told = bounded(&all);
        assert!(told.len() < STATUS_BYTES_MAX + 20, "{}", told.len());
        let (shown, more) = told.rsplit_once(", and ").unwrap();
        let shown = shown.split(", ").count();
        assert!(all.starts_with(&services[..shown].join(", ")));
        assert_eq!(more, format!("{} more", 300 - shown));
        assert_eq!(bounded("one, two"), "one, two");
        let one = "ß".repeat(2000);
        assert!(bounded(&one).len() < STATUS_BYTES_MAX + 20);
    }
}
