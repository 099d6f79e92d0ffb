// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! Any configuration survives being printed; no text panics.

use std::net::Ipv4Addr;

use super::*;
use proptest::prelude::*;
use xdp_proxy::config::describe;

/// Files of one to four services on VIPs of their own.
fn files() -> impl Strategy<Value = String> {
    let duration = (
        1u32..=20,
        prop::sample::select(vec!["ms", "s", "m", "h", "d"]),
    )
        .prop_map(|(number, unit)| format!("\"{number}{unit}\""));
    let backends = prop::collection::btree_map((any::<u8>(), 1u16..), 1u16..=256, 1..6);
    let service = (
        prop::option::of("[^\\p{Cc}]{1,20}"),
        prop_oneof![
            (1u16..).prop_map(|port| port.to_string()),
            (1u16..1000, 1000u16..).prop_map(|(first, last)| format!("{first}-{last}")),
            Just("*".to_string()),
        ],
        prop::collection::btree_set(1u8..=4, 0..3),
        [
            duration.clone(),
            duration.clone(),
            duration.clone(),
            duration,
        ],
        backends,
        health(),
    );
    let ports = prop::option::of((1u16..32768, 61000u16..));
    let mode = prop::sample::select(vec!["auto", "generic", "native", "offload"]);
    let top = (mode, any::<bool>());
    (top, ports, prop::collection::vec(service, 1..4)).prop_map(|(top, ports, services)| {
        let (mode, counters) = top;
        let mut text = format!("mode = \"{mode}\"\nflow_counters = {counters}\n");
        for (
            i,
            (
                name,
                listen,
                sources,
                [unanswered, established, half_closed, closing],
                backends,
                health,
            ),
        ) in services.into_iter().enumerate()
        {
            text += &format!("[[service]]\nlisten = \"192.0.2.{}:{listen}\"\n", i + 1);
            if let Some(name) = name {
                text += &format!("name = {}\n", toml::Value::from(format!("{i}{name}")));
            }
            if let Some((low, high)) = ports {
                text += &format!("source_ports = \"{low}-32767,{high}\"\n");
            }
            let sources: Vec<String> = sources.iter().map(|n| format!("\"10.1.0.{n}\"")).collect();
            text += &format!("source = [{}]\n", sources.join(","));
            text += &format!(
                "timeouts = {{ unanswered = {unanswered}, established = {established}, \
                 half_closed = {half_closed}, closing = {closing} }}\n"
            );
            text += &health;
            for ((host, port), weight) in backends {
                let [high, low] = port.to_be_bytes();
                let mut backend = Ipv4Addr::new(10, host, high, low).to_string();
                if listen.parse::<u16>().is_ok() {
                    backend += &format!(":{port}");
                }
                text +=
                    &format!("[[service.backend]]\naddress = \"{backend}\"\nweight = {weight}\n");
            }
        }
        text
    })
}

/// `health` and what belongs to it; on a port of its own, as a service may have several.
fn health() -> impl Strategy<Value = String> {
    let http = "(, path = \"/[a-z0-9?=&#'%.]{0,9}\")?(, host = \"[a-z]{1,9}(\\.[a-z]{1,9})?\")?\
                (, status = (20[0-6]|\"20[0-6], [3-5]04-599\"))?";
    let keys = prop_oneof![
        Just(" type = \"tcp\"".to_string()),
        http.prop_map(|keys| format!(" type = \"http\"{keys}")),
        (http, "(, verify = (true|false))?")
            .prop_map(|(keys, verify)| format!(" type = \"https\"{keys}{verify}")),
        "(hex:([0-9a-f]{2}){1,9}|[ !#-\\[\\]-~]{1,9})"
            .prop_map(|payload| format!(" type = \"udp\", payload = \"{}\"", payload)),
    ];
    let numbers = (1u16.., 1u8..=100, 1u8..=100, 1u16..5000);
    let policy = "(on_failure = \"(reset|keep)\"\n)?(all_down = \"(reject|ignore-health)\"\n)?\
                  (drain_timeout = \"(never|[1-9]s)\"\n)?";
    (keys, numbers, policy).prop_map(|(keys, (port, rise, fall, interval), policy)| {
        format!(
            "health = {{{keys}, port = {port}, rise = {rise}, fall = {fall}, \
             interval = \"{interval}ms\" }}\n{policy}"
        )
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_check_prints_is_read_as_the_same_configuration(text in files()) {
        let config = file(&text).unwrap();
        let printed = describe(&config, &footprint());
        prop_assert_eq!(file(&printed).unwrap(), config, "{}", printed);
    }

    #[test]
    fn no_text_panics_or_is_reported_in_more_than_one_line(
        listen in ".{0,20}|[0-9.:/\\[\\]a-z]{0,24}", backend in ".{0,20}|[0-9.:,=weight]{0,24}",
    ) {
        if let Err(line) = flags(&[&listen], &[&backend]) {
            prop_assert!(!line.contains(char::is_control));
        }
        if let Err(line) = file(&listen) {
            prop_assert!(!line.contains(char::is_control));
        }
    }
}
