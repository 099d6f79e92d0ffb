// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! The thread that all checks run on. Backends decide what a check has to read, so its work
//! is no part of the loop that serves: the kernel gives each of the two its share, and that
//! loop never waits for more than the other's turn.

use std::thread;

use anyhow::{Context as _, Result};
use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;

use crate::privilege;

/// Enough for a handshake of TLS, in which most of it is needed.
const STACK_BYTES: usize = 512 << 10;

/// Ends with this.
pub struct Thread {
    tasks: Handle,
    _end: oneshot::Sender<()>,
}

impl Thread {
    /// In the network namespace of the calling thread.
    pub fn start() -> Result<Thread> {
        let starting = "starting the thread of the checks";
        let runtime = Builder::new_current_thread().enable_all().build();
        let runtime = runtime.context(starting)?;
        let tasks = runtime.handle().clone();
        let (end, ended) = oneshot::channel();
        let run = move || {
            // Who answers checks has nothing to gain from this thread.
            if let Err(error) = privilege::give_up_all() {
                tracing::warn!("checks run with the daemon's capabilities: {error:#}");
            }
            let _ = runtime.block_on(ended);
        };
        let thread = thread::Builder::new().name("checks".into());
        thread
            .stack_size(STACK_BYTES)
            .spawn(run)
            .context(starting)?;
        Ok(Thread { tasks, _end: end })
    }

    pub fn tasks(&self) -> &Handle {
        &self.tasks
    }
}
