//! The memory of a connection: an idle one compared with hyper alone, and one whose client does not read. Each server is a
//! separate process.

use std::{
    convert::Infallible,
    io::{BufRead, BufReader, Write},
    net::SocketAddr,
    process::{Child, Command, Stdio},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tower::service_fn;
use tower_drain::{ConnectionLimit, Drain, Http, Server};

use crate::support::{Client, GET};

const CONNECTIONS: usize = 10_000;

/// Not a test: the servers, with their role in the environment.
#[test]
#[ignore = "the program of the other test"]
fn program() {
    let Ok(kind) = std::env::var("TD_IDLE") else {
        return;
    };
    many_files();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(serve(&kind));
}

async fn serve(kind: &str) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    println!("TD {}", listener.local_addr().unwrap());
    let drain = Drain::builder().announce(Duration::ZERO).build();
    match kind {
        "ours" => {
            let limit =
                ConnectionLimit::new(std::num::NonZeroUsize::new(CONNECTIONS + 10).unwrap());
            let server = Server::new(&drain, listener)
                .limit(&limit)
                .run(Http::new(&drain, service_fn(hello)));
            let server = tokio::spawn(server);
            tell(|| drain.snapshot().guests);
            // All of them end: the waiting connections are woken at once.
            let start = tokio::time::Instant::now();
            drain.shutdown();
            let report = server.await.unwrap().unwrap();
            println!(
                "TD drained {} in {} ms",
                report.drained,
                start.elapsed().as_millis()
            );
        }
        "downloads" => {
            tokio::spawn(drain.serve(listener, service_fn(download)));
            tell(|| drain.snapshot().guests);
        }
        _ => {
            let app = hyper::service::service_fn(hello);
            tokio::spawn(async move {
                loop {
                    let (stream, _) = listener.accept().await.unwrap();
                    let mut http = hyper::server::conn::http1::Builder::new();
                    http.timer(TokioTimer::new());
                    tokio::spawn(
                        http.serve_connection(TokioIo::new(stream), app)
                            .with_upgrades(),
                    );
                }
            });
            tell(|| 0);
        }
    }
    std::io::stdout().flush().unwrap();
}

/// Prints its memory on each request.
fn tell(guests: impl Fn() -> usize) {
    for line in std::io::stdin().lines() {
        match line.unwrap().as_str() {
            "memory" => println!("TD {} {}", memory(), guests()),
            _ => return,
        }
    }
}

async fn hello<B>(_: Request<B>) -> Result<Response<Full<Bytes>>, Infallible> {
    // With a field, as every app's answer has: hyper keeps their map.
    let answer = Response::builder().header("content-type", "text/plain");
    Ok(answer
        .body(Full::new(Bytes::from_static(b"hello")))
        .unwrap())
}

/// 30 MB, created as they are read.
async fn download<B>(_: Request<B>) -> Result<Response<axum::body::Body>, Infallible> {
    let pieces = (0..960).map(|_| Ok::<_, Infallible>(Bytes::from(vec![1; 32 * 1024])));
    let pieces = futures_util::stream::iter(pieces);
    Ok(Response::new(axum::body::Body::from_stream(pieces)))
}

/// Resident bytes of this process.
fn memory() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .unwrap();
    line.trim()
        .trim_end_matches(" kB")
        .parse::<usize>()
        .unwrap()
        * 1024
}

fn many_files() {
    let hard = getrlimit(Resource::Nofile).maximum;
    setrlimit(
        Resource::Nofile,
        Rlimit {
            current: hard,
            maximum: hard,
        },
    )
    .unwrap();
}

struct Process {
    child: Child,
    out: BufReader<std::process::ChildStdout>,
}

impl Process {
    fn start(kind: &str) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args(["--exact", "idle::program", "--ignored", "--nocapture"])
            .env("TD_IDLE", kind);
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        Self { child, out }
    }

    fn hears(&mut self) -> String {
        loop {
            let mut line = String::new();
            assert!(self.out.read_line(&mut line).unwrap() > 0, "it ended");
            if let Some((_, said)) = line.split_once("TD ") {
                return said.trim().to_owned();
            }
        }
    }

    fn order(&mut self, order: &str) {
        writeln!(self.child.stdin.as_mut().unwrap(), "{order}").unwrap();
    }

    fn memory(&mut self) -> usize {
        self.order("memory");
        self.hears().split(' ').next().unwrap().parse().unwrap()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The memory of all sockets of this network.
fn kernel_memory() -> usize {
    let stat = std::fs::read_to_string("/proc/net/sockstat").unwrap();
    let tcp = stat.lines().find(|line| line.starts_with("TCP:")).unwrap();
    let pages = tcp.rsplit(' ').next().unwrap();
    pages.parse::<usize>().unwrap() * rustix::param::page_size()
}

async fn connect_all(addr: SocketAddr, count: usize) -> Vec<Client> {
    let mut clients = Vec::new();
    for _ in 0..count {
        let mut client = Client(TcpStream::connect(addr).await.unwrap());
        assert!(client.ask(GET).await.ok());
        clients.push(client);
    }
    clients
}

/// Bytes per idle connection that has had a request.
async fn measure(server: &mut Process) -> (usize, Vec<Client>) {
    let addr = server.hears().parse().unwrap();
    let warm = connect_all(addr, 100).await;
    let before = server.memory();
    let mut clients = connect_all(addr, CONNECTIONS - warm.len()).await;
    let after = server.memory();
    let each = (after - before) / clients.len();
    clients.extend(warm);
    (each, clients)
}

#[tokio::test]
async fn a_thousand_clients_that_read_nothing_cost_a_quarter_of_a_megabyte_each() {
    const CLIENTS: usize = 1000;
    many_files();
    let mut server = Process::start("downloads");
    let addr: SocketAddr = server.hears().parse().unwrap();
    let (before, kernel_before) = (server.memory(), kernel_memory());
    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        let socket = TcpSocket::new_v4().unwrap();
        // The client's own kernel memory is not a cost of the server.
        socket.set_recv_buffer_size(4096).unwrap();
        let mut client = Client(socket.connect(addr).await.unwrap());
        client.send(GET).await;
        clients.push(client);
    }
    // Until it writes no more.
    let mut last = 0;
    while server.memory() != std::mem::replace(&mut last, server.memory()) {
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    let each = (last - before) / CLIENTS / 1024;
    let kernel = kernel_memory().saturating_sub(kernel_before) / CLIENTS / 1024;
    eprintln!("KiB per client that reads nothing: {each}, and {kernel} in the kernel");
    assert!(each + kernel <= 250, "{each} + {kernel} KiB");
}

#[tokio::test]
#[ignore = "20 000 sockets"]
async fn ten_thousand_idle_connections_cost_what_hyper_costs_and_drain_at_once() {
    if !testkit::alone(
        "idle::ten_thousand_idle_connections_cost_what_hyper_costs_and_drain_at_once",
    ) {
        return;
    }
    many_files();
    let (bare, clients) = measure(&mut Process::start("bare")).await;
    drop(clients);
    let mut server = Process::start("ours");
    let (ours, clients) = measure(&mut server).await;
    eprintln!("bytes per idle connection: {ours}, hyper alone {bare}");
    server.order("drain");
    // All of them are woken, and all of them end.
    let closing: Vec<_> = clients
        .into_iter()
        .map(|mut client| tokio::spawn(async move { client.is_closed().await }))
        .collect();
    for closed in closing {
        assert!(closed.await.unwrap());
    }
    eprintln!("{}", server.hears());
    // The addresses and extensions that each request gets, the watch for the peer's end, clocks and counts: some 740 bytes.
    assert!(
        ours * 100 <= bare * 108,
        "{ours} bytes, more than 8 % above {bare}"
    );
}
