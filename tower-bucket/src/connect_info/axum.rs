use std::net::SocketAddr;

use axum::extract::ConnectInfo;
use http::Extensions;

/// The peer from axum's extension.
pub(super) fn connect_info(extensions: &Extensions) -> Option<SocketAddr> {
    extensions.get().map(|&ConnectInfo(addr)| addr)
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;
    use crate::{ClientIp, Key, PeerIp};

    #[test]
    fn axums_connect_info_is_a_peer_and_ours_comes_first() {
        let at = |last| SocketAddr::from(([192, 0, 2, last], 4711));
        let mut request = Request::new(());
        request.extensions_mut().insert(ConnectInfo(at(1)));
        assert_eq!(PeerIp.key(&request), Some(ClientIp::from(at(1).ip())));
        request
            .extensions_mut()
            .insert(tower_outcome::PeerAddr(at(2)));
        assert_eq!(PeerIp.key(&request), Some(ClientIp::from(at(2).ip())));
    }
}
