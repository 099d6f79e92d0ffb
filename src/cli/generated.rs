// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! What is made from the definition of the command line: completions and the
//! manual page.

use clap::{Command, CommandFactory as _};
use clap_complete::Shell;
use clap_mangen::Man;
use clap_mangen::roff::{Inline, Roff, bold, roman};

use super::Cli;

const NAME: &str = "xdp-proxy";
/// The sections that no command has: files, signals and so on.
const SECTIONS: &str = include_str!("manual.roff");
/// The configuration that `make install` puts beside the manual page.
const EXAMPLE: &str = include_str!("../../dist/xdp-proxy.toml");

/// A script for the shell.
pub fn completions(shell: Shell) -> String {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), NAME, &mut script);
    // clap_complete 4.6 writes a hyphen in the program's name in two ways for bash,
    // and nothing behind a command is completed (clap-rs/clap#6421).
    String::from_utf8_lossy(&script).replace("xdp__subcmd__proxy", "xdp__proxy")
}

/// One page in the language of man(7) for all commands.
pub fn manual() -> String {
    let mut command = Cli::command().disable_help_flag(true);
    command.build();
    let version = format!("{NAME} {}", command.get_version().unwrap_or_default());
    let shown = || command.get_subcommands().filter(|sub| is_shown(sub));

    let mut page = Roff::new();
    page.control("TH", [NAME, "8", "", &version, "System Administration"]);
    page.control("SH", ["NAME"]);
    page.text([roman(format!("{NAME} - a layer-4 load balancer at XDP"))]);
    page.control("SH", ["SYNOPSIS"]);
    for sub in shown() {
        page.text(usage(sub));
        page.control("br", []);
    }
    page.control("SH", ["DESCRIPTION"]);
    page.text([roman(about(&command))]);
    page.control("SH", ["COMMANDS"]);
    let mut text = page.to_roff();
    for sub in shown() {
        text += &section(sub);
    }
    let (before, after) = SECTIONS.split_once("@EXAMPLE@\n").unwrap_or((SECTIONS, ""));
    text + before + &verbatim(EXAMPLE) + after
}

fn is_shown(command: &Command) -> bool {
    command.get_name() != "help"
}

fn about(command: &Command) -> String {
    let about = command.get_about().map(ToString::to_string);
    about.unwrap_or_default() + "."
}

/// "xdp-proxy stop [OPTIONS]", as clap words it.
fn usage(command: &Command) -> Vec<Inline> {
    let line = command.clone().render_usage().to_string();
    let line = line.trim_start_matches("Usage: ").to_owned();
    let own = format!("{NAME} {}", command.get_name());
    let rest = line.strip_prefix(&own).unwrap_or_default().to_owned();
    vec![bold(own), roman(rest)]
}

fn section(command: &Command) -> String {
    let mut head = Roff::new();
    head.control("SS", [format!("{NAME} {}", command.get_name()).as_str()]);
    head.text([roman(about(command))]);
    let mut options = Vec::new();
    // Writing to memory does not fail.
    let _ = Man::new(command.clone()).render_options_section(&mut options);
    let options = String::from_utf8_lossy(&options);
    let options = options.lines().skip_while(|line| *line != ".SH OPTIONS");
    let options: String = options.skip(1).map(|line| format!("{line}\n")).collect();
    let example = command.get_after_help().map(ToString::to_string);
    head.to_roff() + &options + ".PP\n" + &verbatim(&example.unwrap_or_default())
}

/// Text whose lines stay as they are.
fn verbatim(text: &str) -> String {
    let mut block = Roff::new();
    block.control("nf", []);
    for line in text.lines() {
        block.text([roman(line)]);
    }
    block.control("fi", []);
    block.to_roff()
}
