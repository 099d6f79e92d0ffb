// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! Configuration: what is accepted, what it means, and how each fault is reported.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use proptest::prelude::*;
use xdp_proxy::config::{Footprint, HostPorts, Input, Services, describe, load, parse};
use xdp_proxy::service::{Config, Mode, PortRanges, Timeouts};

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

#[test]
fn a_service_with_only_the_needed_keys_has_every_default() {
    let config = file(&web("")).unwrap();
    assert_eq!((config.interface, config.mode), (None, Mode::Auto));
    let [service] = &config.services[..] else {
        panic!()
    };
    assert_eq!(service.name, "web");
    assert_eq!(service.listen.to_string(), "192.0.2.1:80/tcp");
    assert_eq!(service.source, Vec::<std::net::IpAddr>::new());
    assert_eq!(service.source_ports.to_string(), "1024-32767,61000-65535");
    assert_eq!(service.timeouts, Timeouts::default());
    assert_eq!(service.backends[0].weight, 1);
}

#[test]
fn every_key_is_taken() {
    let config = file(
        r#"
        interface = "eth0"
        mode = "generic"
        [[service]]
        name = "web"
        listen = "172.17.0.5:80/tcp"
        forwarding = "nat"
        scheduler = "maglev"
        source = ["172.17.0.5", "172.17.0.6"]
        source_ports = "61000-65535, 2000"
        timeouts = { unanswered = "100ms", established = "1d", closing = "10m" }
        [[service.backend]]
        address = "172.17.0.2"
        weight = 256
        [[service.backend]]
        address = "172.17.0.3:8080"
        weight = 0
        "#,
    )
    .unwrap();
    assert_eq!(
        (config.interface.as_deref(), config.mode),
        (Some("eth0"), Mode::Generic)
    );
    let service = &config.services[0];
    assert_eq!(service.source.len(), 2);
    assert_eq!(
        service.source_ports,
        PortRanges::new(vec![2000..=2000, 61000..=65535]).unwrap()
    );
    assert_eq!(service.timeouts.unanswered, Duration::from_millis(100));
    assert_eq!(service.timeouts.established, Duration::from_secs(86_400));
    assert_eq!(service.timeouts.closing, Duration::from_secs(600));
    assert_eq!(
        service.backends[0].address,
        SocketAddr::from(([172, 17, 0, 2], 80))
    );
    assert_eq!(
        service.backends[1].address,
        SocketAddr::from(([172, 17, 0, 3], 8080))
    );
    assert_eq!(
        (service.backends[0].weight, service.backends[1].weight),
        (256, 0)
    );
}

#[test]
fn flags_and_file_give_the_same_service() {
    let text = "[[service]]\nlisten = \"192.0.2.1:80\"\n\
                [[service.backend]]\naddress = \"10.0.0.2\"\n\
                [[service.backend]]\naddress = \"10.0.0.3:81\"\nweight = 3\n";
    let from_flags = flags(&["192.0.2.1:80/tcp"], &["10.0.0.2", "10.0.0.3:81,weight=3"]).unwrap();
    assert_eq!(from_flags, file(text).unwrap());
    assert_eq!(from_flags.services[0].name, "192.0.2.1:80/tcp");
}

#[test]
fn interface_and_mode_of_the_command_line_go_before_the_files() {
    let directory = tempdir("override");
    let path = directory.join("web.toml");
    std::fs::write(
        &path,
        format!("interface = \"eth0\"\nmode = \"native\"\n{}", web("")),
    )
    .unwrap();
    let mut input = Input {
        interface: None,
        mode: None,
        services: Services::File(path),
    };
    let config = load(&input, &host()).unwrap();
    assert_eq!(
        (config.interface.as_deref(), config.mode),
        (Some("eth0"), Mode::Native)
    );
    input.interface = Some("eth1".into());
    input.mode = Some(Mode::Auto);
    let config = load(&input, &host()).unwrap();
    assert_eq!(
        (config.interface.as_deref(), config.mode),
        (Some("eth1"), Mode::Auto)
    );
    input.interface = Some("a name too long for it".into());
    assert_eq!(
        load(&input, &host()).unwrap_err().to_string(),
        "-i \"a name too long for it\": is no name of an interface; `ip link` lists them"
    );
    std::fs::remove_dir_all(directory).unwrap();
}

#[test]
fn the_text_that_check_prints_shows_every_default() {
    let config = flags(&["192.0.2.1:80"], &["10.0.0.2"]).unwrap();
    assert_eq!(
        describe(&config, &footprint()),
        r#"# interface: the one that holds the first VIP, else the one that routes to the first backend
mode = "auto"

[[service]]
name = "192.0.2.1:80/tcp"
listen = "192.0.2.1:80/tcp"
forwarding = "nat"
scheduler = "maglev"
source = [] # the address that reaches the backend
source_ports = "1024-32767,61000-65535"
timeouts = { unanswered = "5s", established = "2h", closing = "10s" }

[[service.backend]]
address = "10.0.0.2:80"
weight = 1

# flows that fit: 36279
# memory: 5.0 MiB
"#
    );
}

#[test]
fn a_bad_listen_is_named_with_the_mend() {
    let key = |listen: &str| {
        let line = fault(&web(&format!("listen = \"{listen}\"")));
        let from_flag = flags(&[listen], &["10.0.0.2"]).unwrap_err();
        let problem = line.strip_prefix(&format!("web.toml: service \"web\": listen {listen:?}: "));
        let problem = problem.unwrap_or_else(|| panic!("{line}"));
        assert_eq!(from_flag, format!("--listen {listen:?}: {problem}"));
        problem.to_string()
    };
    assert_eq!(key("192.0.2.1:0"), "the port must be from 1 to 65535");
    assert_eq!(key("192.0.2.1:70000"), "the port must be from 1 to 65535");
    assert_eq!(
        key("192.0.2.1:http"),
        "\"http\" is no port; give a number from 1 to 65535"
    );
    assert_eq!(
        key("192.0.2.1:+80"),
        "\"+80\" is no port; give a number from 1 to 65535"
    );
    assert_eq!(key("192.0.2.1"), "the port is missing, as in 192.0.2.1:80");
    assert_eq!(
        key("192.0.2.1:80/udp"),
        "only TCP is balanced so far; write /tcp or nothing"
    );
    assert_eq!(
        key("192.0.2.1:80/sctp"),
        "\"sctp\" is no protocol; write /tcp or nothing"
    );
    assert_eq!(key("[2001:db8::5]:80"), "only IPv4 is balanced so far");
    assert_eq!(key("2001:db8::5"), "only IPv4 is balanced so far");
    for (address, kind) in [
        ("0.0.0.0", "the unspecified address"),
        ("127.0.0.1", "a loopback address"),
        ("224.0.0.1", "a multicast address"),
        ("255.255.255.255", "the broadcast address"),
    ] {
        let expected = format!("{address} is {kind}; give the address of one host");
        assert_eq!(key(&format!("{address}:80")), expected);
    }
    assert_eq!(
        key("lb.example:80"),
        "\"lb.example\" is no IPv4 address; write it as in 192.0.2.1 (names are not looked up)"
    );
}

#[test]
fn a_bad_backend_is_named_with_the_mend() {
    let key = |backend: &str| fault(&backed(&[backend]));
    assert_eq!(
        key("address = \"10.0.0.2:70000\""),
        "web.toml: service \"web\": backend \"10.0.0.2:70000\": the port must be from 1 to 65535"
    );
    assert_eq!(
        key("address = \"10.0.0.2\"\nweight = 257"),
        "web.toml: service \"web\": backend \"10.0.0.2\": the weight must be from 0 to 256"
    );
    assert!(
        key("address = \"10.0.0.2\"\nweight = -1").ends_with("the weight must be from 0 to 256")
    );
    assert!(key("address = \"127.0.0.1\"").ends_with("give the address of one host"));
    assert!(key("address = \"[2001:db8::5]\"").ends_with("only IPv4 is balanced so far"));
    assert!(key("weight = 1").contains("address is missing, as in address = \"192.0.2.10:80\""));
    assert_eq!(
        key("address = \"10.0.0.2\"\nweight = 0"),
        "web.toml: service \"web\": backend: every weight is 0; give one of them 1 to 256"
    );
    assert_eq!(
        fault(&backed(&[])),
        "web.toml: service \"web\": backend: is missing; give at least one"
    );
    assert_eq!(
        fault(&backed(&[
            "address = \"10.0.0.2\"",
            "address = \"10.0.0.2:80\""
        ])),
        "web.toml: service \"web\": backend \"10.0.0.2:80\": \
         10.0.0.2:80 is a backend of this service already; remove one"
    );
}

#[test]
fn a_bad_flag_is_named_with_the_mend() {
    let key = |backends: &[&str]| flags(&["192.0.2.1:80"], backends).unwrap_err();
    assert_eq!(
        key(&["10.0.0.2:70000"]),
        "--backend \"10.0.0.2:70000\": the port must be from 1 to 65535"
    );
    assert_eq!(
        key(&["10.0.0.2,weight=257"]),
        "--backend \"10.0.0.2,weight=257\": the weight must be from 0 to 256"
    );
    assert!(key(&["10.0.0.2,weight=x"]).ends_with("the weight must be from 0 to 256"));
    assert!(key(&["10.0.0.2,weight=1,weight=2"]).ends_with("the weight is given twice"));
    assert!(key(&["10.0.0.2,w=1"]).contains("only weight=N is known"));
    assert!(key(&["10.0.0.2", "10.0.0.2:80"]).starts_with("--backend \"10.0.0.2:80\": "));
    assert_eq!(key(&[]), "--backend: is missing; give at least one");
    assert_eq!(
        key(&["10.0.0.2,weight=0"]),
        "--backend: every weight is 0; give one of them 1 to 256"
    );
    assert_eq!(
        flags(&[], &[]).unwrap_err(),
        "--listen: is missing; give it and --backend, or a file with -c FILE"
    );
    assert_eq!(
        flags(&["192.0.2.1:80", "192.0.2.1:81"], &["10.0.0.2"]).unwrap_err(),
        "--listen: is given 2 times; for several services use -c FILE"
    );
}

#[test]
fn a_backend_with_the_address_of_any_vip_is_refused() {
    assert_eq!(
        flags(&["192.0.2.1:80"], &["192.0.2.1:8080"]).unwrap_err(),
        "--backend \"192.0.2.1:8080\": 192.0.2.1 is the VIP of service \"192.0.2.1:80/tcp\", \
         packets would loop; give the address of a server"
    );
    let other = "[[service]]\nname = \"b\"\nlisten = \"10.0.0.2:443\"\n\
                 [[service.backend]]\naddress = \"10.0.0.9\"\n";
    assert!(fault(&(web("") + other)).starts_with(
        "web.toml: service \"web\": backend \"10.0.0.2:80\": 10.0.0.2 is the VIP of service \"b\""
    ));
}

#[test]
fn a_duplicate_service_is_refused() {
    let second = |name: &str, port: u16| {
        format!(
            "{}[[service]]\nname = \"{name}\"\nlisten = \"192.0.2.1:{port}\"\n\
             [[service.backend]]\naddress = \"10.0.0.3\"\n",
            web("")
        )
    };
    assert_eq!(
        fault(&second("b", 80)),
        "web.toml: service \"b\": listen \"192.0.2.1:80\": \
         service \"web\" listens there already; put their backends together"
    );
    assert_eq!(
        fault(&second("web", 81)),
        "web.toml: service \"web\": name \"web\": \
         another service has this name; give them different ones"
    );
    assert!(file(&second("b", 81)).is_ok());
}

#[test]
fn a_service_without_a_name_is_called_by_its_position() {
    let text = format!("{}[[service]]\nlisten = \"192.0.2.1:0\"\n", web(""));
    assert!(fault(&text).starts_with("web.toml: service 2: listen \"192.0.2.1:0\": "));
    assert!(fault("[[service]]\n").starts_with("web.toml: service 1: listen: is missing; "));
}

#[test]
fn a_name_that_is_empty_or_has_control_characters_is_refused() {
    let name = |name: &str| fault(&web("").replace("\"web\"", name));
    assert_eq!(
        name("\"\""),
        "web.toml: service \"\": name \"\": is empty; give a name or leave the key out"
    );
    assert!(name(r#""a\nb""#).ends_with("has a control character in it; use printable ones"));
}

#[test]
fn what_is_not_supported_yet_is_refused_with_the_reason() {
    assert_eq!(
        fault(&web("forwarding = \"dsr\"")),
        "web.toml: service \"web\": forwarding \"dsr\": only \"nat\" is supported so far"
    );
    assert_eq!(
        fault(&web("scheduler = \"random\"")),
        "web.toml: service \"web\": scheduler \"random\": only \"maglev\" is supported so far"
    );
    assert_eq!(
        fault(&web("health = { type = \"tcp\" }")),
        "web.toml:4:1: unknown key `health`, known here are `name`, `listen`, `forwarding`, \
         `scheduler`, `source`, `source_ports`, `timeouts`, `backend` (in: health = { type = \"tcp\" })"
    );
}

#[test]
fn faults_of_the_toml_are_one_line_with_the_place() {
    assert!(fault("mode = \"auto").starts_with("web.toml:1:"));
    assert!(fault("a\nb").starts_with("web.toml:1:"));
    assert!(fault(&web("listen = 80")).starts_with("web.toml:4:10: invalid type: integer `80`"));
    assert!(fault("modes = 1").starts_with("web.toml:1:1: unknown key `modes`, known here are "));
    assert_eq!(
        fault("mode = \"fast\""),
        "web.toml: mode \"fast\": must be one of auto, generic, native, offload"
    );
    assert!(fault("interface = \"a/b\"").starts_with("web.toml: interface \"a/b\": is no name"));
    for empty in ["", "# nothing\n", "mode = \"auto\""] {
        assert_eq!(
            fault(empty),
            "web.toml: has no [[service]]; give at least one"
        );
    }
}

#[test]
fn a_timeout_is_a_whole_number_and_a_unit_within_the_limits() {
    let timeout = |text: &str| web(&format!("timeouts = {{ closing = {text} }}"));
    let problem = |text: &str| {
        let line = fault(&timeout(text));
        line.strip_prefix("web.toml: service \"web\": timeouts.closing ")
            .unwrap()
            .to_string()
    };
    let no_unit = "has no unit; write ms, s, m, h or d after a whole number, as in \"5s\"";
    assert_eq!(problem("5"), format!("\"5\": {no_unit}"));
    assert_eq!(problem("\"5\""), format!("\"5\": {no_unit}"));
    assert!(problem("\"5 s\"").contains("has an unknown unit"));
    assert!(problem("\"1.5s\"").contains("has an unknown unit"));
    assert!(problem("\"-5s\"").contains("is no duration"));
    assert_eq!(problem("\"0s\""), "\"0s\": must be from 1ms to 20d");
    assert_eq!(problem("\"21d\""), "\"21d\": must be from 1ms to 20d");
    assert!(problem("\"99999999999999999999d\"").ends_with("must be from 1ms to 20d"));
    assert!(file(&timeout("\"20d\"")).is_ok());
    assert!(fault(&web("timeouts = { close = \"5s\" }")).contains("unknown key `close`"));
}

#[test]
fn source_ports_are_ports_and_ranges_that_the_host_does_not_use() {
    let ports = |text: &str| web(&format!("source_ports = \"{text}\""));
    let problem = |text: &str| {
        let line = fault(&ports(text));
        let place = format!("web.toml: service \"web\": source_ports {text:?}: ");
        line.strip_prefix(&place).unwrap().to_string()
    };
    assert_eq!(problem("0"), "the port must be from 1 to 65535");
    assert_eq!(problem("0-100"), "the port must be from 1 to 65535");
    assert_eq!(problem("2000-1000"), "2000-1000 is empty; write 1000-2000");
    assert!(problem("").contains("is no port"));
    assert!(problem("1-2-3").contains("\"2-3\" is no port"));
    assert_eq!(
        problem("30000-32769,49999-50010"),
        "the host gives 32768-32769,49999-49999,50010-50010 to its own connections; choose others, \
         or keep them from it: sysctl -w \
         net.ipv4.ip_local_reserved_ports=8080-8080,32768-32769,49999-50010"
    );
    let reserved = file(&ports("50000-50009")).unwrap();
    assert_eq!(reserved.services[0].source_ports.count(), 10);
    assert_eq!(
        file(&ports("5,7-8")).unwrap().services[0]
            .source_ports
            .count(),
        3
    );
}

#[test]
fn a_host_that_leaves_no_source_port_is_told_so() {
    let greedy = HostPorts {
        local: 1024..=65535,
        reserved: vec![],
    };
    let line = parse("web.toml", &web(""), &greedy)
        .unwrap_err()
        .to_string();
    assert!(
        line.starts_with("net.ipv4.ip_local_port_range \"1024 65535\": leaves no"),
        "{line}"
    );
}

#[test]
fn services_that_share_a_source_have_the_same_source_ports() {
    let two = |first: &str, second: &str| {
        format!(
            "{}[[service]]\nname = \"b\"\nlisten = \"192.0.2.1:81\"\n{second}\n\
             [[service.backend]]\naddress = \"10.0.0.2\"\n",
            web(first)
        )
    };
    let ports = "source_ports = \"2000-3000\"";
    assert_eq!(
        fault(&two("", ports)),
        "web.toml: service \"b\": source_ports \"2000-3000\": service \"web\" shares the default \
         source and has 1024-32767,61000-65535; give both the same source_ports or different sources"
    );
    let shared = format!("source = [\"10.0.0.9\", \"10.0.0.8\"]\n{ports}");
    let line = fault(&two(&shared, "source = [\"10.0.0.8\"]"));
    assert!(
        line.contains("service \"web\" shares source 10.0.0.8 and has 2000-3000"),
        "{line}"
    );
    assert!(file(&two(ports, ports)).is_ok());
    assert!(file(&two("source = [\"10.0.0.9\"]", ports)).is_ok());
    let twice = fault(&web("source = [\"10.0.0.9\", \"10.0.0.9\"]"));
    assert!(
        twice.ends_with("source \"10.0.0.9\": is given twice; remove one"),
        "{twice}"
    );
}

#[test]
fn more_than_fits_is_refused() {
    let services: String = (1..=1025)
        .map(|port| {
            format!(
                "[[service]]\nlisten = \"192.0.2.1:{port}\"\n\
                 [[service.backend]]\naddress = \"10.0.0.2\"\n"
            )
        })
        .collect();
    assert!(fault(&services).starts_with("web.toml: 1025 services are more than the 1024"));
    let backends: Vec<String> = (1..=65535)
        .map(|port| format!("address = \"10.0.0.2:{port}\""))
        .collect();
    let mut backends: Vec<&str> = backends.iter().map(String::as_str).collect();
    assert!(file(&backed(&backends)).is_ok());
    backends.push("address = \"10.0.0.3\"");
    assert!(
        fault(&backed(&backends)).starts_with("web.toml: 65536 backends are more than the 65535")
    );
    let sources: Vec<String> = (1..=17).map(|host| format!("\"10.1.0.{host}\"")).collect();
    let line = fault(&web(&format!("source = [{}]", sources.join(","))));
    assert!(
        line.starts_with("web.toml: 17 source addresses are more than the 16"),
        "{line}"
    );
}

#[test]
fn an_unreadable_file_is_named_with_why_and_the_mend() {
    let directory = tempdir("unreadable");
    let problem = |path: PathBuf| {
        let services = Services::File(path.clone());
        let input = Input {
            interface: None,
            mode: None,
            services,
        };
        let line = load(&input, &host()).unwrap_err().to_string();
        line.strip_prefix(&format!("{}: ", path.display()))
            .unwrap()
            .to_string()
    };
    assert_eq!(
        problem(directory.join("none.toml")),
        "cannot be read: there is no such file; correct the path"
    );
    assert_eq!(
        problem(directory.clone()),
        "cannot be read: it is a directory; name a file in it"
    );
    std::fs::write(directory.join("binary.toml"), [0xff, 0xfe]).unwrap();
    assert_eq!(
        problem(directory.join("binary.toml")),
        "cannot be read: it is no UTF-8 text; name a TOML file"
    );
    assert_eq!(
        problem("/dev/zero".into()),
        "is longer than 16 MiB; name a TOML file"
    );
    std::fs::remove_dir_all(directory).unwrap();
}

#[test]
fn the_ports_of_this_host_are_read() {
    let ports = HostPorts::read().unwrap();
    assert!(ports.local.start() <= ports.local.end());
}

fn tempdir(name: &str) -> PathBuf {
    let directory = std::env::temp_dir().join(format!("xdp-proxy-{}-{name}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    directory
}

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
        1u16..,
        prop::collection::btree_set(1u8..=4, 0..3),
        [duration.clone(), duration.clone(), duration],
        backends,
    );
    let ports = prop::option::of((1u16..32768, 61000u16..));
    let mode = prop::sample::select(vec!["auto", "generic", "native", "offload"]);
    (mode, ports, prop::collection::vec(service, 1..4)).prop_map(|(mode, ports, services)| {
        let mut text = format!("mode = \"{mode}\"\n");
        for (i, (name, port, sources, [unanswered, established, closing], backends)) in
            services.into_iter().enumerate()
        {
            text += &format!("[[service]]\nlisten = \"192.0.2.{}:{port}\"\n", i + 1);
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
                 closing = {closing} }}\n"
            );
            for ((host, port), weight) in backends {
                let host = Ipv4Addr::new(10, 0, 0, host);
                text += &format!(
                    "[[service.backend]]\naddress = \"{host}:{port}\"\nweight = {weight}\n"
                );
            }
        }
        text
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
