// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! What others wrote, as it may stand in a line of a log or an error: whatever it is, the line
//! stays one, short, and does nothing to a terminal.

use std::fmt;

/// The characters of a value that are shown, at most.
const VALUE_CHARS_MAX: usize = 100;

/// Displays a value in quotation marks; of a long one the beginning, and how long it is.
pub struct Quoted<'a>(pub &'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.char_indices().nth(VALUE_CHARS_MAX) {
            None => write!(f, "{:?}", self.0),
            Some((end, _)) => {
                write!(f, "{:?}... ({} bytes)", &self.0[..end], self.0.len())
            }
        }
    }
}

/// A text without control characters; of one with more than `chars_max`, the beginning and the
/// end.
pub fn one_line(text: &str, chars_max: usize) -> String {
    let half = chars_max / 2;
    let begin = text.char_indices().nth(half).map(|(end, _)| end);
    let end = text.char_indices().nth_back(half).map(|(end, _)| end);
    let (begin, end) = match begin.zip(end) {
        Some((begin, end)) if begin < end => (&text[..begin], &text[end..]),
        _ => (text, ""),
    };
    let between = if end.is_empty() { "" } else { " ... " };
    let escape = |c: char| match c {
        c if c.is_control() => c.escape_default().to_string(),
        c => c.to_string(),
    };
    [begin, between, end]
        .iter()
        .flat_map(|part| part.chars().map(escape))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_text_is_shown_whole() {
        assert_eq!(Quoted("a\"b").to_string(), "\"a\\\"b\"");
        assert_eq!(one_line("a\nb\u{1b}c", 10), "a\\nb\\u{1b}c");
        assert_eq!(one_line("", 10), "");
    }

    #[test]
    fn a_long_text_is_cut_between_characters() {
        let long = "ä".repeat(1000);
        let expected = format!("\"{}\"... (2000 bytes)", "ä".repeat(100));
        assert_eq!(Quoted(&long).to_string(), expected);
        let cut = one_line(&format!("begin{long}end"), 20);
        assert!(cut.starts_with("beginä") && cut.ends_with("äend"), "{cut}");
        assert!(cut.contains(" ... ") && cut.chars().count() < 30, "{cut}");
    }
}
