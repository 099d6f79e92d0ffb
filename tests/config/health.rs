// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! Health checks and what follows from them: what the keys mean, and how each fault
//! is reported.

use std::time::Duration;

use super::*;
use xdp_proxy::config::describe;
use xdp_proxy::service::{
    AllDown, Check, CheckKind, HttpCheck, OnFailure, Policy, Service, StatusCodes, Trust, UdpCheck,
};

fn served(text: &str) -> Service {
    let mut config = file(text).unwrap();
    config.services.remove(0)
}

fn check(keys: &str) -> Option<Check> {
    served(&web(&format!("health = {{ {keys} }}"))).health
}

fn tcp() -> Check {
    Check {
        kind: CheckKind::Tcp,
        port: None,
        interval: Duration::from_secs(2),
        timeout: Duration::from_secs(1),
        rise: 2,
        fall: 3,
    }
}

#[test]
fn tcp_on_one_port_is_checked_by_a_connection_and_nothing_else_is_unless_asked_for() {
    assert_eq!(check(""), Some(tcp()));
    assert_eq!(check("type = \"none\""), None);
    for (listen, checked) in [
        ("192.0.2.1:80", true),
        ("192.0.2.1:80/udp", false),
        ("192.0.2.1:8000-8099", false),
        ("192.0.2.1:*", false),
    ] {
        let config = flags(&[listen], &["10.0.0.2"]).unwrap();
        assert_eq!(config.services[0].health.is_some(), checked, "{listen}");
    }
    let text = "[[service]]\nlisten = \"192.0.2.1:*\"\nhealth = { port = 22 }\n\
                [[service.backend]]\naddress = \"10.0.0.2\"\n";
    let port = Some(22);
    assert_eq!(served(text).health, Some(Check { port, ..tcp() }));
}

#[test]
fn every_key_of_health_is_taken() {
    assert_eq!(
        check(
            "type = \"http\", path = \"/up?x=1\", host = \"www.example.com:81\", status = 204, \
             port = 8080, interval = \"500ms\", rise = 1, fall = 100"
        ),
        Some(Check {
            kind: CheckKind::Http(HttpCheck {
                path: "/up?x=1".into(),
                host: Some("www.example.com:81".into()),
                status: StatusCodes(vec![204..=204]),
            }),
            port: Some(8080),
            interval: Duration::from_millis(500),
            // As long as the interval, where that is shorter than its default.
            timeout: Duration::from_millis(500),
            rise: 1,
            fall: 100,
        })
    );
    let http = HttpCheck {
        path: "/".into(),
        host: None,
        status: StatusCodes(vec![200..=200, 300..=399]),
    };
    for (keys, trust) in [
        ("", Trust::Anyone),
        (", verify = false", Trust::Anyone),
        (", verify = true", Trust::Host),
        (", ca = \"/etc/ca.pem\"", Trust::File("/etc/ca.pem".into())),
        (
            ", verify = true, ca = \"a.pem\"",
            Trust::File("a.pem".into()),
        ),
    ] {
        let kind = CheckKind::Https(http.clone(), trust);
        assert_eq!(
            check(&format!(
                "type = \"https\", status = \"200, 300-399\"{keys}"
            )),
            Some(Check { kind, ..tcp() })
        );
    }
    for (keys, payload, reply) in [
        ("payload = \"ping\"", &b"ping"[..], &b""[..]),
        (
            "payload = \"hex:00fF10\", reply = \"pong\"",
            &[0, 255, 16],
            b"pong",
        ),
    ] {
        let (payload, reply) = (payload.to_vec(), reply.to_vec());
        let kind = CheckKind::Udp(UdpCheck { payload, reply });
        assert_eq!(
            check(&format!("type = \"udp\", {keys}")),
            Some(Check { kind, ..tcp() })
        );
    }
}

#[test]
fn what_follows_from_a_failure_is_taken() {
    assert_eq!(served(&web("")).policy, Policy::default());
    let keys = "on_failure = \"keep\"\nall_down = \"ignore-health\"\ndrain_timeout = \"90s\"";
    assert_eq!(
        served(&web(keys)).policy,
        Policy {
            on_failure: OnFailure::Keep,
            all_down: AllDown::IgnoreHealth,
            drain_timeout: Some(Duration::from_secs(90)),
        }
    );
    let never = served(&web("drain_timeout = \"never\"")).policy;
    assert_eq!(never.drain_timeout, None);
}

#[test]
fn what_is_wrong_or_contradicts_is_refused_with_the_reason() {
    let refused = [
        (
            "type = \"ping\"",
            "type \"ping\": must be one of none, tcp, http, https, udp",
        ),
        (
            "path = \"/\"",
            "path: needs health.type; give http or https",
        ),
        ("reply = \"x\"", "reply: needs health.type; give udp"),
        (
            "type = \"tcp\", path = \"/\"",
            "path: is a key of type http and https, not of \"tcp\"; remove it or change the type",
        ),
        (
            "type = \"http\", verify = true",
            "verify: is a key of type https, not of \"http\"; remove it or change the type",
        ),
        (
            "type = \"none\", interval = \"2s\"",
            "interval: means nothing to type \"none\"; remove one of them",
        ),
        (
            "interval = \"2s\", timeout = \"3s\"",
            "timeout \"3s\": is longer than health.interval, 2s; make it at most as long",
        ),
        (
            "interval = 2",
            "interval \"2\": has no unit; write ms, s, m, h or d after a whole number, as in \"5s\"",
        ),
        ("rise = 0", "rise \"0\": must be from 1 to 100"),
        ("fall = 101", "fall \"101\": must be from 1 to 100"),
        ("port = 65536", "port \"65536\": must be from 1 to 65535"),
        (
            "type = \"http\", path = \"up\"",
            "path \"up\": is no path; begin it with / and write no blanks in it",
        ),
        (
            "type = \"http\", host = \"a b\"",
            "host \"a b\": is no host; write a name as in www.example.com",
        ),
        (
            "type = \"http\", status = \"200-99\"",
            "status \"200-99\": must be codes from 100 to 599, as in \"200\" or \"200,300-399\"",
        ),
        (
            "type = \"http\", status = 600",
            "status \"600\": must be codes from 100 to 599, as in \"200\" or \"200,300-399\"",
        ),
        (
            "type = \"https\", verify = false, ca = \"a\"",
            "ca \"a\": is of no use with verify = false; remove one of them",
        ),
        (
            "type = \"udp\"",
            "payload: is missing; give what the server answers, as text or as in \"hex:0a0b\"",
        ),
        (
            "type = \"udp\", payload = \"hex:0\"",
            "payload \"hex:0\": has no whole bytes behind hex: in it; write two digits for each",
        ),
        (
            "type = \"udp\", payload = \"\"",
            "payload \"\": is empty; give at least one byte",
        ),
    ];
    for (keys, problem) in refused {
        assert_eq!(
            fault(&web(&format!("health = {{ {keys} }}"))),
            format!("web.toml: service \"web\": health.{problem}")
        );
    }
    let unknown = fault(&web("health = { type = \"tcp\", retries = 3 }"));
    assert!(unknown.contains("unknown key `retries`"), "{unknown}");
    let text = fault(&web("health = \"tcp\""));
    let mend = "expected a table, as in health = { type = \"http\" }";
    assert!(text.contains(mend), "{text}");
    let several = web("listen = \"192.0.2.1:*\"\nhealth = { type = \"tcp\" }");
    assert_eq!(
        fault(&several.replace("10.0.0.2:80", "10.0.0.2")),
        "web.toml: service \"web\": health.port: is missing: the service has several ports; name \
         the one to check"
    );
    for (keys, problem) in [
        (
            "on_failure = \"drop\"",
            "on_failure \"drop\": must be one of reset, keep",
        ),
        (
            "all_down = \"panic\"",
            "all_down \"panic\": must be one of reject, ignore-health",
        ),
        (
            "drain_timeout = \"soon\"",
            "drain_timeout \"soon\": is no duration; write a whole number and a unit, as in \"5s\"",
        ),
    ] {
        assert_eq!(
            fault(&web(keys)),
            format!("web.toml: service \"web\": {problem}")
        );
    }
}

#[test]
fn a_host_without_ports_of_its_own_can_check_nothing() {
    let host = HostPorts {
        local: 32768..=60999,
        reserved: vec![1024..=65535],
    };
    let error = parse("web.toml", &web(""), &host).unwrap_err().to_string();
    assert_eq!(
        error,
        "net.ipv4.ip_local_reserved_ports \"1024-65535\": leaves the host no port to check backends \
         from; leave it some, or give the service health = { type = \"none\" }"
    );
    parse("web.toml", &web("health = { type = \"none\" }"), &host).unwrap();
}

#[test]
fn what_check_prints_of_health_is_read_as_the_same() {
    for keys in [
        "health = { type = \"none\" }",
        "health = { type = \"tcp\", port = 22, interval = \"1m\", timeout = \"1500ms\" }",
        "health = { type = \"http\", path = \"/a\\\"\\\\?b#c\", host = \"[fd00::1]:80\" }",
        "health = { type = \"https\", ca = \"/a b/\\\"c\\\".pem\", status = \"200,204,300-399\" }",
        "health = { type = \"https\", verify = true }",
        "health = { type = \"udp\", payload = \"\\u0000\\u00ff\", reply = \"hex:6865783a\" }",
        "health = { type = \"udp\", payload = \"caf\u{e9} \\\"\" }",
        "on_failure = \"keep\"\nall_down = \"ignore-health\"\ndrain_timeout = \"1500ms\"",
    ] {
        let config = file(&web(keys)).unwrap();
        let printed = describe(&config, &footprint());
        assert_eq!(file(&printed), Ok(config), "{printed}");
    }
}
