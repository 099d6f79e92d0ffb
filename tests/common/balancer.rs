// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! The load balancer on `lb` of a lab.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use super::lab::{Lab, READY_DEADLINE, children, lines_of, only_child};

const END_DEADLINE: Duration = Duration::from_secs(5);

/// A running `xdp-proxy run`. A test that fails prints its log.
pub struct Balancer<'a> {
    lab: &'a Lab,
    child: Child,
    log: PathBuf,
    /// The line "ready: ...".
    pub ready: String,
    /// From the start of the command, `nsenter` and `ip netns exec` included.
    pub ready_after: Duration,
}

impl<'a> Balancer<'a> {
    /// By a line on `lb`; returns when it is ready.
    pub fn start(lab: &'a Lab, line: &str) -> Balancer<'a> {
        let started = Instant::now();
        let log = lab.path(&format!("/run/lb-{}.log", nonce()));
        let mut words = line.split_whitespace();
        let mut child = lab
            .command("lb", words.next().unwrap())
            .args(words)
            .stdout(Stdio::piped())
            .stderr(File::create(&log).unwrap())
            .spawn()
            .unwrap();
        let lines = lines_of(child.stdout.take().unwrap());
        let mut balancer = Balancer {
            lab,
            child,
            log,
            ready: String::new(),
            ready_after: Duration::ZERO,
        };
        let ready = lines.recv_timeout(READY_DEADLINE);
        balancer.ready_after = started.elapsed();
        balancer.ready = ready.expect("the load balancer got ready in time");
        assert!(balancer.ready.starts_with("ready: "), "{}", balancer.ready);
        balancer
    }

    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    pub fn signal(&self, signal: Signal) {
        // The child itself is nsenter, which hands no signal on.
        let pid = only_child(self.child.id());
        kill(Pid::from_raw(pid as i32), signal).unwrap();
    }

    /// Goes on after SIGSTOP: nsenter stops with it, and has it go on with itself.
    pub fn go_on(&self) {
        kill(Pid::from_raw(self.child.id() as i32), Signal::SIGCONT).unwrap();
    }

    /// Its log, and how it ended.
    pub fn outcome(self) -> (String, ExitStatus) {
        let log = self.log.clone();
        let status = self.wait();
        (fs::read_to_string(log).unwrap_or_default(), status)
    }

    /// Waits for its end.
    pub fn wait(mut self) -> ExitStatus {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(start.elapsed() < END_DEADLINE, "it does not end");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Ends it as a user would; it must exit 0.
    pub fn end(self) {
        self.signal(Signal::SIGTERM);
        let (log, status) = self.outcome();
        assert_eq!(status.code(), Some(0), "after SIGTERM: {log}");
    }

    /// Waits until `status` is as wanted; returns how long that took.
    pub fn until(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Duration {
        let start = Instant::now();
        loop {
            let status = self.lab.status();
            if wanted(&status) {
                return start.elapsed();
            }
            assert!(
                start.elapsed() < Duration::from_secs(8),
                "not {what}: {status:#}"
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Balancer<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- the load balancer's log\n{}---", self.log());
        }
        if let Ok(None) = self.child.try_wait() {
            // Without a child nsenter is about to end too.
            if let Some(pid) = children(self.child.id()).first() {
                let _ = kill(Pid::from_raw(*pid as i32), Signal::SIGKILL);
            }
            let _ = self.child.wait();
        }
    }
}

fn nonce() -> usize {
    use std::sync::atomic::{AtomicUsize, Ordering};
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}
