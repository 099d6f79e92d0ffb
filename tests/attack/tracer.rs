// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! strace beside a daemon: tells the system calls of its first thread, which serves, and
//! lets some of them fail.

use std::collections::HashMap;
use std::fmt::{self, Display, Formatter};
use std::process::{Child, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::common::lab::{Lab, lines_of, only_child};

const PATIENCE: Duration = Duration::from_secs(10);
/// Where the trace goes, in the sandbox.
const TRACE: &str = "/run/trace";

/// One system call of a trace.
#[derive(Clone, Debug)]
pub struct Call {
    pub name: String,
    /// The so-manieth of this name, from 1.
    pub number: usize,
    /// With arguments and result.
    pub text: String,
}

/// A call that fails, and how.
#[derive(Clone, Debug)]
pub struct Fault {
    name: String,
    number: usize,
    error: &'static str,
}

impl Fault {
    /// `None`: of such a call it makes no sense, as what it is asked for has no answer but
    /// to end (memory for the process itself), or none at all (close).
    pub fn of(call: &Call) -> Option<Fault> {
        let error = match &*call.name {
            "accept4" | "dup3" | "epoll_ctl" | "fcntl" | "memfd_create" | "openat" | "socket" => {
                "EMFILE"
            }
            "bind" | "bpf" | "getsockname" | "ioctl" | "recvmsg" | "setsockopt" => "ENOMEM",
            "connect" | "recvfrom" | "sendmsg" | "sendto" => "ENOBUFS",
            "capset" | "mkdir" | "prctl" | "read" | "statfs" | "statx" => "EIO",
            _ => return None,
        };
        Some(Fault {
            name: call.name.clone(),
            number: call.number,
            error,
        })
    }

    /// As an option of strace.
    pub fn option(&self) -> String {
        let Fault {
            name,
            number,
            error,
        } = self;
        format!("-e trace={name} -e inject={name}:error={error}:when={number}")
    }
}

impl Display for Fault {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Fault {
            name,
            number,
            error,
        } = self;
        write!(f, "{error} of {name} number {number}")
    }
}

/// strace on a process that runs, until it is detached.
pub struct Tracer(Child);

impl Tracer {
    /// On a process of `lb`, by its number there.
    pub fn attach(lab: &Lab, pid: u64, options: &str) -> Tracer {
        let mut strace = lab
            .command("lb", "strace")
            .args(["-o", TRACE, "-p", &pid.to_string()])
            .args(options.split_whitespace())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let words = lines_of(strace.stderr.take().unwrap());
        let word = words.recv_timeout(PATIENCE).unwrap();
        assert!(word.contains("attached"), "{word}");
        Tracer(strace)
    }

    /// Lets the process go on without.
    pub fn detach(mut self) {
        let strace = Pid::from_raw(only_child(self.0.id()) as i32);
        kill(strace, Signal::SIGTERM).unwrap();
        self.0.wait().unwrap();
    }
}

/// What goes before a command that is traced from its start. The command is the child, and
/// not strace.
pub fn before(options: &str) -> String {
    format!("strace -D -o {TRACE} {options}")
}

/// The calls of the last trace.
pub fn calls(lab: &Lab) -> Vec<Call> {
    let trace = String::from_utf8_lossy(&lab.read(TRACE)).into_owned();
    let mut counts: HashMap<&str, usize> = HashMap::new();
    let calls = trace.lines().filter_map(|text| {
        let (name, _) = text.split_once('(')?;
        let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
        if name.is_empty() || !name.chars().all(is_name) {
            return None;
        }
        let count = counts.entry(name).or_default();
        *count += 1;
        Some(Call {
            name: name.to_owned(),
            number: *count,
            text: text.to_owned(),
        })
    });
    calls.collect()
}

/// Faults for the calls of a trace. All around the point of no return, which is the one
/// that puts a program in its place, and `samples` of the others; all of them where
/// `FAILING_CALLS=all` is set.
pub fn faults(calls: &[Call], samples: usize) -> Vec<Fault> {
    /// Calls before the point of no return that are always among them.
    const BEFORE: usize = 10;
    let calls: Vec<(&Call, Fault)> = calls
        .iter()
        .filter_map(|call| Some((call, Fault::of(call)?)))
        .collect();
    let point = calls
        .iter()
        .position(|(call, _)| call.text.contains("RTM_SETLINK"));
    let point = point.expect("a program was put in its place");
    let all = std::env::var("FAILING_CALLS").as_deref() == Ok("all");
    let begin = if all { 0 } else { point.saturating_sub(BEFORE) };
    let step = begin.div_ceil(samples.max(1)).max(1);
    let others = calls[..begin].iter().step_by(step);
    let chosen = others.chain(&calls[begin..]);
    chosen.map(|(_, fault)| fault.clone()).collect()
}
