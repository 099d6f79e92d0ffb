// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! Nobody reads what the daemon says: it does its work all the same.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::process::Stdio;
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, pipe};

use crate::common::http;
use crate::common::lab::{BINARY, LB, Lab, TWO, only_child};

/// A pipe in which there is no room left.
fn full_pipe() -> (OwnedFd, OwnedFd) {
    let (reader, writer) = pipe().unwrap();
    fcntl(&writer, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
    let mut file = File::from(writer);
    for size in [4096, 1] {
        while file.write(&vec![b'\n'; size]).is_ok() {}
    }
    let writer = OwnedFd::from(file);
    fcntl(&writer, FcntlArg::F_SETFL(OFlag::empty())).unwrap();
    (reader, writer)
}

fn serves(lab: &Lab) {
    lab.within("client", || http::host(LB).unwrap());
    lab.at("lb", &format!("timeout 5 {BINARY} status"));
}

#[test]
fn a_log_that_nobody_reads_stops_nothing() {
    let Some(lab) = crate::lab("a_log_that_nobody_reads_stops_nothing") else {
        return;
    };
    for reads_at_last in [false, true] {
        let (reader, writer) = full_pipe();
        let mut child = lab
            .command("lb", BINARY)
            .arg("run")
            .args(TWO.split(' '))
            .args(["-v", "-v"])
            .stdout(Stdio::piped())
            .stderr(writer)
            .spawn()
            .unwrap();
        let mut ready = String::new();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        stdout.read_line(&mut ready).unwrap();
        assert!(ready.starts_with("ready: "), "{ready}");
        let pid = Pid::from_raw(only_child(child.id()) as i32);
        // Each is told of, in a line or more: 256 KB of them and more are lost.
        for _ in 0..4000 {
            kill(pid, Signal::SIGHUP).unwrap();
            std::thread::sleep(Duration::from_micros(500));
        }
        serves(&lab);
        let reads = reads_at_last.then(|| {
            let mut reader = File::from(reader.try_clone().unwrap());
            std::thread::spawn(move || {
                let mut all = String::new();
                reader.read_to_string(&mut all).unwrap();
                all
            })
        });
        if reads_at_last {
            std::thread::sleep(Duration::from_millis(500));
        }
        let start = Instant::now();
        kill(pid, Signal::SIGTERM).unwrap();
        let status = child.wait().unwrap();
        assert_eq!(status.code(), Some(0));
        assert!(start.elapsed() < Duration::from_secs(4));
        assert_eq!(lab.attached(), None);
        if let Some(all) = reads.map(|reads| reads.join().unwrap()) {
            // How many are lost hangs on how busy this machine is.
            let lost = all
                .lines()
                .filter(|line| line.contains(" lines of this log are lost"));
            println!("{:?}", lost.collect::<Vec<_>>());
            assert!(all.contains("ERROR not reloaded"));
        }
        drop(reader);
    }
}

/// The last words come out, also where somebody reads slowly.
#[test]
fn the_last_line_of_a_log_that_is_read_slowly_is_there() {
    let Some(lab) = crate::lab("the_last_line_of_a_log_that_is_read_slowly_is_there") else {
        return;
    };
    let (reader, writer) = full_pipe();
    let line = "run -i nosuch --listen 10.0.0.5:80 --backend 10.0.0.2";
    let mut child = lab
        .command("lb", BINARY)
        .args(line.split(' '))
        .stdout(Stdio::null())
        .stderr(writer)
        .spawn()
        .unwrap();
    std::thread::sleep(Duration::from_millis(200));
    let mut all = String::new();
    File::from(reader).read_to_string(&mut all).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(1));
    let last = all.lines().last().unwrap();
    assert!(last.starts_with("xdp-proxy: no interface"), "{last}");
}

#[test]
fn a_service_manager_that_reads_nothing_stops_nothing() {
    let Some(lab) = crate::lab("a_service_manager_that_reads_nothing_stops_nothing") else {
        return;
    };
    let _deaf = UnixDatagram::bind(lab.path("/run/deaf")).unwrap();
    // 500 pings a second fill every queue.
    let lb = lab.balance_by(&format!(
        "env NOTIFY_SOCKET=/run/deaf WATCHDOG_USEC=4000 {BINARY} run {TWO}"
    ));
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(3) {
        serves(&lab);
    }
    lb.end();
    assert_eq!(lab.attached(), None);
}
