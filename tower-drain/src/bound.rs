use std::{io, net::SocketAddr};

use tokio::net::{TcpListener, TcpStream};

use crate::listen::{Addr, Listen};
#[cfg(target_os = "linux")]
use crate::raw as system;

/// A TCP listener that this process has bound and shares with no other. Made by
/// [`ListenerConfig::bind`](crate::ListenerConfig::bind).
///
/// A kernel completes handshakes whether anybody accepts or not, and closing a listening socket resets those that it
/// completed since the queue was last looked at: a client that was told it is connected loses its request. Under load
/// somebody meets that moment, however short it is. So on Linux, when closing begins, this listener has the kernel drop
/// the SYNs of newcomers first, lets the handshakes under way complete, takes who is in the queue, and is closed then.
/// A newcomer's SYN is repeated after a second, and finds the port closed or the next process.
///
/// It does so by raising the least TTL of what the socket receives to 255 (`IP_MINTTL`, `IPV6_MINHOPCOUNT`), for which a
/// filter would need privileges. Nothing that has crossed a router arrives with that TTL, nor does what Linux, the BSDs
/// and Windows send over loopback and to their neighbours. Neighbours that begin with 255, routers mostly, are not
/// turned away.
///
/// A socket that others hold too (systemd, a successor) would stay like that for them. It goes to
/// [`Server::new`](crate::Server::new) as a `TcpListener`, which is closed as it is.
#[derive(Debug)]
pub struct BoundListener {
    listener: TcpListener,
    /// Newcomers are turned away, and so would be all that those send who still come in: they inherit the limit.
    closing: bool,
}

/// Other systems close as they close.
#[cfg(not(target_os = "linux"))]
mod system {
    use std::io;

    pub(super) fn turn_away_newcomers<T>(_: &T) -> io::Result<()> {
        Ok(())
    }

    pub(super) fn hear_all<T>(_: &T) -> io::Result<()> {
        Ok(())
    }
}

// === impl BoundListener ===

impl BoundListener {
    pub(crate) const fn new(listener: TcpListener) -> Self {
        Self {
            listener,
            closing: false,
        }
    }

    /// The address that clients connect to.
    ///
    /// # Errors
    ///
    /// When the system does not tell it.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// What a connection sent before this was dropped, and is sent again.
    fn let_in(&self, stream: &TcpStream) {
        if self.closing
            && let Err(error) = system::hear_all(stream)
        {
            tracing::warn!(%error, "a connection that came as the listener closed will not be heard");
        }
    }
}

impl Listen for BoundListener {
    type Io = TcpStream;

    async fn accept(&mut self) -> io::Result<(TcpStream, Addr)> {
        let (stream, peer) = Listen::accept(&mut self.listener).await?;
        self.let_in(&stream);
        Ok((stream, peer))
    }

    fn try_accept(&mut self) -> io::Result<Option<(TcpStream, Addr)>> {
        let accepted = self.listener.try_accept()?;
        Ok(accepted.inspect(|(stream, _)| self.let_in(stream)))
    }

    fn begin_close(&mut self) {
        self.closing = true;
        if let Err(error) = system::turn_away_newcomers(&self.listener) {
            tracing::warn!(%error, "newcomers cannot be turned away: who connects as the listener closes may be reset");
        }
    }

    fn local_addr(&self) -> io::Result<Addr> {
        self.local_addr().map(Addr::Ip)
    }
}

#[cfg(unix)]
impl std::os::fd::AsFd for BoundListener {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.listener.as_fd()
    }
}
