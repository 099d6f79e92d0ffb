// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! Checks of the backends: each is asked again and again, by a task of its own on one thread
//! beside the daemon's, and the daemon is woken when something is known anew.
//!
//! Checks leave from the address and port that the kernel picks, so never from a
//! port of a flow's. They are closed by a RST, so that none rests in TIME_WAIT.

mod probe;
mod stream;
mod tally;
mod thread;
mod tls;

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Result;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::sync::{Notify, Semaphore};
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep_until, timeout};

use crate::config::ConfigError;
use crate::service::{Backend, Check, Config, Health, Listen};
use probe::{Failure, Probe};
pub use tally::Tally;
use thread::Thread;
use tls::Authorities;

/// Which backend: that of the service which listens there.
pub type Target = (Listen, SocketAddr);

/// Open files that are not for checks.
const FILES_KEPT: u64 = 128;
/// Of an interval, what a random part is taken off the next one: checks that began
/// together spread, and none comes late.
const JITTER: f64 = 0.1;

/// What is known of a backend.
#[derive(Clone, Debug, Default)]
pub struct Report {
    pub health: Health,
    /// Why the last check failed, if it did.
    pub error: Option<String>,
}

/// What a configuration asks of its backends; all that this needs is read.
pub struct Plan(HashMap<Target, (Check, Probe)>);

impl Plan {
    /// # Errors
    /// Authorities whose certificates are trusted can't be read, or a value that is well formed
    /// means nothing.
    pub fn new(config: &Config) -> Result<Plan, ConfigError> {
        let mut authorities = Authorities::default();
        let mut targets = HashMap::new();
        for service in &config.services {
            let Some(check) = &service.health else {
                continue;
            };
            for backend in &service.backends {
                let probe = Probe::new(check, address(check, backend), &mut authorities);
                let probe = probe.map_err(|error| {
                    let place = format!("service {:?}: health", service.name);
                    ConfigError::new(&place, format!("{error:#}"))
                })?;
                targets.insert((service.listen, backend.address), (check.clone(), probe));
            }
        }
        Ok(Plan(targets))
    }
}

/// Where a backend is asked.
fn address(check: &Check, backend: &Backend) -> SocketAddr {
    let port = check.port.unwrap_or(backend.address.port());
    SocketAddr::new(backend.address.ip(), port)
}

/// What all checks share.
struct Common {
    thread: Thread,
    news: Notify,
    /// Backends of which nothing is known yet.
    unknown: AtomicUsize,
    /// One for each check that may be under way.
    places: Semaphore,
    /// How often this host's link went down or came up again: odd, it is down.
    link: AtomicUsize,
    /// The same of room for an address in the kernel's neighbour table: odd, there is none.
    starved: Mutex<HashMap<IpAddr, usize>>,
}

impl Common {
    /// What tells whether this host could ask an address: these counts, before and after.
    fn hindrances(&self, address: IpAddr) -> [usize; 2] {
        let starved = lock(&self.starved).get(&address).copied();
        [self.link.load(Ordering::Relaxed), starved.unwrap_or(0)]
    }
}

/// Whether it lasted or was met between two readings of its count.
fn hindered(before: usize, after: usize) -> bool {
    before % 2 == 1 || before != after
}

/// A backend that is asked for as long as this lives.
struct Watch {
    check: Check,
    report: Arc<Mutex<Report>>,
    task: AbortHandle,
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The checks of a configuration, under way.
pub struct Checks {
    common: Arc<Common>,
    watches: HashMap<Target, Arc<Watch>>,
}

impl Checks {
    /// Begins a plan. `known` tells what was known of a backend before.
    ///
    /// # Errors
    /// There is no thread for them.
    pub fn begin(plan: Plan, known: impl Fn(&Target) -> Health) -> Result<Checks> {
        let places = raise_file_limit();
        if plan.0.len() as u64 > places {
            tracing::warn!(
                "{} backends are to be checked, but only {places} at a time can be: raise the limit \
                 of open files (ulimit -Hn, LimitNOFILE=)",
                plan.0.len()
            );
        }
        let common = Common {
            thread: Thread::start()?,
            news: Notify::new(),
            unknown: AtomicUsize::new(0),
            places: Semaphore::new((places as usize).min(Semaphore::MAX_PERMITS)),
            link: AtomicUsize::new(0),
            starved: Mutex::default(),
        };
        let none = Checks {
            common: Arc::new(common),
            watches: HashMap::new(),
        };
        Ok(none.followed_by(plan, known))
    }

    /// The checks of another plan. Those that are in both go on as they are; those of
    /// this one alone end when it is dropped.
    pub fn followed_by(&self, plan: Plan, known: impl Fn(&Target) -> Health) -> Checks {
        let watches = plan.0.into_iter().map(|(target, (check, probe))| {
            // Authorities may be others than when they were read.
            let same = self.watches.get(&target);
            let same = same.filter(|watch| watch.check == check && !check.reads_authorities());
            let watch = same.cloned().unwrap_or_else(|| {
                let health = known(&target);
                Arc::new(self.watch(check, probe, health))
            });
            (target, watch)
        });
        Checks {
            watches: watches.collect(),
            common: self.common.clone(),
        }
    }

    fn watch(&self, check: Check, probe: Probe, health: Health) -> Watch {
        let report = Arc::new(Mutex::new(Report {
            health,
            error: None,
        }));
        if health == Health::Unknown {
            self.common.unknown.fetch_add(1, Ordering::Relaxed);
        }
        let task = self.common.thread.tasks().spawn(ask(
            self.common.clone(),
            check.clone(),
            Arc::new(probe),
            report.clone(),
        ));
        Watch {
            check,
            report,
            task: task.abort_handle(),
        }
    }

    /// Notes whether this host's link works: while it does not, no failure says anything
    /// of a backend.
    pub fn note_link(&self, works: bool) {
        let is_down = self.common.link.load(Ordering::Relaxed) % 2 == 1;
        if works == is_down {
            self.common.link.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Notes which addresses the kernel's neighbour table has no room for: what is sent
    /// there is lost, so that silence says nothing of a backend.
    pub fn note_starved(&self, addresses: &BTreeSet<IpAddr>) {
        let mut counts = lock(&self.common.starved);
        for address in addresses {
            counts.entry(*address).or_default();
        }
        for (address, count) in &mut *counts {
            *count += usize::from((*count % 2 == 1) != addresses.contains(address));
        }
    }

    /// Waits until every backend has been asked once, but not longer than that.
    pub async fn settle(&self, deadline: Duration) {
        let settled = async {
            while self.common.unknown.load(Ordering::Relaxed) > 0 {
                self.common.news.notified().await;
            }
        };
        let _ = timeout(deadline, settled).await;
        // Who waits for news has not seen these.
        self.common.news.notify_one();
    }

    /// Something is known anew. Cancel-safe.
    pub async fn changed(&self) {
        self.common.news.notified().await;
    }

    /// A backend's health; none of one that is not checked.
    pub fn health(&self, target: &Target) -> Option<Health> {
        self.report(target).map(|report| report.health)
    }

    /// What is known of a backend; nothing of one that is not checked.
    pub fn report(&self, target: &Target) -> Option<Report> {
        let watch = self.watches.get(target)?;
        Some(lock(&watch.report).clone())
    }
}

fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes a count off again, once.
struct Unknown(Option<Arc<Common>>);

impl Unknown {
    fn end(&mut self) {
        if let Some(common) = self.0.take() {
            common.unknown.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Drop for Unknown {
    fn drop(&mut self) {
        self.end();
    }
}

/// Asks a backend again and again.
async fn ask(common: Arc<Common>, check: Check, probe: Arc<Probe>, report: Arc<Mutex<Report>>) {
    let health = lock(&report).health;
    let mut tally = Tally::new(health, check.rise, check.fall);
    let mut unknown = Unknown((health == Health::Unknown).then(|| common.clone()));
    let mut next = Instant::now();
    // The second one comes at any time, so that those which begin together spread.
    let mut jitter = 1.0;
    loop {
        sleep_until(next).await;
        next = Instant::now() + check.interval.mul_f64(1.0 - jitter * random());
        jitter = JITTER;
        let Ok(place) = common.places.acquire().await else {
            return;
        };
        let address = probe.address().ip();
        let [link, starved] = common.hindrances(address);
        // Only as large as that while it is under way.
        let mut failure = Box::pin(probe.ask(check.timeout)).await.err();
        drop(place);
        let [link_now, starved_now] = common.hindrances(address);
        if hindered(link, link_now) {
            failure = failure.map(|_| Failure::Here("the link is down".into()));
        } else if hindered(starved, starved_now)
            && let Some(Failure::Silence(_)) = failure
        {
            failure = Some(Failure::Here("the kernel's neighbour table is full".into()));
        }
        // What keeps this host from asking says nothing of the backend.
        let here = matches!(failure, Some(Failure::Here(_)));
        let changed = !here && tally.add(failure.is_none());
        let error = failure.map(Failure::into_words);
        let mut report = lock(&report);
        let other_error = report.error != error;
        (report.health, report.error) = (tally.health(), error.clone());
        drop(report);
        if let Some(error) = error.filter(|_| here && other_error) {
            tracing::warn!("backend {}: {error}", probe.address());
        }
        if changed {
            unknown.end();
            common.news.notify_one();
        }
    }
}

/// From 0 to 1.
fn random() -> f64 {
    (crate::tables::random_seed() >> 11) as f64 / (1u64 << 53) as f64
}

/// Lets this process have as many open files as it may; returns how many checks
/// that is enough for.
fn raise_file_limit() -> u64 {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap_or((1024, 1024));
    let raised = setrlimit(Resource::RLIMIT_NOFILE, hard, hard).is_ok();
    let limit = if raised { hard } else { soft };
    limit.saturating_sub(FILES_KEPT).max(1)
}
