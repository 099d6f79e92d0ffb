// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! Compiles the datapath with clang and generates its Rust skeleton; adds to a
//! static link what the distribution's libelf.a leaves out.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use libbpf_cargo::SkeletonBuilder;

const SOURCE: &str = "src/bpf/xdp-proxy.bpf.c";
const LIBELF: &str = "src/libelf.c";

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
            "-mcpu=v3".into(),
            "-Wall".into(),
            "-Wextra".into(),
            "-Wno-unused-parameter".into(),
            "-Wno-sign-compare".into(),
        ])
        .build_and_generate(out.join("xdp_proxy.skel.rs"))
        .with_context(|| format!("compiling {SOURCE} (is clang installed?)"))?;
    if env::var("CARGO_CFG_TARGET_FEATURE").is_ok_and(|list| list.contains("crt-static")) {
        complete_libelf(&root, &out)?;
        if knows_packed_addresses() {
            println!("cargo:rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
        }
    }
    Ok(())
}

/// Whether a static PIE of this host's glibc may have the addresses that it mends at its start as
/// bits (RELR), which glibc knows from 2.36 on: 490 KB less of the binary's 10 MB.
fn knows_packed_addresses() -> bool {
    let told = Command::new("getconf").arg("GNU_LIBC_VERSION").output();
    let told = told.map_or_else(
        |_| String::new(),
        |told| String::from_utf8_lossy(&told.stdout).into_owned(),
    );
    let version = told.trim().rsplit(' ').next().and_then(|version| {
        let (major, minor) = version.split_once('.')?;
        Some((major.parse::<u32>().ok()?, minor.parse::<u32>().ok()?))
    });
    version.is_some_and(|version| version >= (2, 36))
}

/// zstd where libelf.a was built with it (Debian 13, Ubuntu 24.04), and the two
/// functions that elfutils 0.192 leaves out.
fn complete_libelf(root: &Path, out: &Path) -> Result<()> {
    println!("cargo:rerun-if-changed={LIBELF}");
    let object = out.join("libelf.o");
    let status = Command::new("clang")
        .arg(format!("--target={}", env::var("TARGET")?))
        .args(["-O2", "-fPIC", "-c", "-o"])
        .args([&object, &root.join(LIBELF)])
        .status()
        .context("starting clang (is it installed?)")?;
    ensure!(status.success(), "compiling {LIBELF}: clang: {status}");
    println!("cargo:rustc-link-arg={}", object.display());

    let pkg_config = Command::new("pkg-config")
        .args(["--static", "--libs", "libelf"])
        .output()
        .context("starting pkg-config (is it installed?)")?;
    if String::from_utf8_lossy(&pkg_config.stdout).contains("-lzstd") {
        // By its file's name: lld would take libzstd.so for -lzstd, even in a
        // static link, and the program would crash at its start.
        println!("cargo:rustc-link-arg=-l:libzstd.a");
    }
    Ok(())
}
