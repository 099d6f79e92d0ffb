// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! What the tests share.
#![allow(dead_code)]

use std::cell::Cell;
use std::io::Write as _;
use std::net::{SocketAddr, TcpListener};
use std::panic::resume_unwind;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread;
use std::time::Duration;

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::socket::{setsockopt, sockopt::ReceiveTimeout};
use nix::sys::time::TimeVal;
use nix::unistd::Pid;

pub mod balancer;
pub mod books;
pub mod call;
pub mod case;
pub mod dns;
pub mod echo;
pub mod exchange;
pub mod fragment;
pub mod frame;
pub mod http;
pub mod icmp;
pub mod lab;
pub mod load;
pub mod random;
pub mod rig;
pub mod served;
pub mod sum;
pub mod wire;

/// Longest time of a test.
pub const LONGEST_TEST: Duration = Duration::from_secs(300);

/// Whether a test that needs root can run; says aloud when it can't, and fails
/// where skipping is not allowed (`REQUIRE_ROOT_TESTS=1`).
pub fn root_or_skip(test: &str) -> bool {
    if nix::unistd::geteuid().is_root() {
        watch(LONGEST_TEST);
        return true;
    }
    assert!(
        std::env::var("REQUIRE_ROOT_TESTS").as_deref() != Ok("1"),
        "{test} needs root, and REQUIRE_ROOT_TESTS=1 forbids to skip it"
    );
    eprintln!("SKIPPED {test}: needs root");
    false
}

/// The same for a test that needs VLAN devices, which not every kernel has
/// (`REQUIRE_VLAN_TESTS=1` forbids to skip it).
pub fn vlan_or_skip(test: &str) -> bool {
    const TRY: &str = "ip link add v0 type veth peer name v1 &&
                       ip link add link v0 name v0.1 type vlan id 1";
    if !root_or_skip(test) {
        return false;
    }
    let tried = Command::new("unshare")
        .args(["-n", "sh", "-c", TRY])
        .output();
    if tried.unwrap().status.success() {
        return true;
    }
    assert!(
        std::env::var("REQUIRE_VLAN_TESTS").as_deref() != Ok("1"),
        "{test} needs VLAN devices, and REQUIRE_VLAN_TESTS=1 forbids to skip it"
    );
    eprintln!("SKIPPED {test}: needs VLAN devices (CONFIG_VLAN_8021Q of the kernel)");
    false
}

/// The version of Linux.
pub fn kernel() -> (u32, u32) {
    let name = nix::sys::utsname::uname().unwrap();
    let release = name.release().to_str().unwrap();
    let mut numbers = release.split('.').map_while(|part| part.parse().ok());
    (numbers.next().unwrap(), numbers.next().unwrap())
}

/// The same for a test with frames in several buffers: there are none on kernels before
/// 5.18, and on all others.
pub fn several_buffers_or_skip(test: &str) -> bool {
    if !root_or_skip(test) {
        return false;
    }
    let known = xdp_proxy::datapath::knows_several_buffers();
    assert_eq!(
        known,
        kernel() >= (5, 18),
        "what Linux {:?} knows",
        kernel()
    );
    if !known {
        eprintln!("NOT HERE {test}: frames in several buffers came with Linux 5.18");
    }
    known
}

/// The same for a test that changes what all of a kernel shares: only where the kernel is
/// the test's own (`OWN_KERNEL=1`), as in the guests of lab/kernels.sh.
pub fn own_kernel_or_skip(test: &str) -> bool {
    if std::env::var("OWN_KERNEL").as_deref() == Ok("1") {
        return root_or_skip(test);
    }
    eprintln!("SKIPPED {test}: needs a kernel of its own (make test-kernels)");
    false
}

/// What a thread's test is watched by, until it goes with the thread.
struct Watch {
    longest: Duration,
    _ended: Sender<()>,
}

thread_local!(static WATCH: Cell<Option<Watch>> = const { Cell::new(None) });

/// The test on this thread must end in time, from now on, or the whole process ends with
/// an error that names it: so a test that hangs is one that fails.
pub fn watch(longest: Duration) {
    let (_ended, end) = mpsc::channel();
    WATCH.set(Some(Watch { longest, _ended }));
    let test = thread::current().name().unwrap_or_default().to_owned();
    thread::spawn(move || {
        if end.recv_timeout(longest) == Err(RecvTimeoutError::Timeout) {
            // Not by eprintln!, which a test's words are held back from.
            let _ = writeln!(std::io::stderr(), "{test} hangs: not done in {longest:?}");
            std::process::exit(1);
        }
    });
}

/// Waits for what other tests hold, which is nothing to blame this one for.
pub fn unwatched<T>(wait: impl FnOnce() -> T) -> T {
    let watched = WATCH.take();
    let done = wait();
    if let Some(Watch { longest, .. }) = watched {
        watch(longest);
    }
    done
}

/// Does `work` while `other` goes on beside it, on a thread of its own, until it is told
/// that `work` is over; by its end or by a panic.
pub fn beside<T: Send, U>(
    other: impl FnOnce(&AtomicBool) -> T + Send,
    work: impl FnOnce() -> U,
) -> (T, U) {
    struct Until<'a>(&'a AtomicBool);
    impl Drop for Until<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let other = scope.spawn(|| other(&over));
        let until = Until(&over);
        let done = work();
        drop(until);
        let other = other.join().unwrap_or_else(|panic| resume_unwind(panic));
        (other, done)
    })
}

/// A listener whose wait for a client ends with an error.
pub fn listen(address: impl Into<SocketAddr>, patience: Duration) -> TcpListener {
    let listener = TcpListener::bind(address.into()).unwrap();
    let patience = TimeVal::new(patience.as_secs() as i64, 0);
    setsockopt(&listener, ReceiveTimeout, &patience).unwrap();
    listener
}

/// The CPUs that this thread may run on.
pub fn cpus() -> Vec<usize> {
    let allowed = sched_getaffinity(Pid::from_raw(0)).unwrap();
    (0..CpuSet::count())
        .filter(|cpu| allowed.is_set(*cpu).unwrap())
        .collect()
}

/// From now on this thread runs there.
pub fn pin(cpu: usize) {
    let mut one = CpuSet::new();
    one.set(cpu).unwrap();
    sched_setaffinity(Pid::from_raw(0), &one).unwrap();
}
