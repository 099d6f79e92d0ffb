// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! Nobody reads what the program says, or the disk is full: it does its work
//! all the same, and never panics.

use std::fs::File;
use std::process::{Command, Stdio};

fn full() -> Stdio {
    File::create("/dev/full").unwrap().into()
}

#[test]
fn an_error_that_nobody_reads_keeps_its_exit_code() {
    for (arguments, code) in [
        ("check --listen 10.0.0.5:0 --backend 10.0.0.2", 2),
        (
            "run -i no-such-one --listen 10.0.0.5:80 --backend 10.0.0.2",
            1,
        ),
    ] {
        let status = Command::new(env!("CARGO_BIN_EXE_xdp-proxy"))
            .args(arguments.split(' '))
            .stderr(full())
            .status()
            .unwrap();
        assert_eq!(status.code(), Some(code), "{arguments}");
    }
}

/// As in `xdp-proxy manual | head -1`.
#[test]
fn who_has_read_enough_hears_no_error() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_xdp-proxy"))
        .arg("manual")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(output.stderr, b"", "{output:?}");
}
