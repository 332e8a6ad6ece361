//! The accept loop alone, on a simulated network in paused time.

use std::{
    io,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream},
    time::{Instant, sleep},
};
use tower::{Service, service_fn};
use tower_drain::{Accepted, Drain, Phase};
#[cfg(unix)]
use tower_drain::{Addr, Listen};

use crate::support::{Client, GET, app, wire};

fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

async fn echo(accepted: Accepted<DuplexStream>) -> io::Result<()> {
    let (io, _rest) = accepted.split();
    let (mut read, mut write) = tokio::io::split(io);
    tokio::io::copy(&mut read, &mut write).await.map(|_| ())
}

#[tokio::test(start_paused = true)]
async fn any_service_of_connections_is_driven_and_drained() {
    let drain = Drain::new();
    let (dial, listener) = wire();
    let server = tokio::spawn(drain.accept_loop(listener, service_fn(echo)));
    let mut client = dial.connect().0;
    client.write_all(b"hey").await.unwrap();
    let mut bytes = [0; 3];
    client.read_exact(&mut bytes).await.unwrap();
    drain.begin_drain();
    drain.closing().await;
    sleep(secs(3)).await;
    drop(client);
    let report = server.await.unwrap().unwrap();
    assert_eq!((report.drained, report.took), (1, secs(8)));
}

#[tokio::test(start_paused = true)]
async fn a_whole_drain_takes_exactly_its_time() {
    let drain = Drain::new();
    let (dial, listener) = wire();
    let server = tokio::spawn(drain.serve(listener, app()));
    let start = Instant::now();
    let mut idle = dial.connect();
    assert!(idle.ask(GET).await.ok());
    drain.begin_drain();
    sleep(secs(4)).await;
    let mut late = dial.connect();
    assert_eq!(late.ask(GET).await.closes(), 1, "still served");
    assert!(late.is_closed().await);
    assert!(idle.is_closed().await);
    let report = server.await.unwrap().unwrap();
    assert_eq!(
        report.took.as_secs(),
        6,
        "five of announcing, one of last chance"
    );
    assert_eq!((start.elapsed().as_secs(), report.drained), (6, 2));
}

#[tokio::test(start_paused = true)]
async fn a_last_chance_is_never_longer_than_what_is_left() {
    let drain = Drain::builder()
        .announce(secs(0))
        .close(Duration::from_millis(300))
        .build();
    let (dial, listener) = wire();
    let server = tokio::spawn(drain.serve(listener, app()));
    let mut idle = dial.connect();
    assert!(idle.ask(GET).await.ok());
    let start = Instant::now();
    drain.shutdown();
    assert!(idle.is_closed().await);
    assert!(
        start.elapsed() <= Duration::from_millis(301),
        "{:?}",
        start.elapsed()
    );
    server.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_silent_connection_has_ten_seconds() {
    let drain = Drain::new();
    let (dial, listener) = wire();
    tokio::spawn(drain.serve(listener, app()));
    let start = Instant::now();
    assert!(dial.connect().is_closed().await);
    assert_eq!(start.elapsed().as_secs(), 10);
}

#[tokio::test(start_paused = true)]
async fn errors_of_single_connections_are_ignored_and_exhausted_resources_are_retried() {
    let drain = Drain::new();
    let (dial, listener) = wire();
    let server = tokio::spawn(drain.serve(listener, app()));
    let start = Instant::now();
    dial.fail(io::ErrorKind::ConnectionAborted.into());
    assert!(dial.connect().ask(GET).await.ok());
    assert_eq!(start.elapsed(), secs(0));
    for _ in 0..3 {
        dial.fail(io::ErrorKind::OutOfMemory.into());
    }
    assert!(dial.connect().ask(GET).await.ok());
    assert!(
        (70..75).contains(&start.elapsed().as_millis()),
        "10 + 20 + 40 ms, not {:?}",
        start.elapsed()
    );
    drain.shutdown();
    server.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn after_a_listener_error_open_connections_end_and_the_error_is_returned() {
    let drain = Drain::new();
    let (dial, listener) = wire();
    let server = tokio::spawn(drain.serve(listener, app()));
    let mut client = dial.connect();
    assert!(client.ask(GET).await.ok());
    dial.fail(io::ErrorKind::InvalidInput.into());
    drain.closing().await;
    assert_eq!(client.ask(GET).await.closes(), 1);
    assert_eq!(
        server.await.unwrap().unwrap_err().kind(),
        io::ErrorKind::InvalidInput
    );
    assert_eq!(drain.phase(), Phase::Done);
}

/// Never ready, or broken.
struct Stuck(Option<io::ErrorKind>);

impl Service<Accepted<DuplexStream>> for Stuck {
    type Response = ();
    type Error = io::Error;
    type Future = std::future::Ready<io::Result<()>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0
            .map_or(Poll::Pending, |kind| Poll::Ready(Err(kind.into())))
    }

    fn call(&mut self, _: Accepted<DuplexStream>) -> Self::Future {
        unreachable!("never ready")
    }
}

#[tokio::test(start_paused = true)]
async fn a_service_that_is_not_ready_does_not_delay_the_drain() {
    let drain = Drain::new();
    let (dial, listener) = wire();
    let mut client = dial.connect();
    let server = tokio::spawn(drain.accept_loop(listener, Stuck(None)));
    drain.begin_drain();
    let report = server.await.unwrap().unwrap();
    assert_eq!((report.drained, report.took.as_secs()), (0, 5));
    assert!(client.is_closed().await, "it left with the listener");
}

#[tokio::test(start_paused = true)]
async fn a_service_that_has_ended_ends_the_server() {
    let drain = Drain::new();
    let (_dial, listener) = wire();
    let error = drain
        .accept_loop(listener, Stuck(Some(io::ErrorKind::BrokenPipe)))
        .await
        .unwrap_err();
    assert!(error.to_string().contains("broken pipe"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn an_order_to_force_reaches_the_accept_loop_at_once() {
    let drain = Drain::new();
    let (dial, listener) = wire();
    let server = tokio::spawn(drain.accept_loop(listener, service_fn(echo)));
    let mut client = dial.connect();
    client.send("x").await;
    client.0.read_u8().await.unwrap();
    let start = Instant::now();
    drain.force();
    let report = server.await.unwrap().unwrap();
    assert_eq!(
        (start.elapsed(), report.forced, report.leaked),
        (secs(2), 1, 1)
    );
    assert!(client.is_closed().await);
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_panics_ends_alone_and_a_service_that_does_ends_the_server() {
    let drain = Drain::new();
    let (dial, listener) = wire();
    let mut calls = 0;
    let service = service_fn(move |accepted: Accepted<DuplexStream>| {
        calls += 1;
        assert!(calls < 3, "on purpose");
        async move {
            if calls == 2 {
                panic!("on purpose")
            } else {
                echo(accepted).await
            }
        }
    });
    let server = tokio::spawn(drain.accept_loop(listener, service));
    let (mut bystander, mut broken) = (dial.connect(), dial.connect());
    assert!(broken.is_closed().await);
    bystander.send("x").await;
    assert_eq!(bystander.0.read_u8().await.unwrap(), b'x');
    assert_eq!(drain.snapshot().guests, 1, "the panic dropped its guard");

    let _third = dial.connect();
    assert!(
        server.await.unwrap_err().is_panic(),
        "the panic reaches the task of the server"
    );
    assert!(bystander.is_closed().await);
    crate::support::guests(&drain, 0).await;
    drain.shutdown();
    assert!(
        drain.done().await.is_clean(),
        "the drain does not wait for cut connections"
    );
}

#[cfg(unix)]
#[tokio::test]
async fn unix_sockets_are_served_too() {
    let dir = std::env::temp_dir().join(format!("tower-drain-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let path = dir.join("socket");
    let _ = std::fs::remove_file(&path);
    let listener = tokio::net::UnixListener::bind(&path).unwrap();
    assert_eq!(
        Listen::local_addr(&listener).unwrap(),
        Addr::Unix(Some(path.as_path().into()))
    );
    let drain = crate::support::quick();
    let server = tokio::spawn(drain.serve(listener, app()));
    let mut kept = Client(tokio::net::UnixStream::connect(&path).await.unwrap());
    assert!(kept.ask(GET).await.ok());
    // In the queue when closing begins.
    drain.shutdown();
    let queued = std::os::unix::net::UnixStream::connect(&path).unwrap();
    queued.set_nonblocking(true).unwrap();
    let mut queued = Client(tokio::net::UnixStream::from_std(queued).unwrap());
    assert_eq!(queued.ask(GET).await.closes(), 1);
    drop(kept);
    assert!(server.await.unwrap().unwrap().is_clean());
    std::fs::remove_dir_all(&dir).unwrap();
}
