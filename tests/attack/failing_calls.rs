// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! Every system call of a change fails once, at every position: of a reload, of a take-over
//! on both sides, of a start after the daemon's death, of changed source addresses, and of
//! coming back to the interface. After each, flows go on and new ones begin, `status` tells
//! what is attached, a dead backend is noticed, and the next change works.
//!
//! By default all calls around the point of no return and some of the others;
//! `FAILING_CALLS=all` has them all.

use std::net::TcpListener;
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::common::http::{self, Connection};
use crate::common::lab::{BINARY, HTTP1, HTTP2, LB, Lab, children, lines_of};
use crate::common::watch;
use crate::tracer::{self, Call, Fault, Tracer};

/// Longest time of one of these tests, all positions and a busy machine included.
const LONGEST: Duration = Duration::from_secs(3600);
/// Longest wait for what is to happen.
const PATIENCE: Duration = Duration::from_secs(15);
/// The same for a start. Where one of libbpf's questions to the kernel fails, it may load the
/// program without its types, which the verifier gives up after many seconds.
const START_PATIENCE: Duration = Duration::from_secs(90);
/// What a check of the second backend asks.
const CHECKED_PORT: u16 = 9999;
/// A dead backend is tried after every so-manieth fault, as that takes a second.
const DEAD_EVERY: usize = 4;

/// What `status` tells. The one call that fails may be one of its own.
fn status(lab: &Lab) -> Value {
    until("told the status", || {
        let output = lab.proxy("status --json");
        let told = output.status.success();
        told.then(|| serde_json::from_slice(&output.stdout).unwrap())
    })
}

/// Waits until something is so.
pub fn until<T>(what: &str, mut is_so: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(so) = is_so() {
            return so;
        }
        assert!(start.elapsed() < PATIENCE, "not {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A daemon on `lb`; killed when dropped.
struct Daemon<'a> {
    lab: &'a Lab,
    child: Child,
    line: String,
    lines: Receiver<String>,
    log: String,
}

impl<'a> Daemon<'a> {
    fn spawn(lab: &'a Lab, line: &str) -> Daemon<'a> {
        use std::sync::atomic::{AtomicUsize, Ordering};
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let log = format!("/run/daemon-{}.log", NEXT.fetch_add(1, Ordering::Relaxed));
        let mut words = line.split_whitespace();
        let mut child = lab
            .command("lb", words.next().unwrap())
            .args(words)
            .stdout(Stdio::piped())
            .stderr(std::fs::File::create(lab.path(&log)).unwrap())
            .spawn()
            .unwrap();
        let lines = lines_of(child.stdout.take().unwrap());
        Daemon {
            lab,
            child,
            line: line.to_owned(),
            lines,
            log,
        }
    }

    /// It serves, and the daemon is ready; else it has ended.
    fn gets_ready(&mut self) -> bool {
        match self.lines.recv_timeout(START_PATIENCE) {
            Ok(line) => {
                assert!(line.starts_with("ready: "), "{line}");
                true
            }
            Err(RecvTimeoutError::Disconnected) => {
                self.child.wait().unwrap();
                false
            }
            Err(RecvTimeoutError::Timeout) => {
                panic!(
                    "{}: neither ready nor at its end: {}",
                    self.line,
                    self.log()
                )
            }
        }
    }

    fn runs(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    fn log(&self) -> String {
        String::from_utf8_lossy(&self.lab.read(&self.log)).into_owned()
    }

    fn signal(&self, signal: Signal) {
        // The child itself is nsenter.
        if let Some(pid) = children(self.child.id()).first() {
            kill(Pid::from_raw(*pid as i32), signal).unwrap();
        }
    }

    fn kill(mut self) {
        self.signal(Signal::SIGKILL);
        self.child.wait().unwrap();
    }
}

impl Drop for Daemon<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- {}\n{}---", self.log, self.log());
        }
        if self.runs() {
            self.signal(Signal::SIGKILL);
            let _ = self.child.wait();
        }
    }
}

/// A lab with two backends, the second of which can be made to fail its checks, and a
/// client that keeps a connection to the first.
struct Scene<'a> {
    lab: &'a Lab,
    vip: &'static str,
    kept: Connection,
    /// Answers the checks of the second backend.
    answers: Option<TcpListener>,
    faults: usize,
}

/// The configuration, with one service more or not.
fn text(vip: &str, more: bool) -> String {
    let service = |port: u16| {
        format!(
            "[[service]]\nlisten = \"{vip}:{port}\"\n\
             health = {{ type = \"tcp\", port = {CHECKED_PORT}, interval = \"200ms\", \
             timeout = \"200ms\", rise = 1, fall = 2 }}\n\
             [[service.backend]]\naddress = \"{HTTP1}:80\"\n\
             [[service.backend]]\naddress = \"{HTTP2}:80\"\n"
        )
    };
    service(80) + &if more { service(81) } else { String::new() }
}

fn write(lab: &Lab, vip: &str, more: bool) -> String {
    format!("run -i eth0 -c {}", lab.write("web.toml", &text(vip, more)))
}

fn listen(lab: &Lab, host: &str, address: &str) -> TcpListener {
    lab.within(host, || TcpListener::bind((address, CHECKED_PORT)).unwrap())
}

fn pid(status: &Value) -> u64 {
    status["pid"].as_u64().unwrap()
}

impl<'a> Scene<'a> {
    /// When a daemon serves.
    fn begin(lab: &'a Lab, vip: &'static str, answers: TcpListener) -> Scene<'a> {
        until("both backends up", || {
            states(lab).iter().all(|state| state == "up").then_some(())
        });
        let kept = until("a connection to the first backend", || {
            lab.within("client", || {
                let mut kept = Connection::open(vip).unwrap();
                (kept.host().unwrap() == "http1").then_some(kept)
            })
        });
        Scene {
            lab,
            vip,
            kept,
            answers: Some(answers),
            faults: 0,
        }
    }

    /// After a fault: what must hold, whatever it did. Returns the status.
    fn holds(&mut self, fault: &Fault) -> Value {
        self.faults += 1;
        let doing = format!("after {fault}");
        assert_eq!(self.kept.host().expect(&doing), "http1", "{doing}");
        let one = self.lab.within("client", || http::host(self.vip));
        one.unwrap_or_else(|error| panic!("{doing}, a new connection: {error}"));
        let status = status(self.lab);
        let attached = self
            .lab
            .attached()
            .unwrap_or_else(|| panic!("{doing}: nothing"));
        assert_eq!(
            attached["prog"]["id"], status["program_id"],
            "{doing}, what is attached and what status says: {status:#}"
        );
        if self.faults.is_multiple_of(DEAD_EVERY) {
            self.a_dead_backend_is_noticed(&doing);
        }
        status
    }

    fn a_dead_backend_is_noticed(&mut self, doing: &str) {
        self.answers = None;
        until(&format!("a dead backend noticed {doing}"), || {
            (states(self.lab)[1] == "down").then_some(())
        });
        for _ in 0..8 {
            let host = self.lab.within("client", || http::host(self.vip));
            assert_eq!(host.unwrap(), "http1", "{doing}, with the other one down");
        }
        self.answers = Some(listen(self.lab, "http2", HTTP2));
        until(&format!("a backend back {doing}"), || {
            (states(self.lab)[1] == "up").then_some(())
        });
    }
}

/// Of the first service's backends.
fn states(lab: &Lab) -> Vec<Value> {
    let status = status(lab);
    let backends = status["services"][0]["backends"].as_array().unwrap();
    backends
        .iter()
        .map(|backend| backend["state"].clone())
        .collect()
}

fn services(status: &Value) -> usize {
    status["services"].as_array().unwrap().len()
}

/// Two hosts that answer checks.
fn listeners(lab: &Lab) -> [TcpListener; 2] {
    [listen(lab, "http1", HTTP1), listen(lab, "http2", HTTP2)]
}

#[test]
fn a_reload_in_which_any_call_fails_has_happened_or_has_not() {
    let test = "a_reload_in_which_any_call_fails_has_happened_or_has_not";
    let Some(lab) = crate::lab(test) else { return };
    watch(LONGEST);
    let [_first, second] = listeners(&lab);
    let run = write(&lab, LB, false);
    let mut daemon = Daemon::spawn(&lab, &format!("{BINARY} {run}"));
    assert!(daemon.gets_ready());
    let mut scene = Scene::begin(&lab, LB, second);
    let pid = pid(&status(&lab));

    let tracer = Tracer::attach(&lab, pid, "");
    lab.at("lb", &format!("{BINARY} reload"));
    tracer.detach();
    let faults = tracer::faults(&tracer::calls(&lab), 20);
    let (mut happened, mut refused) = (0, 0);
    for (round, fault) in faults.iter().enumerate() {
        let more = round % 2 == 0;
        write(&lab, LB, more);
        let before = status(&lab);
        let logged = daemon.log().len();
        let tracer = Tracer::attach(&lab, pid, &fault.option());
        let told = lab.proxy("reload");
        tracer.detach();
        assert!(daemon.runs(), "after {fault}: {}", daemon.log());
        let now = scene.holds(fault);
        let is_new = now["program_id"] != before["program_id"];
        // What the daemon says is so, to who asked for it and in its log.
        let log = daemon.log().split_off(logged);
        let asked = log.contains("reloaded in") || log.contains("not reloaded");
        assert_eq!(is_new, log.contains("reloaded in"), "{fault}: {log}");
        assert_eq!(
            asked && !is_new,
            log.contains("nothing was changed"),
            "{fault}: {log}"
        );
        if told.status.success() {
            assert!(is_new, "{fault}: {log}");
        }
        let expected = if is_new {
            usize::from(more) + 1
        } else {
            services(&before)
        };
        assert_eq!(services(&now), expected, "{fault}: {now:#}");
        if is_new {
            happened += 1
        } else {
            refused += 1
        }

        let again = lab.at("lb", &format!("{BINARY} reload"));
        assert!(again.starts_with("reloaded: eth0: "), "{fault}: {again}");
        let next = status(&lab);
        assert_eq!(services(&next), usize::from(more) + 1, "{fault}: {next:#}");
        assert_ne!(next["program_id"], now["program_id"]);
    }
    println!(
        "reload: {} calls failed once each, {happened} reloads happened, {refused} did not",
        faults.len()
    );
    assert!(happened > 10 && refused > 10);
}

/// The next daemon takes over, traced or not. Returns whether it serves.
fn take_over<'a>(lab: &'a Lab, options: &str, run: &str) -> (Daemon<'a>, bool) {
    let before = match options {
        "" => String::new(),
        options => tracer::before(options),
    };
    let mut next = Daemon::spawn(lab, &format!("{before} {BINARY} {run} --take-over"));
    let serves = next.gets_ready();
    (next, serves)
}

#[test]
fn a_take_over_in_which_any_call_fails_leaves_one_daemon_that_serves() {
    let test = "a_take_over_in_which_any_call_fails_leaves_one_daemon_that_serves";
    let Some(lab) = crate::lab(test) else { return };
    watch(LONGEST);
    let [_first, second] = listeners(&lab);
    let run = write(&lab, LB, false);
    let mut daemon = Daemon::spawn(&lab, &format!("{BINARY} {run}"));
    assert!(daemon.gets_ready());
    let mut scene = Scene::begin(&lab, LB, second);

    let (next, serves) = take_over(&lab, "-e trace=all", &run);
    assert!(serves);
    let faults = tracer::faults(&tracer::calls(&lab), 15);
    until("the first one has ended", || (!daemon.runs()).then_some(()));
    let (last, serves) = take_over(&lab, "", &run);
    assert!(serves, "{}", last.log());
    drop(next);
    daemon = last;

    let (mut taken, mut stayed) = (0, 0);
    for fault in &faults {
        let (mut next, serves) = take_over(&lab, &fault.option(), &run);
        let pid_before = until(&format!("one daemon after {fault}"), || {
            // While it hands over, none answers.
            let answers = || status(&lab)["pid"].as_u64();
            (daemon.runs() != next.runs()).then(answers).flatten()
        });
        assert_eq!(next.runs(), serves, "{fault}: {}", next.log());
        let status = scene.holds(fault);
        assert_eq!(pid(&status), pid_before, "{fault}");
        if serves {
            taken += 1
        } else {
            stayed += 1
        }
        // The next one works, and is traced by nobody.
        let (last, serves) = take_over(&lab, "", &run);
        assert!(serves, "{fault}: {}", last.log());
        until("one daemon", || {
            (!daemon.runs() && !next.runs()).then_some(())
        });
        daemon = last;
    }
    println!(
        "take-over: {} calls failed once each, {taken} took over, {stayed} did not",
        faults.len()
    );
    assert!(taken > 10 && stayed > 10);
}

#[test]
fn a_daemon_that_hands_over_while_any_call_of_its_own_fails_ends_or_goes_on() {
    let test = "a_daemon_that_hands_over_while_any_call_of_its_own_fails_ends_or_goes_on";
    let Some(lab) = crate::lab(test) else { return };
    watch(LONGEST);
    let [_first, second] = listeners(&lab);
    let run = write(&lab, LB, false);
    let mut daemon = Daemon::spawn(&lab, &format!("{BINARY} {run}"));
    assert!(daemon.gets_ready());
    let mut scene = Scene::begin(&lab, LB, second);

    let tracer = Tracer::attach(&lab, pid(&status(&lab)), "");
    let (next, serves) = take_over(&lab, "", &run);
    assert!(serves);
    until("the first one has ended", || (!daemon.runs()).then_some(()));
    drop(tracer);
    daemon = next;
    let faults: Vec<Fault> = tracer::calls(&lab).iter().filter_map(Fault::of).collect();
    let all = std::env::var("FAILING_CALLS").as_deref() == Ok("all");
    let step = if all { 1 } else { faults.len().div_ceil(30) };
    let (mut taken, mut stayed) = (0, 0);
    for fault in faults.iter().step_by(step) {
        let tracer = Tracer::attach(&lab, pid(&status(&lab)), &fault.option());
        let (mut next, serves) = take_over(&lab, "", &run);
        until(&format!("one daemon after {fault}"), || {
            (daemon.runs() != next.runs()).then_some(())
        });
        assert_eq!(next.runs(), serves, "{fault}: {}", next.log());
        if daemon.runs() {
            tracer.detach();
            stayed += 1;
        } else {
            daemon = next;
            taken += 1;
        }
        scene.holds(fault);
    }
    println!("handing over: {taken} were taken over, {stayed} went on");
    assert!(taken > 5);
}

#[test]
fn a_start_after_a_kill_in_which_any_call_fails_can_be_tried_again() {
    let test = "a_start_after_a_kill_in_which_any_call_fails_can_be_tried_again";
    let Some(lab) = crate::lab(test) else { return };
    watch(LONGEST);
    let [_first, second] = listeners(&lab);
    let run = write(&lab, LB, false);
    let mut daemon = Daemon::spawn(&lab, &format!("{BINARY} {run}"));
    assert!(daemon.gets_ready());
    let mut scene = Scene::begin(&lab, LB, second);
    daemon.kill();
    let start = |options: &str| {
        let before = tracer::before(options);
        let mut daemon = Daemon::spawn(&lab, &format!("{before} {BINARY} {run}"));
        let serves = daemon.gets_ready();
        (daemon, serves)
    };
    let (next, serves) = start("-e trace=all");
    assert!(serves);
    let faults = tracer::faults(&tracer::calls(&lab), 15);
    next.kill();
    let (mut adopted, mut refused) = (0, 0);
    for fault in &faults {
        let before = lab.attached().unwrap()["prog"]["id"].clone();
        let (next, serves) = start(&fault.option());
        if serves {
            scene.holds(fault);
            adopted += 1;
            next.kill();
            continue;
        }
        // What the dead one left serves as it did.
        assert_eq!(lab.attached().unwrap()["prog"]["id"], before, "{fault}");
        assert_eq!(scene.kept.host().unwrap(), "http1", "{fault}");
        lab.within("client", || http::host(LB).unwrap());
        refused += 1;
    }
    println!(
        "a start after a kill: {} calls failed once each, {adopted} served, {refused} did not",
        faults.len()
    );
    assert!(adopted > 10 && refused > 10);
    let mut daemon = Daemon::spawn(&lab, &format!("{BINARY} {run}"));
    assert!(daemon.gets_ready());
}

#[test]
fn coming_back_to_the_interface_works_after_any_call_of_it_has_failed() {
    let test = "coming_back_to_the_interface_works_after_any_call_of_it_has_failed";
    let Some(lab) = crate::lab(test) else { return };
    watch(LONGEST);
    let [_first, second] = listeners(&lab);
    let run = write(&lab, LB, false);
    let mut daemon = Daemon::spawn(&lab, &format!("{BINARY} {run}"));
    assert!(daemon.gets_ready());
    let mut scene = Scene::begin(&lab, LB, second);
    let pid = pid(&status(&lab));
    let id = status(&lab)["program_id"].clone();
    let come_back = |options: &str| {
        let tracer = Tracer::attach(&lab, pid, options);
        lab.at("lb", "ip link set dev eth0 xdpgeneric off");
        until("attached again", || lab.attached());
        tracer.detach();
        assert_eq!(lab.attached().unwrap()["prog"]["id"], id);
    };
    come_back("");
    let faults = tracer::faults(&tracer::calls(&lab), 5);
    for fault in &faults {
        come_back(&fault.option());
        scene.holds(fault);
        assert!(daemon.runs());
    }
    println!("coming back: {} calls failed once each", faults.len());
    lab.at("lb", &format!("{BINARY} reload"));
}

#[test]
fn source_addresses_change_though_any_call_of_it_fails() {
    const VIP: &str = "10.9.9.9";
    let test = "source_addresses_change_though_any_call_of_it_fails";
    let Some(lab) = crate::lab(test) else { return };
    watch(LONGEST);
    let [_first, second] = listeners(&lab);
    let mac = lab.at("lb", "cat /sys/class/net/eth0/address");
    lab.at("lb", &format!("ip addr add {VIP}/32 dev lo"));
    lab.at("client", &format!("ip route add {VIP}/32 dev eth0"));
    lab.at(
        "client",
        &format!("ip neigh add {VIP} lladdr {mac} dev eth0"),
    );
    let run = write(&lab, VIP, false);
    let mut daemon = Daemon::spawn(&lab, &format!("{BINARY} {run}"));
    assert!(daemon.gets_ready());
    let mut scene = Scene::begin(&lab, VIP, second);
    let pid = pid(&status(&lab));
    let mut addresses = [LB, "10.0.0.6"].iter().cycle();
    let mut from = addresses.next().unwrap();
    let mut change = |options: &str| {
        let to = addresses.next().unwrap();
        let tracer = Tracer::attach(&lab, pid, options);
        lab.at("lb", &format!("ip addr del {from}/24 dev eth0"));
        lab.at("lb", &format!("ip addr add {to}/24 dev eth0"));
        until(&format!("flows from {to}"), || {
            let status = status(&lab);
            let backends = status["services"][0]["backends"].as_array().unwrap();
            let is_well = |backend: &Value| backend["state"] == "up" && backend["source"] == *to;
            backends.iter().all(is_well).then_some(())
        });
        tracer.detach();
        from = to;
    };
    // No flow outlives the address that it came from.
    let again = |scene: &mut Scene| {
        scene.kept = until("a connection to the first backend", || {
            lab.within("client", || {
                let mut kept = Connection::open(VIP).ok()?;
                (kept.host().ok()? == "http1").then_some(kept)
            })
        });
    };
    change("");
    // It waits for seconds before, and what asks whether it is over is traced as well.
    let calls = tracer::calls(&lab);
    let is_point = |call: &Call| call.text.contains("RTM_SETLINK");
    let point = calls.iter().rposition(is_point).unwrap();
    let near = point.saturating_sub(120)..calls.len().min(point + 100);
    let faults = tracer::faults(&calls[near], 3);
    let all = std::env::var("FAILING_CALLS").as_deref() == Ok("all");
    let chosen = faults.iter().take(if all { usize::MAX } else { 25 });
    let mut count = 0;
    for fault in chosen {
        change(&fault.option());
        again(&mut scene);
        scene.holds(fault);
        assert!(daemon.runs());
        count += 1;
    }
    println!("source addresses: {count} calls failed once each");
    lab.at("lb", &format!("{BINARY} reload"));
}
