use std::fmt;
#[cfg(feature = "http")]
use std::sync::Arc;

use http::Extensions;

#[cfg(feature = "http")]
use crate::eviction::Evictable;
use crate::{count::Kind, drain::Drain, guard::Guard, listen::Addr, places::Permit};

/// A connection as a request: the stream, its addresses, and the guard that the drain waits for.
///
/// A `Service<Accepted<Io>>` is called with it, and the future that it returns runs the connection to its end. To wrap the
/// stream (TLS, counting, logging), use [`split`](Self::split) and [`with`](Accepted::with):
///
/// ```
/// # use tower_drain::Accepted;
/// # fn wrap<T>(io: T) -> Option<T> { Some(io) }
/// fn wrapped<Io>(accepted: Accepted<Io>) -> Option<Accepted<Io>> {
///     let (io, rest) = accepted.split();
///     Some(rest.with(wrap(io)?))
/// }
/// ```
///
/// Keep the second value of [`split`](Self::split) for as long as the stream: the drain and a
/// [`ConnectionLimit`](crate::ConnectionLimit) count the connection until it is dropped.
#[must_use = "dropping it closes the connection"]
pub struct Accepted<Io> {
    io: Io,
    peer: Addr,
    local: Addr,
    extensions: Extensions,
    guard: Guard,
    permit: Option<Permit>,
}

/// The guards that count a connection, without its addresses.
#[cfg(feature = "http")]
pub(crate) struct Place {
    _guard: Guard,
    permit: Option<Permit>,
}

// === impl Accepted ===

impl<Io> Accepted<Io> {
    /// A connection from a custom accept loop.
    pub fn new(drain: &Drain, io: Io, peer: Addr, local: Addr) -> Self {
        Self {
            io,
            peer,
            local,
            extensions: Extensions::new(),
            guard: drain.guard_of(Kind::Guest),
            permit: None,
        }
    }

    /// The stream.
    pub const fn io(&self) -> &Io {
        &self.io
    }

    /// The stream, mutably: to read a preamble from it.
    pub const fn io_mut(&mut self) -> &mut Io {
        &mut self.io
    }

    /// The peer's address.
    pub const fn peer(&self) -> &Addr {
        &self.peer
    }

    /// The listener's address.
    pub const fn local(&self) -> &Addr {
        &self.local
    }

    /// The extensions of this connection. Under [`Http`](crate::Http) each of its requests gets a clone.
    pub const fn extensions(&self) -> &Extensions {
        &self.extensions
    }

    /// The extensions of this connection, mutably: a layer around [`Http`](crate::Http) can add values, such as the
    /// certificates of the peer.
    ///
    /// ```
    /// use tower_drain::{Accepted, Addr};
    ///
    /// /// The address that a client has connected to.
    /// #[derive(Clone)]
    /// struct LocalAddr(Addr);
    ///
    /// fn with_local_addr<Io>(mut accepted: Accepted<Io>) -> Accepted<Io> {
    ///     let local = LocalAddr(accepted.local().clone());
    ///     accepted.extensions_mut().insert(local);
    ///     accepted
    /// }
    /// // Server::new(..).run(ServiceBuilder::new().map_request(with_local_addr).service(Http::new(..)))
    /// ```
    pub const fn extensions_mut(&mut self) -> &mut Extensions {
        &mut self.extensions
    }

    /// The stream, and the rest of the connection.
    pub fn split(self) -> (Io, Accepted<()>) {
        let Self {
            io,
            peer,
            local,
            extensions,
            guard,
            permit,
        } = self;
        (
            io,
            Accepted {
                io: (),
                peer,
                local,
                extensions,
                guard,
                permit,
            },
        )
    }

    /// Replaces the addresses by those of a PROXY protocol header.
    pub fn readdress(&mut self, peer: Addr, local: Addr) {
        (self.peer, self.local) = (peer, local);
    }

    /// Limits can be nested; the outer limit's permit is kept too.
    pub(crate) fn hold(&mut self, mut permit: Permit) {
        permit.keep(self.permit.take());
        self.permit = Some(permit);
    }
}

impl Accepted<()> {
    #[cfg(feature = "http")]
    pub(crate) fn into_place(self) -> Place {
        Place {
            _guard: self.guard,
            permit: self.permit,
        }
    }

    /// Puts a stream back.
    pub fn with<Io>(self, io: Io) -> Accepted<Io> {
        let Self {
            io: (),
            peer,
            local,
            extensions,
            guard,
            permit,
        } = self;
        Accepted {
            io,
            peer,
            local,
            extensions,
            guard,
            permit,
        }
    }
}

#[cfg(feature = "http")]
impl Place {
    /// Allows the limits of this connection to ask it to close from now on; `waker` is that of its task.
    pub(crate) fn register(
        &mut self,
        conn: &Arc<impl Evictable + 'static>,
        waker: &std::task::Waker,
    ) {
        if let Some(permit) = &mut self.permit {
            permit.register(conn, waker);
        }
    }
}

impl<Io> fmt::Debug for Accepted<Io> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Accepted")
            .field("peer", &self.peer)
            .field("local", &self.local)
            .finish_non_exhaustive()
    }
}
