// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! What a service manager hears: readiness, reloads, the end, and that it lives.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::libc;
use nix::sys::signal::{SigHandler, Signal, signal};

use crate::common::http;
use crate::common::lab::{BINARY, Balancer, HTTP1, HTTP2, LB, Lab};

const PERIOD: Duration = Duration::from_secs(2);
const PATIENCE: Duration = Duration::from_secs(5);

/// The service manager's socket.
struct Manager(UnixDatagram);

impl Manager {
    fn listen(lab: &Lab) -> Manager {
        let socket = UnixDatagram::bind(lab.path("/run/notify")).unwrap();
        Manager(socket)
    }

    fn start<'a>(&self, lab: &'a Lab, arguments: &str) -> Balancer<'a> {
        lab.balance_by(&format!(
            "env NOTIFY_SOCKET=/run/notify WATCHDOG_USEC={} {BINARY} run {arguments}",
            PERIOD.as_micros()
        ))
    }

    /// The next message within the time.
    fn hear(&self, within: Duration) -> Option<BTreeMap<String, String>> {
        self.0.set_read_timeout(Some(within)).unwrap();
        let mut message = [0; 4096];
        let length = self.0.recv(&mut message).ok()?;
        let text = String::from_utf8(message[..length].to_vec()).unwrap();
        let pairs = text.lines().map(|line| line.split_once('=').unwrap());
        Some(pairs.map(|(k, v)| (k.to_owned(), v.to_owned())).collect())
    }

    /// The next message with this key.
    fn hear_of(&self, key: &str) -> BTreeMap<String, String> {
        let start = Instant::now();
        while start.elapsed() < PATIENCE {
            match self.hear(PATIENCE) {
                Some(message) if message.contains_key(key) => return message,
                _ => {}
            }
        }
        panic!("nothing of {key}")
    }

    /// How many pings come within the time.
    fn pings(&self, within: Duration) -> usize {
        let start = Instant::now();
        let mut count = 0;
        while let Some(rest) = within.checked_sub(start.elapsed())
            && let Some(message) = self.hear(rest.max(Duration::from_millis(1)))
        {
            count += usize::from(message.contains_key("WATCHDOG"));
        }
        count
    }
}

fn web(backends: &[&str]) -> String {
    let backends = backends.iter();
    let backends = backends.map(|b| format!("[[service.backend]]\naddress = \"{b}\"\n"));
    let backends: String = backends.collect();
    format!("[[service]]\nlisten = \"{LB}:80\"\n{backends}")
}

#[test]
fn a_service_manager_hears_of_readiness_reloads_and_the_end() {
    let Some(lab) = crate::lab("a_service_manager_hears_of_readiness_reloads_and_the_end") else {
        return;
    };
    let manager = Manager::listen(&lab);
    let file = lab.write("web.toml", &web(&[HTTP1, HTTP2]));
    let lb = manager.start(&lab, &format!("-c {file}"));
    let ready = manager.hear_of("READY");
    assert_eq!(ready["READY"], "1");
    assert_eq!(ready["STATUS"], lb.ready["ready: ".len()..]);
    assert!(ready["STATUS"].ends_with("-> 2 backends"), "{ready:?}");

    lab.at("http2", "ip link set eth0 down");
    let status = manager.hear_of("STATUS");
    assert!(
        status["STATUS"].ends_with("-> 1 of 2 backends"),
        "{status:?}"
    );

    lab.write("web.toml", &web(&[HTTP1]));
    lb.signal(Signal::SIGHUP);
    let reloading = manager.hear_of("RELOADING");
    let now: u64 = reloading["MONOTONIC_USEC"].parse().unwrap();
    let uptime = fs::read_to_string("/proc/uptime").unwrap();
    let uptime: f64 = uptime.split(' ').next().unwrap().parse().unwrap();
    let age = uptime - now as f64 / 1e6;
    assert!((-0.1..2.0).contains(&age), "{age} s ago: {reloading:?}");
    let ready = manager.hear_of("READY");
    assert!(ready["STATUS"].ends_with("-> 1 backend"), "{ready:?}");

    // A reload that changes nothing for its error is over as well.
    lab.write("web.toml", "listen = 1");
    lb.signal(Signal::SIGHUP);
    manager.hear_of("RELOADING");
    let ready = manager.hear_of("READY");
    assert!(ready["STATUS"].ends_with("-> 1 backend"), "{ready:?}");

    lb.signal(Signal::SIGTERM);
    assert_eq!(manager.hear_of("STOPPING")["STOPPING"], "1");
    assert_eq!(lb.wait().code(), Some(0));
}

/// A message of more than 4,096 bytes is dropped as a whole.
#[test]
fn readiness_of_three_hundred_services_is_heard() {
    let Some(lab) = crate::lab("readiness_of_three_hundred_services_is_heard") else {
        return;
    };
    let manager = Manager::listen(&lab);
    let services = (0..300).map(|i| {
        format!(
            "[[service]]\nlisten = \"{LB}:{}\"\nhealth = {{ type = \"none\" }}\n\
             [[service.backend]]\naddress = \"{HTTP1}:80\"\n",
            20_000 + i
        )
    });
    let file = lab.write("many.toml", &services.collect::<String>());
    let lb = manager.start(&lab, &format!("-c {file}"));
    assert!(lb.ready.len() > 4096);
    let ready = manager.hear_of("READY");
    assert!(ready["STATUS"].ends_with(" more"), "{ready:?}");
    lb.signal(Signal::SIGHUP);
    manager.hear_of("RELOADING");
    let length = manager.hear_of("READY")["STATUS"].len();
    assert!(length < 2100, "{length} bytes");
    lb.end();
}

/// Nobody else can open the file until this one is dropped, or 45 s are over
/// (`fs.lease-break-time`).
fn lease(path: &Path) -> File {
    let file = File::open(path).unwrap();
    // SAFETY: no handler is set: who is asked to give it back does not listen.
    unsafe { signal(Signal::SIGIO, SigHandler::SigIgn) }.unwrap();
    // SAFETY: it takes no pointer.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, libc::F_WRLCK) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    file
}

#[test]
fn the_watchdog_hears_two_pings_a_period_and_none_of_a_daemon_that_hangs() {
    let test = "the_watchdog_hears_two_pings_a_period_and_none_of_a_daemon_that_hangs";
    let Some(lab) = crate::lab(test) else {
        return;
    };
    let manager = Manager::listen(&lab);
    let file = lab.write("web.toml", &web(&[HTTP1]));
    let lb = manager.start(&lab, &format!("-c {file}"));
    manager.hear_of("READY");
    let pings = manager.pings(2 * PERIOD);
    assert!((4..=5).contains(&pings), "{pings} in two periods");

    // To open a file that somebody has a lease on takes long: the loop hangs.
    lab.write("web.toml", &web(&[HTTP1, HTTP2]));
    let leased = lease(&lab.path(&file));
    lb.signal(Signal::SIGHUP);
    manager.hear_of("RELOADING");
    assert_eq!(manager.pings(2 * PERIOD), 0, "it hangs and pings");
    // The program serves without it.
    lab.within("client", || http::host(LB).unwrap());
    drop(leased);
    assert!(manager.hear_of("READY")["STATUS"].ends_with("-> 2 backends"));
    let pings = manager.pings(2 * PERIOD);
    assert!((4..=5).contains(&pings), "{pings} in two periods");
    lb.end();
}

#[test]
fn a_service_manager_that_is_gone_stops_nothing() {
    let Some(lab) = crate::lab("a_service_manager_that_is_gone_stops_nothing") else {
        return;
    };
    let manager = Manager::listen(&lab);
    let file = lab.write("web.toml", &web(&[HTTP1]));
    let lb = manager.start(&lab, &format!("-c {file}"));
    drop(manager);
    lab.at("lb", &format!("{BINARY} reload"));
    let word = "telling the service manager: Connection refused";
    assert!(lb.log().contains(word), "{}", lb.log());
    lab.within("client", || http::host(LB).unwrap());
    lb.end();
}
