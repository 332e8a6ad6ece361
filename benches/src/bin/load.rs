//! A closed-loop HTTP client with a bounded number of requests, for loopback only.
//!
//! Each connection (each stream, with `--h2`) has one request in flight and sends the next when the answer has been
//! read to its end. The number of requests and the time are both bounded; it stops by itself. Exit code 1 if any
//! request failed.
#![forbid(unsafe_code)]

use std::{collections::BTreeMap, fmt, io, net::SocketAddr, process::ExitCode, time::Duration};

use bytes::Bytes;
use clap::Parser;
use http_body_util::{BodyExt, Empty};
use hyper::{
    Request, StatusCode,
    body::Incoming,
    client::conn::{http1, http2},
    header::HOST,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    net::TcpStream,
    task::JoinSet,
    time::{Instant, timeout},
};
use tower_benches::rig;

/// A closed-loop HTTP client with a bounded number of requests, for loopback only.
#[derive(Clone, Debug, Parser)]
struct Args {
    /// Where to send the requests: an address of this machine's loopback interface
    #[arg(long, value_parser = loopback)]
    addr: SocketAddr,
    /// How many requests to send, over all connections
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    requests: u32,
    /// How many connections to keep open
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    connections: u32,
    /// HTTP/2 without TLS, by prior knowledge
    #[arg(long)]
    h2: bool,
    /// How many requests each HTTP/2 connection carries at once
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000), requires = "h2")]
    streams: u32,
    /// Path of every request
    #[arg(long, default_value = "/")]
    path: String,
    /// Seconds after which it stops, wherever it is
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,
}

/// One sender of requests: a connection, or a stream of one.
struct Lane {
    args: Args,
    wire: Option<Wire>,
    tally: Tally,
}

enum Wire {
    Http1(http1::SendRequest<Empty<Bytes>>),
    Http2(http2::SendRequest<Empty<Bytes>>),
}

/// Why a request failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Failure {
    Connect,
    Send,
    Body,
    Timeout,
    Status(StatusCode),
}

#[derive(Default)]
struct Tally {
    micros: Vec<u32>,
    failures: BTreeMap<Failure, u32>,
    connections: u32,
}

fn main() -> io::Result<ExitCode> {
    let args = Args::parse();
    let begun = Instant::now();
    let mut tally = rig::runtime()?.block_on(run(&args));
    tally.print(args.requests, begun.elapsed());
    Ok(if tally.is_clean(args.requests) {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Opens all connections first, so that none of them is part of another's latency.
async fn run(args: &Args) -> Tally {
    let mut lanes = Vec::new();
    for _ in 0..args.connections {
        lanes.extend(Lane::open(args).await);
    }
    let end = Instant::now() + Duration::from_secs(args.seconds);
    let count = u32::try_from(lanes.len()).expect("ten million at most");
    let mut running = JoinSet::new();
    for (index, lane) in (0..).zip(lanes) {
        running.spawn(lane.run(share(args.requests, count, index), end));
    }
    running
        .join_all()
        .await
        .into_iter()
        .fold(Tally::default(), Tally::and)
}

/// The part of `all` that falls to one of `count`, as even as whole numbers allow.
fn share(all: u32, count: u32, index: u32) -> u32 {
    all / count + u32::from(index < all % count)
}

fn loopback(text: &str) -> Result<SocketAddr, String> {
    let addr: SocketAddr = text
        .parse()
        .map_err(|error: std::net::AddrParseError| error.to_string())?;
    if !addr.ip().is_loopback() {
        return Err("not an address of the loopback interface: load goes nowhere else".into());
    }
    Ok(addr)
}

// === impl Lane ===

impl Lane {
    /// The lanes of one connection. One that cannot be opened is tried again, and counted, with the first request.
    async fn open(args: &Args) -> Vec<Self> {
        let lane = |wire, connections| {
            let tally = Tally {
                connections,
                ..Tally::default()
            };
            Self {
                args: args.clone(),
                wire,
                tally,
            }
        };
        match Wire::open(args).await {
            Ok(Wire::Http2(sender)) => (0..args.streams)
                .map(|stream| lane(Some(Wire::Http2(sender.clone())), u32::from(stream == 0)))
                .collect(),
            Ok(wire) => vec![lane(Some(wire), 1)],
            Err(_) => vec![lane(None, 0)],
        }
    }

    async fn run(mut self, requests: u32, end: Instant) -> Tally {
        for _ in 0..requests {
            let begun = Instant::now();
            if begun >= end {
                break;
            }
            match timeout(REQUEST_TIMEOUT, self.request())
                .await
                .unwrap_or(Err(Failure::Timeout))
            {
                Ok(()) => self
                    .tally
                    .micros
                    .push(begun.elapsed().as_micros().try_into().unwrap_or(u32::MAX)),
                Err(failure) => {
                    *self.tally.failures.entry(failure).or_default() += 1;
                    self.wire = self
                        .wire
                        .take()
                        .filter(|_| matches!(failure, Failure::Status(_)));
                }
            }
        }
        self.tally
    }

    /// One request, its answer read to the end. A connection that was closed meanwhile is opened anew.
    async fn request(&mut self) -> Result<(), Failure> {
        let mut wire = match self.wire.take().filter(|wire| !wire.is_closed()) {
            Some(wire) => wire,
            None => {
                self.tally.connections += 1;
                Wire::open(&self.args).await.map_err(|_| Failure::Connect)?
            }
        };
        let response = wire.send(&self.args).await.map_err(|_| Failure::Send)?;
        let status = response.status();
        let mut body = response.into_body();
        while let Some(frame) = body.frame().await {
            frame.map_err(|_| Failure::Body)?;
        }
        self.wire = Some(wire);
        if status.is_success() {
            Ok(())
        } else {
            Err(Failure::Status(status))
        }
    }
}

/// Longer than any answer takes, so that a proxy that hangs is found.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

// === impl Wire ===

impl Wire {
    async fn open(args: &Args) -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
        let stream = TcpStream::connect(args.addr).await?;
        stream.set_nodelay(true)?;
        let io = TokioIo::new(stream);
        if args.h2 {
            let (sender, connection) = http2::handshake(TokioExecutor::new(), io).await?;
            tokio::spawn(connection);
            return Ok(Self::Http2(sender));
        }
        let (sender, connection) = http1::handshake(io).await?;
        tokio::spawn(connection);
        Ok(Self::Http1(sender))
    }

    fn is_closed(&self) -> bool {
        match self {
            Self::Http1(sender) => sender.is_closed(),
            Self::Http2(sender) => sender.is_closed(),
        }
    }

    async fn send(&mut self, args: &Args) -> hyper::Result<hyper::Response<Incoming>> {
        let Args { addr, path, .. } = args;
        match self {
            Self::Http1(sender) => {
                let request = Request::get(path)
                    .header(HOST, addr.to_string())
                    .body(Empty::new());
                sender.ready().await?;
                sender.send_request(request.expect("a path")).await
            }
            Self::Http2(sender) => {
                let request = Request::get(format!("http://{addr}{path}")).body(Empty::new());
                sender.ready().await?;
                sender.send_request(request.expect("a path")).await
            }
        }
    }
}

// === impl Tally ===

impl Tally {
    fn and(mut self, other: Self) -> Self {
        self.micros.extend(other.micros);
        for (failure, count) in other.failures {
            *self.failures.entry(failure).or_default() += count;
        }
        self.connections += other.connections;
        self
    }

    fn is_clean(&self, asked: u32) -> bool {
        self.micros.len() == asked as usize
    }

    /// One `name value` a line, for people and for programs.
    fn print(&mut self, asked: u32, elapsed: Duration) {
        self.micros.sort_unstable();
        let ok = self.micros.len();
        let failed: u32 = self.failures.values().sum();
        println!("requests {}", ok + failed as usize);
        println!("ok {ok}");
        println!("errors {failed}");
        for (failure, count) in &self.failures {
            println!("error {failure} {count}");
        }
        println!("unsent {}", asked as usize - ok - failed as usize);
        println!("connections {}", self.connections);
        println!("p50_us {}", self.percentile(50));
        println!("p99_us {}", self.percentile(99));
        println!("elapsed_s {:.3}", elapsed.as_secs_f64());
        println!("per_second {:.0}", ok as f64 / elapsed.as_secs_f64());
    }

    /// The latency that `percent` of the answered requests did not exceed; 0 if none was answered.
    fn percentile(&self, percent: usize) -> u32 {
        let rank = (self.micros.len() * percent).div_ceil(100);
        rank.checked_sub(1).map_or(0, |index| self.micros[index])
    }
}

// === impl Failure ===

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connect => f.write_str("connect"),
            Self::Send => f.write_str("send"),
            Self::Body => f.write_str("body"),
            Self::Timeout => f.write_str("timeout"),
            Self::Status(status) => write!(f, "status-{}", status.as_u16()),
        }
    }
}
