// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! What is printed can't steer a terminal, whoever had a word in it: names of files, of
//! interfaces and of sockets, what a server answered to a check.

use std::borrow::Cow;
use std::fmt::{Display, Write as _};
use std::io::{self, Write as _};

/// The text without control characters but for ends of lines and tabs: in their place stand
/// their numbers, as JSON too would have them. So are the marks that turn the direction of
/// text round.
pub fn printable(text: &str) -> Cow<'_, str> {
    if !text.contains(steers) {
        return Cow::Borrowed(text);
    }
    let mut printable = String::with_capacity(text.len());
    for c in text.chars() {
        match steers(c) {
            true => drop(write!(printable, "\\u{:04x}", u32::from(c))),
            false => printable.push(c),
        }
    }
    Cow::Owned(printable)
}

/// Says something on stderr that is no error of the command.
pub fn warn(word: impl Display) {
    let line = format!("warning: {word}\n");
    // Nobody may read it any more.
    let _ = io::stderr().write_all(printable(&line).as_bytes());
}

fn steers(c: char) -> bool {
    let turns =
        matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    turns || c.is_control() && !matches!(c, '\n' | '\t')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_character_that_steers_a_terminal_is_left() {
        let text = "a\x1b[2J\u{9b}1m\r\x07\x7f\u{202e}b\n\tß";
        let printed = printable(text);
        assert_eq!(
            printed,
            "a\\u001b[2J\\u009b1m\\u000d\\u0007\\u007f\\u202eb\n\tß"
        );
        assert_eq!(printable(&printed), printed);
    }

    #[test]
    fn json_with_such_characters_means_the_same() {
        let text = serde_json::to_string("\u{9b}\u{7f}\x1b").unwrap();
        let back: String = serde_json::from_str(&printable(&text)).unwrap();
        assert_eq!(back, "\u{9b}\u{7f}\x1b");
    }
}
