//! `SO_REUSEPORT` for processes that cannot share a socket: steers new connections away before closing.

use std::{collections::HashSet, fmt, io};

use tokio::net::{TcpListener, TcpStream};

use crate::{
    listen::{Addr, Listen},
    raw,
};

/// Which connections are lost when a listening socket is replaced by another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum HandoffMode {
    /// None: both processes have the same socket.
    Descriptor,
    /// None: the kernel moves queued connections to another socket of the port (`net.ipv4.tcp_migrate_req=1`).
    Migrate,
    /// None, if all queued connections are accepted within the close time: new ones are steered away first.
    Steer,
    /// All in the queue of the socket that is closed.
    None,
}

/// One of several sockets of a port (`SO_REUSEPORT`), which closes without losing the connections in its queue.
///
/// Each such socket has a separate queue, and closing it resets all connections in the queue and all handshakes under
/// way. So when closing begins, new connections are steered to the youngest socket of the port, and the listener stays
/// open until all earlier ones have been accepted, at most for the close time.
///
/// [`HandoffListener`](super::HandoffListener) is better where two processes can reach the same path. This listener is for
/// processes that share only a network.
#[derive(Debug)]
pub struct ReusePortListener {
    listener: TcpListener,
    sockets: u32,
    /// Handshakes that were under way when closing began.
    expected: HashSet<String>,
}

// === impl ReusePortListener ===

impl ReusePortListener {
    /// `sockets`: how many sockets the port has during the change of processes, including this one; usually 2. The
    /// youngest, to which new connections are steered, is the one that began to listen last.
    #[must_use]
    pub fn new(listener: TcpListener, sockets: u32) -> Self {
        Self {
            listener,
            sockets,
            expected: HashSet::new(),
        }
    }

    /// The guarantee in force.
    #[must_use]
    pub fn mode(&self) -> HandoffMode {
        let migrates = std::fs::read_to_string("/proc/sys/net/ipv4/tcp_migrate_req");
        match migrates {
            Ok(text) if text.trim() == "1" => HandoffMode::Migrate,
            _ if self.sockets > 1 => HandoffMode::Steer,
            _ => HandoffMode::None,
        }
    }

    /// Handshakes under way at this port.
    fn handshakes(&self) -> HashSet<String> {
        let Ok(local) = self.listener.local_addr() else {
            return HashSet::new();
        };
        let tables = ["/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6"];
        let texts = tables.map(|path| std::fs::read_to_string(path).unwrap_or_default());
        texts
            .iter()
            .flat_map(|table| half_open(table, local.port()))
            .collect()
    }
}

impl Listen for ReusePortListener {
    type Io = TcpStream;

    async fn accept(&mut self) -> io::Result<(TcpStream, Addr)> {
        Listen::accept(&mut self.listener).await
    }

    fn try_accept(&mut self) -> io::Result<Option<(TcpStream, Addr)>> {
        self.listener.try_accept()
    }

    fn begin_close(&mut self) {
        let mode = self.mode();
        tracing::info!(handoff_mode = %mode, "drain");
        if mode != HandoffMode::Steer {
            return;
        }
        match raw::steer(&self.listener, self.sockets - 1) {
            Ok(()) => self.expected = self.handshakes(),
            Err(error) => {
                tracing::warn!(%error, "cannot steer new connections away: queued connections may be lost")
            }
        }
    }

    fn expects_more(&mut self) -> bool {
        if !self.expected.is_empty() {
            let now = self.handshakes();
            self.expected.retain(|handshake| now.contains(handshake));
        }
        !self.expected.is_empty()
    }

    fn local_addr(&self) -> io::Result<Addr> {
        Listen::local_addr(&self.listener)
    }
}

impl fmt::Display for HandoffMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Descriptor => "fd",
            Self::Migrate => "migrate",
            Self::Steer => "steer",
            Self::None => "none",
        })
    }
}

/// The lines of the kernel's table whose state is `SYN_RECV`, at this port: both ends' addresses of each.
fn half_open(table: &str, port: u16) -> impl Iterator<Item = String> {
    let port = format!(":{port:04X}");
    table.lines().skip(1).filter_map(move |line| {
        let mut words = line.split_whitespace().skip(1);
        let (local, remote, state) = (words.next()?, words.next()?, words.next()?);
        (state == SYN_RECV && local.ends_with(&port)).then(|| format!("{local}-{remote}"))
    })
}

const SYN_RECV: &str = "03";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_open_connections_are_found_in_the_kernels_table() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
            0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1 0 100 0 0 10 0\n\
            1: 0100007F:1F90 0100007F:C001 03 00000000:00000000 01:00000064 00000000     0        0 0 1 0 100 0 0 10 0\n\
            2: 0100007F:1F91 0100007F:C002 03 00000000:00000000 01:00000064 00000000     0        0 0 1 0 100 0 0 10 0\n\
            3: 0100007F:1F90 0100007F:C003 01 00000000:00000000 00:00000000 00000000     0        0 9 1 0 100 0 0 10 0\n";
        let found: Vec<_> = half_open(table, 8080).collect();
        assert_eq!(found, ["0100007F:1F90-0100007F:C001"]);
    }
}
