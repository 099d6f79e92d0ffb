// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! Calls of the daemon's loop fail for a while: it goes on, tells of each trouble once and
//! of its end, and what it could not do is done then.

use std::fs;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::common::http;
use crate::common::lab::{BINARY, Balancer, HTTP1, HTTP2, LB, Lab, TWO, refusal};
use crate::common::load::Clients;
use crate::failing_calls::until;
use crate::tracer::Tracer;

/// Far more than a second, after which what failed is tried again.
const A_WHILE: Duration = Duration::from_millis(3500);

/// Every call of this name fails, or those that a condition of strace's names.
fn failing(lab: &Lab, call: &str, error: &str) -> Tracer {
    let pid = lab.status()["pid"].as_u64().unwrap();
    let options = format!("-e trace={call} -e inject={call}:error={error}");
    Tracer::attach(lab, pid, &options)
}

fn lines(lb: &Balancer, words: &str) -> usize {
    lb.log().lines().filter(|line| line.contains(words)).count()
}

/// Told once, and once that it is over.
fn told_once(lb: &Balancer, doing: &str) {
    until(&format!("over: {doing}"), || {
        (lines(lb, &format!("{doing} works again")) == 1).then_some(())
    });
    let told = lines(lb, &format!("{doing} failed, and is tried again: "));
    assert_eq!(told, 1, "{doing}: {}", lb.log());
}

/// Nothing is wrong with what is attached, with flows and with the next reload.
fn is_well(lab: &Lab, kept: &mut Clients) {
    kept.go_on(lab);
    let status = lab.status();
    assert_eq!(lab.attached().unwrap()["prog"]["id"], status["program_id"]);
    let reloaded = lab.at("lb", &format!("{BINARY} reload"));
    assert!(reloaded.starts_with("reloaded: eth0: "), "{reloaded}");
    kept.go_on(lab);
}

fn file(lab: &Lab) -> String {
    let text = format!(
        "[[service]]\nlisten = \"{LB}:80\"\n\
         health = {{ type = \"tcp\", interval = \"200ms\", timeout = \"200ms\", fall = 2 }}\n\
         on_failure = \"keep\"\n\
         [[service.backend]]\naddress = \"{HTTP1}\"\n[[service.backend]]\naddress = \"{HTTP2}\"\n"
    );
    format!("-c {}", lab.write("web.toml", &text))
}

#[test]
fn sweeps_that_fail_for_a_while_end_nothing() {
    let Some(lab) = crate::lab("sweeps_that_fail_for_a_while_end_nothing") else {
        return;
    };
    let lb = lab.balance(&file(&lab));
    let mut kept = Clients::open(&lab);
    for error in ["ENOMEM", "EBUSY"] {
        let tracer = failing(&lab, "bpf", error);
        std::thread::sleep(A_WHILE);
        tracer.detach();
        is_well(&lab, &mut kept);
    }
    // EINTR is no trouble: the next sweep goes on.
    let tracer = failing(&lab, "bpf", "EINTR");
    std::thread::sleep(A_WHILE);
    tracer.detach();
    is_well(&lab, &mut kept);
    let doing = "sweeping the flow table";
    until("both over", || {
        (lines(&lb, &format!("{doing} works again")) == 2).then_some(())
    });
    let told = lines(&lb, &format!("{doing} failed, and is tried again: "));
    assert_eq!(told, 2, "{}", lb.log());
    lb.end();
    assert_eq!(lab.attached(), None);
}

#[test]
fn a_backend_that_dies_while_no_map_can_be_written_is_out_as_soon_as_one_can() {
    let test = "a_backend_that_dies_while_no_map_can_be_written_is_out_as_soon_as_one_can";
    let Some(lab) = crate::lab(test) else { return };
    let lb = lab.balance(&file(&lab));
    lb.until("both are up", |status| {
        let backends = status["services"][0]["backends"].as_array().unwrap();
        backends.iter().all(|backend| backend["state"] == "up")
    });
    let mut kept = Clients::open(&lab);
    let tracer = failing(&lab, "bpf", "ENOMEM");
    // Its server refuses connections from now on.
    let refuse = "nft add table ip gone; \
                  nft add chain ip gone input { type filter hook input priority 0 \\; }; \
                  nft add rule ip gone input tcp dport 80 tcp flags syn reject with tcp reset";
    let script = lab.write("refuse.sh", refuse);
    lab.at("http2", &format!("sh {script}"));
    until("told", || lb.log().contains("10.0.0.3:80 of").then_some(()));
    std::thread::sleep(A_WHILE);
    // Its counters can't be read either, which is an error of who asks.
    let error = refusal(&lab.proxy("status"), 1);
    assert!(error.contains("the daemon on eth0: reading"), "{error}");
    tracer.detach();
    told_once(&lb, "writing into the maps");
    for _ in 0..16 {
        let host = lab.within("client", || http::host(LB));
        assert_eq!(host.unwrap(), "http1", "{}", lb.log());
    }
    lab.at("http2", "nft delete table ip gone");
    lb.until("it is back", |status| {
        status["services"][0]["backends"][1]["state"] == "up"
    });
    is_well(&lab, &mut kept);
    lb.end();
}

#[test]
fn an_interface_that_can_t_be_asked_for_keeps_its_program_and_its_daemon() {
    let test = "an_interface_that_can_t_be_asked_for_keeps_its_program_and_its_daemon";
    let Some(lab) = crate::lab(test) else { return };
    let lb = lab.balance(&format!("--persist {}", file(&lab)));
    let mut kept = Clients::open(&lab);
    let faults = [
        ("socket", "EMFILE"),
        ("socket", "ENOBUFS"),
        ("recvmsg", "ENOMEM"),
        ("sendto", "ENOBUFS"),
        ("recvfrom", "ENOBUFS"),
        ("recvfrom", "ENOMEM"),
    ];
    for (call, error) in faults {
        let tracer = failing(&lab, call, error);
        // What makes it look.
        lab.at("lb", "ip link set eth0 mtu 1400");
        lab.at("lb", "ip link set eth0 mtu 1500");
        std::thread::sleep(A_WHILE);
        tracer.detach();
        let log = lb.log();
        assert!(!log.contains("eth0 is gone"), "{call} {error}: {log}");
        assert!(
            !log.contains("nothing is balanced"),
            "{call} {error}: {log}"
        );
        lb.until("both are up", |status| {
            let backends = status["services"][0]["backends"].as_array().unwrap();
            backends.iter().all(|backend| backend["state"] == "up")
        });
        is_well(&lab, &mut kept);
    }
    // Once for each of the first three.
    let told = lines(&lb, "asking what is attached failed, and is tried again: ");
    assert!((1..=faults.len()).contains(&told), "{}", lb.log());
    // It persists, also when it ends while it can't be asked for.
    let tracer = failing(&lab, "socket", "EMFILE");
    std::thread::sleep(A_WHILE);
    lb.signal(Signal::SIGTERM);
    let (log, status) = lb.outcome();
    drop(tracer);
    assert_eq!(status.code(), Some(0), "{log}");
    assert!(log.contains("serves on"), "{log}");
    assert!(lab.attached().is_some());
    kept.go_on(&lab);
}

/// The kernel has put the program in its place or has not, and for longer than a reload
/// waits nobody can find out which.
#[test]
fn a_reload_whose_outcome_can_t_be_asked_for_turns_out_later() {
    let test = "a_reload_whose_outcome_can_t_be_asked_for_turns_out_later";
    let Some(lab) = crate::lab(test) else { return };
    let arguments = file(&lab);
    let lb = lab.balance(&arguments);
    let mut kept = Clients::open(&lab);
    let text = String::from_utf8(lab.read("/run/web.toml")).unwrap();
    let more = text
        .replace(":80", ":81")
        .replace(&format!("{HTTP1}\""), &format!("{HTTP1}:80\""));
    // Of a netlink message that libbpf sends, the answer is lost, or it is not even sent.
    for (call, error, happens) in [("recvmsg", "ENOMEM", true), ("sendto", "ENOBUFS", false)] {
        let text = if happens {
            &(text.clone() + &more)
        } else {
            &text
        };
        lab.write("web.toml", text);
        let before = lab.status();
        let tracer = failing(&lab, call, error);
        let told = lab.proxy("reload");
        tracer.detach();
        assert!(!told.status.success());
        let services = 2;
        lb.until("decided", |status| {
            status["services"].as_array().unwrap().len() == services
        });
        let now = lab.status();
        assert_eq!(now["program_id"] != before["program_id"], happens, "{call}");
        is_well(&lab, &mut kept);
        lab.write(
            "web.toml",
            &(text.clone() + if happens { "" } else { &more }),
        );
        lab.at("lb", &format!("{BINARY} reload"));
    }
    let log = lb.log();
    assert!(
        log.contains("whether it is reloaded will turn out: "),
        "{log}"
    );
    assert!(
        log.contains("the change that was undecided is in its place"),
        "{log}"
    );
    lb.end();
    assert_eq!(lab.attached(), None);
}

#[test]
fn the_end_of_a_daemon_detaches_though_that_fails_at_first() {
    let test = "the_end_of_a_daemon_detaches_though_that_fails_at_first";
    let Some(lab) = crate::lab(test) else { return };
    for call in ["socket", "sendto", "recvmsg"] {
        let lb = lab.balance(TWO);
        let pid = lab.status()["pid"].as_u64().unwrap();
        let options = format!("-e trace={call} -e inject={call}:error=ENOBUFS:when=1..6");
        let tracer = Tracer::attach(&lab, pid, &options);
        let stopped = lab.at("lb", &format!("{BINARY} stop"));
        assert_eq!(stopped, "stopped: eth0\n");
        let (log, status) = lb.outcome();
        drop(tracer);
        assert_eq!(status.code(), Some(0), "{call}: {log}");
        assert_eq!(lab.attached(), None, "{call}: {log}");
    }
}

#[test]
fn a_daemon_out_of_descriptors_refuses_who_asks_for_some_and_serves_all_others() {
    let test = "a_daemon_out_of_descriptors_refuses_who_asks_for_some_and_serves_all_others";
    let Some(lab) = crate::lab(test) else { return };
    let lb = lab.balance(&file(&lab));
    let mut kept = Clients::open(&lab);
    let pid = lab.status()["pid"].as_u64().unwrap();
    let limit = |files: &str| {
        lab.at("lb", &format!("prlimit --pid {pid} --nofile={files}"));
    };
    // The so-manieth number that no descriptor has, from 0.
    let free = |nth: usize| {
        let open = |number: &usize| {
            let path = lab.path(&format!("/proc/{pid}/fd/{number}"));
            path.symlink_metadata().is_ok()
        };
        (0..).filter(|number| !open(number)).nth(nth).unwrap()
    };
    let hard = {
        let limits = fs::read_to_string(lab.path(&format!("/proc/{pid}/limits"))).unwrap();
        let line = limits
            .lines()
            .find(|line| line.starts_with("Max open files"));
        line.unwrap().split_whitespace().nth(4).unwrap().to_owned()
    };
    // Enough for the client that asks, and not for the maps.
    limit(&format!("{}:{hard}", free(8)));
    let error = refusal(&lab.proxy("flows"), 1);
    assert!(error.contains("Too many open files"), "{error}");
    // And none at all, while addresses change and next hops are looked for.
    limit(&format!("{}:{hard}", free(0)));
    lab.at("lb", "ip addr add 10.0.0.77/24 dev eth0");
    std::thread::sleep(A_WHILE);
    lab.at("lb", "ip addr del 10.0.0.77/24 dev eth0");
    std::thread::sleep(A_WHILE);
    limit(&format!("{hard}:{hard}"));
    let log = lb.log();
    assert!(!log.contains("eth0 is gone"), "{log}");
    told_once(&lb, "asking what is attached");
    lb.until("both are up", |status| {
        let backends = status["services"][0]["backends"].as_array().unwrap();
        backends.iter().all(|backend| backend["state"] == "up")
    });
    is_well(&lab, &mut kept);
    lab.at("lb", &format!("{BINARY} flows"));
    lb.end();
    assert_eq!(lab.attached(), None);
}
