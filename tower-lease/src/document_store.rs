use std::future::Future;

use crate::{Document, LeaseKey, LeaseStore, Record, Revision, StoreError, Swap, Swapped};

/// A [`LeaseStore`] that also keeps [`Document`]s, and that can list and watch the keys under a prefix.
///
/// Keepers and layers need none of this. It is for orchestrators and resolvers: their state is written beside the leases,
/// by compare-and-set, and a lease can guard each write. The suite for it is
/// [`Conformance::run_with_documents`](crate::testing::Conformance::run_with_documents) (feature `testing`).
pub trait DocumentStore: LeaseStore {
    /// Reads all records and documents whose keys start with `prefix`, as of one revision.
    fn list_prefix(&self, prefix: &str)
    -> impl Future<Output = Result<Listing, StoreError>> + Send;

    /// Reports every change after `after` to keys that start with `prefix`, in order.
    fn watch_prefix(&self, prefix: &str, after: Revision) -> Self::Watch;

    /// Reads a document; `None` if no document has this name.
    fn read(
        &self,
        key: &LeaseKey,
    ) -> impl Future<Output = Result<Option<Document>, StoreError>> + Send;

    /// Compares and sets a document. The guard, if there is one, is checked in the same step.
    ///
    /// [`Fault::Lost`](crate::Fault::Lost) if the guard's epoch does not hold its key.
    /// [`Fault::Refused`](crate::Fault::Refused) if the value is longer than [`Document::MAX_LEN`], or if the key is that
    /// of a lease.
    fn swap(&self, swap: &Swap) -> impl Future<Output = Result<Swapped, StoreError>> + Send;
}

/// What is under a prefix, all as of one revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listing {
    /// As of when; watch from here.
    pub revision: Revision,
    /// What is held, sorted by key.
    pub records: Vec<Record>,
    /// Sorted by key.
    pub documents: Vec<Document>,
}
