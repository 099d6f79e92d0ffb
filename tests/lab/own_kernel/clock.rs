// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! The wall clock jumps by years, as people and time servers set it.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::sys::signal::Signal;
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_settime};
use serde_json::Value;

use super::lab;
use crate::common::http::{self, Connection};
use crate::common::lab::{BINARY, Balancer, LB, Lab};
use crate::common::load::Clients;
use crate::switch::{OFTEN, kill_nginx, services, until};

const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);

/// Sets the clock, and sets it right again when it goes.
struct Clock {
    right: Duration,
    begun: Instant,
}

impl Clock {
    fn take() -> Clock {
        let right = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let begun = Instant::now();
        Clock { right, begun }
    }

    fn set(time: Duration) {
        clock_settime(ClockId::CLOCK_REALTIME, TimeSpec::from_duration(time)).unwrap();
    }

    /// So many years ahead of what is right, or behind.
    fn jump(&self, years: i32) {
        let far = YEAR * years.unsigned_abs();
        Clock::set(match years {
            0.. => self.right + far,
            _ => self.right - far,
        });
    }
}

impl Drop for Clock {
    fn drop(&mut self) {
        Clock::set(self.right + self.begun.elapsed());
    }
}

/// Every number under a key with this name, wherever it is.
fn all_of(json: &Value, key: &str, found: &mut Vec<f64>) {
    match json {
        Value::Object(members) => {
            for (name, value) in members {
                match value.as_f64() {
                    Some(number) if name == key => found.push(number),
                    _ => all_of(value, key, found),
                }
            }
        }
        Value::Array(all) => all.iter().for_each(|value| all_of(value, key, found)),
        _ => {}
    }
}

/// What is told of times is true: nothing is older than the test, and nothing is of the future.
fn ages_are_right(lab: &Lab, begun: Instant) {
    let flows = lab.at("lb", &format!("{BINARY} flows --json"));
    let flows: Value = serde_json::from_str(&flows).unwrap();
    let status = lab.status();
    let most = begun.elapsed().as_secs_f64() + 1.0;
    for (json, keys, least) in [
        (&flows, &["age_seconds", "idle_seconds"][..], 20),
        (&status, &["uptime_seconds"], 1),
        (&status, &["for_seconds"], 2),
    ] {
        for key in keys {
            let mut ages = Vec::new();
            all_of(json, key, &mut ages);
            assert!(ages.len() >= least, "{key}: {json:#}");
            assert!(
                ages.iter().all(|age| (0.0..=most).contains(age)),
                "{key}: {ages:?}"
            );
        }
    }
}

fn balance(lab: &Lab) -> Balancer<'_> {
    let keys = format!(
        "health = {{ type = 'tcp', {OFTEN} }}\ndrain_timeout = '3s'\n\
         timeouts = {{ unanswered = '5s', established = '1h', closing = '10s' }}"
    );
    let file = lab.write("clock.toml", &services(&[(80, &keys)]));
    lab.balance(&format!("-c {file}"))
}

#[test]
fn a_clock_that_jumps_by_years_ends_nothing_and_makes_nothing_older() {
    let test = "a_clock_that_jumps_by_years_ends_nothing_and_makes_nothing_older";
    let Some(lab) = lab(test) else { return };
    let begun = Instant::now();
    let clock = Clock::take();
    let lb = balance(&lab);
    let mut kept = Clients::open(&lab);
    for years in [10, -20, 5] {
        clock.jump(years);
        // Sweeps and checks.
        std::thread::sleep(Duration::from_millis(2500));
        kept.go_on(&lab);
        ages_are_right(&lab, begun);
        lab.at("lb", &format!("{BINARY} reload"));
        kept.go_on(&lab);
    }
    let log = lb.log();
    assert!(
        !log.contains("is down") && !log.contains("no new flows"),
        "{log}"
    );

    // What another daemon left is as old as it is.
    lb.signal(Signal::SIGKILL);
    lb.wait();
    clock.jump(-15);
    let lb = balance(&lab);
    kept.go_on(&lab);
    ages_are_right(&lab, begun);
    lb.end();
}

#[test]
fn a_clock_that_jumps_hurries_and_delays_nothing() {
    let test = "a_clock_that_jumps_hurries_and_delays_nothing";
    let Some(lab) = lab(test) else { return };
    let clock = Clock::take();
    let lb = balance(&lab);
    // Forwards it would be over at once, and backwards never.
    for (years, drained) in [(10, "10.0.0.2"), (-20, "10.0.0.3")] {
        let mut held = lab.within("client", || {
            loop {
                let mut connection = Connection::open(LB).unwrap();
                let host = connection.host().unwrap();
                if (host == "http1") == (drained == "10.0.0.2") {
                    break connection;
                }
            }
        });
        let begun = Instant::now();
        lab.at("lb", &format!("{BINARY} drain {drained}"));
        clock.jump(years);
        while held.host().is_ok() {
            assert!(
                begun.elapsed() < Duration::from_secs(10),
                "it drains for ever"
            );
            std::thread::sleep(Duration::from_millis(50));
        }
        let took = begun.elapsed();
        println!("drained after {took:?}");
        // Seconds are counted whole.
        assert!(took > Duration::from_secs(2), "{took:?}");
        lab.at("lb", &format!("{BINARY} undrain {drained}"));
    }
    // Two jumps while a server is dead: its checks tell, and then that it is back.
    clock.jump(3);
    kill_nginx(&lab, "http1");
    clock.jump(-3);
    until(&lb, 0, 0, "down");
    assert_eq!(lab.within("client", || http::host(LB).unwrap()), "http2");
    lab.script("serve http1");
    clock.jump(30);
    until(&lb, 0, 0, "up");
    lb.end();
}
