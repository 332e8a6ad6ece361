//! What a connection's requests find in their extensions.

use std::net::SocketAddr;

use http::Extensions;
use tower_outcome::PeerAddr;

use crate::accepted::Accepted;

/// What each request of a connection finds in its extensions.
#[derive(Debug)]
pub(super) struct ConnectionInfo {
    peer: Option<SocketAddr>,
    local: Option<SocketAddr>,
    /// Added by layers around the runner.
    extensions: Extensions,
}

// === impl ConnectionInfo ===

impl ConnectionInfo {
    pub(super) fn of<Io>(accepted: &Accepted<Io>) -> Self {
        Self {
            peer: accepted.peer().ip(),
            // A listener at a wildcard does not know which address a client has connected to.
            local: accepted
                .local()
                .ip()
                .filter(|local| !local.ip().is_unspecified()),
            extensions: accepted.extensions().clone(),
        }
    }

    pub(super) fn insert_into(&self, extensions: &mut Extensions) {
        if !self.extensions.is_empty() {
            extensions.extend(self.extensions.clone());
        }
        if let Some(peer) = self.peer {
            extensions.insert(PeerAddr(peer));
            for_axum::insert(extensions, peer);
            for_tonic::insert(extensions, peer, self.local);
        }
    }
}

#[cfg(feature = "axum")]
mod for_axum {
    use std::net::SocketAddr;

    use axum::extract::ConnectInfo;
    use http::Extensions;

    pub(super) fn insert(extensions: &mut Extensions, peer: SocketAddr) {
        extensions.insert(ConnectInfo(peer));
    }
}

#[cfg(not(feature = "axum"))]
mod for_axum {
    pub(super) const fn insert(_: &mut http::Extensions, _: std::net::SocketAddr) {}
}

#[cfg(feature = "tonic")]
mod for_tonic {
    use std::net::SocketAddr;

    use http::Extensions;
    use tonic::transport::server::TcpConnectInfo;

    pub(super) fn insert(extensions: &mut Extensions, peer: SocketAddr, local: Option<SocketAddr>) {
        extensions.insert(TcpConnectInfo {
            local_addr: local,
            remote_addr: Some(peer),
        });
    }
}

#[cfg(not(feature = "tonic"))]
mod for_tonic {
    use std::net::SocketAddr;

    pub(super) const fn insert(_: &mut http::Extensions, _: SocketAddr, _: Option<SocketAddr>) {}
}
