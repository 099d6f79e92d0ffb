// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! Connections that one end has finished: the other one may be dead, or far from it.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::common::lab::{LB, Lab};
use crate::common::{frame::pattern, listen};

/// Longest wait for what must happen.
const PATIENCE: Duration = Duration::from_secs(60);
const CLIENTS: usize = 50;

fn served(lab: &Lab, timeouts: &str) -> String {
    lab.write(
        "half_closed.toml",
        &format!(
            "
[[service]]
listen = '10.0.0.5:81'
health = {{ type = 'none' }}
timeouts = {{ {timeouts} }}
backend = [{{ address = '10.0.0.2' }}]
"
        ),
    )
}

fn listener(lab: &Lab) -> TcpListener {
    lab.within("http1", || listen(([0, 0, 0, 0], 81), PATIENCE))
}

fn connect(lab: &Lab) -> TcpStream {
    let stream = lab.within("client", || TcpStream::connect((LB, 81)).unwrap());
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Nothing gets through to the client, or from it, at this hook of its own.
fn silence(lab: &Lab, hook: &str) {
    let rules = format!(
        "table ip silence {{
            chain both {{
                type filter hook {hook} priority 0
                ip saddr 10.0.0.5 drop
                ip daddr 10.0.0.5 drop
            }}
        }}"
    );
    let file = lab.write("silence.nft", &rules);
    lab.at("client", &format!("nft -f {file}"));
}

fn speak_again(lab: &Lab) {
    lab.at("client", "nft delete table ip silence");
}

fn flows(lab: &Lab) -> u64 {
    lab.status()["services"][0]["flows"].as_u64().unwrap()
}

#[test]
fn what_a_server_sent_before_its_end_arrives_however_late() {
    let Some(lab) = crate::lab("what_a_server_sent_before_its_end_arrives_however_late") else {
        return;
    };
    let config = served(&lab, "closing = '200ms'");
    let lb = lab.balance(&format!("-c {config}"));
    let server = listener(&lab);
    let mut client = connect(&lab);
    let (mut peer, _) = server.accept().unwrap();
    client.write_all(b"all").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let mut request = Vec::new();
    peer.read_to_end(&mut request).unwrap();
    // Both ends have finished now, but what the server sends gets lost for a while.
    silence(&lab, "input");
    let answer = pattern(5000);
    peer.write_all(&answer).unwrap();
    peer.shutdown(Shutdown::Write).unwrap();
    sleep(Duration::from_secs(2));
    assert_eq!(flows(&lab), 1, "nobody has acknowledged the server's end");
    speak_again(&lab);
    let mut received = Vec::new();
    client.read_to_end(&mut received).unwrap();
    assert_eq!((request, received), (b"all".to_vec(), answer));
    lb.end();
}

#[test]
fn clients_that_vanish_after_their_server_closed_hold_no_ports() {
    let Some(lab) = crate::lab("clients_that_vanish_after_their_server_closed_hold_no_ports")
    else {
        return;
    };
    let config = served(&lab, "half_closed = '1s'");
    let lb = lab.balance(&format!("-c {config}"));
    let server = listener(&lab);
    let open = |_| {
        let client = connect(&lab);
        let (peer, _) = server.accept().unwrap();
        (client, peer)
    };
    let (clients, peers): (Vec<_>, Vec<_>) = (0..CLIENTS).map(open).unzip();
    assert_eq!(flows(&lab), CLIENTS as u64);
    silence(&lab, "output");
    drop(peers);
    let start = Instant::now();
    while flows(&lab) > 0 {
        assert!(start.elapsed() < PATIENCE, "{} flows are left", flows(&lab));
        sleep(Duration::from_millis(200));
    }
    drop(clients);
    lb.end();
}
