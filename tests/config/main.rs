// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! Configuration: what is accepted, what it means, and how each fault is reported.

mod accepted;
mod health;
mod round_trip;
mod services_refused;
mod values_refused;

use std::path::PathBuf;

use xdp_proxy::config::{Footprint, HostPorts, Input, Services, load, parse};
use xdp_proxy::service::Config;

fn host() -> HostPorts {
    HostPorts {
        local: 32768..=60999,
        reserved: vec![8080..=8080, 50000..=50009],
    }
}

fn file(text: &str) -> Result<Config, String> {
    parse("web.toml", text, &host()).map_err(|error| error.to_string())
}

/// The one line that a file's fault is reported in.
fn fault(text: &str) -> String {
    let line = file(text).expect_err("the file is accepted");
    assert!(!line.contains(char::is_control), "{line}");
    line
}

/// A service called web with the keys given and one backend.
fn web(keys: &str) -> String {
    let listen = if keys.contains("listen") {
        ""
    } else {
        "listen = \"192.0.2.1:80\""
    };
    format!(
        "[[service]]\nname = \"web\"\n{listen}\n{keys}\n\
         [[service.backend]]\naddress = \"10.0.0.2:80\"\n"
    )
}

/// A service called web with the backends' keys given.
fn backed(backends: &[&str]) -> String {
    let mut text = "[[service]]\nname = \"web\"\nlisten = \"192.0.2.1:80\"\n".to_string();
    backends
        .iter()
        .for_each(|keys| text += &format!("[[service.backend]]\n{keys}\n"));
    text
}

fn flags(listen: &[&str], backends: &[&str]) -> Result<Config, String> {
    let strings = |texts: &[&str]| texts.iter().map(|text| text.to_string()).collect();
    let services = Services::Flags {
        listen: strings(listen),
        backends: strings(backends),
    };
    let input = Input {
        interface: None,
        mode: None,
        services,
    };
    load(&input, &host()).map_err(|error| error.to_string())
}

fn footprint() -> Footprint {
    Footprint {
        flows: 36_279,
        memory_bytes: 5 << 20,
    }
}

fn tempdir(name: &str) -> PathBuf {
    let directory = std::env::temp_dir().join(format!("xdp-proxy-{}-{name}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    directory
}
