// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! Strangers who take the names of daemons: no command believes them, waits for them or
//! prints what they like, and none of them keeps a daemon from serving.

use std::io::{Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixListener;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::common::http;
use crate::common::lab::{BINARY, LB, Lab, TWO, refusal};
use crate::stranger::{NOBODY, ROOT, knock, names, pass, receive, squat};

/// A command may take so long, whatever strangers do: four seconds, and what this machine is
/// busy with besides.
const PATIENCE: Duration = Duration::from_secs(15);
const BINARY_WITHIN: &str = "prlimit --as=300000000 /run/xdp-proxy";

/// Answers every client with these words, and reads what he says.
fn answer(listener: UnixListener, words: &'static [u8]) {
    thread::spawn(move || {
        for client in listener.incoming() {
            let Ok(mut client) = client else { return };
            let _ = client.write_all(words);
            thread::spawn(move || client.read_to_end(&mut Vec::new()));
        }
    });
}

/// A daemon's own bytes, with nothing in them for a terminal.
fn harmless(text: &[u8]) -> String {
    let text = String::from_utf8(text.to_vec()).unwrap();
    let bad = |c: &char| c.is_control() && !['\n', '\t'].contains(c);
    assert_eq!(text.chars().find(bad), None, "{text:?}");
    text
}

#[test]
fn who_has_the_name_first_keeps_run_from_nothing_and_stop_claims_nothing() {
    let test = "who_has_the_name_first_keeps_run_from_nothing_and_stop_claims_nothing";
    let Some(lab) = crate::lab(test) else { return };
    for user in [NOBODY, ROOT] {
        let squatter = squat(&lab, user, b"eth0");
        let handle = squatter.try_clone().unwrap();
        answer(squatter, b"\"stopped\"\n");
        for command in ["stop", "stop -i eth0", "status", "reload -i eth0"] {
            let output = lab.proxy(command);
            let error = refusal(&output, 1);
            assert!(error.contains("no xdp-proxy runs on"), "{error}");
            assert_eq!(output.stdout, b"", "{output:?}");
            let words = harmless(&output.stderr);
            assert!(words.contains("has the name @xdp-proxy/eth0"), "{words}");
            assert!(words.contains(&format!("user {user} ")), "{words}");
        }
        let lb = lab.balance(TWO);
        assert!(
            lb.log().contains("has the name @xdp-proxy/eth0"),
            "{}",
            lb.log()
        );
        lab.within("client", || http::host(LB).unwrap());
        // A second one finds the first.
        let second = refusal(&lab.proxy(&format!("run {TWO}")), 1);
        assert!(
            second.contains("another xdp-proxy runs on eth0"),
            "{second}"
        );
        let next = lab.balance(&format!("--take-over {TWO}"));
        assert_eq!(lb.wait().code(), Some(0));
        for command in ["status", "status -i eth0", "flows"] {
            let told = lab.proxy(command);
            assert!(told.status.success(), "{command}: {told:?}");
        }
        let done = lab.proxy("stop -i eth0");
        assert_eq!(harmless(&done.stdout), "stopped: eth0\n");
        assert_eq!(next.wait().code(), Some(0));
        assert_eq!(lab.attached(), None);

        // Once he has gone, the name is the daemon's.
        let lb = lab.balance(TWO);
        assert!(names(&lab).iter().any(|name| name.starts_with("eth0/")));
        // SAFETY: it takes no pointer; the thread that accepts ends by that.
        unsafe { nix::libc::shutdown(std::os::fd::AsRawFd::as_raw_fd(&handle), 2) };
        drop(handle);
        let start = Instant::now();
        while names(&lab) != ["eth0"] {
            assert!(start.elapsed() < PATIENCE, "{:?}", names(&lab));
            thread::sleep(Duration::from_millis(50));
        }
        lab.at("lb", &format!("{BINARY} status"));
        lb.end();
    }
}

/// 25 squatters: silent ones, one that never accepts, one that floods, ones that hang up, and
/// ones whose words and names would steer a terminal.
fn play(lab: &Lab) -> Vec<UnixListener> {
    let silent = (0..10).map(|i| squat(lab, NOBODY, format!("aaa{i}").as_bytes()));
    let silent: Vec<_> = silent.collect();
    for i in 0..4 {
        let listener = squat(lab, ROOT, format!("bbb{i}").as_bytes());
        let flood = [b'x'; 1 << 16];
        thread::spawn(move || crate::stranger::flood(&listener, &flood, 2_000_000_000));
    }
    for (i, words) in [
        &b"{\"error\":\"\\u001b[2J\\u001b]0;mine\\u0007\"}\n"[..],
        b"\x1b[2J\x1b[31mmine\n",
        b"\"stopped\"\n",
        b"{\"interface\":\"eth0\"}\n",
    ]
    .into_iter()
    .enumerate()
    {
        answer(squat(lab, NOBODY, format!("ccc{i}").as_bytes()), words);
    }
    for i in 0..4 {
        let listener = squat(lab, NOBODY, format!("ddd{i}").as_bytes());
        thread::spawn(move || listener.incoming().for_each(drop));
    }
    for name in [&b"e\x1b[2J"[..], b"\xff\xfe", b"f\n@xdp-proxy/eth0"] {
        answer(squat(lab, NOBODY, name), b"\x1b[2J\n");
    }
    silent
}

#[test]
fn twenty_five_squatters_cost_a_command_a_moment() {
    let Some(lab) = crate::lab("twenty_five_squatters_cost_a_command_a_moment") else {
        return;
    };
    let _silent = play(&lab);
    let file = lab.write("two.toml", crate::common::lab::TWO_UNCHECKED);
    let lb = lab.balance(&format!("-c {file}"));
    for (command, expected) in [
        ("status", "eth0 (generic), program"),
        ("status --json", "\"interface\": \"eth0\""),
        ("flows", "eth0: 0 flows"),
        ("reload", "reloaded: eth0: nothing differs\n"),
        ("drain 10.0.0.2", "drains"),
        ("stop", "stopped: eth0\n"),
    ] {
        let start = Instant::now();
        let output = lab.try_at("lb", &format!("{BINARY_WITHIN} {command}"));
        let took = start.elapsed();
        println!("{command} took {took:.1?}");
        assert!(took < PATIENCE, "{command} took {took:?}");
        let told = harmless(&output.stdout);
        assert!(told.contains(expected), "{command}: {told}");
        let words = harmless(&output.stderr);
        assert!(output.status.success(), "{command}: {words}");
        // Each of those with a daemon's name is told of, and none of the others.
        assert_eq!(words.lines().count(), 22, "{words}");
        for name in ["aaa0", "bbb3", "ccc1", "ddd2"] {
            assert!(words.contains(&format!("@xdp-proxy/{name} ")), "{words}");
        }
    }
    assert_eq!(lb.wait().code(), Some(0));
    assert_eq!(lab.attached(), None);
}

/// Thousands of names, of all that a daemon could have.
#[test]
fn two_thousand_squatters_hide_no_daemon() {
    let Some(lab) = crate::lab("two_thousand_squatters_hide_no_daemon") else {
        return;
    };
    let (_, hard) =
        nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE).unwrap();
    nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    let mut all = vec![squat(&lab, NOBODY, b"eth0")];
    for i in 0..2000 {
        all.push(squat(&lab, NOBODY, format!("x{i}").as_bytes()));
    }
    for i in 0..100 {
        all.push(squat(&lab, NOBODY, format!("eth0/{i:016x}").as_bytes()));
    }
    let lb = lab.balance(TWO);
    for command in ["status", "status -i eth0", "stop"] {
        let start = Instant::now();
        let output = lab.proxy(command);
        println!("{command} took {:.1?}", start.elapsed());
        assert!(start.elapsed() < PATIENCE);
        assert!(output.status.success(), "{output:?}");
    }
    assert_eq!(lb.wait().code(), Some(0));
}

/// A stranger hands on whatever he gets, in both directions.
#[test]
fn who_is_between_a_command_and_a_daemon_gains_nothing() {
    let Some(lab) = crate::lab("who_is_between_a_command_and_a_daemon_gains_nothing") else {
        return;
    };
    // The name of an interface that is there, so that commands take it for one.
    lab.at("lb", "ip link add aaa type veth peer name bbb");
    let lb = lab.balance(TWO);
    let squatter = squat(&lab, NOBODY, b"aaa");
    let (sender, relayed) = std::sync::mpsc::channel();
    let relay = lab.within("lb", || {
        let namespace = std::fs::File::open("/proc/thread-self/ns/net").unwrap();
        thread::spawn(move || {
            nix::sched::setns(namespace, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            for client in squatter.incoming() {
                let (bytes, descriptors) = receive(&client.unwrap());
                let Some(descriptor) = descriptors.into_iter().next() else {
                    continue;
                };
                pass(&knock("eth0").unwrap(), &bytes, descriptor.as_fd());
                let _ = sender.send(descriptor);
            }
        })
    });
    let before = lab.status();
    for command in ["stop -i aaa", "reload -i aaa", "drain -i aaa 10.0.0.2"] {
        let output = lab.proxy(command);
        let error = refusal(&output, 1);
        assert!(error.contains("no xdp-proxy runs on aaa"), "{error}");
    }
    // He has what commands sent, which was good enough for the daemon to prove itself; to the
    // command alone. What he writes there is not heard.
    let got: Vec<_> = relayed.try_iter().collect();
    assert!(got.len() >= 3);
    for descriptor in got {
        let mut line = std::os::unix::net::UnixStream::from(descriptor);
        line.set_nonblocking(true).unwrap();
        let _ = line.write_all(b"\"stop\"\n");
        let mut answer = Vec::new();
        let _ = line.read_to_end(&mut answer);
        assert_eq!(answer, b"");
    }
    // One daemon is one, by whatever ways it is reached.
    let status = lab.status();
    assert_eq!(status["pid"], before["pid"]);
    lb.signal(Signal::SIGTERM);
    assert_eq!(lb.wait().code(), Some(0));
    drop(relay);
}
