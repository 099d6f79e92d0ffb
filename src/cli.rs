// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! The command line as types. Only here is clap known; what the values of
//! `--listen` and `--backend` mean is decided in [`crate::config`], for flags and
//! file alike.

mod generated;

use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::error::ErrorKind;
use clap::{ArgAction, Args, Parser, Subcommand};
use clap_complete::Shell;

use crate::abi::{STATES, State};
use crate::config::{Input, MODES, Services};
use crate::excerpt::one_line;
use crate::flows::{End, Filter};
use crate::service::Mode;
pub use generated::{completions, manual};

/// Spreads the connections to a virtual address over servers, in the kernel's
/// XDP path.
#[derive(Clone, Debug, Parser)]
#[command(name = "xdp-proxy", version, arg_required_else_help = true)]
#[command(after_help = "Example:
  xdp-proxy run --listen 192.0.2.1:80 --backend 192.0.2.10 --backend 192.0.2.11")]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

impl Cli {
    /// What the process was called with; else the exit code, after the help or
    /// one line about what is wrong was printed.
    pub fn from_command_line() -> Result<Cli, ExitCode> {
        Cli::try_parse().map_err(|error| {
            // Nobody may read it any more; that changes nothing.
            let _ = match error.kind() {
                ErrorKind::DisplayHelp
                | ErrorKind::DisplayVersion
                | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => error.print(),
                _ => writeln!(io::stderr(), "xdp-proxy: {}", in_one_line(&error)),
            };
            ExitCode::from(error.exit_code() as u8)
        })
    }
}

/// The characters of an error, at most.
const ERROR_CHARS_MAX: usize = 1000;

/// clap's message without its title, usage and pointer to the help.
fn in_one_line(error: &clap::Error) -> String {
    let text = error.to_string();
    let lines: Vec<&str> = text
        .lines()
        .map(str::trim)
        .take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more"))
        .filter(|line| !line.is_empty())
        .collect();
    let message = lines.join("; ");
    let message = message.strip_prefix("error: ").unwrap_or(&message);
    format!("{}; try --help", one_line(message, ERROR_CHARS_MAX))
}

#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Balance in the foreground until SIGINT or SIGTERM
    #[command(after_help = "Examples:
  xdp-proxy run --listen 192.0.2.1:80 --backend 192.0.2.10 --backend 192.0.2.11:8080,weight=2
  xdp-proxy run -i eth0 --mode generic -c /etc/xdp-proxy.toml

Prints one line to stdout once traffic is served:
  ready: eth0 (generic) 192.0.2.1:80/tcp -> 2 backends")]
    Run(RunArgs),
    /// Validate, and print what would run and the memory it takes
    #[command(after_help = "Example:
  xdp-proxy check -c web.toml

What it prints is a file for -c, with every default written out.")]
    Check(ConfigArgs),
    /// Show services, backends and counters of what runs
    #[command(after_help = "Example:
  xdp-proxy status --json")]
    Status(StatusArgs),
    /// Let a backend keep its flows and get no new ones
    #[command(after_help = "Example:
  xdp-proxy drain 10.0.0.2
  xdp-proxy drain 10.0.0.2:80 --service web

`status` counts the flows that are left. A reload changes nothing of it.")]
    Drain(DrainArgs),
    /// Let a drained backend get new flows again
    #[command(after_help = "Example:
  xdp-proxy undrain 10.0.0.2:80 --service web")]
    Undrain(DrainArgs),
    /// Show the flow table
    #[command(after_help = "Examples:
  xdp-proxy flows --service web --state established
  xdp-proxy flows --client 192.0.2.77 --limit 20 --json

Ages and idle times are in seconds, to within one. Whether a daemon runs or not.")]
    Flows(FlowsArgs),
    /// Read the configuration file again and apply the difference
    #[command(after_help = "Example:
  xdp-proxy reload -i eth0

Flows of what did not change notice nothing. A file with an error changes nothing.
SIGHUP does the same.")]
    Reload(InterfaceArgs),
    /// Detach, and leave the host as it was
    #[command(after_help = "Example:
  xdp-proxy stop -i eth0")]
    Stop(InterfaceArgs),
    /// Print a script that completes this command line in a shell
    #[command(after_help = "Example:
  xdp-proxy completions bash >/etc/bash_completion.d/xdp-proxy")]
    Completions { shell: Shell },
    /// Print the manual page
    #[command(after_help = "Example:
  xdp-proxy manual | man -l -")]
    Manual,
}

#[derive(Clone, Debug, Args)]
pub struct RunArgs {
    #[command(flatten)]
    pub config: ConfigArgs,
    /// Take the place of the daemon that runs on the interface, without a lost packet
    #[arg(long)]
    pub take_over: bool,
    /// At SIGINT and SIGTERM leave the program attached, to serve until the next run
    #[arg(long)]
    pub persist: bool,
    /// Log more: -v for debugging, -vv for everything
    #[arg(short, long, action = ArgAction::Count, conflicts_with = "quiet")]
    pub verbose: u8,
    /// Log less: -q for warnings and errors, -qq for errors
    #[arg(short, long, action = ArgAction::Count)]
    pub quiet: u8,
}

/// What to serve, from a file or from flags.
#[derive(Clone, Debug, Args)]
pub struct ConfigArgs {
    /// Interface to attach to [default: the one that holds the VIP, else the one
    /// that routes to the first backend]
    #[arg(short, long, value_name = "IFACE")]
    pub interface: Option<String>,
    /// Where in the kernel to attach [default: auto]
    #[arg(long, value_parser = word_parser(&MODES))]
    pub mode: Option<Mode>,
    /// TOML file with the services
    #[arg(short, long, value_name = "FILE", conflicts_with_all = ["listen", "backend"])]
    pub config: Option<PathBuf>,
    /// Address and port that clients connect to: 192.0.2.1:80, a range as in
    /// 192.0.2.1:8000-8099, or 192.0.2.1:* for any port; for several use -c FILE
    #[arg(long, value_name = "VIP:PORTS[/tcp|/udp]")]
    pub listen: Vec<String>,
    /// Server to spread connections over; may be repeated. Without a port it has
    /// the one that the client connects to, without a weight 1
    #[arg(long, value_name = "ADDR[:PORT][,weight=N]")]
    pub backend: Vec<String>,
}

impl ConfigArgs {
    pub fn into_input(self) -> Input {
        let services = match self.config {
            Some(path) => Services::File(path),
            None => Services::Flags {
                listen: self.listen,
                backends: self.backend,
            },
        };
        Input {
            interface: self.interface,
            mode: self.mode,
            services,
        }
    }
}

#[derive(Clone, Debug, Args)]
pub struct StatusArgs {
    /// Interface that it is attached to [default: every one of this network namespace]
    #[arg(short, long, value_name = "IFACE")]
    pub interface: Option<String>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Clone, Debug, Args)]
pub struct DrainArgs {
    /// The backend; without a port all of this address
    #[arg(value_name = "ADDR[:PORT]")]
    pub backend: String,
    /// The service that it is a backend of [default: every one that has it]
    #[arg(long, value_name = "NAME")]
    pub service: Option<String>,
    #[command(flatten)]
    pub interface: InterfaceArgs,
}

#[derive(Clone, Debug, Args)]
pub struct FlowsArgs {
    #[command(flatten)]
    pub of: StatusArgs,
    /// Only those of a service, by its name or by what it listens on
    #[arg(long, value_name = "NAME")]
    pub service: Option<String>,
    /// Only those to a backend
    #[arg(long, value_name = "ADDR[:PORT]")]
    pub backend: Option<End>,
    /// Only those from a client
    #[arg(long, value_name = "ADDR[:PORT]")]
    pub client: Option<End>,
    /// Only those in a state
    #[arg(long, value_parser = word_parser(&STATES))]
    pub state: Option<State>,
    /// Only so many
    #[arg(long, value_name = "N")]
    pub limit: Option<usize>,
}

impl FlowsArgs {
    pub fn filter(&self) -> Filter {
        Filter {
            service: self.service.clone(),
            backend: self.backend,
            client: self.client,
            state: self.state,
            limit: self.limit,
        }
    }
}

#[derive(Clone, Debug, Args)]
pub struct InterfaceArgs {
    /// Interface that it is attached to [default: every one of this network namespace]
    #[arg(short, long, value_name = "IFACE")]
    pub interface: Option<String>,
}

/// One of the words, as what it stands for.
fn word_parser<T: Copy + Send + Sync + 'static>(
    words: &'static [(&'static str, T)],
) -> impl TypedValueParser<Value = T> {
    let known = PossibleValuesParser::new(words.iter().map(|(word, _)| *word));
    known.try_map(|text| {
        let found = words.iter().find(|(word, _)| *word == text);
        found.map(|(_, value)| *value).ok_or("is none of them")
    })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;
    use clap::error::ErrorKind;

    use super::*;

    fn parse(line: &str) -> Result<Command, clap::Error> {
        Cli::try_parse_from(line.split(' ')).map(|cli| cli.command)
    }

    fn refused(line: &str) -> (ErrorKind, i32) {
        let error = parse(line).expect_err("the line is accepted");
        (error.kind(), error.exit_code())
    }

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn run_takes_flags_in_the_form_of_the_documentation() {
        let line = "xdp-proxy run -i eth0 --mode native -vv --listen 192.0.2.1:80/tcp \
                    --backend 10.0.0.2 --backend 10.0.0.3:81,weight=2";
        let Ok(Command::Run(run)) = parse(line) else {
            panic!()
        };
        assert_eq!((run.verbose, run.quiet), (2, 0));
        let services = Services::Flags {
            listen: vec!["192.0.2.1:80/tcp".into()],
            backends: vec!["10.0.0.2".into(), "10.0.0.3:81,weight=2".into()],
        };
        let (interface, mode) = (Some("eth0".into()), Some(Mode::Native));
        assert_eq!(
            run.config.into_input(),
            Input {
                interface,
                mode,
                services
            }
        );
    }

    #[test]
    fn a_file_excludes_services_in_flags_but_not_interface_and_mode() {
        let Ok(Command::Check(check)) = parse("xdp-proxy check -c a.toml -i eth0 --mode auto")
        else {
            panic!()
        };
        assert_eq!(check.into_input().services, Services::File("a.toml".into()));
        for flag in ["--listen 192.0.2.1:80", "--backend 10.0.0.2"] {
            let line = format!("xdp-proxy run -c a.toml {flag}");
            assert_eq!(refused(&line), (ErrorKind::ArgumentConflict, 2));
        }
    }

    #[test]
    fn bad_usage_exits_with_2_and_shows_the_help_where_nothing_was_asked() {
        let nothing = ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand;
        assert_eq!(refused("xdp-proxy"), (nothing, 2));
        assert_eq!(
            refused("xdp-proxy run --mode fast"),
            (ErrorKind::InvalidValue, 2)
        );
        assert_eq!(refused("xdp-proxy top"), (ErrorKind::InvalidSubcommand, 2));
        assert_eq!(
            refused("xdp-proxy --version"),
            (ErrorKind::DisplayVersion, 0)
        );
    }

    #[test]
    fn every_help_has_an_example() {
        let command = Cli::command();
        for command in command.get_subcommands().chain([&command]) {
            let help = command
                .get_after_help()
                .map(ToString::to_string)
                .unwrap_or_default();
            assert!(help.contains("xdp-proxy "), "{}", command.get_name());
        }
    }

    #[test]
    fn status_drain_and_stop_take_an_interface() {
        let Ok(Command::Status(status)) = parse("xdp-proxy status -i eth0 --json") else {
            panic!()
        };
        assert_eq!(
            (status.interface.as_deref(), status.json),
            (Some("eth0"), true)
        );
        let Ok(Command::Undrain(undrain)) =
            parse("xdp-proxy undrain 10.0.0.2:80 --service web -i eth0")
        else {
            panic!()
        };
        assert_eq!(
            (&*undrain.backend, undrain.service.as_deref()),
            ("10.0.0.2:80", Some("web"))
        );
        assert_eq!(undrain.interface.interface.as_deref(), Some("eth0"));
        let Ok(Command::Stop(stop)) = parse("xdp-proxy stop") else {
            panic!()
        };
        assert_eq!(stop.interface, None);
    }
}
