// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! Strangers who talk to a daemon: they get nothing, and cost it little.

use std::io::Write as _;
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::libc;
use nix::sched::{CloneFlags, unshare};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use socket2::SockRef;

use crate::common::http;
use crate::common::lab::{BINARY, LB, TWO, refusal};
use crate::stranger::{
    NOBODY, ROOT, STRANGERS, as_stranger, descriptors, knock, mark, pass, receive,
};

const PATIENCE: Duration = Duration::from_secs(15);

#[test]
fn without_the_capability_no_command_is_done_whoever_asks() {
    let test = "without_the_capability_no_command_is_done_whoever_asks";
    let Some(lab) = crate::lab(test) else { return };
    let lb = lab.balance(TWO);
    let before = lab.status();
    for stranger in STRANGERS {
        for command in [
            "stop",
            "status",
            "flows",
            "reload",
            "drain 10.0.0.2",
            "stop -i eth0",
        ] {
            let output = lab.try_at("lb", &format!("{stranger} {BINARY} {command}"));
            let error = refusal(&output, 1);
            assert!(
                error.contains("takes CAP_NET_ADMIN"),
                "{stranger} {command}: {error}"
            );
        }
    }
    let status = lab.status();
    assert_eq!(status["program_id"], before["program_id"]);
    assert_eq!(status["pid"], before["pid"]);
    lb.end();
}

#[test]
fn without_the_capability_no_words_get_a_descriptor_or_stop_it() {
    let test = "without_the_capability_no_words_get_a_descriptor_or_stop_it";
    let Some(lab) = crate::lab(test) else { return };
    let lb = lab.balance(TWO);
    for user in [ROOT, NOBODY] {
        as_stranger(&lab, user, || {
            for words in [
                "\"maps\"",
                "\"stop\"",
                "\"takeover\"",
                "\"status\"",
                "{",
                "",
            ] {
                // As versions before did, alone and with a socket that nobody has marked.
                for gives in [false, true] {
                    let mut line = knock("eth0").unwrap();
                    let (kept, given) = UnixStream::pair().unwrap();
                    let text = format!("{words}\n");
                    match gives {
                        true => pass(&line, text.as_bytes(), given.as_fd()),
                        false => line.write_all(text.as_bytes()).unwrap(),
                    }
                    drop(given);
                    let (answer, descriptors) = receive(&line);
                    assert!(descriptors.is_empty());
                    let answer = String::from_utf8(answer).unwrap();
                    assert!(answer.starts_with("{\"error\":"), "{words}: {answer}");
                    let (answer, descriptors) = receive(&kept);
                    assert!(answer.is_empty() && descriptors.is_empty());
                }
            }
            // What it takes is the kernel's to give.
            let (_, given) = UnixStream::pair().unwrap();
            assert_eq!(mark(&given), Err(Errno::EACCES));
        });
    }
    lab.within("client", || http::host(LB).unwrap());
    lb.end();
}

/// Who has the capability needs nothing else: no other one, no user in common, no process
/// namespace, and no files.
#[test]
fn with_the_capability_commands_work_from_everywhere() {
    let Some(lab) = crate::lab("with_the_capability_commands_work_from_everywhere") else {
        return;
    };
    let user = "setpriv --reuid 65534 --regid 65534 --clear-groups";
    let list = "-all,+net_admin";
    let admin = format!("{user} --inh-caps={list} --ambient-caps={list} --bounding-set={list}");
    let container = "unshare --pid --fork --mount-proc --ipc --uts";
    lab.script(&format!(
        "mkdir /run/empty /run/empty/proc; cp {BINARY} /run/empty/"
    ));
    lab.script("mount -t proc proc /run/empty/proc");
    let ways = [
        String::new(),
        admin.clone(),
        format!("{container} {admin}"),
        // `docker exec` in an image with nothing in it.
        "chroot /run/empty".into(),
    ];
    let four = "-all,+net_admin,+bpf,+perfmon,+net_raw";
    let ordinary = format!("{user} --inh-caps={four} --ambient-caps={four} --bounding-set={four}");
    for daemon in ["", container, &ordinary] {
        for way in &ways {
            let lb = lab.balance_by(&format!("{daemon} {BINARY} run {TWO}"));
            let binary = match way.starts_with("chroot") {
                true => "/xdp-proxy",
                false => BINARY,
            };
            for command in ["status", "flows -i eth0", "drain 10.0.0.2"] {
                lab.at("lb", &format!("{way} {binary} {command}"));
            }
            let done = lab.at("lb", &format!("{way} {binary} stop"));
            assert_eq!(done, "stopped: eth0\n", "{daemon} {way}");
            assert_eq!(lb.wait().code(), Some(0));
            assert_eq!(lab.attached(), None);
        }
    }
}

/// Without /proc the first name is known.
#[test]
fn a_command_without_proc_finds_the_daemon_by_the_interface() {
    let Some(lab) = crate::lab("a_command_without_proc_finds_the_daemon_by_the_interface") else {
        return;
    };
    lab.script(&format!("mkdir /run/bare; cp {BINARY} /run/bare/"));
    let lb = lab.balance(TWO);
    let done = lab.at("lb", "chroot /run/bare /xdp-proxy drain -i eth0 10.0.0.2");
    assert!(done.contains("drains"), "{done}");
    lb.end();
}

#[test]
fn four_thousand_silent_connections_cost_few_descriptors_and_keep_nobody_out() {
    let test = "four_thousand_silent_connections_cost_few_descriptors_and_keep_nobody_out";
    let Some(lab) = crate::lab(test) else { return };
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    let lb = lab.balance(TWO);
    let before = descriptors(&lab);
    // Those of root without capabilities are not to be told from root's at first.
    for user in [NOBODY, ROOT] {
        let silent = as_stranger(&lab, user, || {
            let silent = (0..4000).map(|_| knock("eth0").unwrap());
            silent.collect::<Vec<_>>()
        });
        let start = Instant::now();
        let status = lab.status();
        assert!(start.elapsed() < PATIENCE);
        assert!(status["pid"].is_u64());
        let now = descriptors(&lab);
        println!("{before} descriptors before, {now} beside 4000 connections of user {user}");
        assert!(now < before + 100, "{before}, {now}");
        lab.within("client", || http::host(LB).unwrap());
        drop(silent);
    }
    lb.end();
}

/// To close such a one takes the kernel as long as its owner likes, in whose thread ever.
#[test]
fn descriptors_that_linger_hold_nobody_up() {
    let Some(lab) = crate::lab("descriptors_that_linger_hold_nobody_up") else {
        return;
    };
    let lb = lab.balance(TWO);
    let threads = || {
        let pid = lab.status()["pid"].as_u64().unwrap();
        let threads = lab.path(&format!("/proc/{pid}/task"));
        std::fs::read_dir(threads).unwrap().count()
    };
    let before = threads();
    let linger = |user: u32| {
        as_stranger(&lab, user, || {
            // With descriptors of its own, or the last handle might be in a process that
            // another test starts.
            unshare(CloneFlags::CLONE_FILES).unwrap();
            // SAFETY: it takes no pointers, and this thread has no use for the others.
            unsafe { libc::syscall(libc::SYS_close_range, 3, u32::MAX, 0) };
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let address = listener.local_addr().unwrap();
            for _ in 0..40 {
                let mut sender = TcpStream::connect(address).unwrap();
                let (receiver, _) = listener.accept().unwrap();
                sender.set_nonblocking(true).unwrap();
                while sender.write(&[0; 1 << 16]).is_ok() {}
                sender.set_nonblocking(false).unwrap();
                let minute = Duration::from_secs(60);
                SockRef::from(&sender).set_linger(Some(minute)).unwrap();
                let line = knock("eth0").unwrap();
                // Who closes it last has to wait. If that is this side, it is on a thread that
                // nobody waits for.
                std::thread::spawn(move || {
                    pass(&line, b"\n", sender.as_fd());
                    drop(sender);
                    std::thread::sleep(2 * PATIENCE);
                    drop((receiver, line));
                });
            }
        });
    };
    // Those of root without capabilities are not to be told from root's.
    linger(NOBODY);
    linger(ROOT);
    println!("{before} threads before, {} now", threads());
    let start = Instant::now();
    for _ in 0..3 {
        lab.status();
        lab.within("client", || http::host(LB).unwrap());
    }
    println!("beside 80 descriptors that linger: {:.1?}", start.elapsed());
    assert!(start.elapsed() < PATIENCE);
    // Its end waits for none of them.
    let start = Instant::now();
    lb.end();
    assert!(start.elapsed() < Duration::from_secs(4));
}
