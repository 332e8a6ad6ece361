use bytes::Bytes;

use crate::{FencingToken, LeaseKey, Revision};

/// A value in the store beside the records: a topology, an instance's phase. Changed only by compare-and-set.
///
/// Documents and records share their keys: a key is one or the other. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    key: LeaseKey,
    value: Bytes,
    revision: Revision,
}

/// A compare-and-set of a [`Document`], with or without a lease that guards it (R-21).
///
/// ```
/// use tower_lease::{DocumentStore, Holder, Lease, LeaseKey, MemoryStore, Swap, Swapped};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
/// # let store = MemoryStore::new();
/// # let (lease, keeper) = Lease::builder(store.clone(), LeaseKey::new("leader")?, Holder::new("a")).build()?;
/// # tokio::spawn(keeper.run());
/// let token = lease.held().await?;
/// let key = LeaseKey::new("topology")?;
/// // Fails with `Fault::Lost` if another process leads by now.
/// store.swap(&Swap::create(key.clone(), "a, b").guarded_by(&token)).await?;
/// let now = store.read(&key).await?.expect("just written");
/// assert!(matches!(store.swap(&Swap::replace(&now, "a, b, c").guarded_by(&token)).await?, Swapped::Done(_)));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Swap {
    key: LeaseKey,
    expected: Option<Revision>,
    value: Option<Bytes>,
    guard: Option<FencingToken>,
    is_bound: bool,
}

/// The result of a [`Swap`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Swapped {
    /// It is written, or deleted, as of this revision.
    Done(Revision),
    /// Nothing is written: the document is not as expected, but like this, or not there.
    Changed(Option<Document>),
}

// === impl Document ===

impl Document {
    /// The longest value: 1 MiB. (etcd takes requests of up to 1.5 MiB.)
    pub const MAX_LEN: usize = 1024 * 1024;

    /// A document as a store keeps it, last written at `revision`.
    #[must_use]
    pub const fn new(key: LeaseKey, value: Bytes, revision: Revision) -> Self {
        Self {
            key,
            value,
            revision,
        }
    }

    /// Its name.
    #[must_use]
    pub const fn key(&self) -> &LeaseKey {
        &self.key
    }

    /// What is written in it.
    #[must_use]
    pub const fn value(&self) -> &Bytes {
        &self.value
    }

    /// When it was last written: what the next [`Swap`] expects.
    #[must_use]
    pub const fn revision(&self) -> Revision {
        self.revision
    }
}

// === impl Swap ===

impl Swap {
    /// Writes a document that must not be there yet.
    pub fn create(key: LeaseKey, value: impl Into<Bytes>) -> Self {
        Self {
            key,
            expected: None,
            value: Some(value.into()),
            guard: None,
            is_bound: false,
        }
    }

    /// Writes a document that must be as it was when `seen` was read.
    pub fn replace(seen: &Document, value: impl Into<Bytes>) -> Self {
        Self {
            expected: Some(seen.revision),
            ..Self::create(seen.key.clone(), value)
        }
    }

    /// Deletes a document that must be as it was when `seen` was read.
    #[must_use]
    pub fn delete(seen: &Document) -> Self {
        Self {
            value: None,
            ..Self::replace(seen, Bytes::new())
        }
    }

    /// Carries it out only while this very epoch holds its key; otherwise [`Fault::Lost`](crate::Fault::Lost).
    /// Default: unguarded.
    #[must_use]
    pub fn guarded_by(mut self, token: &FencingToken) -> Self {
        self.guard = Some(token.clone());
        self
    }

    /// Guards it, and has the store delete the document when that epoch ends, however it ends. Default: it stays.
    #[must_use]
    pub fn bound_to(mut self, token: &FencingToken) -> Self {
        self.is_bound = true;
        self.guarded_by(token)
    }

    /// Which document.
    #[must_use]
    pub const fn key(&self) -> &LeaseKey {
        &self.key
    }

    /// When it was last written; `None` if it must not be there.
    #[must_use]
    pub const fn expected(&self) -> Option<Revision> {
        self.expected
    }

    /// What to write; `None` deletes.
    #[must_use]
    pub const fn value(&self) -> Option<&Bytes> {
        self.value.as_ref()
    }

    /// The epoch that must hold its key.
    #[must_use]
    pub const fn guard(&self) -> Option<&FencingToken> {
        self.guard.as_ref()
    }

    /// Whether the document ends with the guard's epoch.
    #[must_use]
    pub const fn is_bound(&self) -> bool {
        self.is_bound
    }
}
