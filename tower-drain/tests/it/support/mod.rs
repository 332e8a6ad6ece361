//! Shared by the tests on sockets: a server to drain, and a client that reads every byte.

#[cfg(feature = "http2")]
pub(crate) mod peer;

use std::{
    future::Future,
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    task::{Context, Poll},
    time::Duration,
};

use axum::{Router, routing::get};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, duplex},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::JoinHandle,
    time::{sleep, timeout},
};
use tower::Service;
use tower_drain::{Addr, Drain, Http, Listen, Report, Server};

pub(crate) const GET: &str = "GET / HTTP/1.1\r\nhost: test\r\n\r\n";

/// A simulated network: the listener accepts the streams that the test sends.
pub(crate) struct Wire(mpsc::UnboundedReceiver<io::Result<DuplexStream>>);

#[derive(Clone)]
pub(crate) struct Dial(mpsc::UnboundedSender<io::Result<DuplexStream>>);

pub(crate) fn wire() -> (Dial, Wire) {
    let (sender, receiver) = mpsc::unbounded_channel();
    (Dial(sender), Wire(receiver))
}

impl Dial {
    pub(crate) fn connect(&self) -> Client<DuplexStream> {
        let (client, server) = duplex(64 * 1024);
        self.0.send(Ok(server)).unwrap();
        Client(client)
    }

    pub(crate) fn fail(&self, error: io::Error) {
        self.0.send(Err(error)).unwrap();
    }
}

impl Listen for Wire {
    type Io = DuplexStream;

    async fn accept(&mut self) -> io::Result<(DuplexStream, Addr)> {
        match self.0.recv().await {
            Some(accepted) => accepted.map(|io| (io, Addr::Other)),
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<Addr> {
        Ok(Addr::Other)
    }
}

/// A service whose readiness can be withdrawn, as that of a gate.
#[derive(Clone)]
pub(crate) struct Revocable<S>(S, Gate);

#[derive(Clone)]
pub(crate) struct Gate(Arc<AtomicBool>);

pub(crate) fn revocable<S>(inner: S) -> (Gate, Revocable<S>) {
    let gate = Gate(Arc::new(AtomicBool::new(true)));
    (gate.clone(), Revocable(inner, gate))
}

impl Gate {
    pub(crate) fn revoke(&self) {
        self.0.store(false, SeqCst);
    }
}

impl<T, S: Service<T>> Service<T> for Revocable<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        if self.1.0.load(SeqCst) {
            self.0.poll_ready(cx)
        } else {
            Poll::Pending
        }
    }

    fn call(&mut self, request: T) -> S::Future {
        self.0.call(request)
    }
}

/// A running server and its address.
pub(crate) struct Running {
    pub(crate) addr: SocketAddr,
    pub(crate) task: JoinHandle<io::Result<Report>>,
}

/// An answer, read to the end of its body.
#[derive(Debug)]
pub(crate) struct Answered {
    pub(crate) head: String,
    pub(crate) body: String,
}

/// A client that writes HTTP/1 by hand.
pub(crate) struct Client<Io = TcpStream>(pub(crate) Io);

pub(crate) fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// Nothing here takes longer, unless it hangs.
pub(crate) async fn soon<F: Future>(future: F) -> F::Output {
    timeout(Duration::from_secs(20), future)
        .await
        .expect("hangs")
}

pub(crate) fn app() -> Router {
    Router::new().route("/", get(|| async { "hello" }))
}

/// No announcing; five seconds to close, which no test ever waits for.
pub(crate) fn quick() -> Drain {
    Drain::builder()
        .announce(ms(0))
        .close(ms(5000))
        .force(ms(200))
        .build()
}

pub(crate) async fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    (listener, addr)
}

pub(crate) async fn serve(drain: &Drain, app: Router) -> Running {
    let (listener, addr) = listen().await;
    Running {
        addr,
        task: tokio::spawn(drain.serve(listener, app)),
    }
}

/// As [`serve`], with settings of the runner.
pub(crate) async fn serve_with(
    drain: &Drain,
    app: Router,
    knobs: impl FnOnce(Http<Router>) -> Http<Router>,
) -> Running {
    let (listener, addr) = listen().await;
    let http = knobs(Http::new(drain, app));
    Running {
        addr,
        task: tokio::spawn(Server::new(drain, listener).run(http)),
    }
}

/// Waits for this number of connections and tasks, since another task accepts.
pub(crate) async fn guests(drain: &Drain, count: usize) {
    soon(async {
        while drain.snapshot().guests != count {
            sleep(ms(1)).await;
        }
    })
    .await;
}

impl Running {
    pub(crate) async fn client(&self) -> Client {
        Client(TcpStream::connect(self.addr).await.unwrap())
    }

    pub(crate) async fn report(self) -> Report {
        soon(self.task).await.unwrap().unwrap()
    }
}

impl<Io: AsyncRead + AsyncWrite + Unpin> Client<Io> {
    pub(crate) async fn ask(&mut self, request: &str) -> Answered {
        self.send(request).await;
        self.answer().await
    }

    pub(crate) async fn send(&mut self, bytes: &str) {
        self.0.write_all(bytes.as_bytes()).await.unwrap();
    }

    pub(crate) async fn answer(&mut self) -> Answered {
        let head = self.head().await;
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("content-length: "))
            .map_or(0, |n| n.parse().unwrap());
        assert!(!head.contains("transfer-encoding"), "{head}");
        let mut body = vec![0; length];
        soon(self.0.read_exact(&mut body)).await.unwrap();
        Answered {
            head,
            body: String::from_utf8(body).unwrap(),
        }
    }

    pub(crate) async fn head(&mut self) -> String {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(soon(self.0.read_u8()).await.expect("a whole head"));
        }
        String::from_utf8(head).unwrap()
    }

    /// Whether it ends without another byte, and without a reset. Then it closes its own half, as clients do.
    pub(crate) async fn is_closed(&mut self) -> bool {
        let closed = soon(self.0.read(&mut [0; 64])).await.unwrap() == 0;
        let _ = self.0.shutdown().await;
        closed
    }
}

impl Answered {
    pub(crate) fn ok(&self) -> bool {
        self.head.starts_with("HTTP/1.1 200 ")
    }

    pub(crate) fn closes(&self) -> usize {
        self.head
            .lines()
            .filter(|line| line.eq_ignore_ascii_case("connection: close"))
            .count()
    }
}

/// Handshakes of this listener stay under way (`SYN_RECV`) until the client has sent something.
#[cfg(target_os = "linux")]
#[allow(unsafe_code, reason = "`TCP_DEFER_ACCEPT` has no safe setter")]
pub(crate) fn defer_accept(socket: &impl std::os::fd::AsRawFd) {
    let seconds: libc::c_int = 30;
    // SAFETY: the kernel reads an integer of the given length.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_DEFER_ACCEPT,
            (&raw const seconds).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    assert_eq!(result, 0);
}
