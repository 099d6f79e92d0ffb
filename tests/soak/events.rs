// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! What is done to the load balancer while it serves: servers are killed and come
//! back, backends are drained, the file changes, the daemon is killed.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::HOSTS;
use crate::common::lab::{BINARY, Balancer, LB, Lab};
use crate::common::random::Random;
use crate::ledger::{Outage, Span};
use crate::memory::Memory;
use crate::traffic::Traffic;

/// Pauses between two events, in milliseconds.
const PAUSE_MS: (usize, usize) = (300, 1500);
/// How long a server is dead, and a backend drained, in milliseconds.
const AWAY_MS: (usize, usize) = (2000, 8000);
/// How long no daemon runs, in milliseconds.
const DEAD_MS: (usize, usize) = (0, 1000);
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// Long, as a busy machine lets servers wait.
const CHECK_TIMEOUT: Duration = Duration::from_secs(1);
const FALL: u32 = 2;
/// Where flows come from as well, beside the load balancer's first address.
pub const SOURCES: [&str; 2] = ["10.0.0.10", "10.0.0.11"];
/// The program stays when the daemon ends, until `stop`.
const PERSISTENT: &str = "--persist";
/// After so many the allocator has all the room it wants.
const WARM_RELOADS: usize = 30;
/// What a busy machine may add.
const SLACK: Duration = Duration::from_secs(1);

/// A server that is dead is known to be, and gets no new connection, after so long.
pub fn detection() -> Duration {
    FALL * CHECK_INTERVAL + CHECK_TIMEOUT + SLACK
}

pub struct Events<'a> {
    lab: &'a Lab,
    traffic: &'a Traffic,
    random: Random,
    balancer: Option<Balancer<'a>>,
    file: String,
    /// The backend whose server is dead, and when it comes back.
    dead: Option<(&'static str, Instant)>,
    drained: Option<(&'static str, Instant)>,
    /// What was begun when.
    pub all: Vec<(Instant, &'static str)>,
    /// From the start of a daemon to "ready".
    pub slowest_start: Duration,
    /// After each reload of the daemon that runs.
    pub memory: Vec<Memory>,
    /// The file has one service alone.
    alone: bool,
    /// It changes where flows come from, and whether their packets are counted.
    roams: bool,
}

impl<'a> Events<'a> {
    pub fn begin(lab: &'a Lab, traffic: &'a Traffic, seed: u64) -> Events<'a> {
        let mut events = Events {
            lab,
            traffic,
            random: Random(seed),
            balancer: None,
            file: String::new(),
            dead: None,
            drained: None,
            all: Vec::new(),
            slowest_start: Duration::ZERO,
            memory: Vec::new(),
            alone: true,
            roams: false,
        };
        for source in SOURCES {
            lab.at("lb", &format!("ip addr add {source}/32 dev eth0"));
        }
        events.file = events.write_file();
        events.start(PERSISTENT);
        events
    }

    /// Lets things happen until then; with `kills`, the daemon is killed as well, and flows
    /// come from one address, then from others.
    pub fn until(&mut self, end: Instant, kills: bool) {
        self.roams = kills;
        while Instant::now() < end {
            self.pause(PAUSE_MS);
            self.come_back(false);
            match self.random.below(if kills { 9 } else { 6 }) {
                0 | 1 if self.dead.is_none() => self.kill_server(),
                2 if self.drained.is_none() => self.drain(),
                6 => self.kill_daemon(),
                7 => self.restart(),
                8 => self.take_over(),
                _ => self.reload(),
            }
        }
    }

    /// What the daemon holds is measured from here on: it has had its first reloads.
    pub fn warm_up(&mut self) {
        for _ in 0..WARM_RELOADS {
            self.reload();
        }
        self.memory.clear();
    }

    /// Everything is as at the beginning again.
    pub fn settle(&mut self) {
        self.come_back(true);
        self.reload();
    }

    pub fn end(mut self) {
        let done = self.lab.at("lb", &format!("{BINARY} stop"));
        assert!(done.contains("stopped: eth0"), "{done}");
        assert_eq!(self.balancer().wait().code(), Some(0));
    }

    /// Of the daemon that runs.
    pub fn log(&self) -> String {
        self.balancer
            .as_ref()
            .map(Balancer::log)
            .unwrap_or_default()
    }

    fn balancer(&mut self) -> Balancer<'a> {
        self.balancer.take().expect("a daemon runs")
    }

    fn count(&mut self, event: &'static str) {
        self.all.push((Instant::now(), event));
    }

    fn pause(&mut self, (from, to): (usize, usize)) {
        let pause = from + self.random.below(to - from);
        std::thread::sleep(Duration::from_millis(pause as u64));
    }

    fn pick(&mut self) -> (&'static str, Instant) {
        let host = HOSTS[self.random.below(HOSTS.len())];
        let away = AWAY_MS.0 + self.random.below(AWAY_MS.1 - AWAY_MS.0);
        (host, Instant::now() + Duration::from_millis(away as u64))
    }

    fn start(&mut self, how: &str) {
        let start = Instant::now();
        let balancer = self.lab.balance(&format!("{how} -c {}", self.file));
        self.slowest_start = self.slowest_start.max(start.elapsed());
        self.balancer = Some(balancer);
        self.memory.clear();
    }

    fn kill_daemon(&mut self) {
        self.count("kills of the daemon");
        self.end_and_start(Signal::SIGKILL, None);
    }

    /// As for another version of it, by systemd.
    fn restart(&mut self) {
        self.count("restarts");
        self.end_and_start(Signal::SIGTERM, Some(0));
    }

    fn end_and_start(&mut self, signal: Signal, code: Option<i32>) {
        let gap = Span::since(Instant::now());
        self.traffic.ledger().without_daemon.push(gap);
        let balancer = self.balancer();
        balancer.signal(signal);
        let log = balancer.log();
        assert_eq!(balancer.wait().code(), code, "{log}");
        self.pause(DEAD_MS);
        self.start(PERSISTENT);
        self.daemon_is_back();
    }

    /// The new daemon begins to check anew.
    fn take_over(&mut self) {
        self.count("take-overs");
        let gap = Span::since(Instant::now());
        self.traffic.ledger().without_daemon.push(gap);
        let old = self.balancer();
        self.start(&format!("{PERSISTENT} --take-over"));
        assert_eq!(old.wait().code(), Some(0));
        self.daemon_is_back();
    }

    fn daemon_is_back(&self) {
        let mut ledger = self.traffic.ledger();
        let gap = ledger.without_daemon.last_mut().expect("it was pushed");
        gap.until = Some(Instant::now());
    }

    fn kill_server(&mut self) {
        self.count("dead servers");
        let (host, until) = self.pick();
        let outage = Outage {
            backend: host.to_owned(),
            span: Span::since(Instant::now()),
        };
        self.traffic.ledger().outages.push(outage);
        self.lab.script(&format!("kill -9 $(ip netns pids {host})"));
        self.dead = Some((host, until));
    }

    fn drain(&mut self) {
        self.count("drains");
        let (host, until) = self.pick();
        let address = address(host);
        self.lab.at("lb", &format!("{BINARY} drain {address}:80"));
        self.drained = Some((host, until));
    }

    /// Who was away for long enough comes back.
    fn come_back(&mut self, all: bool) {
        let is_over = |until: &Instant| all || *until <= Instant::now();
        if let Some((host, _)) = self.dead.take_if(|(_, until)| is_over(until)) {
            self.lab.script(&format!(
                "rm $STATE/{host}/upload.sock
                 ip netns exec {host} nginx -e $STATE/{host}/error.log \
                 -c $STATE/{host}/nginx.conf </dev/null"
            ));
            let mut ledger = self.traffic.ledger();
            let outage = ledger.outages.last_mut().expect("it was pushed");
            outage.span.until = Some(Instant::now());
        }
        if let Some((host, _)) = self.drained.take_if(|(_, until)| is_over(until)) {
            let address = address(host);
            self.lab.at("lb", &format!("{BINARY} undrain {address}:80"));
        }
    }

    fn reload(&mut self) {
        self.count("reloads");
        self.write_file();
        let done = self.lab.at("lb", &format!("{BINARY} reload"));
        assert!(done.starts_with("reloaded: eth0"), "{done}");
        // Of one size of configuration.
        if self.alone {
            self.memory.push(Memory::of(self.lab));
        }
    }

    /// The service that has the traffic with other weights and in another order, and
    /// now and then another service beside it or other source addresses.
    fn write_file(&mut self) -> String {
        let mut hosts = HOSTS;
        self.random.shuffle(&mut hosts);
        let sources = match self.roams {
            true => &SOURCES[..self.random.below(SOURCES.len() + 1)],
            false => &[],
        };
        let counts = !self.roams || self.random.once_in(2);
        let mut text = format!("flow_counters = {counts}\n");
        self.alone = !self.random.once_in(3);
        if !self.alone {
            let backend = address(hosts[0]);
            text += &format!(
                "[[service]]\nlisten = \"{LB}:900-999\"\nhealth = {{ type = \"none\" }}\n\
                 [[service.backend]]\naddress = \"{backend}\"\n"
            );
        }
        let (interval, timeout) = (CHECK_INTERVAL.as_millis(), CHECK_TIMEOUT.as_millis());
        text += &format!(
            "[[service]]\nlisten = \"{LB}:80\"\nsource = {sources:?}\nhealth = {{ type = \"http\", interval = \
             \"{interval}ms\", timeout = \"{timeout}ms\", rise = 1, fall = {FALL} }}\n"
        );
        for host in hosts {
            let weight = 1 + self.random.below(4);
            let address = address(host);
            let _ = writeln!(
                text,
                "[[service.backend]]\naddress = \"{address}\"\nweight = {weight}"
            );
        }
        self.lab.write("soak.toml", &text)
    }
}

fn address(host: &str) -> String {
    format!(
        "10.0.0.{}",
        if host == "http3" {
            "6"
        } else {
            ["2", "3"][usize::from(host == "http2")]
        }
    )
}
