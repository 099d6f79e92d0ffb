// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! What goes wrong while the daemon serves, and ends nothing: each trouble is told once,
//! what failed is tried again, and it is told when that is over.

use std::collections::BTreeMap;

use anyhow::Result;

/// The troubles that last, by what was done.
#[derive(Default)]
pub(super) struct Troubles(BTreeMap<&'static str, String>);

impl Troubles {
    /// What came of something that is tried again: tells of its first failure, and of the
    /// first success after that.
    pub(super) fn note<T>(&mut self, doing: &'static str, result: Result<T>) -> Option<T> {
        match result {
            Ok(done) => {
                self.end(doing);
                Some(done)
            }
            Err(error) => {
                // What fails may differ from time to time; that it fails is the news.
                if !self.0.contains_key(doing) {
                    let words = format!("{error:#}");
                    tracing::error!("{doing} failed, and is tried again: {words}");
                    self.0.insert(doing, words);
                }
                None
            }
        }
    }

    /// A state that is no error of a call, told when it begins and when it becomes another.
    pub(super) fn complain(&mut self, about: &'static str, words: String) {
        if self.0.get(about) != Some(&words) {
            tracing::error!("{words}");
            self.0.insert(about, words);
        }
    }

    /// There is nothing to complain of any more, which somebody else has told.
    pub(super) fn forget(&mut self, about: &'static str) {
        self.0.remove(about);
    }

    /// It works again.
    pub(super) fn end(&mut self, doing: &'static str) {
        if self.0.remove(doing).is_some() {
            tracing::info!("{doing} works again");
        }
    }
}
