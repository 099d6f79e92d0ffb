// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! The command line without privileges: bad usage and bad configuration are one
//! line that names the value and the mend, and exit code 2.

mod common;

use std::fs;
use std::path::PathBuf;

use assert_cmd::Command;
use common::lab::refusal;

const TWO: &[&str] = &[
    "--listen",
    "192.0.2.1:80",
    "--backend",
    "192.0.2.10",
    "--backend",
    "192.0.2.11",
];

fn proxy(arguments: &[&str]) -> std::process::Output {
    Command::cargo_bin("xdp-proxy")
        .unwrap()
        .args(arguments)
        .output()
        .unwrap()
}

/// A file that vanishes at the end.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str, text: &[u8]) -> Scratch {
        let name = format!("xdp-proxy-cli-{}-{name}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::write(&path, text).unwrap();
        Scratch(path)
    }

    fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// The error of these flags, which `run` and `check` give alike.
fn flags_error(flags: &str) -> String {
    let mut arguments: Vec<&str> = vec!["check"];
    arguments.extend(flags.split(' '));
    let check = refusal(&proxy(&arguments), 2);
    arguments[0] = "run";
    assert_eq!(refusal(&proxy(&arguments), 2), check);
    check
}

#[test]
fn a_bad_flag_names_the_value_and_the_mend() {
    let cases = [
        ("--listen 192.0.2.1:80", "--backend: is missing", "give"),
        ("--backend 192.0.2.10", "--listen", "-c FILE"),
        (
            "--listen 192.0.2:80 --backend 192.0.2.10",
            "192.0.2",
            "as in 192.0.2.1",
        ),
        (
            "--listen www.example.org:80 --backend 192.0.2.10",
            "www.example.org",
            "not looked up",
        ),
        (
            "--listen 192.0.2.1:0 --backend 192.0.2.10",
            "192.0.2.1:0",
            "1 to 65535",
        ),
        (
            "--listen 192.0.2.1:70000 --backend 192.0.2.10",
            "192.0.2.1:70000",
            "1 to 65535",
        ),
        (
            "--listen 192.0.2.1:http --backend 192.0.2.10",
            "http",
            "1 to 65535",
        ),
        (
            "--listen 192.0.2.1 --backend 192.0.2.10",
            "192.0.2.1",
            "192.0.2.1:80",
        ),
        (
            "--listen 192.0.2.1:80/sctp --backend 192.0.2.10",
            "sctp",
            "/tcp",
        ),
        (
            "--listen [2001:db8::1]:80 --backend 192.0.2.10",
            "2001:db8::1",
            "IPv4",
        ),
        (
            "--listen 0.0.0.0:80 --backend 192.0.2.10",
            "0.0.0.0",
            "one host",
        ),
        (
            "--listen 127.0.0.1:80 --backend 192.0.2.10",
            "127.0.0.1",
            "one host",
        ),
        (
            "--listen 192.0.2.1:80 --backend 300.0.2.10",
            "300.0.2.10",
            "as in 192.0.2.1",
        ),
        (
            "--listen 192.0.2.1:80 --backend 192.0.2.10:0",
            "192.0.2.10:0",
            "1 to 65535",
        ),
        (
            "--listen 192.0.2.1:80 --backend 192.0.2.10:70000",
            "70000",
            "1 to 65535",
        ),
        (
            "--listen 192.0.2.1:80 --backend 192.0.2.10 --backend 192.0.2.10:80",
            "192.0.2.10:80",
            "remove one",
        ),
        (
            "--listen 192.0.2.1:80 --backend 192.0.2.1:8080",
            "192.0.2.1:8080",
            "address of a server",
        ),
        (
            "--listen 192.0.2.1:80 --backend 192.0.2.10,weight=0",
            "weight is 0",
            "1 to 256",
        ),
        (
            "--listen 192.0.2.1:80 --backend 192.0.2.10,weight=257",
            "weight=257",
            "0 to 256",
        ),
        (
            "--listen 192.0.2.1:80 --backend 192.0.2.10,weight=-1",
            "weight=-1",
            "0 to 256",
        ),
        (
            "--listen 192.0.2.1:80 --backend 192.0.2.10,weight=x",
            "weight=x",
            "0 to 256",
        ),
        (
            "--listen 192.0.2.1:80 --backend 192.0.2.10,mass=2",
            "mass=2",
            "weight=N",
        ),
        (
            "--listen 192.0.2.1:80 --listen 192.0.2.2:80 --backend 192.0.2.10",
            "--listen",
            "-c FILE",
        ),
        (
            "-i a/b --listen 192.0.2.1:80 --backend 192.0.2.10",
            "a/b",
            "ip link",
        ),
    ];
    for (flags, value, mend) in cases {
        let error = flags_error(flags);
        println!("{error}");
        assert!(
            error.contains(value) && error.contains(mend),
            "{flags}: {error}"
        );
    }
}

#[test]
fn a_bad_file_names_itself_the_key_and_the_mend() {
    let good =
        "[[service]]\nlisten = \"192.0.2.1:80\"\n[[service.backend]]\naddress = \"192.0.2.10\"\n";
    let backend = "[[service.backend]]\naddress = \"192.0.2.10\"\n";
    let cases = [
        (String::new(), "[[service]]"),
        ("[[service]]\n".into(), "listen"),
        ("[[service]]\nlisten = \"192.0.2.1:80\"\n".into(), "backend"),
        (format!("mod = \"auto\"\n{good}"), "unknown key `mod`"),
        (format!("{good}wieght = 2\n"), "unknown key `wieght`"),
        (
            format!("mode = \"fast\"\n{good}"),
            "auto, generic, native, offload",
        ),
        (format!("{good}{good}"), "listens there already"),
        (
            format!("{good}{backend}"),
            "is a backend of this service already",
        ),
        (format!("{good}weight = 0\n"), "every weight is 0"),
        (format!("{good}weight = 257\n"), "from 0 to 256"),
        (format!("{good}weight = \"2\"\n"), "weight"),
        (
            format!("{good}{}", backend.replace(".10", ".1")),
            "is the VIP of service",
        ),
        (
            format!("[[service]]\nlisten = \"192.0.2.1:0\"\n{backend}"),
            "1 to 65535",
        ),
        (format!("[[service]]\nlisten = 80\n{backend}"), "listen"),
        (
            format!("[[service]]\nlisten = \"192.0.2.1:80\"\nsource_ports = \"0-5\"\n{backend}"),
            "source_ports",
        ),
        (
            format!("[[service]]\nlisten = \"192.0.2.1:80\"\nsource_ports = \"9-5\"\n{backend}"),
            "write 5-9",
        ),
        (
            format!(
                "[[service]]\nlisten = \"192.0.2.1:80\"\ntimeouts = {{ closing = 5 }}\n{backend}"
            ),
            "no unit",
        ),
        (
            format!("[[service]]\nlisten = \"192.0.2.1:80\"\nscheduler = \"luck\"\n{backend}"),
            "luck",
        ),
        ("not toml at all".into(), ":1:"),
    ];
    for (text, needle) in cases {
        let file = Scratch::new("bad.toml", text.as_bytes());
        let error = refusal(&proxy(&["check", "-c", file.path()]), 2);
        println!("{error}");
        assert!(
            error.contains(file.path()) && error.contains(needle),
            "{text}: {error}"
        );
        assert_eq!(refusal(&proxy(&["run", "-c", file.path()]), 2), error);
    }
}

#[test]
fn a_file_that_is_none_is_named() {
    let binary = Scratch::new("binary.toml", &[0xff, 0xfe, 0, 1]);
    for (path, needle) in [
        ("/nonexistent/web.toml", "no such file"),
        ("/", "directory"),
        (binary.path(), "UTF-8"),
    ] {
        let error = refusal(&proxy(&["check", "-c", path]), 2);
        assert!(error.contains(path) && error.contains(needle), "{error}");
    }
}

#[test]
fn bad_usage_exits_with_2_and_help_with_0() {
    for arguments in [
        &[][..],
        &["walk"],
        &["run", "--mode", "fast"],
        &["run", "--colour"],
        &["run", "-c", "a.toml", "--listen", "192.0.2.1:80"],
        &["status", "--yaml"],
    ] {
        let output = proxy(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(
            !stderr.is_empty() && !stderr.contains("panicked"),
            "{stderr}"
        );
    }
    for arguments in [
        &["--help"][..],
        &["--version"],
        &["run", "--help"],
        &["check", "--help"],
    ] {
        let output = proxy(arguments);
        assert_eq!(output.status.code(), Some(0), "{arguments:?}");
        assert!(!output.stdout.is_empty() && output.stderr.is_empty());
    }
}

#[test]
fn what_check_prints_is_a_file_that_says_the_same() {
    let first = proxy(&[&["check"], TWO].concat());
    assert_eq!(first.status.code(), Some(0));
    let text = String::from_utf8(first.stdout.clone()).unwrap();
    for needle in [
        "192.0.2.1:80/tcp",
        "192.0.2.11:80",
        "weight = 1",
        "maglev",
        "nat",
        "source_ports",
        "timeouts",
        "memory",
    ] {
        assert!(text.contains(needle), "{needle}: {text}");
    }
    let file = Scratch::new("checked.toml", &first.stdout);
    let second = proxy(&["check", "-c", file.path()]);
    assert_eq!(second.status.code(), Some(0));
    assert_eq!(String::from_utf8(second.stdout).unwrap(), text);
}

/// The ports of each source address count; where only the routes tell the
/// address, it is one for each family.
#[test]
fn check_counts_the_flows_of_every_source() {
    let service = |listen: &str, keys: &str| {
        let backend = if listen.starts_with('[') {
            "2001:db8::2"
        } else {
            "192.0.2.10"
        };
        format!(
            "[[service]]\nlisten = \"{listen}\"\n{keys}\n\
             [[service.backend]]\naddress = \"{backend}\"\n"
        )
    };
    let footprint = |text: &str| {
        let file = Scratch::new("sources.toml", text.as_bytes());
        let output = proxy(&["check", "-c", file.path()]);
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        let after = |key: &str| {
            let (_, rest) = text.split_once(key).unwrap();
            rest.split_whitespace().next().unwrap().to_owned()
        };
        let flows: usize = after("# flows that fit: ").parse().unwrap();
        let mib: f64 = after("# memory: ").parse().unwrap();
        (flows, mib)
    };
    let hundred = "source_ports = \"2000-2099\"";
    let two = "source = [\"192.0.2.3\", \"192.0.2.4\"]\nsource_ports = \"3000-3999\"";
    let mut text = service("192.0.2.1:80", hundred);
    let (flows, one_mib) = footprint(&text);
    assert_eq!(flows, 100);
    text += &service("192.0.2.1:*", two);
    let (flows, mib) = footprint(&text);
    assert_eq!(flows, 2100);
    // A source has 65,536 records of 64 bytes and as many counters of 32.
    let of_source = 65_536.0 * (64.0 + 32.0) / f64::from(1 << 20);
    assert!(
        (mib - one_mib - 2.0 * of_source).abs() < 0.5,
        "{one_mib}, {mib}"
    );
    text += &service("192.0.2.1:8000-8099", hundred);
    assert_eq!(footprint(&text).0, 2100);
    text += &service("[2001:db8::1]:*/udp", hundred);
    assert_eq!(footprint(&text).0, 2200);
}

#[test]
fn output_that_nobody_reads_is_no_panic() {
    let mut shell = std::process::Command::new("sh");
    let line = format!(
        "{} check {} | true",
        env!("CARGO_BIN_EXE_xdp-proxy"),
        TWO.join(" ")
    );
    let output = shell.args(["-c", &line]).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(!stderr.contains("panicked"), "{stderr}");
}

/// ELF's program headers (elf(5)): no interpreter, nothing to load dynamically.
#[test]
fn the_binary_is_one_static_file_of_at_most_10_mb() {
    const PT_INTERP: u32 = 3;
    let file = fs::read(env!("CARGO_BIN_EXE_xdp-proxy")).unwrap();
    println!("{} bytes", file.len());
    assert_eq!(&file[..6], b"\x7fELF\x02\x01", "64 bits, little-endian");
    let half = |at: usize| usize::from(u16::from_le_bytes(file[at..at + 2].try_into().unwrap()));
    let headers = u64::from_le_bytes(file[32..40].try_into().unwrap()) as usize;
    let (size, count) = (half(54), half(56));
    assert!(count > 0);
    for i in 0..count {
        let at = headers + i * size;
        let kind = u32::from_le_bytes(file[at..at + 4].try_into().unwrap());
        assert_ne!(kind, PT_INTERP, "it wants a dynamic loader");
    }
    assert!(file.len() <= 10_000_000);
}

#[test]
fn what_a_check_can_not_use_is_bad_configuration() {
    let with = |health: &str| {
        let text = format!(
            "[[service]]\nlisten = '192.0.2.1:443'\nhealth = {{ {health} }}\n\
             backend = [{{ address = '192.0.2.10' }}]\n"
        );
        let file = Scratch::new("check.toml", text.as_bytes());
        ["check", "run"].map(|verb| refusal(&proxy(&[verb, "-c", file.path()]), 2))
    };
    let empty = Scratch::new("empty.pem", b"");
    let long = "x".repeat(100_000);
    let cases = [
        ("type = 'https', ca = '/none.pem'".to_owned(), "/none.pem"),
        ("type = 'https', ca = '/'".to_owned(), "name a file of PEM"),
        (
            format!("type = 'https', ca = '{}'", empty.path()),
            "no certificate is in it",
        ),
        (
            format!("type = 'https', ca = '/{long}'"),
            "reading the authorities in",
        ),
        (
            format!("type = 'http', path = '/{long}'"),
            "give at most 8000",
        ),
        (
            format!("type = 'https', host = '{long}'"),
            "give at most 261",
        ),
        ("type = 'https', host = 'a..b'".to_owned(), "host"),
    ];
    for (health, words) in cases {
        for error in with(&health) {
            assert!(error.contains(words), "{error}");
            assert!(error.len() < 10_000, "{} bytes", error.len());
        }
    }
}

#[test]
fn a_path_of_any_length_is_bad_usage_in_a_short_line() {
    let path = "x".repeat(100_000);
    let error = refusal(&proxy(&["check", "-c", &path]), 2);
    assert!(error.len() < 10_000, "{} bytes", error.len());
    let error = refusal(&proxy(&["check", "--mode", &path]), 2);
    assert!(error.len() < 2000, "{} bytes", error.len());
}
