//! Runs the gateway as a program, on ports the system chooses, and talks to it as clients do.

use std::{
    convert::Infallible,
    fmt,
    future::Future,
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, combinators::BoxBody};
use hyper::{body::Incoming, client::conn::http1::SendRequest, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::{
    io::{AsyncBufReadExt, BufReader, Lines},
    net::{TcpListener, TcpSocket, TcpStream},
    process::{Child, ChildStdout, Command},
    task::JoinHandle,
    time::timeout,
};

/// Nothing in these tests takes longer, unless it hangs.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A running gateway. Killed when dropped.
pub(crate) struct Gateway {
    child: Child,
    output: Lines<BufReader<ChildStdout>>,
    pub(crate) address: SocketAddr,
    pub(crate) admin: SocketAddr,
}

/// A backend of the test's own.
pub(crate) struct Backend {
    pub(crate) address: SocketAddr,
    served: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

pub(crate) type AnyBody = BoxBody<Bytes, io::Error>;

// === Gateway ===

impl Gateway {
    /// The demo, with its three replicas.
    pub(crate) async fn demo() -> Self {
        Self::start(&[]).await
    }

    /// With these backends, and `more` TOML beside them.
    pub(crate) async fn with_backends(backends: &[SocketAddr], more: &str) -> Self {
        Self::configured(&config(backends, more)).await
    }

    /// With this configuration file.
    pub(crate) async fn configured(config: &str) -> Self {
        let file = TempFile::new(config);
        Self::start(&["--config", file.0.to_str().unwrap()]).await
    }

    async fn start(arguments: &[&str]) -> Self {
        let gateway = Self::unready(arguments).await;
        gateway
            .wait_until("it is ready", async || {
                gateway.admin_get("/ready").await.0 == 200
            })
            .await;
        gateway
    }

    /// Does not wait until it can serve.
    pub(crate) async fn unready(arguments: &[&str]) -> Self {
        let mut child = command(arguments)
            .kill_on_drop(true)
            .spawn()
            .expect("the gateway starts");
        let mut output = BufReader::new(child.stdout.take().unwrap()).lines();
        let address = told(&mut output, "gateway listening on http://").await;
        let admin = told(&mut output, "admin listening on http://").await;
        Self {
            child,
            output,
            address,
            admin,
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id().expect("it runs")
    }

    /// Sends a signal, by name.
    pub(crate) fn signal(&self, name: &str) {
        let status = std::process::Command::new("kill")
            .args([format!("-{name}"), self.pid().to_string()])
            .status();
        assert!(status.unwrap().success());
    }

    /// Waits for the end; returns the exit code and what was printed last.
    pub(crate) async fn ended(mut self) -> (Option<i32>, String) {
        let mut text = String::new();
        timeout(PATIENCE, async {
            while let Some(line) = self.output.next_line().await.unwrap() {
                text.push_str(&line);
                text.push('\n');
            }
        })
        .await
        .expect("it ends");
        (self.child.wait().await.unwrap().code(), text)
    }

    pub(crate) async fn admin_get(&self, path: &str) -> (u16, String) {
        admin(self.admin, "GET", path).await
    }

    pub(crate) async fn admin_post(&self, path: &str) -> (u16, String) {
        admin(self.admin, "POST", path).await
    }

    pub(crate) async fn topology(&self) -> serde_json::Value {
        serde_json::from_str(&self.admin_get("/topology").await.1).expect("JSON")
    }

    /// A number from `/metrics`, 0 if it is not there.
    pub(crate) async fn metric(&self, name: &str) -> f64 {
        let (_, page) = self.admin_get("/metrics").await;
        let line = page
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.map_or(0.0, |value| value.parse().unwrap())
    }

    pub(crate) async fn wait_until(&self, what: &str, mut condition: impl AsyncFnMut() -> bool) {
        let waiting = async {
            while !condition().await {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(PATIENCE, waiting)
            .await
            .unwrap_or_else(|_| panic!("waited in vain until {what}"));
    }

    /// A connection from the client with number `client`: each has its own loopback address.
    pub(crate) async fn connect(&self, client: u8) -> SendRequest<AnyBody> {
        connect(self.address, client)
            .await
            .expect("the gateway accepts")
    }

    /// One request on a new connection.
    pub(crate) async fn get(&self, client: u8, path: &str) -> Answer {
        let mut connection = self.connect(client).await;
        send(&mut connection, get(path)).await.expect("an answer")
    }
}

pub(crate) fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gateway"));
    command
        .args(arguments)
        .stdout(Stdio::piped())
        .stdin(Stdio::null());
    if !arguments.contains(&"--config") {
        command.args(["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"]);
    }
    command
}

/// A configuration on ports the system chooses, without an announcing phase.
pub(crate) fn config(backends: &[SocketAddr], more: &str) -> String {
    let mut text = "listen = '127.0.0.1:0'\nadmin = '127.0.0.1:0'\n".to_owned();
    for (index, address) in backends.iter().enumerate() {
        text.push_str(&format!(
            "[[backend]]\nname = 'b{index}'\naddress = '{address}'\n"
        ));
    }
    text.push_str(more);
    text
}

async fn told(output: &mut Lines<BufReader<ChildStdout>>, prefix: &str) -> SocketAddr {
    let reading = async {
        loop {
            let line = output
                .next_line()
                .await
                .unwrap()
                .expect("the gateway tells its addresses");
            if let Some(address) = line.trim().strip_prefix(prefix) {
                return address.parse().unwrap();
            }
        }
    };
    timeout(PATIENCE, reading)
        .await
        .expect("the gateway starts in time")
}

async fn admin(address: SocketAddr, method: &str, path: &str) -> (u16, String) {
    let mut connection = connect(address, 0).await.expect("the admin port accepts");
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("host", "admin")
        .body(empty())
        .unwrap();
    let answer = send(&mut connection, request).await.expect("an answer");
    (answer.status.as_u16(), answer.text)
}

// === clients ===

#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: http::HeaderMap,
    pub(crate) text: String,
}

/// Connects over HTTP/1.1 from 127.0.1.`client`.
pub(crate) async fn connect(address: SocketAddr, client: u8) -> io::Result<SendRequest<AnyBody>> {
    let stream = tcp(address, client).await?;
    let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(io::Error::other)?;
    tokio::spawn(connection);
    Ok(sender)
}

/// A bare connection from 127.0.1.`client`.
pub(crate) async fn tcp(address: SocketAddr, client: u8) -> io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::new(
        IpAddr::V4(Ipv4Addr::new(127, 0, 1, client)),
        0,
    ))?;
    let stream = socket.connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Sends a request and reads the whole answer.
pub(crate) async fn send(
    connection: &mut SendRequest<AnyBody>,
    request: Request<AnyBody>,
) -> Result<Answer, hyper::Error> {
    let sending = async {
        connection.ready().await?;
        let (head, body) = connection.send_request(request).await?.into_parts();
        let text = String::from_utf8_lossy(&body.collect().await?.to_bytes()).into_owned();
        Ok(Answer {
            status: head.status,
            headers: head.headers,
            text,
        })
    };
    timeout(PATIENCE, sending).await.expect("an answer in time")
}

pub(crate) fn get(path: &str) -> Request<AnyBody> {
    Request::get(path)
        .header("host", "test")
        .body(empty())
        .unwrap()
}

pub(crate) fn empty() -> AnyBody {
    full("")
}

pub(crate) fn full(text: impl Into<Bytes>) -> AnyBody {
    Full::new(text.into())
        .map_err(|never: Infallible| match never {})
        .boxed()
}

/// An HTTP/2 connection with prior knowledge.
pub(crate) async fn connect_h2(
    address: SocketAddr,
    client: u8,
) -> hyper::client::conn::http2::SendRequest<AnyBody> {
    let stream = tcp(address, client).await.unwrap();
    let (sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .unwrap();
    tokio::spawn(connection);
    sender
}

// === backends ===

impl Backend {
    /// A backend that answers with `respond`.
    pub(crate) async fn new<F, R>(respond: F) -> Self
    where
        F: Fn(Request<Incoming>) -> R + Clone + Send + 'static,
        R: Future<Output = Response<AnyBody>> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self::on(listener, respond)
    }

    pub(crate) fn on<F, R>(listener: TcpListener, respond: F) -> Self
    where
        F: Fn(Request<Incoming>) -> R + Clone + Send + 'static,
        R: Future<Output = Response<AnyBody>> + Send + 'static,
    {
        let address = listener.local_addr().unwrap();
        let served = Arc::new(AtomicUsize::new(0));
        let counter = served.clone();
        let task = tokio::spawn(async move {
            // Dropped with the task, and with it every connection.
            let mut connections = tokio::task::JoinSet::new();
            loop {
                let Ok((stream, _)) = listener.accept().await else {
                    continue;
                };
                let (respond, counter) = (respond.clone(), counter.clone());
                connections.spawn(async move {
                    let service = service_fn(move |request| {
                        counter.fetch_add(1, SeqCst);
                        let answer = respond(request);
                        async move { Ok::<_, Infallible>(answer.await) }
                    });
                    let _ = hyper::server::conn::http1::Builder::new()
                        .timer(TokioTimer::new())
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        Self {
            address,
            served,
            task,
        }
    }

    /// A backend that always answers with its name.
    pub(crate) async fn named(name: &'static str) -> Self {
        Self::new(move |request| async move {
            let _ = request.into_body().collect().await;
            Response::new(full(name))
        })
        .await
    }

    /// How many requests reached it.
    pub(crate) fn served(&self) -> usize {
        self.served.load(SeqCst)
    }

    /// Ends it with all its connections, as a crash would.
    pub(crate) async fn kill(self) {
        self.task.abort();
        let _ = self.task.await;
    }
}

pub(crate) fn status(code: u16) -> Response<AnyBody> {
    Response::builder().status(code).body(full("")).unwrap()
}

// === files ===

/// A file that is gone with its owner.
pub(crate) struct TempFile(pub(crate) PathBuf);

impl TempFile {
    pub(crate) fn new(text: &str) -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let name = format!(
            "gateway-{}-{}.toml",
            std::process::id(),
            NEXT.fetch_add(1, SeqCst)
        );
        let path = std::env::temp_dir().join(name);
        std::fs::write(&path, text).unwrap();
        Self(path)
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

impl fmt::Debug for Gateway {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gateway")
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}
