// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! Compiles the datapath with clang and generates its Rust skeleton.

use std::env;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use libbpf_cargo::SkeletonBuilder;

const SOURCE: &str = "src/bpf/xdp-proxy.bpf.c";

fn main() -> Result<()> {
    println!("cargo:rerun-if-changed=src/bpf");
    println!("cargo:rerun-if-changed=vmlinux/vmlinux.h");
    let out = PathBuf::from(env::var_os("OUT_DIR").context("cargo sets OUT_DIR")?);
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").context("cargo sets it")?);
    SkeletonBuilder::new()
        .source(root.join(SOURCE))
        // The skeleton's name comes from the object's, and a hyphen is none.
        .obj(out.join("xdp_proxy.o"))
        .clang_args([
            "-I".into(),
            root.join("vmlinux").into_os_string(),
            "-mcpu=v2".into(),
            "-Wall".into(),
            "-Wextra".into(),
            "-Wno-unused-parameter".into(),
            "-Wno-sign-compare".into(),
        ])
        .build_and_generate(out.join("xdp_proxy.skel.rs"))
        .with_context(|| format!("compiling {SOURCE} (is clang installed?)"))
}
