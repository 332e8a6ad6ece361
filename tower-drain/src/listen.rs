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

/// Where connections come from: TCP, Unix sockets, or a network of your own (a simulated one, say).
pub trait Listen: Send + 'static {
    /// A connection.
    type Io: Send + 'static;

    /// Waits for the next connection.
    ///
    /// # Errors
    ///
    /// Those of `accept(2)`, as they are: the accept loop knows which of them pass.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future must not lose a connection.
    fn accept(&mut self) -> impl Future<Output = io::Result<(Self::Io, Addr)>> + Send;

    /// Takes a connection that is already in the queue, or `None` if there is none. It never waits.
    ///
    /// A drain asks this way for those who were there before the listener closes. The default asks
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

    /// Closing begins: the last ones are taken with [`try_accept`](Self::try_accept), and then it is dropped.
    fn begin_close(&mut self) {}

    /// Whether somebody is known to be on the way who must be waited for, besides those who come in the next 100 ms.
    /// Asked every 10 ms.
    fn expects_more(&mut self) -> bool {
        false
    }

    /// The address that clients connect to.
    ///
    /// # Errors
    ///
    /// When the system does not tell it.
    fn local_addr(&self) -> io::Result<Addr>;
}

/// An end of a connection.
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

    /// Sets two options of the connection. `TCP_NODELAY`: what a server writes it means to send, and with HTTP/2 a small
    /// frame that waits for an acknowledgement costs 40 ms. `TCP_NOTSENT_LOWAT` (Linux), 64 KiB: the kernel takes no more
    /// than that beyond what it may send, where it would take 4 MB for each client that does not read, and a client that
    /// reads slowly is seen to read.
    async fn accept(&mut self) -> io::Result<(TcpStream, Addr)> {
        let (stream, peer) = Self::accept(self).await?;
        Ok((prepared(stream), Addr::Ip(peer)))
    }

    /// Asks the system itself, since the runtime may not have been told yet of a connection that is there.
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

/// Enough for the time until the server is asked for more. Half of it is what is left when it is asked.
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

        /// Asks the system itself, since the runtime may not have been told yet of a connection that is there.
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
        // A blocking connect, so the runtime never gets to hear of it.
        let client = std::net::TcpStream::connect(addr).unwrap();
        let (stream, peer) = listener.try_accept().unwrap().unwrap();
        assert_eq!(peer, Addr::Ip(client.local_addr().unwrap()));
        assert!(stream.nodelay().unwrap());
        #[cfg(target_os = "linux")]
        assert_eq!(SockRef::from(&stream).tcp_notsent_lowat().unwrap(), UNSENT);
        assert!(listener.try_accept().unwrap().is_none());
    }
}
