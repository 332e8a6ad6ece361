//! The methods of `Server`, and several servers side by side.

use std::{num::NonZeroUsize, sync::Arc, time::Duration};

use axum::{Router, http::StatusCode, routing::get};
use tokio::{net::TcpStream, sync::Notify};
use tower_drain::{Addr, BoundListener, Cancellation, Drain, ListenerConfig, Phase, Server};

use crate::support::*;

const ANY: &str = "127.0.0.1:0";

fn bind(config: ListenerConfig) -> (Server<BoundListener>, std::net::SocketAddr) {
    let server = Server::bind(ANY.parse().unwrap(), config).unwrap();
    let Addr::Ip(addr) = server.local_addr().unwrap() else {
        panic!("it is an internet address")
    };
    (server, addr)
}

/// Notifies the test of its call, and waits for its cancellation.
fn patient() -> (Router, Arc<Notify>) {
    let came = Arc::new(Notify::new());
    let tell = came.clone();
    let handler = move |axum::Extension(cancellation): axum::Extension<Cancellation>| async move {
        tell.notify_one();
        cancellation.cancelled().await;
        "cancelled"
    };
    (app().route("/wait", get(handler)), came)
}

const WAIT: &str = "GET /wait HTTP/1.1\r\nhost: test\r\n\r\n";

#[tokio::test]
async fn a_bound_server_serves_drains_and_reports() {
    let (server, addr) = bind(ListenerConfig::new().drain(&quick()));
    let drain = server.drain_handle();
    let running = Running {
        addr,
        task: tokio::spawn(server.serve(app())),
    };
    let mut client = running.client().await;
    assert!(client.ask(GET).await.ok());
    drain.shutdown();
    assert_eq!(client.ask(GET).await.closes(), 1);
    assert!(client.is_closed().await);
    let report = running.report().await;
    assert_eq!((report.drained, report.is_clean()), (1, true));
    assert!(TcpStream::connect(addr).await.is_err());
}

#[tokio::test]
async fn begin_drain_and_shutdown_begin_the_two_phases() {
    let announcing = Drain::builder().announce(Duration::from_secs(60)).build();
    let (server, _) = bind(ListenerConfig::new().drain(&announcing));
    server.begin_drain();
    assert_eq!(announcing.phase(), Phase::Announcing);
    server.shutdown();
    // Not `Done`, since the server may still accept a connection; but it was never run, so there are none.
    assert!(announcing.phase() >= Phase::Closing);
}

#[tokio::test]
async fn a_graceful_shutdown_answers_what_is_under_way_and_cancels_what_does_not_end() {
    // Both phases of a graceful shutdown.
    let drain = Drain::builder()
        .announce(ms(0))
        .close(ms(300))
        .force(ms(5000))
        .build();
    let (server, addr) = bind(ListenerConfig::new().drain(&drain));
    let token = server.shutdown_token();
    let (app, came) = patient();
    let running = Running {
        addr,
        task: tokio::spawn(server.serve(app)),
    };
    let mut client = running.client().await;
    client.send(WAIT).await;
    soon(came.notified()).await;
    drain.shutdown();
    assert!(!token.is_cancelled());
    let answer = client.answer().await;
    assert_eq!((answer.body.as_str(), answer.closes()), ("cancelled", 1));
    assert!(token.is_cancelled());
    drop(client);
    let report = running.report().await;
    assert_eq!((report.forced, report.leaked_tasks()), (1, 0));
}

#[tokio::test]
async fn the_config_has_the_limit_and_the_grace() {
    let (server, addr) = bind(
        ListenerConfig::new()
            .max_concurrent_connections(NonZeroUsize::MIN)
            .drain_grace(ms(100))
            .backlog(16),
    );
    let drain = server.drain_handle();
    let (app, came) = patient();
    let running = Running {
        addr,
        task: tokio::spawn(server.serve(app)),
    };
    let mut first = running.client().await;
    first.send(WAIT).await;
    soon(came.notified()).await;
    let mut second = running.client().await;
    assert!(second.ask(GET).await.head.starts_with("HTTP/1.1 503 "));
    drop(second);
    drain.shutdown();
    soon(drain.forced()).await;
    drop(first);
    assert_eq!(
        running.report().await.forced,
        1,
        "after a tenth of a second, and not after twenty"
    );
}

#[tokio::test]
async fn a_port_may_be_bound_twice_only_if_that_is_wanted() {
    let (_one, addr) = bind(ListenerConfig::new());
    assert_eq!(
        Server::bind(addr, ListenerConfig::new().reuse_port(true))
            .unwrap_err()
            .kind(),
        std::io::ErrorKind::AddrInUse
    );
    let (_two, addr) = bind(ListenerConfig::new().reuse_port(true));
    assert!(Server::bind(addr, ListenerConfig::new().reuse_port(true)).is_ok());
}

#[tokio::test]
async fn an_admin_listener_with_a_separate_drain_outlives_the_data_listener() {
    let (data, admin) = (quick(), quick());
    let probe = data.clone();
    let probes = Router::new()
        .route("/live", get(|| async { "alive" }))
        .route(
            "/",
            get(move || async move {
                if probe.is_ready() {
                    StatusCode::OK
                } else {
                    StatusCode::SERVICE_UNAVAILABLE
                }
            }),
        );
    let admin_server = serve(&admin, probes).await;
    let (app, came) = patient();
    let data_server = serve(&data, app).await;
    assert!(admin_server.client().await.ask(GET).await.ok(), "ready");
    let mut busy = data_server.client().await;
    busy.send(WAIT).await;
    soon(came.notified()).await;

    data.shutdown();
    soon(async {
        while TcpStream::connect(data_server.addr).await.is_ok() {
            tokio::time::sleep(ms(10)).await;
        }
    })
    .await;
    let mut probe = admin_server.client().await;
    assert!(
        probe.ask(GET).await.head.starts_with("HTTP/1.1 503 "),
        "readiness is withdrawn"
    );
    assert_eq!(
        probe
            .ask("GET /live HTTP/1.1\r\nhost: test\r\n\r\n")
            .await
            .body,
        "alive"
    );

    data.force();
    assert_eq!(busy.answer().await.body, "cancelled");
    drop(busy);
    data_server.report().await;
    assert!(
        probe.ask(GET).await.head.starts_with("HTTP/1.1 503 "),
        "it is there to the end"
    );
    assert_eq!(admin.phase(), Phase::Serving);
    admin.shutdown();
    drop(probe);
    assert!(admin_server.report().await.is_clean());
}

#[test]
fn a_runtime_that_ends_takes_its_connections_with_it_and_the_drain_knows() {
    let runtime = || {
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap()
    };
    let (drain, first) = (quick(), runtime());
    let client = first.block_on(async {
        let server = serve(&drain, app()).await;
        let mut client = server.client().await;
        assert!(client.ask(GET).await.ok());
        drain.shutdown();
        client
    });
    let guard = drain.guard();
    drop((first, client));
    assert_eq!(
        (drain.phase(), drain.snapshot().guests),
        (Phase::Closing, 1),
        "its connection is gone, ours is here"
    );
    std::thread::spawn(move || drop(guard)).join().unwrap();
    assert_eq!(
        drain.phase(),
        Phase::Done,
        "dropping the last guard ends the drain, in a runtime or not"
    );
    assert!(runtime().block_on(drain.done()).is_clean());
}

#[tokio::test]
async fn a_server_needs_no_handle_of_its_drain_but_its_own() {
    let server = serve(&quick(), app()).await;
    let mut client = server.client().await;
    assert!(client.ask(GET).await.ok());
    assert!(server.client().await.ask(GET).await.ok());
    assert_eq!(
        client.ask(GET).await.closes(),
        0,
        "dropping a handle is no order to leave"
    );
}

#[tokio::test]
async fn while_the_condition_does_not_hold_clients_are_rejected_and_do_not_hang() {
    let (lease, held) = tokio::sync::watch::channel(false);
    let drain = quick();
    let (listener, addr) = listen().await;
    let server = Server::new(&drain, listener)
        .only_while(move || *held.borrow())
        .serve(app());
    let running = Running {
        addr,
        task: tokio::spawn(server),
    };
    assert!(
        running
            .client()
            .await
            .ask(GET)
            .await
            .head
            .starts_with("HTTP/1.1 503 ")
    );
    lease.send_replace(true);
    let mut kept = running.client().await;
    assert!(kept.ask(GET).await.ok());
    lease.send_replace(false);
    assert!(
        running
            .client()
            .await
            .ask(GET)
            .await
            .head
            .starts_with("HTTP/1.1 503 ")
    );
    assert!(
        kept.ask(GET).await.ok(),
        "requests have a gate of their own"
    );
    drop(kept);
    drain.shutdown();
    running.report().await;
}
