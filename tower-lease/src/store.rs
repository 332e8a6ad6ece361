use std::{error::Error, fmt, future::Future, time::Duration};

use tower_outcome::BoxError;

use crate::{Claim, Document, FencingToken, Grant, LeaseKey, Record, Revision, fencing};

/// Where leases are kept: one authority that decides which claim holds which key.
///
/// Every method is one conditional write or one linearizable read. What a caller must know of a failure is not its
/// transport code but what may have happened: see [`Fault`]. Futures may be dropped at any time; the effect of a
/// dropped call is unknown.
///
/// Methods with a body are abilities that a store may lack: its [`Capabilities`] then exclude it, and the call is refused. The
/// suite in [`testing`](crate::testing) (feature `testing`) checks that an implementation keeps all of this.
pub trait LeaseStore: Clone + Send + Sync + 'static {
    /// Reports changes.
    type Watch: Watch;
    /// Whether its tokens fence: [`fencing::Monotonic`] or [`fencing::NoFencing`].
    type Fencing: fencing::Fencing;

    /// What this store can do.
    fn capabilities(&self) -> Capabilities;

    /// Takes the key if it is free.
    ///
    /// The token must be greater than every earlier one of this key, over deletion and re-creation too. A claim
    /// that already holds the key gets the same grant again, and changes nothing. A key that is a document is
    /// [`Fault::Refused`].
    fn acquire(&self, claim: &Claim) -> impl Future<Output = Result<Acquired, StoreError>> + Send;

    /// Extends what this claim holds, and returns the TTL from now. [`Fault::Lost`] if it does not hold it.
    fn renew(&self, claim: &Claim) -> impl Future<Output = Result<Duration, StoreError>> + Send;

    /// Gives back what this claim holds; a success too if it holds nothing. The next grant reports
    /// a clean end ([`Grant::after_clean_end`], R-18).
    fn release(&self, claim: &Claim) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Takes the key from its holder; a success too if it is vacant. For operators and orchestrators. It is no
    /// clean end, for the holder may still be at work.
    ///
    /// With a `guard` only while that epoch holds *its* key; otherwise [`Fault::Lost`].
    fn revoke(
        &self,
        key: &LeaseKey,
        guard: Option<&FencingToken>,
    ) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Reads the record of the key; `None` if it is vacant.
    fn inspect(
        &self,
        key: &LeaseKey,
    ) -> impl Future<Output = Result<Option<Record>, StoreError>> + Send;

    /// Reports the state of the key as of `from` or later, then every later state, or at least the latest; never one from
    /// before `from`. The keeper that watches its own record takes such a report for a store that was restored from a
    /// backup, and fences ([`Lost::Rewound`](crate::Lost::Rewound), R-24).
    fn watch(&self, key: &LeaseKey, from: Revision) -> Self::Watch;

    /// Hands the key from one claim to another in one step: no vacancy, a higher token, a clean end.
    ///
    /// `to` gets the TTL that it asks for, from now. [`Fault::Lost`] if `from` does not hold the key; if `to` holds it
    /// already, the same grant again, and nothing changes. A later
    /// [`acquire`](Self::acquire) of `to` returns that same grant too.
    fn transfer(
        &self,
        from: &Claim,
        to: &Claim,
    ) -> impl Future<Output = Result<Grant, StoreError>> + Send {
        let _ = (from, to);
        async { Err(StoreError::refused("this store cannot transfer a lease")) }
    }
}

/// An endless report of changes. Events that are not read are kept up to a bound: a reader that lags gets [`WatchEvent::Lagged`].
pub trait Watch: Send + 'static {
    /// The next event.
    ///
    /// # Errors
    ///
    /// The watch broke and will report nothing more: open another one, after a pause.
    ///
    /// # Cancel safety
    ///
    /// Required: a future dropped before it was ready has lost no event.
    fn next(&mut self) -> impl Future<Output = Result<WatchEvent, StoreError>> + Send;
}

/// The result of an `acquire`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Acquired {
    /// The claim holds the key.
    Granted(Grant),
    /// Another one holds it.
    Held(Record),
}

/// What a [`Watch`] reports.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum WatchEvent {
    /// The key of this record is held.
    Held(Record, Revision),
    /// This key is vacant: released, revoked, or expired.
    Vacant(LeaseKey, Revision),
    /// A document was written. Only from [`DocumentStore::watch_prefix`](crate::DocumentStore::watch_prefix).
    Written(Document),
    /// A document was deleted. Only from [`DocumentStore::watch_prefix`](crate::DocumentStore::watch_prefix).
    Deleted(LeaseKey, Revision),
    /// Events were skipped because the reader was too slow, or asked for what is forgotten: list again, and watch from
    /// the listing's revision.
    Lagged,
}

/// What a store can do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capabilities {
    linearizable: bool,
    min_ttl: Duration,
    expiry_granularity: Duration,
    watch: bool,
    transfer: bool,
}

/// A call to a store that did not succeed.
#[derive(Debug)]
pub struct StoreError {
    fault: Fault,
    cause: Option<BoxError>,
}

/// What may have happened in a call that did not succeed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fault {
    /// Nothing: the request did not leave.
    NotSent,
    /// Nothing: the store rejected the request (permissions, quota, malformed request).
    Refused,
    /// Anything: no answer, or none that can be understood. It may even happen later.
    Unknown,
    /// Nothing: the claim (or the guard of a write) does not hold its key: expired, revoked, or taken by another.
    Lost,
}

// === impl Capabilities ===

impl Capabilities {
    /// A linearizable store with watches and transfer, any TTL, and exact expiry; each setter changes one of these. ([`LeaseStore::Fencing`] is whether its tokens fence.)
    #[must_use]
    pub const fn new() -> Self {
        Self {
            linearizable: true,
            min_ttl: Duration::ZERO,
            expiry_granularity: Duration::ZERO,
            watch: true,
            transfer: true,
        }
    }

    /// Whether its writes and reads are linearizable.
    #[must_use]
    pub const fn with_linearizable(self, linearizable: bool) -> Self {
        Self {
            linearizable,
            ..self
        }
    }

    /// The shortest TTL it grants.
    #[must_use]
    pub const fn with_min_ttl(self, min_ttl: Duration) -> Self {
        Self { min_ttl, ..self }
    }

    /// How late an expiry may be noticed.
    #[must_use]
    pub const fn with_expiry_granularity(self, expiry_granularity: Duration) -> Self {
        Self {
            expiry_granularity,
            ..self
        }
    }

    /// Whether it can report changes. Without that, keepers ask again and again.
    #[must_use]
    pub const fn with_watch(self, watch: bool) -> Self {
        Self { watch, ..self }
    }

    /// Whether it has [`LeaseStore::transfer`]. Without that, a handover is a release and an acquisition.
    #[must_use]
    pub const fn with_transfer(self, transfer: bool) -> Self {
        Self { transfer, ..self }
    }

    /// Whether its writes and reads are linearizable.
    #[must_use]
    pub const fn linearizable(&self) -> bool {
        self.linearizable
    }

    /// The shortest TTL it grants.
    #[must_use]
    pub const fn min_ttl(&self) -> Duration {
        self.min_ttl
    }

    /// How late an expiry may be noticed.
    #[must_use]
    pub const fn expiry_granularity(&self) -> Duration {
        self.expiry_granularity
    }

    /// Whether it can report changes.
    #[must_use]
    pub const fn watch(&self) -> bool {
        self.watch
    }

    /// Whether it has [`LeaseStore::transfer`].
    #[must_use]
    pub const fn transfer(&self) -> bool {
        self.transfer
    }
}

impl Default for Capabilities {
    fn default() -> Self {
        Self::new()
    }
}

// === impl StoreError ===

impl StoreError {
    /// An error without a cause.
    #[must_use]
    pub const fn new(fault: Fault) -> Self {
        Self { fault, cause: None }
    }

    /// Nothing happened, because of `cause`.
    pub fn not_sent(cause: impl Into<BoxError>) -> Self {
        Self {
            fault: Fault::NotSent,
            cause: Some(cause.into()),
        }
    }

    /// The store rejected the request, because of `cause`.
    pub fn refused(cause: impl Into<BoxError>) -> Self {
        Self {
            fault: Fault::Refused,
            cause: Some(cause.into()),
        }
    }

    /// Anything may have happened, because of `cause`.
    pub fn unknown(cause: impl Into<BoxError>) -> Self {
        Self {
            fault: Fault::Unknown,
            cause: Some(cause.into()),
        }
    }

    /// The claim or the guard does not hold its key, because of `cause`.
    pub fn lost(cause: impl Into<BoxError>) -> Self {
        Self {
            fault: Fault::Lost,
            cause: Some(cause.into()),
        }
    }

    /// What may have happened.
    #[must_use]
    pub const fn fault(&self) -> Fault {
        self.fault
    }
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.fault {
            Fault::NotSent => "the request to the lease store was not sent",
            Fault::Refused => "the lease store refused",
            Fault::Unknown => "the lease store's answer is unknown",
            Fault::Lost => "the lease is not held by this claim",
        })
    }
}

impl Error for StoreError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.cause.as_deref().map(|cause| cause as _)
    }
}
