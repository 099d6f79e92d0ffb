// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! What the tests share.

/// True as root. Else says that the test is skipped, or, where
/// `REQUIRE_ROOT_TESTS=1` is set, fails it.
pub fn root_or_skip(test: &str) -> bool {
    if nix::unistd::geteuid().is_root() {
        return true;
    }
    let skipped = format!("SKIPPED {test}: needs root");
    assert!(
        std::env::var_os("REQUIRE_ROOT_TESTS").is_none_or(|value| value != "1"),
        "{skipped}"
    );
    eprintln!("{skipped}");
    false
}
