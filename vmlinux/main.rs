// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! Prints the kernel types that the datapath uses, from the running kernel's
//! BTF: what `make vmlinux` writes to `vmlinux/vmlinux.h`.
//!
//! `bpftool btf dump` would print all of them, some 150,000 lines; libbpf's
//! dumper prints the named ones and what they are made of. They carry no CO-RE
//! attribute: all of them are wire formats or the kernel's stable interface, so
//! the object loads on kernels without BTF too.

use std::ffi::{CString, c_char, c_void};
use std::io::Write as _;

use anyhow::{Context as _, Result, ensure};

/// What `src/bpf` names, and what libbpf's helper declarations are written in.
const TYPES: [(&str, u32); 17] = [
    ("ethhdr", libbpf_sys::BTF_KIND_STRUCT),
    ("iphdr", libbpf_sys::BTF_KIND_STRUCT),
    ("ipv6hdr", libbpf_sys::BTF_KIND_STRUCT),
    ("tcphdr", libbpf_sys::BTF_KIND_STRUCT),
    ("udphdr", libbpf_sys::BTF_KIND_STRUCT),
    ("icmphdr", libbpf_sys::BTF_KIND_STRUCT),
    ("xdp_md", libbpf_sys::BTF_KIND_STRUCT),
    ("bpf_sock", libbpf_sys::BTF_KIND_STRUCT),
    ("bpf_sock_tuple", libbpf_sys::BTF_KIND_STRUCT),
    ("bpf_spin_lock", libbpf_sys::BTF_KIND_STRUCT),
    ("xdp_action", libbpf_sys::BTF_KIND_ENUM),
    ("bpf_map_type", libbpf_sys::BTF_KIND_ENUM),
    ("__s64", libbpf_sys::BTF_KIND_TYPEDEF),
    ("__u64", libbpf_sys::BTF_KIND_TYPEDEF),
    ("__s32", libbpf_sys::BTF_KIND_TYPEDEF),
    ("__be64", libbpf_sys::BTF_KIND_TYPEDEF),
    ("__wsum", libbpf_sys::BTF_KIND_TYPEDEF),
];

unsafe extern "C" fn print(
    _ctx: *mut c_void,
    format: *const c_char,
    args: *mut libbpf_sys::__va_list_tag,
) {
    // SAFETY: libbpf hands over a format and the arguments that belong to it.
    unsafe { libbpf_sys::vdprintf(1, format, args) };
}

fn main() -> Result<()> {
    println!(
        "/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */\n\
         /* Written by `make vmlinux` from the kernel's BTF; not to be edited. */\n\
         #ifndef __VMLINUX_H__\n#define __VMLINUX_H__\n"
    );
    std::io::stdout().flush().context("writing to stdout")?;
    // SAFETY: no arguments; the result is checked, and lives to the end.
    let btf = unsafe { libbpf_sys::btf__load_vmlinux_btf() };
    ensure!(
        !btf.is_null(),
        "this kernel offers no BTF in /sys/kernel/btf/vmlinux"
    );
    // SAFETY: `btf` is valid; the callback has the type that libbpf asks for.
    let dump = unsafe {
        libbpf_sys::btf_dump__new(btf, Some(print), std::ptr::null_mut(), std::ptr::null())
    };
    ensure!(!dump.is_null(), "libbpf could not start its dumper");
    for (name, kind) in TYPES {
        let c_name = CString::new(name)?;
        // SAFETY: `btf` is valid and the name ends in a zero.
        let id = unsafe { libbpf_sys::btf__find_by_name_kind(btf, c_name.as_ptr(), kind) };
        ensure!(id > 0, "the kernel's BTF has no type `{name}`");
        // SAFETY: `dump` is valid and `id` is one of its BTF's types.
        let error = unsafe { libbpf_sys::btf_dump__dump_type(dump, id as u32) };
        ensure!(error == 0, "libbpf could not print `{name}`");
    }
    println!("#endif /* __VMLINUX_H__ */");
    Ok(())
}
