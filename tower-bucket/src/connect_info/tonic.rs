use std::net::SocketAddr;

use http::Extensions;
use tonic::transport::server::TcpConnectInfo;

/// The peer from tonic's extension.
pub(super) fn connect_info(extensions: &Extensions) -> Option<SocketAddr> {
    extensions.get().and_then(TcpConnectInfo::remote_addr)
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;
    use crate::{ClientIp, Key, PeerIp};

    #[test]
    fn tonics_connect_info_is_a_peer() {
        let addr = SocketAddr::from(([192, 0, 2, 1], 4711));
        let mut request = Request::new(());
        request.extensions_mut().insert(TcpConnectInfo {
            local_addr: None,
            remote_addr: Some(addr),
        });
        assert_eq!(PeerIp.key(&request), Some(ClientIp::from(addr.ip())));
    }
}
