// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! Services whose backends are checked, and servers that a test turns off and on.

use std::fs;
use std::time::Duration;

use serde_json::Value;

use crate::common::lab::{Balancer, HTTP1, HTTP2, LB, Lab};

/// How often backends are checked here.
pub const OFTEN: &str = "interval = '200ms', timeout = '200ms', rise = 2, fall = 3";

/// Services on the ports given, each with its keys and with http1 and http2.
pub fn services(services: &[(u16, &str)]) -> String {
    let service = |(port, keys): &(u16, &str)| {
        format!(
            "[[service]]\nlisten = '{LB}:{port}'\n{keys}\n\
             backend = [{{ address = '{HTTP1}:80' }}, {{ address = '{HTTP2}:80' }}]\n"
        )
    };
    services.iter().map(service).collect()
}

/// The load balancer with these services.
pub fn balance<'a>(lab: &'a Lab, text: &str) -> Balancer<'a> {
    let file = lab.write("health.toml", text);
    lab.balance(&format!("-c {file}"))
}

/// A second nginx on a host: it answers on ports 8080 and, by TLS, 8443, with 503 while
/// /run/HOST.down is there. Its certificate is in /run/HOST.pem, for lab.test.
pub fn serve_switch(lab: &Lab, host: &str) {
    lab.at(
        host,
        &format!(
            "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 \
             -subj /CN=lab -addext subjectAltName=DNS:lab.test -keyout /run/{host}.key \
             -out /run/{host}.pem"
        ),
    );
    let paths = ["client_body", "proxy", "fastcgi", "scgi", "uwsgi"];
    let paths = paths.map(|path| format!("{path}_temp_path /run/{host}.{path};"));
    let config = format!(
        "user root; worker_processes 1; pid /run/{host}.up.pid; error_log /run/{host}.up.log info;
         events {{}}
         http {{
             access_log /run/{host}.up.access;
             {}
             server {{
                 listen 8080;
                 listen 8443 ssl;
                 ssl_certificate /run/{host}.pem;
                 ssl_certificate_key /run/{host}.key;
                 location / {{ if (-f /run/{host}.down) {{ return 503; }} return 200 up; }}
             }}
         }}",
        paths.join(" ")
    );
    let config = lab.write(&format!("{host}.up.conf"), &config);
    lab.at(host, &format!("nginx -e /run/{host}.up.log -c {config}"));
}

pub fn turn(lab: &Lab, host: &str, up: bool) {
    let file = lab.path(&format!("/run/{host}.down"));
    match up {
        true => fs::remove_file(file).unwrap(),
        false => fs::write(file, "").unwrap(),
    }
}

pub fn kill_nginx(lab: &Lab, host: &str) {
    let pid = lab.read(&format!("/run/xdp-proxy-lab/{host}/nginx.pid"));
    let pid = String::from_utf8(pid).unwrap();
    lab.at(host, &format!("kill {}", pid.trim()));
}

pub fn backend(status: &Value, service: usize, backend: usize) -> &Value {
    &status["services"][service]["backends"][backend]
}

pub fn is(status: &Value, service: usize, number: usize, state: &str) -> bool {
    backend(status, service, number)["state"] == state
}

pub fn until(balancer: &Balancer, service: usize, number: usize, state: &str) -> Duration {
    let what = format!("backend {number} of service {service} is {state}");
    balancer.until(&what, |status| is(status, service, number, state))
}
