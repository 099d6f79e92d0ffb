// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! What repeats in a log is told a few times and then counted, so that who makes something
//! flap fills no disk. Pure: the caller brings the time, and writes.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Lines about one subject within a window, at most.
const LINES: u32 = 10;
pub const WINDOW: Duration = Duration::from_secs(10);

/// The lines about each subject.
#[derive(Debug)]
pub struct Repeats<S>(BTreeMap<S, Window>);

#[derive(Debug)]
struct Window {
    since: Instant,
    lines: u32,
    held_back: u64,
}

impl<S> Default for Repeats<S> {
    fn default() -> Self {
        Repeats(BTreeMap::new())
    }
}

impl<S: Ord + Clone> Repeats<S> {
    /// Whether a line about the subject is to be written; it is counted else.
    pub fn may_tell(&mut self, subject: &S, now: Instant) -> bool {
        if !self.0.contains_key(subject) {
            let window = Window {
                since: now,
                lines: 0,
                held_back: 0,
            };
            self.0.insert(subject.clone(), window);
        }
        let Some(window) = self.0.get_mut(subject) else {
            return true;
        };
        if window.lines < LINES {
            window.lines += 1;
            return true;
        }
        window.held_back += 1;
        false
    }

    /// Ends the windows that are over: the subjects of which lines were held back, with
    /// how many. To be asked from time to time.
    pub fn over(&mut self, now: Instant) -> Vec<(S, u64)> {
        let mut over = Vec::new();
        self.0.retain(|subject, window| {
            let is_over = now.saturating_duration_since(window.since) >= WINDOW;
            if is_over && window.held_back > 0 {
                over.push((subject.clone(), window.held_back));
            }
            !is_over
        });
        over
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_repeats_is_told_ten_times_and_then_counted() {
        let start = Instant::now();
        let mut repeats = Repeats::default();
        let told = (0..20_000).filter(|_| repeats.may_tell(&"flaps", start));
        assert_eq!(told.count(), 10);
        assert!(repeats.may_tell(&"another", start));
        assert!(repeats.over(start + WINDOW / 2).is_empty());
        assert_eq!(repeats.over(start + WINDOW), [("flaps", 19_990)]);
        assert!(repeats.may_tell(&"flaps", start + WINDOW));
        assert!(repeats.over(start + WINDOW * 3).is_empty());
        assert!(repeats.0.is_empty());
    }
}
