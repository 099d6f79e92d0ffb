// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! What libbpf and the kernel say of a failure, in place of a bare errno.

use std::sync::Mutex;
use std::{fmt, io};

use anyhow::anyhow;
use libbpf_rs::{ErrorKind, PrintLevel};

use super::host::too_old;

/// What libbpf last said at its warning level, to go with an errno.
static LIBBPF_WORDS: Mutex<Vec<String>> = Mutex::new(Vec::new());

pub(super) fn keep_libbpf_quiet() {
    libbpf_rs::set_print(Some((PrintLevel::Warn, |_, text| {
        let text = text.trim_end().to_owned();
        tracing::debug!("{text}");
        if let Ok(mut words) = LIBBPF_WORDS.lock() {
            words.push(text);
        }
    })));
}

pub(super) fn take_libbpf_words() -> Vec<String> {
    LIBBPF_WORDS
        .lock()
        .map(|mut words| std::mem::take(&mut *words))
        .unwrap_or_default()
}

/// The kernel's own explanation, where it gave one, instead of the bare errno.
pub(super) fn explain(error: &libbpf_rs::Error) -> anyhow::Error {
    const PREFIX: &str = "Kernel error message: ";
    let word = take_libbpf_words()
        .iter()
        .find_map(|line| line.split_once(PREFIX).map(|(_, word)| word.to_owned()));
    anyhow!(word.unwrap_or_else(|| format!("{error}")))
}

/// The kernel answers EPERM without privilege, ENOMEM without memory for what the maps
/// take, EACCES and EINVAL after the verifier, whose last words stand before its
/// statistics.
pub(super) fn explain_load(error: &libbpf_rs::Error, maps_bytes: usize) -> anyhow::Error {
    let denied = error.kind() == ErrorKind::PermissionDenied;
    let no_memory = error.kind() == ErrorKind::OutOfMemory;
    let words = take_libbpf_words().join("\n");
    let verdict = words
        .lines()
        .take_while(|line| !line.starts_with("processed "))
        .filter(|line| !line.starts_with("libbpf: "))
        .last();
    match verdict {
        Some(verdict) if let Some(why) = too_old() => anyhow!("{why} ({verdict})"),
        Some(verdict) => anyhow!("the kernel's verifier refused the program: {verdict} ({error})"),
        None if let Some(why) = memory_refused(no_memory, error, maps_bytes) => why,
        None if denied => anyhow!(
            "the kernel does not let this process load a program ({error}): run it as root, \
             or with the capabilities BPF, NET_ADMIN and PERFMON"
        ),
        None => anyhow!("the kernel refused the program or its maps: {error}"),
    }
}

/// What keeps a map from being made or filled: more than a bare errno where it is memory.
pub(super) fn explain_memory(error: anyhow::Error, maps_bytes: usize) -> anyhow::Error {
    let mut causes = error.chain();
    let Some(cause) = causes.find_map(|cause| cause.downcast_ref::<io::Error>()) else {
        return error;
    };
    let no_memory = cause.kind() == io::ErrorKind::OutOfMemory;
    memory_refused(no_memory, cause, maps_bytes).unwrap_or(error)
}

/// Memory for the maps was refused, if that is what the kernel's answer means.
fn memory_refused(
    no_memory: bool,
    error: &dyn fmt::Display,
    maps_bytes: usize,
) -> Option<anyhow::Error> {
    let mib = maps_bytes as f64 / f64::from(1 << 20);
    no_memory.then(|| {
        anyhow!(
            "the kernel has no memory for the maps, which take {mib:.1} MiB ({error}): let this \
             process's control group have more (memory.max, MemoryMax=), or configure less \
             (`xdp-proxy check` tells what it takes)"
        )
    })
}
