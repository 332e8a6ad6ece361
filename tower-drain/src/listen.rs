use std::{
    fmt,
    future::Future,
    io,
    net::SocketAddr,
    path::Path,
    pin::pin,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};

/// A source of connections: TCP, Unix sockets, or another network, such as a simulated one.
pub trait Listen: Send + 'static {
    /// The stream of a connection.
    type Io: Send + 'static;

    /// Waits for the next connection.
    ///
    /// # Errors
    ///
    /// Those of `accept(2)`, unchanged: the accept loop knows which of them are transient.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future must not lose a connection.
    fn accept(&mut self) -> impl Future<Output = io::Result<(Self::Io, Addr)>> + Send;

    /// Takes a connection that is already in the queue, or `None` if there is none. It never waits.
    ///
    /// The accept loop calls it for connections that were queued before the listener closes. The default polls
    /// [`accept`](Self::accept) once.
    ///
    /// # Errors
    ///
    /// As [`accept`](Self::accept).
    fn try_accept(&mut self) -> io::Result<Option<(Self::Io, Addr)>> {
        match pin!(self.accept()).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(accepted) => accepted.map(Some),
            Poll::Pending => Ok(None),
        }
    }

    /// Called when closing begins: the last connections are taken with [`try_accept`](Self::try_accept), and then the
    /// listener is dropped.
    fn begin_close(&mut self) {}

    /// Whether connections are expected that must be waited for, besides those that arrive within the next 100 ms.
    /// Called every 10 ms.
    fn expects_more(&mut self) -> bool {
        false
    }

    /// The address that clients connect to.
    ///
    /// # Errors
    ///
    /// If the system does not return it.
    fn local_addr(&self) -> io::Result<Addr>;
}

/// The address of an end of a connection.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Addr {
    /// An internet address.
    Ip(SocketAddr),
    /// A Unix socket; clients usually have no path.
    Unix(Option<Arc<Path>>),
    /// Something else, or unknown.
    Other,
}

// === impl Listen ===

impl Listen for TcpListener {
    type Io = TcpStream;

    /// Sets two options of the connection. `TCP_NODELAY`: a server flushes when it means to send, and with HTTP/2 a small
    /// frame that waits for an acknowledgement costs 40 ms. `TCP_NOTSENT_LOWAT` (Linux), 64 KiB: the kernel buffers no more
    /// than that beyond what it may send, where it would buffer 4 MB for each client that does not read, and the progress
    /// of a client that reads slowly is visible.
    async fn accept(&mut self) -> io::Result<(TcpStream, Addr)> {
        let (stream, peer) = Self::accept(self).await?;
        Ok((prepared(stream), Addr::Ip(peer)))
    }

    /// Calls `accept` directly, since the runtime may not have received the event of a queued connection yet.
    fn try_accept(&mut self) -> io::Result<Option<(TcpStream, Addr)>> {
        let Some((socket, peer)) = take_queued(SockRef::from(&*self).accept())? else {
            return Ok(None);
        };
        let stream = TcpStream::from_std(socket.into())?;
        Ok(Some((
            prepared(stream),
            peer.as_socket().map_or(Addr::Other, Addr::Ip),
        )))
    }

    fn local_addr(&self) -> io::Result<Addr> {
        Self::local_addr(self).map(Addr::Ip)
    }
}

/// Setting options fails on a connection that is already gone; reading from it will show that.
fn prepared(stream: TcpStream) -> TcpStream {
    let _ = stream.set_nodelay(true);
    #[cfg(target_os = "linux")]
    let _ = SockRef::from(&stream).set_tcp_notsent_lowat(UNSENT);
    stream
}

/// Enough until the server writes more. The kernel asks for more when half of it is left.
#[cfg(target_os = "linux")]
const UNSENT: u32 = 64 * 1024;

fn take_queued(
    accepted: io::Result<(socket2::Socket, socket2::SockAddr)>,
) -> io::Result<Option<(socket2::Socket, socket2::SockAddr)>> {
    match accepted {
        Ok((socket, peer)) => {
            socket.set_nonblocking(true)?;
            Ok(Some((socket, peer)))
        }
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(unix)]
mod unix {
    use std::{io, sync::Arc};

    use socket2::SockRef;
    use tokio::net::{UnixListener, UnixStream, unix::SocketAddr};

    use super::{Addr, Listen, take_queued};

    impl Listen for UnixListener {
        type Io = UnixStream;

        async fn accept(&mut self) -> io::Result<(UnixStream, Addr)> {
            let (stream, peer) = Self::accept(self).await?;
            Ok((stream, Addr::from(&peer)))
        }

        /// Calls `accept` directly, since the runtime may not have received the event of a queued connection yet.
        fn try_accept(&mut self) -> io::Result<Option<(UnixStream, Addr)>> {
            let Some((socket, _)) = take_queued(SockRef::from(&*self).accept())? else {
                return Ok(None);
            };
            let stream = UnixStream::from_std(socket.into())?;
            let peer = stream
                .peer_addr()
                .map_or(Addr::Unix(None), |peer| Addr::from(&peer));
            Ok(Some((stream, peer)))
        }

        fn local_addr(&self) -> io::Result<Addr> {
            Self::local_addr(self).map(|local| Addr::from(&local))
        }
    }

    impl From<&SocketAddr> for Addr {
        fn from(addr: &SocketAddr) -> Self {
            Self::Unix(addr.as_pathname().map(Arc::from))
        }
    }
}

// === impl Addr ===

impl Addr {
    /// The internet address, if it is one.
    #[must_use]
    pub const fn ip(&self) -> Option<SocketAddr> {
        match self {
            Self::Ip(addr) => Some(*addr),
            _ => None,
        }
    }
}

impl From<SocketAddr> for Addr {
    fn from(addr: SocketAddr) -> Self {
        Self::Ip(addr)
    }
}

impl fmt::Display for Addr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(addr) => addr.fmt(f),
            Self::Unix(Some(path)) => path.display().fmt(f),
            Self::Unix(None) => f.write_str("unix"),
            Self::Other => f.write_str("unknown"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_queued_connection_is_taken_without_waiting() {
        let mut listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        assert!(listener.try_accept().unwrap().is_none());
        let addr = TcpListener::local_addr(&listener).unwrap();
        // A blocking connect, so the runtime gets no event for it.
        let client = std::net::TcpStream::connect(addr).unwrap();
        let (stream, peer) = listener.try_accept().unwrap().unwrap();
        assert_eq!(peer, Addr::Ip(client.local_addr().unwrap()));
        assert!(stream.nodelay().unwrap());
        #[cfg(target_os = "linux")]
        assert_eq!(SockRef::from(&stream).tcp_notsent_lowat().unwrap(), UNSENT);
        assert!(listener.try_accept().unwrap().is_none());
    }
}
