use std::{error::Error, sync::Arc};

use futures_core::Stream;

use crate::{Endpoint, EndpointId, Generation, Topology};

/// Why a source could not answer. Shared, because many may look at it.
pub type Cause = Arc<dyn Error + Send + Sync>;

/// A name in, an endless stream of updates out.
///
/// # Contract
///
/// - The stream never ends and never fails: a source that cannot be reached says [`Update::Degraded`] and goes on
///   trying, with its own backoff.
/// - It says *something* in bounded time, a [`Degraded`](Update::Degraded) if nothing better.
/// - The first content is a [`Snapshot`](Update::Snapshot) or a [`DoesNotExist`](Update::DoesNotExist). Only a source
///   that can prove the order of its events may emit a [`Delta`](Update::Delta).
/// - Dropping the stream stops the work.
pub trait Resolve: Send + Sync + 'static {
    /// The updates of one name.
    type Updates: Stream<Item = Update> + Send + 'static;

    /// Starts to follow `name`.
    fn resolve(&self, name: &str) -> Self::Updates;
}

/// What a source says of a name.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Update {
    /// All endpoints. An empty one is an answer too: nobody serves the name now.
    Snapshot(Topology),
    /// What changed since a generation of the same source. Whoever does not hold `from` needs a snapshot.
    Delta {
        /// Contains everything that changed after this one…
        from: Generation,
        /// …and up to this one.
        to: Generation,
        /// Added or changed endpoints, whole.
        put: Vec<Arc<Endpoint>>,
        /// The names of those that are gone.
        removed: Vec<EndpointId>,
    },
    /// Nothing changed up to this generation: a sign of life.
    Progress(Generation),
    /// The source answered, and knows no such name.
    DoesNotExist(Generation),
    /// The source cannot be asked now. What is known stays in use.
    Degraded(Cause),
}

// === impl Resolve ===

impl<R: Resolve + ?Sized> Resolve for Arc<R> {
    type Updates = R::Updates;

    fn resolve(&self, name: &str) -> R::Updates {
        (**self).resolve(name)
    }
}

// === impl Update ===

impl Update {
    /// [`Degraded`](Self::Degraded) because of `cause`.
    pub fn degraded(cause: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::Degraded(Arc::from(cause.into()))
    }
}
