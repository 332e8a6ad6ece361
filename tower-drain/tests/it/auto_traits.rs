//! What users rely on to move these types about.

use tower_drain::*;

fn is<T: Send + Sync + 'static>() {}
fn is_send<T: Send + 'static>() {}
fn is_clone<T: Clone + Send + Sync + 'static>() {}
fn is_unpin<T: Unpin>() {}

#[test]
fn everything_can_be_shared_and_moved() {
    is_clone::<Drain>();
    is_clone::<DrainBuilder>();
    is_clone::<DrainLayer>();
    is_clone::<Guarded<axum::Router>>();
    is_clone::<ConnectionLimit>();
    is_clone::<ConnectionLimitLayer>();
    is_clone::<Limited<Http<axum::Router>>>();
    is_clone::<Http<axum::Router>>();
    is_clone::<Addr>();
    is_clone::<Report>();
    is::<Guard>();
    is::<Accepted<tokio::net::TcpStream>>();
    is::<Server<tokio::net::TcpListener>>();
    is::<Reached>();
    is::<Done>();
    is_send::<Connection<axum::Router, tokio::net::TcpStream, axum::body::Body>>();
    is_clone::<Cancellation>();
    is_clone::<ListenerConfig>();
    is_clone::<Overloaded>();
    is_clone::<ProxyLayer>();
    is_clone::<Proxied<Http<axum::Router>>>();
    is_send::<RequestBody>();
    is::<TooSlow>();
    is_unpin::<RequestBody>();
    is_unpin::<Guard>();
    is_unpin::<Accepted<tokio::net::TcpStream>>();
}

#[cfg(feature = "tls")]
#[test]
fn and_so_can_tls() {
    is_clone::<Tls>();
    is_clone::<TlsLayer>();
    is_clone::<TlsService<Http<axum::Router>>>();
    is_send::<TlsFuture<Http<axum::Router>, tokio::net::TcpStream>>();
}

#[cfg(all(feature = "handoff", target_os = "linux"))]
#[test]
fn and_so_can_what_is_handed_on() {
    use tower_drain::handoff::*;
    is_clone::<Handoff>();
    is::<Inheritance>();
    is::<Incumbent>();
    is::<HandoffListener<tokio::net::TcpListener>>();
    is::<ReusePortListener>();
}
