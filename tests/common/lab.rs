// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! The lab of lab/netns.sh in a sandbox of its own. Everything vanishes with the thread that
//! started it.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

pub use super::balancer::Balancer;
use super::unwatched;

pub const HTTP1: &str = "10.0.0.2";
pub const HTTP2: &str = "10.0.0.3";
pub const LB: &str = "10.0.0.5";
pub const HOSTS: [&str; 4] = ["http1", "http2", "client", "lb"];
/// What most tests serve.
pub const TWO: &str = "--listen 10.0.0.5:80 --backend 10.0.0.2 --backend 10.0.0.3";
/// The same in a file, where nothing but clients talks to the backends.
pub const TWO_UNCHECKED: &str = "
[[service]]
listen = '10.0.0.5:80'
health = { type = 'none' }
backend = [{ address = '10.0.0.2' }, { address = '10.0.0.3' }]
";
/// The binary, where every host and every user sees it.
pub const BINARY: &str = "/run/xdp-proxy";

const UP_DEADLINE: Duration = Duration::from_secs(30);
pub const READY_DEADLINE: Duration = Duration::from_secs(5);

/// Labs share the machine's few cores: one that measures, or loads them, is alone.
static TURN: RwLock<()> = RwLock::new(());

enum Turn {
    Shared {
        _turn: RwLockReadGuard<'static, ()>,
    },
    Alone {
        _turn: RwLockWriteGuard<'static, ()>,
    },
}

impl Turn {
    fn shared() -> Turn {
        let _turn = unwatched(|| TURN.read().unwrap_or_else(PoisonError::into_inner));
        Turn::Shared { _turn }
    }

    fn alone() -> Turn {
        let _turn = unwatched(|| TURN.write().unwrap_or_else(PoisonError::into_inner));
        Turn::Alone { _turn }
    }
}

pub struct Lab {
    sandbox: Child,
    /// The sandbox's first process, as this side numbers it.
    init: u32,
    _turn: Turn,
}

impl Lab {
    /// The four hosts of lab/netns.sh.
    pub fn start() -> Lab {
        Lab::start_with("1", Turn::shared())
    }

    /// The same while no other one is there.
    pub fn alone() -> Lab {
        Lab::start_with("1", Turn::alone())
    }

    /// The same for measuring: writing a log takes time.
    pub fn without_access_log() -> Lab {
        Lab::start_with("", Turn::alone())
    }

    fn start_with(access_log: &str, turn: Turn) -> Lab {
        let mut sandbox = Command::new(script("sandbox.sh"))
            .args(["sh", "-c", "\"$0\" up && echo up && exec sleep infinity"])
            .arg(script("netns.sh"))
            .env("LAB_ACCESS_LOG", access_log)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = lines_of(sandbox.stdout.take().unwrap());
        let up = lines.recv_timeout(UP_DEADLINE);
        let init = only_child(sandbox.id());
        let lab = Lab {
            sandbox,
            init,
            _turn: turn,
        };
        assert_eq!(up.as_deref(), Ok("up"), "the lab did not come up");
        fs::copy(env!("CARGO_BIN_EXE_xdp-proxy"), lab.path(BINARY)).unwrap();
        lab
    }

    /// A path of the sandbox, as this side sees it.
    pub fn path(&self, inside: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{inside}", self.init))
    }

    /// Writes a file under /run of the sandbox, returns its path there.
    pub fn write(&self, name: &str, text: &str) -> String {
        let inside = format!("/run/{name}");
        fs::write(self.path(&inside), text).unwrap();
        inside
    }

    pub fn read(&self, inside: &str) -> Vec<u8> {
        fs::read(self.path(inside)).unwrap()
    }

    /// The command on a host, not yet started.
    pub fn command(&self, host: &str, program: &str) -> Command {
        let mut command = self.inside("ip");
        command.args(["netns", "exec", host, program]);
        command
    }

    /// The command in the sandbox, on no host.
    fn inside(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command
            .args(["-t", &self.init.to_string(), "-m", "-p", "-n", program])
            .stdin(Stdio::null());
        command
    }

    /// Runs a line, split at blanks, on a host.
    pub fn try_at(&self, host: &str, line: &str) -> Output {
        let mut words = line.split_whitespace();
        self.command(host, words.next().unwrap())
            .args(words)
            .output()
            .unwrap()
    }

    /// The same, and it must succeed; returns what it printed.
    pub fn at(&self, host: &str, line: &str) -> String {
        printed(&format!("{host}: {line}"), self.try_at(host, line))
    }

    /// Runs a script with the functions of lab/netns.sh.
    pub fn script(&self, text: &str) -> String {
        let text = format!(". {}\n{text}", script("netns.sh").display());
        let mut bash = self.inside("bash");
        printed(&text, bash.args(["-ec", &text]).output().unwrap())
    }

    /// One more web server on the switch.
    pub fn add_web_server(&self, host: &str, address: &str) {
        self.script(&format!(
            "ADDRESS[{host}]={address}; add_host {host}; serve {host}"
        ));
    }

    /// Runs `work` on a thread whose sockets are a host's.
    pub fn within<T: Send>(&self, host: &str, work: impl FnOnce() -> T + Send) -> T {
        let namespace = File::open(self.path(&format!("/run/netns/{host}"))).unwrap();
        std::thread::scope(|scope| {
            let run = || {
                setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
                work()
            };
            scope.spawn(run).join()
        })
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// `xdp-proxy ARGUMENTS` on `lb`, ended if it runs for long.
    pub fn proxy(&self, arguments: &str) -> Output {
        self.try_at("lb", &format!("timeout 20 {BINARY} {arguments}"))
    }

    /// The load balancer on `lb`, ready.
    pub fn balance(&self, arguments: &str) -> Balancer<'_> {
        self.balance_by(&format!("{BINARY} run {arguments}"))
    }

    /// The same with another way to start it.
    pub fn balance_by(&self, line: &str) -> Balancer<'_> {
        Balancer::start(self, line)
    }

    /// `status --json`, parsed.
    pub fn status(&self) -> Value {
        serde_json::from_str(&self.at("lb", &format!("{BINARY} status --json"))).unwrap()
    }

    /// The XDP program on `eth0` of `lb`, as `ip` tells it.
    pub fn attached(&self) -> Option<Value> {
        let links: Value =
            serde_json::from_str(&self.at("lb", "ip -j -d link show dev eth0")).unwrap();
        links[0].get("xdp").cloned()
    }

    /// What a host's kernel counted since the lab began, by the names of `nstat`.
    fn counters(&self, host: &str) -> Value {
        let all: Value = serde_json::from_str(&self.at(host, "nstat -asjz")).unwrap();
        all["kernel"].clone()
    }

    /// One of them: `TcpInSegs`.
    pub fn counter(&self, host: &str, name: &str) -> u64 {
        let counter = &self.counters(host)[name];
        counter
            .as_u64()
            .unwrap_or_else(|| panic!("{name}: {counter}"))
    }

    /// No host was sent a wrong checksum, of whatever protocol.
    pub fn checksums_were_right(&self, hosts: &[&str]) {
        for host in hosts {
            let counters = self.counters(host);
            let sums = counters.as_object().unwrap().iter();
            let sums = sums.filter(|(name, _)| name.ends_with("CsumErrors"));
            let wrong: Vec<_> = sums.clone().filter(|(_, count)| **count != 0).collect();
            assert!(sums.count() > 4 && wrong.is_empty(), "{host}: {wrong:?}");
        }
    }

    /// tcpdump on `eth0` of a host, once it listens.
    pub fn capture(&self, host: &str, filter: &str) -> Capture {
        let options = "-i eth0 -n -vv -l --immediate-mode -B 8192";
        let mut child = self
            .command(host, "tcpdump")
            .args(options.split(' '))
            .arg(filter)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let words = lines_of(child.stderr.take().unwrap());
        let listens = words.recv_timeout(READY_DEADLINE);
        assert!(listens.unwrap().contains("listening on eth0"));
        let seen = lines_of(child.stdout.take().unwrap());
        Capture { child, seen }
    }
}

/// A running tcpdump.
pub struct Capture {
    child: Child,
    seen: Receiver<String>,
}

impl Capture {
    /// What it saw.
    pub fn end(mut self) -> String {
        std::thread::sleep(Duration::from_millis(100));
        let tcpdump = Pid::from_raw(only_child(self.child.id()) as i32);
        kill(tcpdump, Signal::SIGINT).unwrap();
        self.child.wait().unwrap();
        self.seen.iter().map(|line| line + "\n").collect()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let _ = self.sandbox.kill();
        let _ = self.sandbox.wait();
    }
}

/// The line of the error that the command must have ended with: the only one, and
/// the last thing on stderr.
pub fn refusal(output: &Output, code: i32) -> String {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{stderr}");
    let errors: Vec<&str> = stderr
        .lines()
        .filter(|line| line.starts_with("xdp-proxy: "))
        .collect();
    assert!(errors.len() == 1, "not one error: {stderr}");
    assert_eq!(stderr.lines().last(), Some(errors[0]), "{stderr}");
    for bad in ["panicked", "(errno", "RUST_BACKTRACE"] {
        assert!(!stderr.contains(bad), "{bad}: {stderr}");
    }
    errors[0].to_owned()
}

/// Of counters by name.
pub fn sum(counts: &Value) -> u64 {
    counts
        .as_object()
        .unwrap()
        .values()
        .map(|count| count.as_u64().unwrap())
        .sum()
}

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("lab").join(name)
}

fn printed(what: &str, output: Output) -> String {
    assert!(
        output.status.success(),
        "{what}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub fn lines_of(stdout: impl std::io::Read + Send + 'static) -> Receiver<String> {
    let (sender, lines) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            let _ = sender.send(line);
        }
    });
    lines
}

pub fn children(pid: u32) -> Vec<u32> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    let children = children.unwrap_or_default();
    let pids = children.split_whitespace().map(|pid| pid.parse().unwrap());
    pids.collect()
}

/// What `nsenter` has started.
pub fn only_child(pid: u32) -> u32 {
    let [child] = children(pid)[..] else {
        panic!("process {pid} has not one child")
    };
    child
}
