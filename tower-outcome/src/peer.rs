use std::net::SocketAddr;

/// The address a connection came from, in a request's extensions.
///
/// Set by the server that accepted the connection; read by per-client limits. This is the peer of the *connection*: behind a
/// proxy it is the address of the proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PeerAddr(pub SocketAddr);
