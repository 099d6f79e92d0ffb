// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! Neighbours on real links: each test is a load balancer in a network
//! namespace of its own, and hosts in theirs, on one switch. The namespaces
//! have no names and end with the test, whatever happens.

#[path = "../common/mod.rs"]
mod common;

mod changes;
mod found;
mod held;
mod ipv6;
mod source;
mod vlan;

use std::io;
use std::net::IpAddr;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::libc;
use nix::sched::{CloneFlags, unshare};
use xdp_proxy::neighbour::{DisplayMac, Mac, Neighbours, Reach, Tag, interface};

const BACKEND: Mac = [2, 0, 0, 0, 0, 2];
const ROUTER: Mac = [2, 0, 0, 0, 0, 0xfe];

/// Runs the test as the load balancer: on a thread in a network namespace of
/// its own, `eth0` with 10.0.0.1/24 on the switch.
fn as_lb(test: &str, body: impl AsyncFnOnce(&Switch) + Send) {
    if common::root_or_skip(test) {
        run_as_lb(body);
    }
}

/// The same for a test that needs VLAN devices.
fn as_lb_with_vlans(test: &str, body: impl AsyncFnOnce(&Switch) + Send) {
    if common::vlan_or_skip(test) {
        run_as_lb(body);
    }
}

fn run_as_lb(body: impl AsyncFnOnce(&Switch) + Send) {
    let run = || {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        // With `cargo test -- --nocapture`, what a user would see.
        let _ = tracing_subscriber::fmt().with_test_writer().try_init();
        ip("link set lo up");
        let switch = Switch::new();
        switch.attach(None, "eth0", "10.0.0.1/24", [2, 0, 0, 0, 0, 1]);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(body(&switch));
    };
    std::thread::scope(|scope| scope.spawn(run).join())
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}

/// A process in a network namespace of its own; it dies with the thread that made it.
struct Host(Child);

impl Host {
    fn new() -> Host {
        let mut command = Command::new("sleep");
        command.arg("infinity");
        // SAFETY: the closure makes two system calls, both safe between fork and exec.
        unsafe {
            command.pre_exec(|| {
                if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0 {
                    return Err(io::Error::last_os_error());
                }
                Ok(unshare(CloneFlags::CLONE_NEWNET)?)
            });
        }
        Host(command.spawn().unwrap())
    }

    fn ip(&self, arguments: &str) {
        let pid = self.0.id().to_string();
        run(Command::new("nsenter")
            .args(["-t", &pid, "-n", "ip"])
            .args(arguments.split(' ')));
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A host with a bridge.
struct Switch(Host);

impl Switch {
    fn new() -> Switch {
        let host = Host::new();
        host.ip("link add br0 type bridge");
        host.ip("link set br0 up");
        Switch(host)
    }

    /// Gives a host, or the load balancer, an interface on the switch.
    fn attach(&self, host: Option<&Host>, name: &str, address: &str, mac: Mac) {
        let switch = self.0.0.id();
        let port = format!("p{:02x}", mac[5]);
        let mac = DisplayMac(mac);
        let at = |arguments: &str| match host {
            Some(host) => host.ip(arguments),
            None => ip(arguments),
        };
        at(&format!(
            "link add {name} address {mac} type veth peer name {port} netns {switch}"
        ));
        self.0.ip(&format!("link set {port} master br0 up"));
        at(&format!("addr add {address} dev {name}"));
        // No IPv6 address: its duplicate detection would notify in the middle of a test.
        at(&format!("link set {name} addrgenmode none"));
        at(&format!("link set {name} up"));
    }

    fn host(&self, address: &str, mac: Mac) -> Host {
        let host = Host::new();
        host.ip("link set lo up");
        self.attach(Some(&host), "eth0", address, mac);
        host
    }
}

fn ip(arguments: &str) {
    run(Command::new("ip").args(arguments.split(' ')));
}

fn run(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).output().unwrap();
    assert!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

fn kernels_entry(address: &str) -> String {
    run(Command::new("ip").args(["neigh", "show", "to", address]))
}

fn addr(text: &str) -> IpAddr {
    text.parse().unwrap()
}

async fn follow(addresses: &[&str]) -> Neighbours {
    let eth0 = interface("eth0").await.unwrap();
    let addresses = addresses.iter().map(|text| addr(text));
    let mut neighbours = Neighbours::follow(&eth0, addresses, []).await.unwrap();
    neighbours.settle(Duration::from_secs(3)).await;
    neighbours
}

fn resolved(mac: Mac, next_hop: &str) -> Option<Reach> {
    Some(Reach::Resolved {
        mac,
        tags: vec![],
        next_hop: addr(next_hop),
        source: addr("10.0.0.1"),
    })
}

fn why(neighbours: &Neighbours, address: &str) -> String {
    match neighbours.reach(addr(address)) {
        Some(Reach::Unresolved { why, .. }) => why,
        other => panic!("{address} is {other:?}"),
    }
}

/// How long until the condition holds; fails after five seconds.
async fn until(neighbours: &mut Neighbours, condition: impl Fn(&Neighbours) -> bool) -> Duration {
    let start = Instant::now();
    let changes = async {
        while !condition(neighbours) {
            neighbours.changed().await.unwrap();
        }
    };
    let done = tokio::time::timeout(Duration::from_secs(5), changes).await;
    assert!(
        done.is_ok(),
        "not within 5 s; now {:?}",
        neighbours.snapshot()
    );
    start.elapsed()
}
