// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! The configuration file: its shape as TOML, and reading it.

use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::path::Path;

use serde::Deserialize;

use super::ConfigError;
use crate::excerpt::one_line;

/// A configuration file's length, at most; about 200 bytes a backend.
const FILE_BYTES_MAX: u64 = 16 << 20;
/// The characters of what TOML's parser says, at most: it repeats names and values.
const MESSAGE_CHARS_MAX: usize = 600;
/// The characters of a faulty line that an error repeats, at most.
const EXCERPT_CHARS_MAX: usize = 60;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FileConfig {
    pub interface: Option<String>,
    pub mode: Option<String>,
    pub flow_counters: Option<bool>,
    #[serde(default)]
    pub service: Vec<FileService>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FileService {
    pub name: Option<String>,
    pub listen: Option<String>,
    pub forwarding: Option<String>,
    pub scheduler: Option<String>,
    #[serde(default)]
    pub source: Vec<String>,
    pub source_ports: Option<String>,
    #[serde(default)]
    pub timeouts: FileTimeouts,
    #[serde(default)]
    pub health: FileHealth,
    pub on_failure: Option<String>,
    pub all_down: Option<String>,
    pub drain_timeout: Option<toml::Value>,
    #[serde(default)]
    pub backend: Vec<FileBackend>,
}

/// Any value is taken here, as a number without a unit is a likely mistake
/// that deserves an error of its own.
#[derive(Default, Deserialize)]
#[serde(
    deny_unknown_fields,
    expecting = "a table, as in timeouts = { closing = \"10s\" }"
)]
pub(super) struct FileTimeouts {
    pub unanswered: Option<toml::Value>,
    pub established: Option<toml::Value>,
    pub half_closed: Option<toml::Value>,
    pub closing: Option<toml::Value>,
}

#[derive(Default, Deserialize)]
#[serde(
    deny_unknown_fields,
    expecting = "a table, as in health = { type = \"http\" }"
)]
pub(super) struct FileHealth {
    #[serde(rename = "type")]
    pub kind: Option<String>,
    pub port: Option<i64>,
    pub interval: Option<toml::Value>,
    pub timeout: Option<toml::Value>,
    pub rise: Option<i64>,
    pub fall: Option<i64>,
    pub path: Option<String>,
    pub host: Option<String>,
    pub status: Option<toml::Value>,
    pub verify: Option<bool>,
    pub ca: Option<String>,
    pub payload: Option<String>,
    pub reply: Option<String>,
}

impl FileHealth {
    /// The keys that are written, but for the type.
    pub fn given(&self) -> impl Iterator<Item = &'static str> {
        [
            ("port", self.port.is_some()),
            ("interval", self.interval.is_some()),
            ("timeout", self.timeout.is_some()),
            ("rise", self.rise.is_some()),
            ("fall", self.fall.is_some()),
            ("path", self.path.is_some()),
            ("host", self.host.is_some()),
            ("status", self.status.is_some()),
            ("verify", self.verify.is_some()),
            ("ca", self.ca.is_some()),
            ("payload", self.payload.is_some()),
            ("reply", self.reply.is_some()),
        ]
        .into_iter()
        .filter_map(|(key, given)| given.then_some(key))
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FileBackend {
    pub address: Option<String>,
    pub weight: Option<i64>,
}

/// The file's text.
/// # Errors
/// It is a pipe or the like, which would keep its reader waiting.
pub(super) fn must_not_wait(path: &Path) -> Result<(), ConfigError> {
    let kind = path.metadata().map(|metadata| metadata.file_type());
    if kind.is_ok_and(|kind| !kind.is_file() && !kind.is_dir()) {
        let name = path.display().to_string();
        let problem = "is no regular file, which a reload needs; put the text in one";
        return Err(ConfigError::new(&name, problem));
    }
    Ok(())
}

pub(super) fn read(path: &Path) -> Result<String, ConfigError> {
    let name = path.display().to_string();
    let mut text = String::new();
    File::open(path)
        .and_then(|file| file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text))
        .map_err(|error| ConfigError::new(&name, unreadable(&error)))?;
    if text.len() as u64 > FILE_BYTES_MAX {
        let problem = format!(
            "is longer than {} MiB; name a TOML file",
            FILE_BYTES_MAX >> 20
        );
        return Err(ConfigError::new(&name, problem));
    }
    Ok(text)
}

fn unreadable(error: &io::Error) -> String {
    match error.kind() {
        ErrorKind::NotFound => "cannot be read: there is no such file; correct the path".into(),
        ErrorKind::PermissionDenied => {
            "cannot be read: permission denied; let this user read it".into()
        }
        ErrorKind::IsADirectory => "cannot be read: it is a directory; name a file in it".into(),
        ErrorKind::InvalidData => "cannot be read: it is no UTF-8 text; name a TOML file".into(),
        kind => format!("cannot be read: {kind}; name a TOML file that can"),
    }
}

/// The text as TOML of the expected shape. `name` is the file's, for errors.
pub(super) fn parse(name: &str, text: &str) -> Result<FileConfig, ConfigError> {
    toml::from_str(text).map_err(|error: toml::de::Error| {
        let (place, excerpt) = match error.span() {
            Some(span) => locate(name, text, span.start),
            None => (name.to_string(), String::new()),
        };
        let message: Vec<&str> = error.message().lines().map(str::trim).collect();
        let message = message
            .join(", ")
            .replacen("unknown field", "unknown key", 1);
        let message = message.replacen("expected one of", "known here are", 1);
        ConfigError::new(&place, one_line(&message, MESSAGE_CHARS_MAX) + &excerpt)
    })
}

/// `FILE:LINE:COLUMN` of the offset in bytes, and the line there as ` (in: LINE)`.
fn locate(name: &str, text: &str, offset: usize) -> (String, String) {
    let before = text.get(..offset).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    let line = before.matches('\n').count() + 1;
    let column = before[line_start..].chars().count() + 1;
    let excerpt = text[line_start..].lines().next().unwrap_or_default().trim();
    let excerpt: String = excerpt.chars().take(EXCERPT_CHARS_MAX).collect();
    let excerpt = if excerpt.is_empty() {
        excerpt
    } else {
        format!(" (in: {excerpt})")
    };
    (format!("{name}:{line}:{column}"), excerpt)
}
