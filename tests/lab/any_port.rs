// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! A service on every port of the VIP.

use std::collections::BTreeSet;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use crate::common::http;
use crate::common::lab::{HTTP1, HTTP2, LB};
use crate::common::listen;

const PATIENCE: Duration = Duration::from_secs(5);
/// Beside nginx's.
const PORT: u16 = 7777;
const NOBODYS_PORT: u16 = 7778;
const CONNECTIONS: usize = 40;
const CONFIG: &str = r#"
[[service]]
listen = "10.0.0.5:*"
[[service.backend]]
address = "10.0.0.2"
[[service.backend]]
address = "10.0.0.3"

[[service]]
listen = "10.0.0.5:8080"
[[service.backend]]
address = "10.0.0.3:80"
"#;

fn connect(port: u16) -> std::io::Result<TcpStream> {
    TcpStream::connect_timeout(&SocketAddr::new(LB.parse().unwrap(), port), PATIENCE)
}

/// What the other end of a connection to the VIP says.
fn said(port: u16) -> String {
    let mut stream = connect(port).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

#[test]
fn any_port_of_the_vip_leads_to_the_same_port_of_the_backends() {
    let Some(lab) = crate::lab("any_port_of_the_vip_leads_to_the_same_port_of_the_backends") else {
        return;
    };
    let config = lab.write("any.toml", CONFIG);
    let lb = lab.balance(&format!("-c {config}"));
    assert_eq!(
        lb.ready,
        "ready: eth0 (generic) 10.0.0.5:*/tcp -> 2 backends, 10.0.0.5:8080/tcp -> 1 backend"
    );
    let service = &lab.status()["services"][0];
    assert_eq!(service["listen"], "10.0.0.5:*/tcp");
    assert_eq!(service["backends"][0]["address"], "10.0.0.2");

    let both = BTreeSet::from(["http1".to_owned(), "http2".to_owned()]);
    let nginx: BTreeSet<String> = lab.within("client", || {
        (0..CONNECTIONS).map(|_| http::host(LB).unwrap()).collect()
    });
    assert_eq!(nginx, both);

    let listeners = [("http1", HTTP1), ("http2", HTTP2)].map(|(host, address)| {
        let address: IpAddr = address.parse().unwrap();
        (host, lab.within(host, || listen((address, PORT), PATIENCE)))
    });
    std::thread::scope(|scope| {
        for (host, listener) in &listeners {
            scope.spawn(move || {
                let from_lb = |peer: &SocketAddr| peer.ip().to_string() == LB;
                let accepted = || listener.accept().ok().filter(|(_, peer)| from_lb(peer));
                while let Some((mut stream, _)) = accepted() {
                    stream.write_all(host.as_bytes()).unwrap();
                }
            });
        }
        let other: BTreeSet<String> =
            lab.within("client", || (0..CONNECTIONS).map(|_| said(PORT)).collect());
        assert_eq!(other, both);
        // Straight to them, which ends their threads.
        lab.within("client", || {
            for address in [HTTP1, HTTP2] {
                TcpStream::connect((address, PORT)).unwrap();
            }
        });
    });

    // A backend that does not serve a port says so, and the client hears it; what
    // the load balancer's own host serves there is not asked.
    let own = lab.within("lb", || TcpListener::bind((LB, NOBODYS_PORT)).unwrap());
    let error = lab.within("client", || connect(NOBODYS_PORT).unwrap_err());
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    drop(own);
    // One port goes before all of them.
    let answer = lab.at("client", "curl -sS --max-time 5 http://10.0.0.5:8080/");
    assert_eq!(answer, "Hostname: http2\n");
    assert_eq!(lab.status()["services"][1]["flows_begun"], 1);
    lb.end();
}
