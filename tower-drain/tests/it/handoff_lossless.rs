//! Which connections and requests are lost when a process is replaced, with real processes and the kernel's counter of
//! resets, each test in a separate network. Every test has a negative control that loses some, or it would prove nothing.

use std::{
    io::{BufRead, BufReader, Write},
    net::SocketAddr,
    path::PathBuf,
    pin::Pin,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::{
    Router,
    body::{Body, Bytes},
    response::Response,
    routing::{get, post},
};
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};
use tower_drain::{
    Drain, ListenerConfig, Server,
    handoff::{Handoff, ReusePortListener},
};

use crate::support::{Client, GET, defer_accept, ms, soon};

const ADDR: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 18080);

/// Runs `test` again in a separate network; `true` if this is one already.
fn in_network(test: &str) -> bool {
    if std::env::var_os("TD_NETWORK").is_some() {
        return true;
    }
    let up = "ip link set lo up && echo 8192 > /proc/sys/net/core/somaxconn; exec \"$@\"";
    let user: &[&str] = if rustix::process::geteuid().is_root() {
        &[]
    } else {
        &["--map-root-user"]
    };
    let test = format!("handoff_lossless::{test}");
    let mut again = Command::new("unshare");
    again
        .args(user)
        .args(["--net", "--mount", "sh", "-c", up, "sh"])
        .arg(std::env::current_exe().unwrap())
        .args([
            "--exact",
            &test,
            "--ignored",
            "--nocapture",
            "--test-threads=1",
        ])
        .env("TD_NETWORK", "1");
    testkit::passes(&test, &mut again);
    false
}

fn run<F: Future<Output = ()>>(test: &str, body: impl FnOnce() -> F) {
    if in_network(test) {
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap()
            .block_on(body());
    }
}

/// A line of the kernel's counters.
fn counter(file: &str, group: &str, name: &str) -> u64 {
    let text = std::fs::read_to_string(file).unwrap();
    let mut lines = text
        .lines()
        .filter(|line| line.starts_with(&format!("{group}:")));
    let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
    let index = names
        .split_whitespace()
        .position(|other| other == name)
        .unwrap();
    values
        .split_whitespace()
        .nth(index)
        .unwrap()
        .parse()
        .unwrap()
}

fn resets() -> u64 {
    counter("/proc/self/net/snmp", "Tcp", "OutRsts")
}

/// Connections that the kernel had no room for.
fn dropped() -> u64 {
    ["ListenDrops", "ListenOverflows"]
        .map(|name| counter("/proc/self/net/netstat", "TcpExt", name))
        .iter()
        .sum()
}

// === the program ===

/// Not a test: the program that the tests start, with its role in the environment.
#[test]
#[ignore = "the program of the other tests"]
fn program() {
    let Ok(mode) = std::env::var("TD_MODE") else {
        return;
    };
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap()
        .block_on(serve(&mode));
}

async fn serve(mode: &str) {
    let drain = Drain::builder()
        .announce(ms(0))
        .close(Duration::from_secs(15))
        .force(ms(500))
        .build();
    let name = std::env::var("TD_NAME").unwrap();
    let mut orders = tokio::io::BufReader::new(tokio::io::stdin()).lines();
    let config = ListenerConfig::new()
        .reuse_port(mode != "handoff")
        .backlog(4096);
    let server = if mode == "handoff" {
        let path = PathBuf::from(std::env::var("TD_PATH").unwrap());
        let probation = ms(std::env::var("TD_PROBATION").unwrap().parse().unwrap());
        let mut inheritance = Handoff::at(path)
            .probation(probation)
            .inherit()
            .await
            .unwrap();
        say("pulled");
        if std::env::var_os("TD_WAIT").is_some() {
            orders.next_line().await.unwrap();
        }
        let listener = inheritance.tcp("http", ADDR, &config).unwrap();
        // It accepts before it reports that.
        let server = tokio::spawn(Server::new(&drain, listener).serve(app(&name)));
        let incumbent = inheritance.ready().await.unwrap();
        tokio::spawn(incumbent.serve(drain.clone()));
        server
    } else {
        let listener = config.listen(ADDR).unwrap();
        if std::env::var_os("TD_DEFER").is_some() {
            defer_accept(&listener);
        }
        let listener = TcpListener::from_std(listener).unwrap();
        match mode {
            "steer" => tokio::spawn(
                Server::new(&drain, ReusePortListener::new(listener, 2)).serve(app(&name)),
            ),
            _ => tokio::spawn(Server::new(&drain, listener).serve(app(&name))),
        }
    };
    say("ready");
    let leave = drain.clone();
    tokio::spawn(async move {
        while let Ok(Some(order)) = orders.next_line().await {
            if order == "leave" {
                leave.shutdown();
            }
        }
    });
    let report = server.await.unwrap().unwrap();
    say(&format!("done {report}"));
    // Not `exit`: the process ends normally.
}

fn say(line: &str) {
    println!("TD {line}");
    std::io::stdout().flush().unwrap();
}

fn app(name: &str) -> Router {
    let name: &'static str = Box::leak(name.to_owned().into_boxed_str());
    async fn upload(body: Bytes) -> String {
        body.len().to_string()
    }
    async fn events() -> Body {
        let events = futures_util::stream::unfold(0, |count| async move {
            sleep(ms(20)).await;
            (count < 20).then_some((
                Ok::<_, std::io::Error>(Bytes::from_static(b"data: x\n\n")),
                count + 1,
            ))
        });
        Body::from_stream(events)
    }
    async fn upgrade(mut request: axum::extract::Request) -> Response {
        let upgraded = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            let mut io = TokioIo::new(upgraded.await.unwrap());
            let mut bytes = [0; 64];
            while let Ok(read @ 1..) = io.read(&mut bytes).await {
                if io.write_all(&bytes[..read]).await.is_err() {
                    break;
                }
            }
        });
        let response = Response::builder()
            .status(101)
            .header("connection", "upgrade")
            .header("upgrade", "echo");
        response.body(Body::empty()).unwrap()
    }
    Router::new()
        .route("/", get(move || async move { name }))
        .route("/upload", post(upload))
        .route("/events", get(events))
        .route("/echo", get(upgrade))
}

// === the harness ===

/// A program that runs.
struct Process {
    child: Child,
    out: BufReader<std::process::ChildStdout>,
}

#[derive(Clone)]
struct Place(Arc<PathBuf>);

impl Place {
    fn new(test: &str) -> Self {
        let path = std::env::temp_dir().join(format!("tower-drain-{test}-{}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        Self(Arc::new(path))
    }

    fn handoff(&self, name: &str, probation: u64) -> Command {
        let mut command = Process::command("handoff", name);
        command
            .env("TD_PATH", self.0.as_path())
            .env("TD_PROBATION", probation.to_string());
        command
    }
}

impl Place {
    /// As [`handoff`](Self::handoff), with a socket by `LISTEN_FDS`.
    fn activated(&self, name: &str, probation: u64, listener: std::net::TcpListener) -> Command {
        self.activated_as(
            "LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=http",
            name,
            probation,
            listener,
        )
    }

    /// The socket is descriptor 4, and 3 is nothing that one can listen to.
    fn activated_as(
        &self,
        words: &str,
        name: &str,
        probation: u64,
        listener: std::net::TcpListener,
    ) -> Command {
        let program = self.handoff(name, probation);
        let fds = if words.contains("LISTEN_FDS=1") {
            "3<&0"
        } else {
            "3</dev/null 4<&0"
        };
        let script = format!("export {words}; exec \"$@\" {fds} </dev/null");
        let mut command = Command::new("sh");
        command
            .args(["-c", &script, "sh"])
            .arg(program.get_program())
            .args(program.get_args());
        command.envs(
            program
                .get_envs()
                .filter_map(|(name, value)| Some((name, value?))),
        );
        command
            .stdin(Stdio::from(std::os::fd::OwnedFd::from(listener)))
            .stdout(Stdio::piped());
        command
    }
}

impl Process {
    fn command(mode: &str, name: &str) -> Command {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args([
                "--exact",
                "handoff_lossless::program",
                "--ignored",
                "--nocapture",
            ])
            .env("TD_MODE", mode)
            .env("TD_NAME", name);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        command
    }

    fn start(command: &mut Command) -> Self {
        let mut child = command.spawn().unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        Self { child, out }
    }

    fn started(command: &mut Command) -> Self {
        let mut process = Self::start(command);
        process.hears("ready");
        process
    }

    /// Reads its output until this word.
    fn hears(&mut self, word: &str) -> String {
        loop {
            let mut line = String::new();
            assert!(
                self.out.read_line(&mut line).unwrap() > 0,
                "it ended before it printed {word}"
            );
            // libtest writes the test's name before our first line, and no newline.
            if let Some(at) = line.find(&format!("TD {word}")) {
                return line[at..].trim().to_owned();
            }
        }
    }

    fn order(&mut self, order: &str) {
        writeln!(self.child.stdin.as_mut().unwrap(), "{order}").unwrap();
    }

    /// A signal takes its time: a process that is to be stopped is stopped when this returns.
    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
        while signal == Signal::STOP && !self.is_stopped() {
            std::thread::yield_now();
        }
    }

    fn is_stopped(&self) -> bool {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.child.id())).unwrap();
        tasks.flatten().all(|task| {
            let stat = std::fs::read_to_string(task.path().join("stat")).unwrap_or_default();
            stat.rsplit(") ")
                .next()
                .is_some_and(|rest| rest.starts_with('T'))
        })
    }

    /// Kills it, and waits until its descriptors are closed.
    fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Waits for it to end by itself, off the runtime's threads.
    async fn ended(mut self) -> String {
        let end = tokio::task::spawn_blocking(move || {
            let report = self.hears("done");
            self.child.wait().unwrap();
            report
        });
        timeout(Duration::from_secs(40), end)
            .await
            .expect("ends")
            .unwrap()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn connect_all(count: usize) -> Vec<Client> {
    let mut clients = Vec::new();
    for _ in 0..count {
        clients.push(Client(soon(TcpStream::connect(ADDR)).await.unwrap()));
    }
    clients
}

/// How many of them are not answered.
async fn ask_all(clients: Vec<Client>) -> usize {
    let asking: Vec<_> = clients
        .into_iter()
        .map(|client| tokio::spawn(ask(client)))
        .collect();
    let mut lost = 0;
    for answered in asking {
        lost += usize::from(!answered.await.unwrap());
    }
    lost
}

async fn ask(mut client: Client) -> bool {
    let mut answer = Vec::new();
    let asked = client
        .0
        .write_all(b"GET / HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n")
        .await;
    let read = timeout(Duration::from_secs(20), client.0.read_to_end(&mut answer)).await;
    asked.is_ok() && matches!(read, Ok(Ok(_))) && answer.starts_with(b"HTTP/1.1 200 ")
}

// === the tests ===

#[test]
#[ignore = "needs a network namespace"]
fn queued_connections_are_served_by_the_new_one() {
    run("queued_connections_are_served_by_the_new_one", || async {
        let place = Place::new("queue");
        let old = Process::started(&mut place.handoff("old", 200));
        let mut new = Process::start(place.handoff("new", 200).env("TD_WAIT", "1"));
        new.hears("pulled");
        old.signal(Signal::STOP);
        let before = resets();
        let clients = connect_all(200).await;
        new.order("go");
        new.hears("ready");
        assert_eq!(ask_all(clients).await, 0);
        assert_eq!(resets() - before, 0);
        old.signal(Signal::CONT);
        assert!(old.ended().await.contains("0 forced"));
    });
}

#[test]
#[ignore = "needs a network namespace"]
fn the_control_of_the_queue_loses_queued_connections() {
    run(
        "the_control_of_the_queue_loses_queued_connections",
        || async {
            let old = Process::started(&mut Process::command("reuse", "old"));
            old.signal(Signal::STOP);
            let _new = Process::started(&mut Process::command("reuse", "new"));
            let before = resets();
            let clients = connect_all(200).await;
            old.kill();
            let lost = ask_all(clients).await;
            assert!(
                (50..150).contains(&lost),
                "{lost} of 200 lost; about half were in the queue that is gone"
            );
            assert!(resets() - before >= lost as u64);
        },
    );
}

#[test]
#[ignore = "needs a network namespace"]
fn half_open_connections_outlive_a_handoff() {
    run("half_open_connections_outlive_a_handoff", || async {
        let place = Place::new("half-open");
        // The first process has its socket from the environment, as systemd gives it.
        let listener = ListenerConfig::new().listen(ADDR).unwrap();
        listener.set_nonblocking(false).unwrap();
        defer_accept(&listener);
        let old = Process::started(&mut place.activated("old", 200, listener));
        let before = resets();
        let clients = connect_all(100).await;
        let _new = Process::started(&mut place.handoff("new", 200));
        old.ended().await;
        assert_eq!(ask_all(clients).await, 0);
        assert_eq!(resets() - before, 0);
    });
}

/// Passes a socket in the environment, at a separate port, and returns the port that responds.
async fn activated(words: &str) -> u16 {
    let place = Place::new("environment");
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let given = listener.local_addr().unwrap();
    let _process = Process::started(&mut place.activated_as(words, "one", 200, listener));
    for addr in [ADDR, given] {
        if let Ok(Ok(stream)) = timeout(ms(500), TcpStream::connect(addr)).await
            && timeout(ms(500), ask(Client(stream))).await == Ok(true)
        {
            return addr.port();
        }
    }
    panic!("no response");
}

#[test]
#[ignore = "needs a network namespace"]
fn the_environment_gives_a_socket_by_its_name_and_to_its_own_process_alone() {
    run(
        "the_environment_gives_a_socket_by_its_name_and_to_its_own_process_alone",
        || async {
            let bound = ADDR.port();
            assert_ne!(
                activated("LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=http").await,
                bound
            );
            assert_eq!(
                activated("LISTEN_PID=1 LISTEN_FDS=1 LISTEN_FDNAMES=http").await,
                bound,
                "it is another's"
            );
            assert_ne!(
                activated("LISTEN_PID=$$ LISTEN_FDS=2 LISTEN_FDNAMES=log:http").await,
                bound,
                "the second one"
            );
        },
    );
}

#[test]
#[ignore = "needs a network namespace"]
fn half_open_connections_are_waited_for_when_steering() {
    run(
        "half_open_connections_are_waited_for_when_steering",
        || async {
            let mut old = Process::started(Process::command("steer", "old").env("TD_DEFER", "1"));
            let before = resets();
            let clients = connect_all(100).await;
            let _new = Process::started(&mut Process::command("reuse", "new"));
            old.order("leave");
            sleep(ms(500)).await;
            let fresh = connect_all(100).await;
            assert_eq!(ask_all(fresh).await, 0, "new ones go to the new process");
            assert_eq!(ask_all(clients).await, 0);
            old.ended().await;
            assert_eq!(resets() - before, 0);
        },
    );
}

#[test]
#[ignore = "needs a network namespace"]
fn the_control_of_half_open_connections_loses_them_all() {
    run(
        "the_control_of_half_open_connections_loses_them_all",
        || async {
            let mut old = Process::started(Process::command("reuse", "old").env("TD_DEFER", "1"));
            let clients = connect_all(100).await;
            let _new = Process::started(&mut Process::command("reuse", "new"));
            old.order("leave");
            old.ended().await;
            assert_eq!(ask_all(clients).await, 100);
        },
    );
}

#[test]
#[ignore = "needs a network namespace"]
fn a_new_one_that_is_killed_before_it_is_ready_loses_no_connection() {
    run(
        "a_new_one_that_is_killed_before_it_is_ready_loses_no_connection",
        || async {
            let place = Place::new("stillborn");
            let _old = Process::started(&mut place.handoff("old", 60_000));
            let mut new = Process::start(place.handoff("new", 60_000).env("TD_WAIT", "1"));
            new.hears("pulled");
            let before = resets();
            let clients = connect_all(100).await;
            new.kill();
            assert_eq!(ask_all(clients).await, 0);
            assert_eq!(ask_all(connect_all(100).await).await, 0);
            assert_eq!(resets() - before, 0);
        },
    );
}

#[test]
#[ignore = "needs a network namespace"]
fn a_new_one_that_is_killed_in_its_probation_loses_no_queued_connection() {
    run(
        "a_new_one_that_is_killed_in_its_probation_loses_no_queued_connection",
        || async {
            let place = Place::new("crash");
            let _old = Process::started(&mut place.handoff("old", 60_000));
            let new = Process::started(&mut place.handoff("new", 60_000));
            sleep(ms(100)).await;
            // It hangs, so no process accepts; then it dies.
            new.signal(Signal::STOP);
            let before = resets();
            let clients = connect_all(100).await;
            new.kill();
            assert_eq!(ask_all(clients).await, 0, "the old one took the queue back");
            assert_eq!(resets() - before, 0);
        },
    );
}

#[test]
#[ignore = "needs a network namespace"]
fn an_old_one_that_is_killed_after_the_new_one_is_ready_loses_no_queued_connection() {
    run(
        "an_old_one_that_is_killed_after_the_new_one_is_ready_loses_no_queued_connection",
        || async {
            let place = Place::new("widow");
            let old = Process::started(&mut place.handoff("old", 60_000));
            let new = Process::started(&mut place.handoff("new", 60_000));
            sleep(ms(100)).await;
            new.signal(Signal::STOP);
            let before = resets();
            let clients = connect_all(100).await;
            old.kill();
            new.signal(Signal::CONT);
            assert_eq!(ask_all(clients).await, 0);
            assert_eq!(resets() - before, 0);
        },
    );
}

// === under load ===

/// The results of the load.
#[derive(Debug, Default)]
struct Tally {
    fresh: AtomicUsize,
    kept: AtomicUsize,
    told: AtomicUsize,
    http2: AtomicUsize,
    /// Not processed, which the client knows: it repeats them.
    refused: AtomicUsize,
    tunnels: AtomicUsize,
    uploads: AtomicUsize,
    events: AtomicUsize,
    lost: AtomicUsize,
    stop: AtomicBool,
}

impl Tally {
    fn count(&self, counter: &AtomicUsize, outcome: Result<(), String>) {
        match outcome {
            Ok(()) => counter.fetch_add(1, SeqCst),
            Err(error) => {
                eprintln!("lost: {error}");
                self.lost.fetch_add(1, SeqCst)
            }
        };
    }

    fn goes_on(&self) -> bool {
        !self.stop.load(SeqCst)
    }
}

/// A new connection every 5 ms, independent of earlier ones.
async fn fresh(tally: Arc<Tally>) {
    let mut asking = Vec::new();
    let mut next = Instant::now();
    while tally.goes_on() {
        next += ms(5);
        tokio::time::sleep_until(next).await;
        let tally = tally.clone();
        asking.push(tokio::spawn(async move {
            let outcome = match TcpStream::connect(ADDR).await {
                Ok(stream) => ask(Client(stream))
                    .await
                    .then_some(())
                    .ok_or_else(|| "fresh: no answer".to_owned()),
                Err(error) => Err(format!("fresh: {error}")),
            };
            tally.count(&tally.fresh, outcome);
        }));
    }
    for asked in asking {
        asked.await.unwrap();
    }
}

/// A kept connection, with a pause between two requests. It may end only after a response with `close`.
async fn kept(tally: Arc<Tally>) {
    while tally.goes_on() {
        let mut client = Client(TcpStream::connect(ADDR).await.unwrap());
        while tally.goes_on() {
            let outcome = one_kept(&mut client).await;
            let closes = matches!(outcome, Ok(true));
            tally.told.fetch_add(usize::from(closes), SeqCst);
            let failed = outcome.is_err();
            tally.count(&tally.kept, outcome.map(|_| ()));
            if closes || failed {
                break;
            }
            sleep(ms(5)).await;
        }
    }
}

/// Returns whether the response has `Connection: close`.
async fn one_kept(client: &mut Client) -> Result<bool, String> {
    client
        .0
        .write_all(GET.as_bytes())
        .await
        .map_err(|error| format!("kept: {error}"))?;
    let mut answer = Vec::new();
    while !answer.windows(4).any(|end| end == b"\r\n\r\n") {
        let read = client
            .0
            .read_buf(&mut answer)
            .await
            .map_err(|error| format!("kept: {error}"))?;
        if read == 0 {
            return Err("kept: closed without a word".into());
        }
    }
    let text = String::from_utf8_lossy(&answer);
    if !text.starts_with("HTTP/1.1 200 ") {
        return Err(format!("kept: {text}"));
    }
    Ok(text.contains("connection: close"))
}

/// Requests over HTTP/2; after a GOAWAY a new connection.
async fn http2(tally: Arc<Tally>) {
    while tally.goes_on() {
        let stream = TcpStream::connect(ADDR).await.unwrap();
        let stream = TokioIo::new(Polite {
            stream,
            shut: false,
        });
        let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), stream);
        let (mut requests, connection) = handshake.await.unwrap();
        let connection = tokio::spawn(connection);
        while tally.goes_on() {
            let request = http::Request::builder()
                .uri("http://test/")
                .body(Empty::<Bytes>::new())
                .unwrap();
            // A request that was not sent is not lost: hyper returns it, and the client repeats it.
            match requests.try_send_request(request).await {
                Ok(answer) => {
                    let body = answer.into_body().collect().await;
                    tally.count(
                        &tally.http2,
                        body.map(|_| ())
                            .map_err(|error| format!("http2 body: {error:?}")),
                    );
                }
                Err(mut error) => {
                    if error.take_message().is_none() {
                        refused(&tally, &error.into_error());
                    }
                    break;
                }
            }
            sleep(ms(5)).await;
        }
        drop(requests);
        let _ = soon(connection).await;
    }
}

/// A stream beyond the last id of a GOAWAY was not begun, and the client knows it (RFC 9113, 6.8). hyper's client may still
/// send one it had queued after it has answered the GOAWAY's ping. Anything else is lost.
fn refused(tally: &Tally, error: &hyper::Error) {
    let told = format!("{error:?}").contains("GoAway(b\"\", NO_ERROR, Remote)");
    if told {
        tally.refused.fetch_add(1, SeqCst);
    } else {
        tally.count(&tally.http2, Err(format!("http2: {error:?}")));
    }
}

/// A client's stream that, once it is closed, hears the server out. hyper closes at the first GOAWAY, and the server's
/// second one would then meet a closed socket, whose reset is the client's own.
struct Polite {
    stream: TcpStream,
    shut: bool,
}

impl AsyncRead for Polite {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Polite {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        if !self.shut {
            ready!(Pin::new(&mut self.stream).poll_shutdown(cx))?;
            self.shut = true;
        }
        loop {
            let mut bytes = [0; 256];
            let mut buf = ReadBuf::new(&mut bytes);
            ready!(Pin::new(&mut self.stream).poll_read(cx, &mut buf))?;
            if buf.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

/// A tunnel that lives for a second, so that it is open while processes change.
async fn tunnel(tally: Arc<Tally>) {
    while tally.goes_on() {
        let outcome = one_tunnel()
            .await
            .map_err(|error| format!("tunnel: {error}"));
        tally.count(&tally.tunnels, outcome);
    }
}

async fn one_tunnel() -> std::io::Result<()> {
    let mut client = Client(TcpStream::connect(ADDR).await?);
    client
        .0
        .write_all(
            b"GET /echo HTTP/1.1\r\nhost: test\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n",
        )
        .await?;
    client.head().await;
    for _ in 0..20 {
        client.0.write_all(b"hey").await?;
        client.0.read_exact(&mut [0; 3]).await?;
        sleep(ms(50)).await;
    }
    Ok(())
}

/// An upload that takes half a second.
async fn upload(tally: Arc<Tally>) {
    while tally.goes_on() {
        let outcome = one_upload()
            .await
            .map_err(|error| format!("upload: {error}"));
        tally.count(&tally.uploads, outcome);
    }
}

async fn one_upload() -> std::io::Result<()> {
    let mut stream = TcpStream::connect(ADDR).await?;
    stream
        .write_all(b"POST /upload HTTP/1.1\r\nhost: test\r\nconnection: close\r\ncontent-length: 10000\r\n\r\n")
        .await?;
    for _ in 0..10 {
        stream.write_all(&[b'x'; 1000]).await?;
        sleep(ms(50)).await;
    }
    whole(stream, "10000").await
}

async fn events(tally: Arc<Tally>) {
    while tally.goes_on() {
        let outcome = one_stream()
            .await
            .map_err(|error| format!("events: {error}"));
        tally.count(&tally.events, outcome);
    }
}

async fn one_stream() -> std::io::Result<()> {
    let mut stream = TcpStream::connect(ADDR).await?;
    stream
        .write_all(b"GET /events HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n")
        .await?;
    whole(stream, "0\r\n\r\n").await
}

/// Reads a response, which must be complete and end like this.
async fn whole(mut stream: TcpStream, end: &str) -> std::io::Result<()> {
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let whole = answer.starts_with("HTTP/1.1 200 ") && answer.ends_with(end);
    if whole {
        Ok(())
    } else {
        Err(std::io::Error::other(format!("not whole: {answer:.60}")))
    }
}

fn load(tally: &Arc<Tally>) -> Vec<JoinHandle<()>> {
    let mut tasks = vec![
        tokio::spawn(fresh(tally.clone())),
        tokio::spawn(http2(tally.clone())),
        tokio::spawn(tunnel(tally.clone())),
        tokio::spawn(upload(tally.clone())),
        tokio::spawn(events(tally.clone())),
    ];
    tasks.extend((0..8).map(|_| tokio::spawn(kept(tally.clone()))));
    tasks
}

#[test]
#[ignore = "needs a network namespace"]
fn handoffs_under_load_lose_nothing() {
    // `TD_HANDOFFS=100` is the long run.
    run("handoffs_under_load_lose_nothing", || async {
        let handoffs = std::env::var("TD_HANDOFFS").map_or(5, |count| count.parse().unwrap());
        let place = Place::new("load");
        let mut process = Process::started(&mut place.handoff("first", 200));
        let (tally, before, dropped_before) = (Arc::new(Tally::default()), resets(), dropped());
        let tasks = load(&tally);
        sleep(ms(300)).await;
        for _ in 0..handoffs {
            let place = place.clone();
            let next = tokio::task::spawn_blocking(move || {
                Process::started(&mut place.handoff("next", 200))
            });
            let old = std::mem::replace(&mut process, next.await.unwrap());
            let report = old.ended().await;
            assert!(report.contains("0 forced, 0 leaked"), "{report}");
        }
        tally.stop.store(true, SeqCst);
        for task in tasks {
            soon(task).await.unwrap();
        }
        eprintln!(
            "{handoffs} handoffs: {tally:?}, {} resets",
            resets() - before
        );
        assert_eq!(
            (tally.lost.load(SeqCst), tally.refused.load(SeqCst)),
            (0, 0)
        );
        assert_eq!((resets() - before, dropped() - dropped_before), (0, 0));
        for counter in [
            &tally.fresh,
            &tally.kept,
            &tally.told,
            &tally.http2,
            &tally.tunnels,
            &tally.uploads,
            &tally.events,
        ] {
            assert!(
                counter.load(SeqCst) >= handoffs,
                "all sorts of load were there: {tally:?}"
            );
        }
    });
}

#[test]
#[ignore = "needs a network namespace"]
fn the_control_of_the_load_loses_connections_between_two_processes() {
    run(
        "the_control_of_the_load_loses_connections_between_two_processes",
        || async {
            let mut old = Process::started(&mut Process::command("reuse", "old"));
            let tally = Arc::new(Tally::default());
            let load = tokio::spawn(fresh(tally.clone()));
            sleep(ms(300)).await;
            assert_eq!(tally.lost.load(SeqCst), 0);
            old.order("leave");
            old.ended().await;
            sleep(ms(100)).await;
            let _new = Process::started(&mut Process::command("reuse", "new"));
            tally.stop.store(true, SeqCst);
            soon(load).await.unwrap();
            assert!(
                tally.lost.load(SeqCst) >= 10,
                "a fifth of a second without a listener: {tally:?}"
            );
        },
    );
}

/// An idle connection, and a request on it in the moment in which closing begins, a thousand times: how many were lost.
async fn idle_races<F: Future<Output = ()> + Send + 'static>(
    serve: impl Fn(Drain, TcpListener) -> F,
) -> usize {
    let mut lost = 0;
    for round in 0..1000 {
        let drain = Drain::builder().announce(ms(0)).close(ms(2000)).build();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let server = tokio::spawn(serve(drain.clone(), listener));
        let mut client = Client(TcpStream::connect(addr).await.unwrap());
        assert!(client.ask(GET).await.ok());
        let drains = tokio::spawn(async move { drain.begin_drain() });
        if round % 2 == 0 {
            tokio::task::yield_now().await;
        }
        lost += usize::from(!uploads_five(&mut client).await);
        drains.await.unwrap();
        drop(client);
        server.abort();
    }
    lost
}

async fn uploads_five(client: &mut Client) -> bool {
    let post = b"POST /upload HTTP/1.1\r\nhost: test\r\ncontent-length: 5\r\n\r\nhello";
    if client.0.write_all(post).await.is_err() {
        return false;
    }
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n5") {
        match soon(client.0.read_u8()).await {
            Ok(byte) => answer.push(byte),
            Err(_) => return false,
        }
    }
    answer.starts_with(b"HTTP/1.1 200 ")
}

#[test]
#[ignore = "needs a network namespace"]
fn an_idle_connection_and_a_drain_in_the_same_millisecond_lose_nothing() {
    run(
        "an_idle_connection_and_a_drain_in_the_same_millisecond_lose_nothing",
        || async {
            let before = resets();
            let lost = idle_races(|drain, listener| async move {
                drain.serve(listener, app("idle")).await.unwrap();
            });
            assert_eq!(lost.await, 0);
            assert_eq!(resets() - before, 0);
        },
    );
}

#[test]
#[ignore = "needs a network namespace"]
fn the_control_of_the_idle_connection_loses_some() {
    run("the_control_of_the_idle_connection_loses_some", || async {
        let lost = idle_races(|drain, listener| async move {
            axum::serve(listener, app("idle"))
                .with_graceful_shutdown(drain.closing())
                .await
                .unwrap();
        });
        let lost = lost.await;
        eprintln!("hyper alone lost {lost} of 1000");
        assert!(lost > 0);
    });
}
