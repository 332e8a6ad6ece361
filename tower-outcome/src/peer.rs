use std::net::SocketAddr;

/// The address a connection came from, in a request's extensions.
///
/// An accept loop writes it; a per-client limit reads it. It is the peer of the *connection*: behind a proxy that is
/// the proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PeerAddr(pub SocketAddr);
