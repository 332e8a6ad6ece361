//! A client that stops calling a server which fails, and resumes once it has recovered.
//!
//! ```console
//! $ cargo run -p tower-circuit --example client
//! ```
//!
//! The server is part of the program: it listens on loopback, on a port that the system chooses, responds with 500 for a second,
//! and recovers. The program ends by itself after two seconds.

use std::{io, net::SocketAddr, time::Duration};

use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper::{
    body::{Bytes, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::{
    client::legacy::Client,
    rt::{TokioExecutor, TokioIo},
};
use tokio::{
    net::TcpListener,
    time::{Instant, sleep},
};
use tower::{Service, ServiceBuilder, ServiceExt};
use tower_circuit::{BoxError, Circuit, CircuitLayer, Cooldown, Refusal, State, Trip, classify};

const OUTAGE: Duration = Duration::from_secs(1);

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), BoxError> {
    let server = serve().await?;
    let circuit = Circuit::builder()
        .name("prices")
        .trip(Trip::default().or(Trip::consecutive(3)))
        .cooldown(Cooldown::fixed(Duration::from_millis(400)))
        .build();
    let mut client = ServiceBuilder::new()
        // Without `classify` only an error is a failure, and a 500 is a success.
        .layer(CircuitLayer::new(&circuit).classify(classify::Auto::new()))
        .timeout(Duration::from_secs(1))
        .service(Client::builder(TokioExecutor::new()).build_http::<Empty<Bytes>>());

    let begun = Instant::now();
    while begun.elapsed() < 2 * OUTAGE {
        let request = Request::get(format!("http://{server}/price")).body(Empty::new())?;
        let result = match client.ready().await?.call(request).await {
            Ok(response) => {
                let status = response.status();
                response.into_body().collect().await?;
                status.to_string()
            }
            Err(error) => match Refusal::find(&*error) {
                Some(refusal) => format!("rejected, retry after {:?}", refusal.retry_after()),
                None => format!("failed: {error}"),
            },
        };
        println!(
            "{:4} ms  {:9}  {result}",
            begun.elapsed().as_millis(),
            circuit.state().as_str()
        );
        sleep(Duration::from_millis(100)).await;
    }

    let snapshot = circuit.snapshot();
    println!(
        "{} calls reached the server, and {} were rejected; it opened {} times, last because of {}",
        snapshot.totals.ended(),
        snapshot.totals.rejected,
        snapshot.trips,
        snapshot
            .last_reason
            .map_or("nothing", |reason| reason.as_str()),
    );
    assert_eq!(snapshot.state, State::Closed, "the server has recovered");
    Ok(())
}

/// Starts the server.
async fn serve() -> io::Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let (address, begun) = (listener.local_addr()?, Instant::now());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let price = service_fn(move |_: Request<Incoming>| async move {
                let mut response = Response::new(Empty::<Bytes>::new());
                if begun.elapsed() < OUTAGE {
                    *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
                }
                Ok::<_, BoxError>(response)
            });
            tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), price));
        }
    });
    Ok(address)
}
