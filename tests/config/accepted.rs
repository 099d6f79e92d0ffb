// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! What keys and flags mean.

use std::net::SocketAddr;
use std::time::Duration;

use super::*;
use xdp_proxy::config::describe;
use xdp_proxy::service::{Mode, PortRanges, Protocol, Timeouts};

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
    assert_eq!(service.timeouts, Timeouts::of(Protocol::Tcp));
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
fn listens_are_shown_as_written_canonically() {
    for (written, canonical) in [
        ("10.0.0.5:80", "10.0.0.5:80/tcp"),
        ("10.0.0.5:*", "10.0.0.5:*/tcp"),
        ("10.0.0.5:*/udp", "10.0.0.5:*/udp"),
        ("10.0.0.5:1-65535", "10.0.0.5:*/tcp"),
        ("10.0.0.5:8000-8099/tcp", "10.0.0.5:8000-8099/tcp"),
        ("10.0.0.5:8000 - 08099", "10.0.0.5:8000-8099/tcp"),
        ("10.0.0.5:8000-8000", "10.0.0.5:8000/tcp"),
        ("[2001:db8:0::5]:*/udp", "[2001:db8::5]:*/udp"),
        ("[2001:db8::5]:1-65534", "[2001:db8::5]:1-65534/tcp"),
    ] {
        let backend = if written.starts_with('[') {
            "2001:db8::2"
        } else {
            "10.0.0.2"
        };
        let config = flags(&[written], &[backend]).unwrap();
        let service = &config.services[0];
        assert_eq!(service.listen.to_string(), canonical);
        assert_eq!(service.name, canonical);
        let own = service.listen.ports.one();
        assert_eq!(service.backends[0].address.port(), own.unwrap_or(0));
        let printed = describe(&config, &footprint());
        assert!(
            printed.contains(&format!("listen = \"{canonical}\"")),
            "{printed}"
        );
        if own.is_none() {
            let address = format!("address = \"{backend}\"\n");
            assert!(printed.contains(&address), "{printed}");
        }
    }
}

#[test]
fn source_ports_may_be_all_from_1024_up_where_the_host_is_kept_from_them() {
    let text = web(
        "source = [\"10.0.0.10\", \"10.0.0.11\"]\nsource_ports = \"1024-65535\"\n\
         health = { type = \"none\" }",
    );
    assert!(fault(&text).contains("the host gives 32768-"));
    for host in [
        HostPorts {
            local: 32768..=60999,
            reserved: vec![1024..=65535],
        },
        HostPorts {
            local: 32768..=60999,
            reserved: vec![32768..=40000, 40001..=60999],
        },
        HostPorts {
            local: 500..=1023,
            reserved: vec![],
        },
    ] {
        let config = parse("web.toml", &text, &host).unwrap();
        assert_eq!(config.services[0].source_ports.count(), 64_512);
    }
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
flow_counters = true

[[service]]
name = "192.0.2.1:80/tcp"
listen = "192.0.2.1:80/tcp"
forwarding = "nat"
scheduler = "maglev"
source = [] # the address that reaches the backend
source_ports = "1024-32767,61000-65535"
timeouts = { unanswered = "5s", established = "130m", half_closed = "5m", closing = "10s" }
health = { type = "tcp", interval = "2s", timeout = "1s", rise = 2, fall = 3 }
on_failure = "reset"
all_down = "reject"
drain_timeout = "never"

[[service.backend]]
address = "10.0.0.2:80"
weight = 1

# flows that fit: 36279
# memory: 5.0 MiB
"#
    );
}

#[test]
fn the_ports_of_this_host_are_read() {
    let ports = HostPorts::read().unwrap();
    assert!(ports.local.start() <= ports.local.end());
}
