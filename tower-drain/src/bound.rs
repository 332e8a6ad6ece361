use std::{io, net::SocketAddr};

use tokio::net::{TcpListener, TcpStream};

use crate::listen::{Addr, Listen};
#[cfg(target_os = "linux")]
use crate::raw as system;

/// A TCP listener that this process has bound and shares with no other. Made by
/// [`ListenerConfig::bind`](crate::ListenerConfig::bind).
///
/// The kernel completes handshakes whether or not the process accepts, and closing a listening socket resets the
/// connections that it completed since the queue was last polled: a client that has connected loses its request. Under
/// load some client connects in that moment, however short it is. So on Linux, when closing begins, this listener makes
/// the kernel drop new SYNs, lets the handshakes under way complete, accepts the queued connections, and is then closed.
/// A client whose SYN was dropped repeats it after a second, and finds the port closed or the next process.
///
/// It does so by raising the socket's minimum TTL to 255 (`IP_MINTTL`, `IPV6_MINHOPCOUNT`), which needs no privileges as
/// a packet filter would. No packet that has crossed a router arrives with that TTL, nor do packets that Linux, the BSDs
/// and Windows send over loopback and to hosts on the same link. Hosts on the same link that send with 255, mostly
/// routers, are not rejected.
///
/// A socket that is shared with another process (systemd, a successor) would keep this TTL there. Pass such a socket to
/// [`Server::new`](crate::Server::new) as a `TcpListener`, which is closed without this step.
#[derive(Debug)]
pub struct BoundListener {
    listener: TcpListener,
    /// New SYNs are dropped. Connections that are still accepted inherit the minimum TTL, so it is reset for them.
    closing: bool,
}

/// On other systems the listener is just closed.
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
    /// If the system does not return it.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Data that a connection sent before this call was dropped, and is retransmitted.
    fn let_in(&self, stream: &TcpStream) {
        if self.closing
            && let Err(error) = system::hear_all(stream)
        {
            tracing::warn!(%error, "the minimum TTL of a connection cannot be reset: its data will not be received");
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
            tracing::warn!(%error, "new connections cannot be rejected: clients that connect as the listener closes may be reset");
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
