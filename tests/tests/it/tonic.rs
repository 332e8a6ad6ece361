//! The same layers on a tonic `Server`: refusals are trailers-only statuses with retry hints.

use std::{net::SocketAddr, time::Duration};

use tokio::{net::TcpListener, task::JoinHandle};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{
    Code, Status,
    transport::{Channel, Server},
};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tower::{Layer, ServiceBuilder};
use tower_bucket::{BucketLayer, Limiter};
use tower_circuit::{CircuitLayer, State};
use tower_drain::{Drain, DrainLayer};
use tower_lease::{
    LeaseLayer, PropagateLayer,
    fence::{Fence, FenceLayer, MemoryMark},
};
use tower_outcome::classify;

use crate::parts::{PATIENCE, circuit, held_lease, twenty};

async fn listen() -> (TcpListenerStream, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (TcpListenerStream::new(listener), address)
}

async fn channel(address: SocketAddr) -> Channel {
    Channel::from_shared(format!("http://{address}"))
        .unwrap()
        .connect()
        .await
        .unwrap()
}

async fn client(address: SocketAddr) -> HealthClient<Channel> {
    HealthClient::new(channel(address).await)
}

async fn check(client: &mut HealthClient<Channel>, service: &str) -> Result<i32, Status> {
    let request = HealthCheckRequest {
        service: service.to_owned(),
    };
    let answer = tokio::time::timeout(PATIENCE, client.check(request))
        .await
        .expect("an answer in time")?;
    Ok(answer.into_inner().status)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_layers_answer_grpc_in_its_own_words() {
    let drain = Drain::builder().announce(Duration::ZERO).build();
    let (circuit, limiter) = (circuit(), Limiter::new(twenty()));
    let (lease, keeper) = held_lease().await;
    let (_reporter, health) = tonic_health::server::health_reporter();
    let (listener, address) = listen().await;
    let server = Server::builder()
        .layer(DrainLayer::new(&drain))
        .layer(BucketLayer::new(limiter.clone()).respond())
        .layer(LeaseLayer::new(&lease).respond())
        .layer(CircuitLayer::new(circuit.clone()).respond())
        .add_service(health)
        .serve_with_incoming_shutdown(listener, drain.closing());
    let server: JoinHandle<_> = tokio::spawn(server);
    let mut client = client(address).await;

    assert_eq!(check(&mut client, "").await.unwrap(), 1, "serving");
    assert_eq!(
        check(&mut client, "unknown").await.unwrap_err().code(),
        Code::NotFound
    );
    assert_eq!(
        circuit.snapshot().totals.succeeded,
        2,
        "NOT_FOUND is the caller's business: no failure"
    );

    circuit.force_open();
    let refused = check(&mut client, "").await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);
    circuit.reset();

    while limiter.check().is_ok() {}
    let refused = check(&mut client, "").await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    let pushback: u64 = refused
        .metadata()
        .get("grpc-retry-pushback-ms")
        .unwrap()
        .to_str()
        .unwrap()
        .parse()
        .unwrap();
    assert!((1..=60_000).contains(&pushback), "{pushback}");

    keeper.abort();
    drain.begin_drain();
    tokio::time::timeout(PATIENCE, server)
        .await
        .expect("it ends")
        .unwrap()
        .unwrap();
    assert!(drain.done().await.is_clean());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_lease_is_unavailable() {
    let (lease, keeper) = held_lease().await;
    let (_reporter, health) = tonic_health::server::health_reporter();
    let (listener, address) = listen().await;
    let server = Server::builder()
        .layer(LeaseLayer::new(&lease).respond())
        .add_service(health);
    let server = tokio::spawn(server.serve_with_incoming(listener));
    let mut client = client(address).await;
    assert!(check(&mut client, "").await.is_ok());
    keeper.abort();
    let _ = keeper.await;
    assert_eq!(
        check(&mut client, "").await.unwrap_err().code(),
        Code::Unavailable
    );
    server.abort();
}

/// `Drain::serve` runs tonic's routes as it runs an axum router.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_accept_loop_serves_tonic_routes() {
    let drain = Drain::builder().announce(Duration::ZERO).build();
    let (_reporter, health) = tonic_health::server::health_reporter();
    let routes = tonic::service::Routes::new(health);
    let app = ServiceBuilder::new()
        .layer(BucketLayer::per_client(twenty()).respond())
        .service(routes);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tokio::spawn(drain.serve(listener, app));
    let mut client = client(address).await;
    assert!(check(&mut client, "").await.is_ok());
    drain.begin_drain();
    drop(client);
    let report = tokio::time::timeout(PATIENCE, server)
        .await
        .expect("it ends")
        .unwrap()
        .unwrap();
    assert!(report.is_clean(), "{report}");
}

/// On the client's side of a channel: statuses in trailers open the circuit, and its refusal is an error.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_circuit_round_a_channel_sees_statuses() {
    let (_reporter, health) = tonic_health::server::health_reporter();
    let (listener, address) = listen().await;
    // A server that fails: its lease is never held, so it responds with UNAVAILABLE.
    let key = tower_lease::LeaseKey::new("tests/never").unwrap();
    let holder = tower_lease::Holder::new("nobody");
    let (lease, keeper) = tower_lease::Lease::builder(tower_lease::MemoryStore::new(), key, holder)
        .build()
        .unwrap();
    let server = Server::builder()
        .layer(LeaseLayer::new(&lease).respond())
        .add_service(health);
    let server = tokio::spawn(server.serve_with_incoming(listener));

    let circuit = circuit();
    let layer = CircuitLayer::new(circuit.clone()).classify(classify::Grpc::new());
    let mut client = HealthClient::new(layer.layer(channel(address).await));
    for _ in 0..2 {
        let request = HealthCheckRequest::default();
        assert_eq!(
            client.check(request).await.unwrap_err().code(),
            Code::Unavailable
        );
    }
    assert!(
        matches!(circuit.state(), State::Open { .. }),
        "{:?}",
        circuit.state()
    );
    let refused = client
        .check(HealthCheckRequest::default())
        .await
        .unwrap_err();
    assert!(
        tower_outcome::Refusal::find(&refused).is_some(),
        "{refused:?}"
    );
    assert_eq!(refused.code(), Code::Unknown, "tonic does not know it");
    let service = ServiceBuilder::new()
        .map_err(tower_circuit::refuse::status)
        .layer(CircuitLayer::new(&circuit).classify(classify::Grpc::new()))
        .service(channel(address).await);
    let rejected = HealthClient::new(service)
        .check(HealthCheckRequest::default())
        .await
        .unwrap_err();
    assert_eq!(rejected.code(), Code::Unavailable);
    assert!(rejected.metadata().contains_key("grpc-retry-pushback-ms"));
    assert!(tower_outcome::Refusal::find(&rejected).is_some());
    drop(keeper);
    server.abort();
}

/// The token is gRPC metadata: a client's layer writes it, the resource's reads it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fencing_token_travels_as_metadata_and_an_old_one_is_a_failed_precondition() {
    let (lease, keeper) = held_lease().await;
    let fence = Fence::of_key(lease.key().clone(), MemoryMark::new()).build();
    let (_reporter, health) = tonic_health::server::health_reporter();
    let (listener, address) = listen().await;
    let server = Server::builder()
        .layer(FenceLayer::new(&fence).respond())
        .add_service(health);
    let server = tokio::spawn(server.serve_with_incoming(listener));
    let request = || HealthCheckRequest {
        service: String::new(),
    };

    let mut holder = HealthClient::new(PropagateLayer::new(&lease).layer(channel(address).await));
    let answer = tokio::time::timeout(PATIENCE, holder.check(request()))
        .await
        .expect("an answer in time");
    assert_eq!(answer.unwrap().into_inner().status, 1, "serving");
    assert_eq!(fence.floor(lease.key()), lease.token());

    // Its successor has been here meanwhile.
    let own = lease.token().unwrap();
    let next =
        tower_lease::FencingToken::new(own.key().clone(), own.epoch().checked_add(1).unwrap());
    fence.admit(&next).await.unwrap();
    let refused = holder.check(request()).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);

    // By hand, as any gRPC client can.
    let mut anyone = HealthClient::new(channel(address).await);
    assert_eq!(
        anyone.check(request()).await.unwrap_err().code(),
        Code::Internal,
        "no token"
    );
    let mut by_hand = tonic::Request::new(request());
    by_hand
        .metadata_mut()
        .insert("x-lease-token", next.to_string().parse().unwrap());
    assert!(anyone.check(by_hand).await.is_ok());
    keeper.abort();
    server.abort();
}

#[tokio::test]
async fn the_health_service_follows_a_drain_joined_with_another_state() {
    use tonic_health::ServingStatus;
    use tower_outcome::readiness::Readiness;

    let (drain, other) = (Drain::new(), Drain::new());
    let readiness: Readiness = drain.readiness().and(other.readiness());
    let (reporter, health) = tonic_health::server::health_reporter();
    let follow = tokio::spawn(readiness.clone().follow(move |ready| {
        let reporter = reporter.clone();
        let status = match ready {
            Ok(()) => ServingStatus::Serving,
            Err(_) => ServingStatus::NotServing,
        };
        async move { reporter.set_service_status("", status).await }
    }));
    let (incoming, address) = listen().await;
    let server = tokio::spawn(
        Server::builder()
            .add_service(health)
            .serve_with_incoming(incoming),
    );
    let request = HealthCheckRequest::default();
    let mut changes = client(address)
        .await
        .watch(request)
        .await
        .unwrap()
        .into_inner();
    let mut status = async || changes.message().await.unwrap().unwrap().status;
    assert_eq!(status().await, 1, "serving");
    other.begin_drain();
    let next = tokio::time::timeout(PATIENCE, status()).await;
    assert_eq!(next.expect("told at once"), 2, "not serving");
    assert_eq!(readiness.check().unwrap_err().code(), "draining");
    follow.abort();
    server.abort();
}
