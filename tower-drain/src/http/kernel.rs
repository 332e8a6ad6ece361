//! What the kernel knows about a connection beyond the stream's API.

#[cfg(target_os = "linux")]
use std::any::Any;

/// How many bytes in the socket's send queue the peer's kernel has not acknowledged yet. It falls while the peer reads,
/// long before there is room for another write. `None` where it is not known: it is known for TCP and Unix sockets on
/// Linux, with TLS or without.
#[cfg(target_os = "linux")]
pub(super) fn unacknowledged<Io: 'static>(io: &Io) -> Option<u32> {
    use tokio::net::{TcpStream, UnixStream};

    use crate::raw::unacknowledged;

    let io = io as &dyn Any;
    if let Some(tcp) = io.downcast_ref::<TcpStream>() {
        return unacknowledged(tcp);
    }
    if let Some(unix) = io.downcast_ref::<UnixStream>() {
        return unacknowledged(unix);
    }
    #[cfg(feature = "tls")]
    {
        use tokio_rustls::server::TlsStream;
        if let Some(tls) = io.downcast_ref::<TlsStream<TcpStream>>() {
            return unacknowledged(tls.get_ref().0);
        }
        if let Some(tls) = io.downcast_ref::<TlsStream<UnixStream>>() {
            return unacknowledged(tls.get_ref().0);
        }
    }
    None
}

#[cfg(not(target_os = "linux"))]
pub(super) fn unacknowledged<Io: 'static>(_: &Io) -> Option<u32> {
    None
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::{io::Read, os::unix::net::UnixStream, time::Duration};

    use tokio::time::Instant;

    use super::*;

    /// Until it is less.
    fn wait_for_less(io: &impl Any, than: u32) -> u32 {
        let start = Instant::now();
        loop {
            match unacknowledged(io).unwrap() {
                less if less < than => return less,
                _ => assert!(start.elapsed() < Duration::from_secs(10), "no less"),
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[tokio::test]
    async fn what_is_not_read_is_not_acknowledged() {
        let (mut client, server) = UnixStream::pair().unwrap();
        server.set_nonblocking(true).unwrap();
        let server = tokio::net::UnixStream::from_std(server).unwrap();
        assert_eq!(unacknowledged(&server), Some(0));
        server.writable().await.unwrap();
        while server.try_write(&[0; 1000]).is_ok() {}
        let before = unacknowledged(&server).unwrap();
        client.read_exact(&mut [0; 20_000]).unwrap();
        wait_for_less(&server, before);
    }

    #[tokio::test]
    async fn a_tcp_client_that_reads_acknowledges() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (server, _) = listener.accept().unwrap();
        server.set_nonblocking(true).unwrap();
        let server = tokio::net::TcpStream::from_std(server).unwrap();
        server.writable().await.unwrap();
        while server.try_write(&[0; 65_536]).is_ok() {}
        let mut before = unacknowledged(&server).unwrap();
        assert!(before > 0);
        for _ in 0..3 {
            client.read_exact(&mut [0; 500_000]).unwrap();
            before = wait_for_less(&server, before);
        }
    }

    #[tokio::test]
    async fn of_other_streams_nothing_is_known() {
        assert_eq!(unacknowledged(&tokio::io::duplex(1).0), None);
    }
}
