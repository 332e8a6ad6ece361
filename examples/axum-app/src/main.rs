//! An ordinary axum app, and what three lines add to it.
//!
//! It sells tickets: the seats are in memory, the prices come from another service that may be slow or fail. Three lines make it
//! resilient: a circuit around the prices, a limit for each client, and a drain that lets requests finish.
//!
//! ```console
//! $ cargo run -p axum-app              # or: cargo run -p axum-app -- 127.0.0.1:3000
//! $ curl -i localhost:3000/seats
//! $ curl -i localhost:3000/price/7     # add ?fail for a bad answer; after five in a row: 503 and Retry-After
//! $ kill -TERM <its pid>               # /ready returns 503, requests are still served, then it exits with a report
//! ```

use std::{process::ExitCode, sync::Arc, time::Duration};

use axum::{
    Json, Router,
    extract::{Path, RawQuery, State},
    http::StatusCode,
    routing::{get, post},
};
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::Mutex, time::sleep};
use tower_bucket::{BucketLayer, Quota};
use tower_circuit::{Circuit, CircuitLayer};
use tower_drain::Drain;

/// The app's own state: for each seat, whether it is sold.
type Seats = Arc<Mutex<[bool; 100]>>;

#[tokio::main]
async fn main() -> Result<ExitCode, Box<dyn std::error::Error>> {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .init();

    // What outlives a request is a value of the app's own: cheap handles, which the layers refer to.
    let drain = Drain::new();
    let prices = Circuit::builder().name("prices").build();
    let each = Quota::per_second(50).burst(50);

    let (ready, status) = (drain.clone(), prices.clone());
    let app = Router::new()
        .route("/price/{seat}", get(price))
        .layer(CircuitLayer::new(&prices).respond()) // one: the route above responds with 503 while it is open
        .route("/seats", get(seats))
        .route("/seats/{seat}", post(buy))
        .layer(BucketLayer::per_client(each).respond()) // two: 429 for a client that exceeds its limit
        .route("/ready", get(move || async move { is_ready(&ready) }))
        .route(
            "/circuit",
            get(move || async move { Json(circuit_status(&status)) }),
        )
        .with_state(Seats::new(Mutex::new([false; 100])));

    let address = std::env::args()
        .nth(1)
        .unwrap_or_else(|| "127.0.0.1:3000".to_owned());
    let listener = TcpListener::bind(&address)
        .await
        .map_err(|error| format!("cannot listen on {address}: {error}"))?;
    println!("axum-app listening on http://{}", listener.local_addr()?);

    // Three: SIGTERM lets requests finish, a second one forces the end. This replaces `axum::serve(listener, app)`; to keep that,
    // pass it `drain.closing()` as its shutdown signal and add a `DrainLayer` to the `Router`.
    tokio::spawn(drain.on_signals());
    let report = drain.serve(listener, app).await?;
    println!("ended: {report}");
    Ok(if report.is_clean() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

// === the app, which does not depend on the layers ===

async fn seats(State(seats): State<Seats>) -> Json<Value> {
    let sold = seats.lock().await.iter().filter(|sold| **sold).count();
    Json(json!({ "sold": sold, "free": 100 - sold }))
}

async fn buy(State(seats): State<Seats>, Path(seat): Path<usize>) -> (StatusCode, String) {
    // Payment takes some time and should not be interrupted.
    sleep(Duration::from_millis(100)).await;
    match seats.lock().await.get_mut(seat) {
        None => (StatusCode::NOT_FOUND, format!("there is no seat {seat}\n")),
        Some(sold) if *sold => (StatusCode::CONFLICT, format!("seat {seat} is sold\n")),
        Some(sold) => {
            *sold = true;
            (StatusCode::OK, format!("seat {seat} is yours\n"))
        }
    }
}

/// In place of another service; it fails with the query `fail`.
async fn price(
    Path(seat): Path<u32>,
    RawQuery(query): RawQuery,
) -> Result<Json<Value>, StatusCode> {
    sleep(Duration::from_millis(2)).await;
    if query.as_deref() == Some("fail") {
        Err(StatusCode::BAD_GATEWAY)
    } else {
        Ok(Json(json!({ "price": 10 + seat })))
    }
}

// === for operators ===

fn is_ready(drain: &Drain) -> (StatusCode, &'static str) {
    if drain.is_ready() {
        (StatusCode::OK, "ready\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "draining\n")
    }
}

fn circuit_status(circuit: &Circuit) -> Value {
    let snapshot = circuit.snapshot();
    json!({ "state": snapshot.state.as_str(), "failed": snapshot.totals.failed, "rejected": snapshot.totals.rejected })
}
