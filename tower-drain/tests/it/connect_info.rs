//! The properties of a connection that handlers get.

use axum::{Extension, Router, routing::get};
use tokio::net::TcpStream;
use tower::ServiceBuilder;
use tower_drain::{Accepted, Addr, Cancellation, Drain, DrainLayer, Http, PeerAddr, Server};

use crate::support::*;

/// Serves `app` and asks it for `/` twice, over one connection: the client's address and the answers.
#[cfg(feature = "axum")]
async fn ask_twice(app: Router) -> (String, [String; 2]) {
    let server = serve(&quick(), app).await;
    let mut client = server.client().await;
    let addr = client.0.local_addr().unwrap().to_string();
    let answers = [client.ask(GET).await.body, client.ask(GET).await.body];
    (addr, answers)
}

#[cfg(feature = "axum")]
#[tokio::test]
async fn axums_connect_info_works_under_this_server() {
    use axum::extract::ConnectInfo;

    let handler =
        |ConnectInfo(addr): ConnectInfo<std::net::SocketAddr>| async move { addr.to_string() };
    let (addr, answers) = ask_twice(Router::new().route("/", get(handler))).await;
    assert_eq!(answers, [&*addr, &*addr]);
}

#[cfg(feature = "tonic")]
#[tokio::test]
async fn tonics_remote_and_local_addresses_work_under_this_server() {
    let server = Drain::new();
    let (listener, at) = listen().await;
    // The conversion of a request by tonic's generated code.
    let handler = |request: axum::extract::Request| async move {
        let request = tonic::Request::from_http(request);
        format!("{:?} {:?}", request.remote_addr(), request.local_addr())
    };
    tokio::spawn(server.serve(listener, Router::new().route("/", get(handler))));
    let mut client = Client(TcpStream::connect(at).await.unwrap());
    let addr = client.0.local_addr().unwrap();
    let expected = format!("{:?} {:?}", Some(addr), Some(at));
    assert_eq!(client.ask(GET).await.body, expected);
}

#[derive(Clone)]
struct Connection(usize, Addr);

#[tokio::test]
async fn what_a_layer_adds_to_a_connection_is_in_each_of_its_requests() {
    let drain = quick();
    let handler = |Extension(Connection(number, local)): Extension<Connection>,
                   Extension(PeerAddr(peer)): Extension<PeerAddr>| async move {
        format!("{number} {local} {peer}")
    };
    let app = Router::new().route("/", get(handler));
    let (listener, at) = listen().await;
    let mut count = 0;
    let connections = ServiceBuilder::new()
        .map_request(move |mut accepted: Accepted<TcpStream>| {
            count += 1;
            let connection = Connection(count, accepted.local().clone());
            accepted.extensions_mut().insert(connection);
            // A layer within keeps it, such as TLS.
            let (io, rest) = accepted.split();
            rest.with(io)
        })
        .service(Http::new(&drain, app));
    tokio::spawn(Server::new(&drain, listener).run(connections));
    for number in 1..=2 {
        let mut client = Client(TcpStream::connect(at).await.unwrap());
        let expected = format!("{number} {at} {}", client.0.local_addr().unwrap());
        assert_eq!(client.ask(GET).await.body, expected);
        assert_eq!(client.ask(GET).await.body, expected);
    }
}

#[tokio::test]
async fn the_cancellation_is_in_the_extensions_under_another_server_too() {
    let drain = Drain::builder().announce(ms(0)).close(ms(0)).build();
    let handler = |Extension(cancellation): Extension<Cancellation>| async move {
        cancellation.cancelled().await;
        "cancelled"
    };
    let app = Router::new()
        .route("/", get(handler))
        .layer(DrainLayer::new(&drain));
    let (listener, addr) = listen().await;
    let server = axum::serve(listener, app).with_graceful_shutdown(drain.closing());
    let server = tokio::spawn(drain.around(server));
    let mut client = Client(TcpStream::connect(addr).await.unwrap());
    client.send(GET).await;
    while drain.snapshot().requests == 0 {
        tokio::task::yield_now().await;
    }
    drain.shutdown();
    assert_eq!(client.answer().await.body, "cancelled");
    soon(server).await.unwrap().unwrap().unwrap();
    assert!(drain.done().await.leaked == 0);
}
