use std::{
    cmp::Ordering,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

/// The source that counts a [`Generation`]: an etcd cluster, a file, one run of a local counter.
///
/// A source that cannot continue its count (it was restored from a backup, its counter restarted) takes a new id; that
/// resets the order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SourceId(u64);

/// The version of a set of endpoints. Ordered only inside one source.
///
/// `a < b`, `a == b` and `a > b` are all false for two sources, because their generations have no order.
///
/// | source | the value counts | another id when |
/// |---|---|---|
/// | fixed | nothing: it is 1 | another resolver is created |
/// | file | observed changes of content | another resolver is created |
/// | DNS | observed changes of the sorted set of a name | another resolver is created |
/// | etcd, a lease store | revisions | it is another cluster, or was restored |
///
/// So a generation can be passed to another process (see
/// [`invalidate_older_than`](crate::CachedResolver::invalidate_older_than)) only if both use the same source, under an id
/// that the source defines.
///
/// ```
/// use tower_resolve::{Generation, SourceId};
///
/// let (etcd, file) = (SourceId::new(1), SourceId::new(2));
/// assert!(Generation::new(etcd, 7) < Generation::new(etcd, 8));
/// assert!(Generation::new(etcd, 7).partial_cmp(&Generation::new(file, 8)).is_none());
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Generation {
    /// The source that counted it.
    pub source: SourceId,
    /// The count: a revision, a resource version, a local counter. It only grows.
    pub value: u64,
}

// === impl SourceId ===

impl SourceId {
    /// The id that a source defines, such as a cluster id. The upper half of the range belongs to [`unique`](Self::unique).
    #[must_use]
    pub const fn new(id: u64) -> Self {
        Self(id)
    }

    /// An id that no other call in this process gets.
    #[must_use]
    pub fn unique() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1 << 63);
        Self(NEXT.fetch_add(1, Relaxed))
    }

    /// The id as a number, for logs and JSON.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }
}

// === impl Generation ===

impl Generation {
    /// The `value`th generation of `source`.
    #[must_use]
    pub const fn new(source: SourceId, value: u64) -> Self {
        Self { source, value }
    }

    /// The one after this.
    #[must_use]
    pub const fn next(self) -> Self {
        Self {
            source: self.source,
            value: self.value.saturating_add(1),
        }
    }
}

impl PartialOrd for Generation {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        (self.source == other.source).then(|| self.value.cmp(&other.value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generations_of_two_sources_have_no_order() {
        let (a, b) = (SourceId::unique(), SourceId::unique());
        assert_ne!(a, b);
        let (one, two) = (Generation::new(a, 1), Generation::new(b, 2));
        assert_eq!(one.partial_cmp(&two), None);
        assert!(one < one.next());
    }
}
