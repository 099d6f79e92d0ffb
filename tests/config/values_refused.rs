// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! A fault in one value: its key or flag and the mend in one line.

use super::*;

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
    let others = "a range as in 8000-8099, or * for any port";
    for port in ["0", "70000", "0-80", "80-70000"] {
        assert_eq!(
            key(&format!("192.0.2.1:{port}")),
            format!("the port must be from 1 to 65535, {others}")
        );
    }
    for (ports, faulty) in [
        ("http", "http"),
        ("+80", "+80"),
        ("80-", ""),
        ("-80", ""),
        ("80-90-100", "90-100"),
        ("80,90", "80,90"),
        ("**", "**"),
        ("*-80", "*"),
        ("", ""),
    ] {
        assert_eq!(
            key(&format!("192.0.2.1:{ports}")),
            format!("{faulty:?} is no port; give a number from 1 to 65535, {others}")
        );
    }
    assert_eq!(
        key("192.0.2.1:8099-8000"),
        "8099-8000 is empty; write 8000-8099"
    );
    assert_eq!(
        key("192.0.2.1"),
        "the port is missing; write 192.0.2.1:80/tcp, a range as in 192.0.2.1:8000-8099/tcp, \
         or 192.0.2.1:*/tcp for any port"
    );
    assert_eq!(
        key("192.0.2.1:80/sctp"),
        "\"sctp\" is no protocol; write /tcp, /udp or nothing"
    );
    assert_eq!(
        key("2001:db8::5/udp"),
        "the port is missing; write [2001:db8::5]:80/udp, a range as in \
         [2001:db8::5]:8000-8099/udp, or [2001:db8::5]:*/udp for any port"
    );
    assert_eq!(
        fault("[[service]]\nname = \"web\"\n"),
        "web.toml: service \"web\": listen: is missing; give the VIP and its port, as in \
         \"192.0.2.1:80\", \"192.0.2.1:8000-8099\" or \"192.0.2.1:*\" for any port"
    );
    for (address, kind) in [
        ("::", "the unspecified address"),
        ("::1", "a loopback address"),
        ("ff02::1", "a multicast address"),
        ("fe80::1", "a link-local address"),
        ("::ffff:192.0.2.1", "an IPv4 address in IPv6's clothes"),
    ] {
        let expected = format!("{address} is {kind}; give the address of one host");
        assert_eq!(key(&format!("[{address}]:80")), expected);
    }
    for (address, kind) in [
        ("0.0.0.0", "the unspecified address"),
        ("127.0.0.1", "a loopback address"),
        ("224.0.0.1", "a multicast address"),
        ("255.255.255.255", "the broadcast address"),
        ("240.0.0.1", "a reserved address (class E)"),
        ("255.255.255.254", "a reserved address (class E)"),
        ("0.1.2.3", "an address of no host (0.0.0.0/8)"),
    ] {
        let expected = format!("{address} is {kind}; give the address of one host");
        assert_eq!(key(&format!("{address}:80")), expected);
        let as_backend = flags(&["192.0.2.1:80"], &[address]).unwrap_err();
        assert_eq!(as_backend, format!("--backend {address:?}: {expected}"));
        let as_source = fault(&web(&format!("source = [{address:?}]")));
        assert!(as_source.ends_with(&expected), "{as_source}");
    }
    assert_eq!(
        key("lb.example:80"),
        "\"lb.example\" is no IP address; write it as in 192.0.2.1 or 2001:db8::1 (names are not looked up)"
    );
}

#[test]
fn an_ipv6_address_and_a_port_without_brackets_are_told_how_to_be_written() {
    let listen = |listen: &str| flags(&[listen], &["fd00::2"]).unwrap_err();
    let whole = "the port is missing: without brackets all of it is the address; write ";
    for (written, meant) in [
        ("fd00::5:80", "[fd00::5]:80/tcp, or "),
        ("fd00::5:8080/udp", "[fd00::5]:8080/udp, or "),
        ("fd00::80", "[fd00::80]:80/tcp, "),
    ] {
        let problem = listen(written);
        assert!(problem.contains(meant), "{problem}");
        assert_eq!(problem.contains(whole), meant.ends_with("or "), "{problem}");
    }
    // With these it is no address, and could only be both.
    let bracketed = "an IPv6 address with a port stands in brackets; write ";
    for (written, meant) in [
        ("fd00::5:65000", "[fd00::5]:65000"),
        ("fd00::5:8000-8099", "[fd00::5]:8000-8099"),
        ("fd00::5:*/udp", "[fd00::5]:*"),
        ("fd00:1:2:3:4:5:6:7:80", "[fd00:1:2:3:4:5:6:7]:80"),
    ] {
        let expected = format!("--listen {written:?}: {bracketed}{meant}");
        assert_eq!(listen(written), expected);
    }
    assert_eq!(
        flags(&["[fd00::5]:80"], &["fd00::2:65000"]).unwrap_err(),
        format!("--backend \"fd00::2:65000\": {bracketed}[fd00::2]:65000")
    );
}

#[test]
fn errors_repeat_no_long_values() {
    let long = "x".repeat(10 << 20);
    let cut = format!("\"{}\"... (10485760 bytes)", "x".repeat(100));
    let faults = [
        fault(&web(&format!("listen = \"{long}:80\""))),
        fault(&web(&format!("source = [\"{long}\"]"))),
        fault(&web(&format!("source_ports = \"{long}\""))),
        fault(&web(&format!("timeouts = {{ closing = \"{long}\" }}"))),
        fault(&web(&format!("forwarding = \"{long}\""))),
        fault(&web(&format!("health = {{ type = \"{long}\" }}"))),
        fault(&web(&format!(
            "health = {{ type = \"http\", host = \"{long}\" }}"
        ))),
        fault(&backed(&[&format!("address = \"{long}\"")])),
        fault(&format!("interface = \"{long}\"\n{}", web(""))),
        fault(&format!("mode = \"{long}\"\n{}", web(""))),
        fault(&web("").replace("\"web\"", &format!("\"{long}\""))),
        flags(&[&format!("192.0.2.1:80/{long}")], &["10.0.0.2"]).unwrap_err(),
        flags(&["192.0.2.1:80"], &[&format!("10.0.0.2,{long}")]).unwrap_err(),
    ];
    for fault in faults {
        assert!(fault.contains(&cut), "{fault}");
        assert!(fault.len() < 1000, "{fault}");
    }
    // What TOML itself says is cut as a whole.
    for text in [format!("{long} = 1"), format!("[[service]]\n{long} = 1")] {
        let fault = fault(&text);
        assert!(fault.len() < 1000, "{} bytes", fault.len());
        assert!(fault.contains("known here are"), "{fault}");
    }
}

#[test]
fn names_and_what_checks_ask_for_are_bounded() {
    let name = |bytes: usize| web("").replace("\"web\"", &format!("{:?}", "n".repeat(bytes)));
    assert!(file(&name(255)).is_ok());
    assert!(fault(&name(256)).ends_with(": has 256 bytes; give at most 255"));
    let path = |bytes: usize| {
        let path = "p".repeat(bytes - 1);
        web(&format!(
            "health = {{ type = \"http\", path = \"/{path}\" }}"
        ))
    };
    assert!(file(&path(8000)).is_ok());
    assert!(fault(&path(8001)).ends_with(": has 8001 bytes; give at most 8000"));
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
    assert!(
        key("address = \"[2001:db8::5]\"")
            .ends_with("2001:db8::5 is IPv6, the VIP 192.0.2.1 is IPv4; give both of one family")
    );
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
fn a_backend_of_several_ports_has_none_of_its_own() {
    let refusal = "the service has several ports, and its backends keep the one that the client \
                   connects to; leave :80 out";
    for listen in ["192.0.2.1:*", "192.0.2.1:8000-8099/udp"] {
        let line = fault(&web(&format!("listen = \"{listen}\"")));
        let place = "web.toml: service \"web\": backend \"10.0.0.2:80\": ";
        assert_eq!(line, format!("{place}{refusal}"));
        let line = flags(&[listen], &["10.0.0.3", "10.0.0.2:80,weight=2"]).unwrap_err();
        let place = "--backend \"10.0.0.2:80,weight=2\": ";
        assert_eq!(line, format!("{place}{refusal}"));
        assert_eq!(
            flags(&[listen], &["10.0.0.2", "10.0.0.2"]).unwrap_err(),
            "--backend \"10.0.0.2\": 10.0.0.2 is a backend of this service already; remove one"
        );
    }
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
        fault(&web("scheduler = \"wlc\"")),
        "web.toml: service \"web\": scheduler \"wlc\": must be one of maglev, source-hash, \
         round-robin, random, least-connections"
    );
    assert_eq!(
        fault(&web("mirror = true")),
        "web.toml:4:1: unknown key `mirror`, known here are `name`, `listen`, `forwarding`, \
         `scheduler`, `source`, `source_ports`, `timeouts`, `health`, `on_failure`, `all_down`, \
         `drain_timeout`, `backend` (in: mirror = true)"
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
