// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! Connections and exchanges of datagrams whose both ends a test holds: so a server speaks
//! while its client is silent.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use super::lab::Lab;

/// Far more than what is lost once costs.
const PATIENCE: Duration = Duration::from_secs(10);

/// What both ends of calls need: port 90 of each VIP, TCP and UDP, served by `http1`.
pub const CONFIG: &str = "
[[service]]
listen = '10.0.0.5:90'
health = { type = 'none' }
backend = [{ address = '10.0.0.2' }]
[[service]]
listen = '[fd00::5]:90'
health = { type = 'none' }
backend = [{ address = 'fd00::2' }]
[[service]]
listen = '10.0.0.5:90/udp'
health = { type = 'none' }
backend = [{ address = '10.0.0.2' }]
[[service]]
listen = '[fd00::5]:90/udp'
health = { type = 'none' }
backend = [{ address = 'fd00::2' }]
";
const VIPS: [&str; 2] = ["10.0.0.5:90", "[fd00::5]:90"];

/// The server's side, on `http1`.
pub struct Server {
    listener: TcpListener,
    socket: UdpSocket,
}

/// One call, whose both ends are here.
pub struct Call {
    /// Of the client.
    pub client: SocketAddr,
    pub vip: SocketAddr,
    ends: Ends,
}

enum Ends {
    Tcp {
        client: TcpStream,
        server: TcpStream,
    },
    Udp {
        client: UdpSocket,
        server: UdpSocket,
        /// The client, as its server sees it.
        seen: SocketAddr,
    },
}

impl Server {
    pub fn start(lab: &Lab) -> Server {
        lab.within("http1", || Server {
            listener: TcpListener::bind("[::]:90").unwrap(),
            socket: UdpSocket::bind("[::]:90").unwrap(),
        })
    }

    /// A call of each protocol over each family, from a host.
    pub fn calls_from(&self, lab: &Lab, host: &str) -> Vec<Call> {
        let vips = VIPS.map(|vip| vip.parse::<SocketAddr>().unwrap());
        let each = vips.into_iter();
        each.flat_map(|vip| [self.connect(lab, host, vip), self.exchange(lab, host, vip)])
            .collect()
    }

    fn connect(&self, lab: &Lab, host: &str, vip: SocketAddr) -> Call {
        let client = lab.within(host, || TcpStream::connect_timeout(&vip, PATIENCE).unwrap());
        let (server, _) = self.listener.accept().unwrap();
        for stream in [&client, &server] {
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            stream.set_nodelay(true).unwrap();
        }
        Call {
            client: client.local_addr().unwrap(),
            vip,
            ends: Ends::Tcp { client, server },
        }
    }

    fn exchange(&self, lab: &Lab, host: &str, vip: SocketAddr) -> Call {
        let any = if vip.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let client = lab.within(host, || UdpSocket::bind(any).unwrap());
        client.connect(vip).unwrap();
        client.send(b"?").unwrap();
        self.socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let (_, seen) = self.socket.recv_from(&mut [0; 8]).unwrap();
        Call {
            client: client.local_addr().unwrap(),
            vip,
            ends: Ends::Udp {
                client,
                server: self.socket.try_clone().unwrap(),
                seen,
            },
        }
    }
}

impl Call {
    pub fn is_tcp(&self) -> bool {
        matches!(self.ends, Ends::Tcp { .. })
    }

    /// How long it takes until the server's next word, which its client waits for in
    /// silence, gets there. A datagram is sent again until then, as servers do.
    pub fn answer(&mut self) -> Duration {
        let start = Instant::now();
        let name = format!("{} to {}, TCP {}", self.client, self.vip, self.is_tcp());
        match &mut self.ends {
            Ends::Tcp { client, server } => {
                server.write_all(b"!").unwrap();
                let read = client.read_exact(&mut [0]);
                read.unwrap_or_else(|error| panic!("no answer for {name}: {error}"));
            }
            Ends::Udp {
                client,
                server,
                seen,
            } => {
                let pause = Some(Duration::from_millis(50));
                client.set_read_timeout(pause).unwrap();
                while {
                    server.send_to(b"!", *seen).unwrap();
                    client.recv(&mut [0; 8]).is_err()
                } {
                    assert!(start.elapsed() < PATIENCE, "no answer for {name}");
                }
                // What was sent more often.
                while client.recv(&mut [0; 8]).is_ok() {}
            }
        }
        start.elapsed()
    }

    /// The client's next word gets to the server.
    pub fn ask(&mut self) {
        match &mut self.ends {
            Ends::Tcp { client, server } => {
                client.write_all(b"?").unwrap();
                server.read_exact(&mut [0]).unwrap();
            }
            Ends::Udp {
                client,
                server,
                seen,
            } => {
                client.send(b"?").unwrap();
                (_, *seen) = server.recv_from(&mut [0; 8]).unwrap();
            }
        }
    }
}
