// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! The effective configuration as text, for `check`.

use std::fmt::Write;

use super::health;
use super::value::{
    ALL_DOWNS, FORWARDINGS, MODES, NEVER, ON_FAILURES, SCHEDULERS, duration_text, word,
};
use crate::service::{Config, Service};

/// What a configuration takes once it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Footprint {
    /// Flows that fit at the same time.
    pub flows: u64,
    /// Memory of the kernel that is taken at the start, in bytes.
    pub memory_bytes: u64,
}

/// The configuration with every default shown, as TOML that [`super::parse`]
/// reads as the same configuration, and the footprint as comments.
pub fn describe(config: &Config, footprint: &Footprint) -> String {
    let mut text = String::new();
    match &config.interface {
        Some(interface) => line(&mut text, "interface", string(interface)),
        None => text.push_str(
            "# interface: the one that holds the first VIP, else the one that routes to the first backend\n",
        ),
    }
    line(&mut text, "mode", string(word(&MODES, config.mode)));
    line(&mut text, "flow_counters", config.flow_counters.to_string());
    for service in &config.services {
        describe_service(&mut text, service);
    }
    let Footprint {
        flows,
        memory_bytes,
    } = footprint;
    let mib = *memory_bytes as f64 / f64::from(1 << 20);
    let _ = write!(
        text,
        "\n# flows that fit: {flows}\n# memory: {mib:.1} MiB\n"
    );
    text
}

fn describe_service(text: &mut String, service: &Service) {
    text.push_str("\n[[service]]\n");
    line(text, "name", string(&service.name));
    line(text, "listen", string(&service.listen.to_string()));
    line(
        text,
        "forwarding",
        string(word(&FORWARDINGS, service.forwarding)),
    );
    line(
        text,
        "scheduler",
        string(word(&SCHEDULERS, service.scheduler)),
    );
    let source: Vec<String> = service
        .source
        .iter()
        .map(|source| string(&source.to_string()))
        .collect();
    let default = if source.is_empty() {
        " # the address that reaches the backend"
    } else {
        ""
    };
    line(text, "source", format!("[{}]{default}", source.join(", ")));
    line(
        text,
        "source_ports",
        string(&service.source_ports.to_string()),
    );
    let timeouts = [
        ("unanswered", service.timeouts.unanswered),
        ("established", service.timeouts.established),
        ("half_closed", service.timeouts.half_closed),
        ("closing", service.timeouts.closing),
    ];
    let timeouts =
        timeouts.map(|(key, timeout)| format!("{key} = {}", string(&duration_text(timeout))));
    line(text, "timeouts", format!("{{ {} }}", timeouts.join(", ")));
    line(text, "health", health::describe(&service.health, string));
    let policy = &service.policy;
    line(
        text,
        "on_failure",
        string(word(&ON_FAILURES, policy.on_failure)),
    );
    line(text, "all_down", string(word(&ALL_DOWNS, policy.all_down)));
    line(
        text,
        "drain_timeout",
        string(&policy.drain_timeout.map_or(NEVER.into(), duration_text)),
    );
    for backend in &service.backends {
        text.push_str("\n[[service.backend]]\n");
        line(text, "address", string(&backend.to_string()));
        line(text, "weight", backend.weight.to_string());
    }
}

fn line(text: &mut String, key: &str, value: String) {
    text.extend([key, " = ", &value, "\n"]);
}

/// A basic string of TOML. Validated text has no control characters in it.
fn string(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}
