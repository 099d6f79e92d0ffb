// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! Parse, dispatch, exit code: 0 done, 1 failed, 2 bad usage or configuration.

use std::io::{ErrorKind, Write as _};
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::MakeWriter as _;

use xdp_proxy::cli::{self, Cli, Command, ConfigArgs, DrainArgs, RunArgs};
use xdp_proxy::commands::Outcome;
use xdp_proxy::config::{self, ConfigError, HostPorts};
use xdp_proxy::log::Log;
use xdp_proxy::service::Config;
use xdp_proxy::terminal::printable;
use xdp_proxy::{commands, daemon, inspect};

fn main() -> ExitCode {
    let cli = match Cli::from_command_line() {
        Ok(cli) => cli,
        Err(code) => return code,
    };
    let mut log = None;
    let done = dispatch(cli.command, &mut log);
    let code = match &done {
        Ok(()) => 0,
        Err(error) if error.is::<ConfigError>() => 2,
        Err(_) => 1,
    };
    if let Err(error) = done {
        let line = format!("xdp-proxy: {error:#}\n");
        let line = printable(&line);
        // Nobody may read it any more; that is no reason to panic, or to wait.
        let _ = match &log {
            Some(log) => log.make_writer().write_all(line.as_bytes()),
            None => std::io::stderr().write_all(line.as_bytes()),
        };
    }
    if let Some(log) = log {
        log.end();
    }
    ExitCode::from(code)
}

/// Does the command. The daemon's log, if there is one, is to be ended.
fn dispatch(command: Command, log: &mut Option<Log>) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting the runtime")?;
    match command {
        Command::Run(args) => {
            let config = load(args.config.clone())?;
            log_to_stderr(&args, log)?;
            let manner = daemon::Manner {
                takes_over: args.take_over,
                persists: args.persist,
            };
            runtime.block_on(daemon::run(args.config.into_input(), config, manner))
        }
        Command::Check(args) => print(&commands::check(&load(args)?)?),
        Command::Status(args) => {
            let status = inspect::status(args.interface.as_deref(), args.json);
            tell(runtime.block_on(status)?)
        }
        Command::Flows(args) => {
            let filter = args.filter();
            let flows = inspect::flows(args.of.interface.as_deref(), args.of.json, &filter);
            tell(runtime.block_on(flows)?)
        }
        Command::Drain(args) => tell(drain(&args, true)?),
        Command::Undrain(args) => tell(drain(&args, false)?),
        Command::Reload(args) => tell(commands::reload(args.interface.as_deref())?),
        Command::Stop(args) => tell(runtime.block_on(commands::stop(args.interface.as_deref()))?),
        Command::Completions { shell } => print(&cli::completions(shell)),
        Command::Manual => print(&cli::manual()),
    }
}

fn drain(args: &DrainArgs, drains: bool) -> Result<Outcome> {
    let interface = args.interface.interface.as_deref();
    commands::drain(interface, &args.backend, args.service.as_deref(), drains)
}

fn load(args: ConfigArgs) -> Result<Config> {
    let host = HostPorts::read()?;
    Ok(config::load(&args.into_input(), &host)?)
}

/// What was done, and what was not.
fn tell(outcome: Outcome) -> Result<()> {
    print(&outcome.done)?;
    if !outcome.failures.is_empty() {
        bail!("{}", outcome.failures.join("; "));
    }
    Ok(())
}

/// Who has read enough, as `head` has, need not be told of the rest.
fn print(text: &str) -> Result<()> {
    match std::io::stdout().write_all(printable(text).as_bytes()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        written => written.context("writing to stdout"),
    }
}

fn log_to_stderr(args: &RunArgs, log: &mut Option<Log>) -> Result<()> {
    let level = match i16::from(args.verbose) - i16::from(args.quiet) {
        ..=-2 => LevelFilter::ERROR,
        -1 => LevelFilter::WARN,
        0 => LevelFilter::INFO,
        1 => LevelFilter::DEBUG,
        2.. => LevelFilter::TRACE,
    };
    let writer = log.insert(Log::begin().context("starting to log")?);
    tracing_subscriber::fmt()
        .with_writer(writer.clone())
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .with_target(false)
        // It would tell stderr that stderr can't be written to, and panic.
        .log_internal_errors(false)
        .with_max_level(level)
        .init();
    Ok(())
}
