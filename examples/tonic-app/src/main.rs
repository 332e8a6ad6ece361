//! An ordinary tonic app, and what three lines add to it.
//!
//! It reports the weather, once or as a stream. Three lines make it resilient: a limit for each client, a circuit around its
//! handlers, and a drain that lets calls and streams finish.
//!
//! ```console
//! $ cargo run -p tonic-app              # or: cargo run -p tonic-app -- 127.0.0.1:50051
//! $ kill -TERM <its pid>                # streams end with OK, calls finish, then it exits with a report
//! ```

use std::{pin::Pin, process::ExitCode, time::Duration};

use futures_util::{Stream, StreamExt};
use tokio::{net::TcpListener, time::interval};
use tokio_stream::wrappers::{IntervalStream, TcpListenerStream};
use tonic::{Request, Response, Status, transport::Server};
use tower_bucket::{BucketLayer, Quota};
use tower_circuit::{Circuit, CircuitLayer};
use tower_drain::{Drain, DrainLayer};
use tower_outcome::classify;

use self::weather::{
    Place, Report, WatchRequest,
    weather_server::{Weather, WeatherServer},
};

mod weather {
    #![allow(missing_docs, unreachable_pub, clippy::use_self, reason = "generated")]
    tonic::include_proto!("weather.v1");
}

#[tokio::main]
async fn main() -> Result<ExitCode, Box<dyn std::error::Error>> {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .init();
    let address = std::env::args()
        .nth(1)
        .unwrap_or_else(|| "127.0.0.1:50051".to_owned());
    let listener = TcpListener::bind(&address)
        .await
        .map_err(|error| format!("cannot listen on {address}: {error}"))?;
    println!("tonic-app listening on http://{}", listener.local_addr()?);

    let (drain, circuit) = (Drain::new(), Circuit::builder().name("stations").build());
    tokio::spawn(drain.on_signals()); // SIGTERM lets calls finish, a second one forces the end
    let server = Server::builder()
        // One: counts each call to its last byte.
        .layer(DrainLayer::new(&drain))
        // Two: RESOURCE_EXHAUSTED with a retry hint for a client that exceeds its limit.
        .layer(BucketLayer::per_client(Quota::per_second(20).burst(20)).respond())
        // Three: UNAVAILABLE with a retry hint while calls keep failing. A status such as NOT_FOUND is not a failure.
        .layer(
            CircuitLayer::new(&circuit)
                .classify(classify::Grpc::server())
                .respond(),
        )
        .add_service(WeatherServer::new(Stations {
            drain: drain.clone(),
        }))
        .serve_with_incoming_shutdown(TcpListenerStream::new(listener), drain.closing());

    // tonic waits for the last call, however long that takes; the drain has a deadline.
    drain.around(server).await.transpose()?;
    let report = drain.done().await;
    println!("ended: {report}");
    Ok(if report.is_clean() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

// === the app, which does not depend on the layers ===

/// The weather service.
struct Stations {
    /// Ends streams that would not end otherwise.
    drain: Drain,
}

impl Stations {
    fn measure(place: &str, serial: u64) -> Result<Report, Status> {
        match place {
            "" => Err(Status::invalid_argument("no place")),
            "Atlantis" => Err(Status::not_found("no station at Atlantis")),
            "Nowhere" => Err(Status::unavailable("the station does not answer")),
            _ => Ok(Report {
                celsius: i32::try_from(place.len()).unwrap_or(i32::MAX),
                serial,
            }),
        }
    }
}

#[tonic::async_trait]
impl Weather for Stations {
    async fn now(&self, request: Request<Place>) -> Result<Response<Report>, Status> {
        tokio::time::sleep(Duration::from_millis(20)).await;
        Self::measure(&request.into_inner().name, 0).map(Response::new)
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<Report, Status>> + Send>>;

    async fn watch(
        &self,
        request: Request<WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let WatchRequest { place, reports } = request.into_inner();
        let place = place.unwrap_or_default().name;
        Self::measure(&place, 0)?;
        let ticks = IntervalStream::new(interval(Duration::from_millis(50))).enumerate();
        let reports = ticks.take(if reports == 0 {
            usize::MAX
        } else {
            reports as usize
        });
        let reports = reports.map(move |(serial, _)| Self::measure(&place, serial as u64 + 1));
        // Only the app can end the stream with a status, so it listens to the drain.
        Ok(Response::new(
            reports.take_until(self.drain.closing()).boxed(),
        ))
    }
}
