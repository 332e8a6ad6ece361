//! The gateway: the layers of this workspace, composed before replicas that serve only while they hold a lease.
//!
//! Run with `cargo run --release -p gateway`, or with `--config FILE` in front of your backends.
#![forbid(unsafe_code)]

mod admin;
mod answer;
mod config;
mod demo;
mod forward;
mod gateway;
mod head;
mod metrics;
mod records;
mod upgrade;

use std::{
    fmt::Display,
    io::{self, IsTerminal, Write},
    net::SocketAddr,
    path::PathBuf,
    process::ExitCode,
};

use clap::Parser;
use tower_drain::{BoundListener, Drain, ListenerConfig};

use crate::{
    config::{Config, Own},
    demo::Demo,
};

/// An API gateway: per-client limits, circuits, failover and a drain without lost requests.
///
/// Without --config it runs a demo: three replicas on leases, on loopback.
/// Exit codes: 0 drained; 1 could not run; 2 wrong configuration; 3 ended by force, something was cut.
#[derive(Debug, Parser)]
#[command(name = "gateway", version)]
struct Arguments {
    /// The configuration: a TOML file that names the backends
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where clients connect, instead of the address in the configuration
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<SocketAddr>,
    /// Where operators connect, instead of the address in the configuration
    #[arg(long, value_name = "ADDRESS")]
    admin: Option<SocketAddr>,
    /// Check the configuration and end
    #[arg(long, requires = "config")]
    check: bool,
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    // A demo has five listeners, and prints their addresses.
    let events = if arguments.config.is_some() {
        "info"
    } else {
        "info,tower_drain::server=warn"
    };
    let filter =
        tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| events.into());
    let colours = std::io::stderr().is_terminal();
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(colours)
        .with_writer(std::io::stderr)
        .init();
    let own = Own {
        listen: arguments.listen,
        admin: arguments.admin,
    };
    let config = match &arguments.config {
        Some(file) => match Config::load(file, own) {
            Ok(config) => config,
            Err(invalid) => {
                eprintln!("{invalid}");
                return ExitCode::from(WRONG_CONFIGURATION);
            }
        },
        None => Config::demo(),
    };
    if arguments.check {
        say("the configuration is right");
        return ExitCode::SUCCESS;
    }
    match run(arguments, config).await {
        Ok(code) => code,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: Arguments, config: Config) -> Result<ExitCode, String> {
    let demo = arguments.config.is_none();
    // A demo must start wherever it is tried; a configured address is meant.
    let (listener, admin) = (
        bind(
            arguments.listen.unwrap_or(config.listen),
            demo && arguments.listen.is_none(),
        )?,
        bind(
            arguments.admin.unwrap_or(config.admin),
            demo && arguments.admin.is_none(),
        )?,
    );
    let demo = if demo {
        Some(Demo::start().await?)
    } else {
        None
    };
    let drain = gateway::drain(&config);
    // Before the addresses are printed, so that from then on a signal drains.
    let signals = tokio::spawn(drain.on_signals());
    #[cfg(unix)]
    let hangups = tokio::spawn(hangups(drain.clone(), demo.is_some())?);
    tell(&listener, &admin, demo.as_ref())?;
    let code = gateway::run(&config, drain, listener, admin, demo).await;
    signals.abort();
    #[cfg(unix)]
    hangups.abort();
    Ok(code)
}

/// SIGHUP would end the process at once. To a daemon it means that its configuration has changed, which this version does
/// not follow: it goes on. A demo's terminal has been closed: it drains.
#[cfg(unix)]
fn hangups(drain: Drain, is_demo: bool) -> Result<impl Future<Output = ()>, String> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut hangups =
        signal(SignalKind::hangup()).map_err(|error| format!("cannot handle SIGHUP: {error}"))?;
    Ok(async move {
        while hangups.recv().await.is_some() {
            if is_demo {
                drain.begin_drain();
            } else {
                tracing::warn!("SIGHUP ignored: restart to apply a changed configuration");
            }
        }
    })
}

/// Binds `address`; if it is taken and `or_next`, one of the next ports.
fn bind(address: SocketAddr, or_next: bool) -> Result<BoundListener, String> {
    let mut next = address;
    let next_port = |port: u16| {
        port.checked_add(1)
            .filter(|port| *port <= address.port().saturating_add(PORTS))
    };
    loop {
        match ListenerConfig::new().bind(next) {
            Ok(listener) => return Ok(listener),
            Err(error) => match next_port(next.port()) {
                Some(port) if or_next && error.kind() == io::ErrorKind::AddrInUse => {
                    next.set_port(port)
                }
                _ => {
                    return Err(format!(
                        "cannot listen on {next}: {error}; {}",
                        instead(&error)
                    ));
                }
            },
        }
    }
}

fn instead(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => "stop what uses it, or give another address",
        io::ErrorKind::PermissionDenied => "give a port from 1024 on, or the right to use this one",
        _ => "give an address of this machine",
    }
}

/// Prints a line. A closed output is ignored.
fn say(text: impl Display) {
    let _ = writeln!(io::stdout(), "{text}");
}

/// Prints the addresses and what to try.
fn tell(
    listener: &BoundListener,
    admin: &BoundListener,
    demo: Option<&Demo>,
) -> Result<(), String> {
    let address =
        |listener: &BoundListener| listener.local_addr().map_err(|error| error.to_string());
    let (gateway, admin) = (address(listener)?, address(admin)?);
    if let Some(demo) = demo {
        say("Three replicas, each serving only while it holds its lease:");
        for (name, address, token) in demo.replicas() {
            say(format_args!(
                "  {name}  http://{address}  fencing token {token}"
            ));
        }
    }
    say(format_args!("gateway listening on http://{gateway}"));
    say(format_args!("admin listening on http://{admin}"));
    if demo.is_some() {
        // The commands stand by themselves, so that a line can be copied as it is.
        say(format_args!(
            "
Try, in another terminal:
  Which replica answers, and with which token:
    curl http://{gateway}/
  Kill one, then ask again: no request fails (/revive brings it back):
    curl -X POST http://{admin}/replicas/echo-2/kill
  Endpoints, leases, generation, circuits:
    curl http://{admin}/topology
  The limit of each client, 50 a second: 429
    curl -so /dev/null -w '%{{http_code}}\\n' 'http://{gateway}/?[1-300]' | sort | uniq -c

Ctrl-C drains for 5 s and ends; a second one forces."
        ));
    }
    Ok(())
}

const WRONG_CONFIGURATION: u8 = 2;
/// How many ports after the usual one a demo tries.
const PORTS: u16 = 100;
