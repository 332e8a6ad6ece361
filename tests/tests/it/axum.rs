//! The layers on an ordinary axum `Router`: no `HandleErrorLayer`, no `Buffer`.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use axum::{Extension, Router, extract::State, http::StatusCode, routing::get};
use tokio::net::TcpListener;
use tower_bucket::BucketLayer;
use tower_circuit::CircuitLayer;
use tower_drain::{Drain, DrainLayer};
use tower_lease::{FencingToken, LeaseLayer};

use crate::parts::{self, circuit, connect, held_lease, twenty};

async fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_lines_make_an_axum_app_resilient() {
    let (drain, circuit) = (Drain::builder().announce(Duration::ZERO).build(), circuit());
    let app = Router::new()
        .route("/", get(|| async { "hello" }))
        .route(
            "/broken",
            get(|| async { StatusCode::INTERNAL_SERVER_ERROR }),
        )
        .layer(CircuitLayer::new(circuit.clone()).respond())
        .layer(BucketLayer::per_client(twenty()).respond())
        .layer(DrainLayer::new(&drain));
    let (listener, address) = listen().await;
    let server = tokio::spawn(drain.serve(listener, app));
    let mut connection = connect(address).await.unwrap();

    assert_eq!(parts::get(&mut connection, "/").await.body(), "hello");
    for _ in 0..2 {
        assert_eq!(parts::get(&mut connection, "/broken").await.status(), 500);
    }
    let refused = parts::get(&mut connection, "/").await;
    assert_eq!(
        (refused.status().as_u16(), &refused.headers()["retry-after"]),
        (503, &"60".parse().unwrap())
    );
    circuit.reset();
    assert_eq!(parts::get(&mut connection, "/").await.status(), 200);

    let mut limited = 0;
    for _ in 0..20 {
        let answer = parts::get(&mut connection, "/").await;
        limited += usize::from(answer.status() == 429 && answer.headers()["retry-after"] == "60");
    }
    assert_eq!(limited, 5, "twenty passed, five of them before");

    drain.begin_drain();
    let last = parts::get(&mut connection, "/").await;
    assert_eq!(last.headers()["connection"], "close");
    let report = tokio::time::timeout(parts::PATIENCE, server)
        .await
        .expect("it ends")
        .unwrap()
        .unwrap();
    assert!(report.is_clean(), "{report}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_only_route_answers_only_while_the_lease_is_held() {
    let (lease, keeper) = held_lease().await;
    let token = lease.token().unwrap();
    let leader =
        Router::new()
            .route(
                "/leader",
                get(|Extension(token): Extension<FencingToken>| async move {
                    token.epoch().to_string()
                }),
            )
            .layer(LeaseLayer::new(&lease).respond());
    let app = Router::new()
        .route("/", get(|| async { "anyone" }))
        .merge(leader);
    let drain = Drain::new();
    let (listener, address) = listen().await;
    let server = tokio::spawn(drain.serve(listener, app));
    let mut connection = connect(address).await.unwrap();

    assert_eq!(
        *parts::get(&mut connection, "/leader").await.body(),
        token.epoch().to_string()
    );
    keeper.abort();
    let _ = keeper.await;
    assert_eq!(parts::get(&mut connection, "/leader").await.status(), 503);
    assert_eq!(
        parts::get(&mut connection, "/").await.status(),
        200,
        "the other routes go on"
    );
    drain.shutdown();
    drop(connection);
    server.await.unwrap().unwrap();
}

/// hyper sends the number of bytes in `Content-Length` and then drops the body without polling it: the stream of a file server
/// does not report its end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_of_known_length_is_a_success_like_any_other() {
    let circuit = circuit();
    let file = || async {
        let chunks =
            futures_util::stream::iter(["abc", "de"].map(Ok::<_, std::convert::Infallible>));
        (
            [("content-length", "5")],
            axum::body::Body::from_stream(chunks),
        )
    };
    let app = Router::new()
        .route("/file", get(file))
        .layer(CircuitLayer::new(circuit.clone()).respond());
    let (listener, address) = listen().await;
    let server = tokio::spawn(axum::serve(listener, app).into_future());
    let mut connection = connect(address).await.unwrap();
    for _ in 0..3 {
        assert_eq!(parts::get(&mut connection, "/file").await.body(), "abcde");
    }
    let totals = circuit.snapshot().totals;
    assert_eq!((totals.succeeded, totals.abandoned), (3, 0));
    server.abort();
}

/// axum applies a layer once per route, and again for each handler with state: that must not multiply the state.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_circuit_is_one_circuit_on_however_many_routes() {
    let circuit = circuit();
    let broken = |State(calls): State<Arc<AtomicUsize>>| async move {
        calls.fetch_add(1, SeqCst);
        StatusCode::BAD_GATEWAY
    };
    let calls = Arc::new(AtomicUsize::new(0));
    let app = Router::new()
        .route("/a", get(broken))
        .route(
            "/b",
            get(broken).layer(CircuitLayer::new(circuit.clone()).respond()),
        )
        .route_layer(CircuitLayer::new(circuit.clone()).respond())
        .with_state(calls.clone());
    let (listener, address) = listen().await;
    let server = tokio::spawn(axum::serve(listener, app).into_future());
    let mut connection = connect(address).await.unwrap();
    assert_eq!(parts::get(&mut connection, "/a").await.status(), 502);
    assert_eq!(parts::get(&mut connection, "/b").await.status(), 502);
    assert_eq!(parts::get(&mut connection, "/a").await.status(), 503);
    assert_eq!(parts::get(&mut connection, "/b").await.status(), 503);
    assert_eq!(calls.load(SeqCst), 2);
    server.abort();
}

/// `axum::serve` has a signal but no deadline: the drain gives it both.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn axums_own_server_drains_with_a_deadline() {
    let drain = Drain::builder()
        .announce(Duration::ZERO)
        .close(Duration::from_millis(200))
        .force(Duration::ZERO)
        .build();
    let app = Router::new()
        .route(
            "/stuck",
            get(|| async { std::future::pending::<()>().await }),
        )
        .layer(DrainLayer::new(&drain));
    let (listener, address) = listen().await;
    let server = axum::serve(listener, app).with_graceful_shutdown(drain.closing());
    let server = tokio::spawn(server.into_future());
    let stuck =
        tokio::spawn(
            async move { parts::get(&mut connect(address).await.unwrap(), "/stuck").await },
        );
    while drain.snapshot().requests == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    drain.begin_drain();
    let report = tokio::time::timeout(parts::PATIENCE, drain.done())
        .await
        .expect("axum alone would wait for ever");
    assert_eq!(report.requests.leaked, 1);
    let ended = tokio::time::timeout(parts::PATIENCE, server).await;
    ended
        .expect("what was cut holds it up no more")
        .unwrap()
        .unwrap();
    assert_eq!(stuck.await.unwrap().status(), 503);
}
