// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! The documentation says what is there: its TOML is accepted, the files and
//! functions that it names exist, and it is written in plain words.

use std::fs;
use std::path::{Path, PathBuf};

use xdp_proxy::config::{HostPorts, parse};

const FORBIDDEN: [&str; 12] = [
    "blazing",
    "cutting-edge",
    "effortless",
    "fixme",
    "leverage",
    "lightning",
    "powerful",
    "revolutionary",
    "seamless",
    "simply",
    "state-of-the-art",
    "todo",
];

/// README.md and docs/*.md: path and text.
fn pages() -> Vec<(PathBuf, String)> {
    let mut paths = vec![root().join("README.md")];
    paths.extend(files(&root().join("docs")));
    let text = |path: &PathBuf| fs::read_to_string(path).expect("a page is UTF-8 text");
    paths
        .into_iter()
        .map(|path| (path.clone(), text(&path)))
        .collect()
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).expect("the folder can be read");
    let paths = entries.map(|entry| entry.expect("the folder can be read").path());
    paths
        .flat_map(|path| {
            if path.is_dir() {
                files(&path)
            } else {
                vec![path]
            }
        })
        .collect()
}

fn sources() -> String {
    let paths = files(&root().join("src"));
    let texts = paths.iter().map(fs::read_to_string);
    texts.map(|text| text.expect("sources are UTF-8")).collect()
}

/// The text between pairs of the mark.
fn between<'a>(text: &'a str, mark: &str) -> Vec<&'a str> {
    text.split(mark).skip(1).step_by(2).collect()
}

/// The words in backticks outside of blocks, on one line each.
fn code(text: &str) -> Vec<&str> {
    let prose = text.split("```").step_by(2);
    prose.flat_map(|prose| between(prose, "`")).collect()
}

#[test]
fn every_toml_block_is_a_valid_configuration() {
    let host = HostPorts {
        local: 32768..=60999,
        reserved: Vec::new(),
    };
    let mut count = 0;
    for (path, text) in pages() {
        for block in between(&text, "```") {
            if let Some(toml) = block.strip_prefix("toml\n") {
                count += 1;
                let parsed = parse(&path.display().to_string(), toml, &host);
                assert!(parsed.is_ok(), "{}\nin:\n{toml}", parsed.unwrap_err());
            }
        }
    }
    assert!(count >= 2, "{count} blocks were found");
}

#[test]
fn every_file_that_is_named_exists() {
    const FOLDERS: [&str; 7] = [
        "src/", "lab/", "dist/", "docs/", "tests/", "vmlinux/", "benches/",
    ];
    for (page, text) in pages() {
        for name in code(&text) {
            let file = name.split(' ').next().unwrap_or_default();
            if FOLDERS.iter().any(|folder| file.starts_with(folder)) {
                assert!(
                    root().join(file).exists(),
                    "{}: {file} is not there",
                    page.display()
                );
            }
        }
        for link in text.split("](").skip(1) {
            let target = link.split([')', '#']).next().unwrap_or_default();
            let folder = page.parent().expect("a page is in a folder");
            assert!(
                target.starts_with("https://") || folder.join(target).exists(),
                "{}: {target} is not there",
                page.display()
            );
        }
    }
}

#[test]
fn every_function_that_is_named_exists() {
    let sources = sources();
    let mut count = 0;
    for (page, text) in pages() {
        for name in code(&text)
            .iter()
            .filter_map(|name| name.strip_suffix("()"))
        {
            count += 1;
            let is_there = sources.match_indices(&format!("{name}(")).any(|(at, _)| {
                let before = sources[..at].chars().next_back();
                !before.is_some_and(|c| c.is_alphanumeric() || c == '_')
            });
            assert!(is_there, "{}: {name}() is not there", page.display());
        }
    }
    assert!(count > 20, "{count} functions were found");
}

#[test]
fn quoted_code_is_the_real_code() {
    let sources = sources();
    for (page, text) in pages() {
        let blocks = between(&text, "```");
        let quotes = blocks.iter().filter_map(|block| block.strip_prefix("c\n"));
        for line in quotes
            .flat_map(str::lines)
            .filter(|line| line.trim() != "...")
        {
            assert!(sources.contains(line), "{}: {line}", page.display());
        }
    }
}

#[test]
fn the_words_are_plain() {
    for (page, text) in pages() {
        for (line, number) in text.lines().zip(1..) {
            let place = format!("{}:{number}: {line}", page.display());
            assert!(line.is_ascii(), "not ASCII: {place}");
            let line = line.to_lowercase();
            for word in FORBIDDEN {
                assert!(!line.contains(word), "{word:?}: {place}");
            }
        }
    }
}
