// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! Faults of what all of a kernel shares. They are made only where the kernel is the
//! tests' own: lab/kernels.sh runs these.

mod clock;
mod memory;
mod neighbours;

use crate::common::lab::Lab;
use crate::common::own_kernel_or_skip;

/// A lab for a test, unless it must be skipped.
fn lab(test: &str) -> Option<Lab> {
    own_kernel_or_skip(test).then(Lab::start)
}
