// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! Faults of a whole file and between services.

use super::*;

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

/// A file of services with these `listen`s, called a, b, c...
fn listening(listens: &[&str]) -> String {
    let services = listens.iter().zip('a'..).map(|(listen, name)| {
        let backend = if listen.starts_with('[') {
            "2001:db8::2"
        } else {
            "10.0.0.2"
        };
        format!(
            "[[service]]\nname = \"{name}\"\nlisten = \"{listen}\"\n\
             [[service.backend]]\naddress = \"{backend}\"\n"
        )
    });
    services.collect()
}

#[test]
fn ranges_that_overlap_are_refused_by_the_names_of_both_services() {
    for (first, second) in [
        ("8000-8099", "8099-8200"),
        ("8000-8099", "7000-8000"),
        ("8000-8099", "8040-8041"),
        ("8040-8041", "8000-8099"),
    ] {
        for (vip, protocol) in [("192.0.2.1", "/tcp"), ("[2001:db8::5]", "/udp")] {
            let listens = [first, second].map(|ports| format!("{vip}:{ports}{protocol}"));
            assert_eq!(
                fault(&listening(&[&listens[0], &listens[1]])),
                format!(
                    "web.toml: service \"b\": listen {:?}: service \"a\" has {}, which overlaps; \
                     take the ports of one out of the other",
                    listens[1], listens[0]
                )
            );
        }
    }
    for (first, second) in [
        ("192.0.2.1:*", "192.0.2.1:*/tcp"),
        ("192.0.2.1:*", "192.0.2.1:1-65535"),
        ("192.0.2.1:8000-8099", "192.0.2.1:8000-8099"),
        ("192.0.2.1:80", "192.0.2.1:80-80"),
    ] {
        assert_eq!(
            fault(&listening(&[first, second])),
            format!(
                "web.toml: service \"b\": listen {second:?}: service \"a\" listens there already; \
                 put their backends together"
            )
        );
    }
}

#[test]
fn ranges_beside_each_other_and_one_port_within_any_are_no_overlap() {
    let listens = [
        "192.0.2.1:*",
        "192.0.2.1:8000-8099",
        "192.0.2.1:8100-8199",
        "192.0.2.1:8050",
        "192.0.2.1:8000",
        "192.0.2.1:*/udp",
        "192.0.2.1:8000-8099/udp",
        "192.0.2.2:8000-8099",
        "192.0.2.2:*",
        "[2001:db8::5]:*",
        "[2001:db8::5]:8000-8099",
    ];
    assert_eq!(
        file(&listening(&listens)).unwrap().services.len(),
        listens.len()
    );
}

#[test]
fn a_service_without_a_name_is_called_by_its_position() {
    let text = format!("{}[[service]]\nlisten = \"192.0.2.1:0\"\n", web(""));
    assert!(fault(&text).starts_with("web.toml: service 2: listen \"192.0.2.1:0\": "));
    assert!(fault("[[service]]\n").starts_with("web.toml: service 1: listen: is missing; "));
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
