//! Listening sockets that can be paused.

use std::{fmt, io};

use tokio::{
    net::{TcpListener, UnixListener},
    select,
    sync::watch,
};

use crate::listen::{Addr, Listen};

/// A listening socket that outlives its processes. Made by [`Inheritance`](super::Inheritance).
///
/// Until its process is [`ready`](super::Inheritance::ready), and during the probation of a successor, it accepts no
/// connections, and closes nothing: new connections wait in the queue that both processes share.
pub struct HandoffListener<L: Park> {
    held: Held<L>,
    gate: watch::Receiver<Gate>,
}

/// Whether the listeners of a process accept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Gate {
    /// Not yet. -> `Open` when the process is ready.
    Unready,
    /// -> `Parked` when a successor is ready.
    Open,
    /// -> `Open` if the successor dies.
    Parked,
}

/// A listener that can be deregistered from the runtime and registered again.
pub trait Park: Listen + Sized {
    /// Its type outside of the runtime.
    #[doc(hidden)]
    type Std: Send + 'static;

    #[doc(hidden)]
    fn park(self) -> io::Result<Self::Std>;

    #[doc(hidden)]
    fn resume(parked: Self::Std) -> io::Result<Self>;

    #[doc(hidden)]
    fn parked_addr(parked: &Self::Std) -> io::Result<Addr>;
}

enum Held<L: Park> {
    /// -> `Parked` when the gate closes.
    Polled(L),
    /// -> `Polled` when the gate opens.
    Parked(L::Std),
    /// Registration has failed, and the error was returned.
    Lost,
}

// === impl HandoffListener ===

impl<L: Park> HandoffListener<L> {
    pub(super) const fn new(listener: L::Std, gate: watch::Receiver<Gate>) -> Self {
        Self {
            held: Held::Parked(listener),
            gate,
        }
    }

    /// Deregisters from the runtime, or registers again, as the gate requires.
    fn settle(&mut self) -> io::Result<()> {
        let parked = *self.gate.borrow_and_update() != Gate::Open;
        self.held = match std::mem::replace(&mut self.held, Held::Lost) {
            // `into_std` removes it from epoll, which refers to the open file and not to the descriptor.
            Held::Polled(listener) if parked => Held::Parked(listener.park()?),
            Held::Parked(listener) if !parked => Held::Polled(L::resume(listener)?),
            held => held,
        };
        Ok(())
    }
}

impl<L: Park> HandoffListener<L> {
    /// Without this, a process that drops its inheritance before it is ready would wait for ever, without an error.
    fn abandoned(&self) -> io::Result<()> {
        match *self.gate.borrow() {
            Gate::Unready => Err(io::Error::new(
                io::ErrorKind::NotConnected,
                "the inheritance was dropped before it was ready",
            )),
            Gate::Open | Gate::Parked => Ok(()),
        }
    }
}

impl<L: Park> Listen for HandoffListener<L> {
    type Io = L::Io;

    async fn accept(&mut self) -> io::Result<(L::Io, Addr)> {
        loop {
            self.settle()?;
            let changed = self.gate.changed();
            match &mut self.held {
                Held::Polled(listener) => select! {
                    biased;
                    Ok(()) = changed => {}
                    accepted = listener.accept() => return accepted,
                },
                Held::Parked(_) => {
                    if changed.await.is_err() {
                        self.abandoned()?;
                        // The gate has no sender any more, so it will not open: the successor has the queue.
                        std::future::pending::<()>().await;
                    }
                }
                Held::Lost => return Err(io::ErrorKind::NotConnected.into()),
            }
        }
    }

    fn try_accept(&mut self) -> io::Result<Option<(L::Io, Addr)>> {
        self.settle()?;
        match &mut self.held {
            Held::Polled(listener) => listener.try_accept(),
            Held::Parked(_) | Held::Lost => Ok(None),
        }
    }

    fn local_addr(&self) -> io::Result<Addr> {
        match &self.held {
            Held::Polled(listener) => listener.local_addr(),
            Held::Parked(listener) => L::parked_addr(listener),
            Held::Lost => Err(io::ErrorKind::NotConnected.into()),
        }
    }
}

impl<L: Park> fmt::Debug for HandoffListener<L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HandoffListener")
            .field("parked", &matches!(self.held, Held::Parked(_)))
            .finish()
    }
}

// === impl Park ===

impl Park for TcpListener {
    type Std = std::net::TcpListener;

    fn park(self) -> io::Result<Self::Std> {
        self.into_std()
    }

    fn resume(parked: Self::Std) -> io::Result<Self> {
        Self::from_std(parked)
    }

    fn parked_addr(parked: &Self::Std) -> io::Result<Addr> {
        parked.local_addr().map(Addr::Ip)
    }
}

impl Park for UnixListener {
    type Std = std::os::unix::net::UnixListener;

    fn park(self) -> io::Result<Self::Std> {
        self.into_std()
    }

    fn resume(parked: Self::Std) -> io::Result<Self> {
        Self::from_std(parked)
    }

    fn parked_addr(parked: &Self::Std) -> io::Result<Addr> {
        parked
            .local_addr()
            .map(|addr| Addr::Unix(addr.as_pathname().map(Into::into)))
    }
}
