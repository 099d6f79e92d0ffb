// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! The log goes to stderr by a thread of its own, as nobody may read it: a full pipe stops
//! that thread, and never the loop that serves. What finds no room is counted and told later.
//!
//! While stderr is read, a line is there once its writer goes on, so that nothing is said
//! after what came of it. (This is what the appenders of tracing don't do; nor do their
//! threads give up capabilities.)

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd as _;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use tracing_subscriber::fmt::MakeWriter;

use crate::privilege;

/// Lines that wait, in bytes.
const WAITING_BYTES_MAX: usize = 256 << 10;
/// How long a writer waits until his line is there. Once that was in vain, nobody waits until
/// all lines are.
const PATIENCE: Duration = Duration::from_millis(5);
/// How long the end of the process waits for the last lines.
const LAST_PATIENCE: Duration = Duration::from_millis(500);
const STACK_BYTES: usize = 128 << 10;

/// Where the log goes.
#[derive(Clone)]
pub struct Log(Arc<Shared>);

struct Shared {
    queue: Mutex<Queue>,
    /// Something came, or something was written.
    moved: Condvar,
}

#[derive(Default)]
struct Queue {
    lines: VecDeque<Vec<u8>>,
    waiting_bytes: usize,
    /// One is being written.
    writes: bool,
    /// Nobody reads, or slowly.
    stuck: bool,
    lost: u64,
}

impl Queue {
    fn is_idle(&self) -> bool {
        self.lines.is_empty() && !self.writes
    }

    /// The line that tells of those for which there was no room, if there were any.
    fn take_lost(&mut self) -> Option<Vec<u8>> {
        let lost = std::mem::take(&mut self.lost);
        let line = format!("{lost} lines of this log are lost, as nobody read it\n");
        (lost > 0).then(|| line.into_bytes())
    }
}

impl Log {
    /// To stderr.
    ///
    /// # Errors
    /// There is no thread to be had.
    pub fn begin() -> io::Result<Log> {
        // Not by what others lock to write to it.
        let stderr = io::stderr().as_fd().try_clone_to_owned()?;
        Log::to(File::from(stderr))
    }

    fn to(output: impl Write + Send + 'static) -> io::Result<Log> {
        let log = Log(Arc::new(Shared {
            queue: Mutex::default(),
            moved: Condvar::new(),
        }));
        let shared = log.0.clone();
        let thread = thread::Builder::new().name("log".into());
        thread.stack_size(STACK_BYTES).spawn(move || {
            // It needs none; what the daemon keeps is the same for all its threads. Where that
            // fails, the daemon's start says so.
            let _ = privilege::limit();
            shared.write_on(output);
        })?;
        Ok(log)
    }

    /// Waits for the last lines, but not for ever.
    pub fn end(&self) {
        self.0.wait(LAST_PATIENCE);
    }
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, line: &[u8]) {
        let mut queue = self.queue();
        if queue.waiting_bytes + line.len() > WAITING_BYTES_MAX {
            queue.lost += 1;
            return;
        }
        let lost = queue.take_lost();
        for line in lost.into_iter().chain([line.to_vec()]) {
            queue.waiting_bytes += line.len();
            queue.lines.push_back(line);
        }
        let waits = !queue.stuck;
        drop(queue);
        self.moved.notify_all();
        if waits && !self.wait(PATIENCE) {
            self.queue().stuck = true;
        }
    }

    /// Whether all lines are written within the time.
    fn wait(&self, patience: Duration) -> bool {
        let end = Instant::now() + patience;
        let mut queue = self.queue();
        while !queue.is_idle() {
            let rest = end.saturating_duration_since(Instant::now());
            if rest.is_zero() {
                return false;
            }
            let waited = self.moved.wait_timeout(queue, rest);
            queue = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    fn write_on(&self, mut output: impl Write) {
        let mut queue = self.queue();
        loop {
            if queue.lines.is_empty() {
                let lost = queue.take_lost();
                queue.waiting_bytes += lost.as_ref().map_or(0, Vec::len);
                queue.lines.extend(lost);
            }
            let Some(line) = queue.lines.pop_front() else {
                (queue.stuck, queue.writes) = (false, false);
                self.moved.notify_all();
                let waited = self.moved.wait_while(queue, |queue| queue.lines.is_empty());
                queue = waited.unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            queue.writes = true;
            queue.waiting_bytes -= line.len();
            drop(queue);
            // A full disk or a closed pipe is no reason to end.
            let _ = output.write_all(&line);
            queue = self.queue();
        }
    }
}

/// One line of the log.
pub struct Line(Log);

impl Write for Line {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.0.add(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Line;

    fn make_writer(&'a self) -> Line {
        Line(self.clone())
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, BufReader};
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn lines_that_nobody_reads_hold_nobody_up_and_are_counted_once_somebody_does() {
        let (reader, output) = UnixStream::pair().unwrap();
        let log = Log::to(output).unwrap();
        let line = [&[b'x'; 999][..], b"\n"].concat();
        let written = 4096;
        let start = Instant::now();
        for _ in 0..written {
            Line(log.clone()).write_all(&line).unwrap();
        }
        // Patience with each line would take 20 s.
        assert!(start.elapsed() < Duration::from_secs(10));
        assert!(log.0.queue().stuck);

        let reads = thread::spawn(move || {
            let lines = BufReader::new(reader).lines().map(Result::unwrap);
            let lines = lines.take_while(|line| line != "the last");
            lines.collect::<Vec<String>>()
        });
        assert!(log.0.wait(Duration::from_secs(20)));
        assert!(!log.0.queue().stuck);
        Line(log.clone()).write_all(b"the last\n").unwrap();
        let lines = reads.join().unwrap();
        let lost = lines.last().unwrap();
        let lost: usize = lost.split(' ').next().unwrap().parse().unwrap();
        assert!(lost > 0);
        assert_eq!(lines.len() - 1 + lost, written);
    }

    #[test]
    fn a_line_that_is_read_is_there_once_its_writer_goes_on() {
        let (reader, output) = UnixStream::pair().unwrap();
        let log = Log::to(output).unwrap();
        Line(log.clone()).write_all(b"first\n").unwrap();
        log.end();
        reader.set_nonblocking(true).unwrap();
        let mut line = String::new();
        BufReader::new(reader).read_line(&mut line).unwrap();
        assert_eq!(line, "first\n");
    }
}
