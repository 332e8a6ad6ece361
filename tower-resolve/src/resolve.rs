use std::{error::Error, sync::Arc};

use futures_core::Stream;

use crate::{Endpoint, EndpointId, Generation, Topology};

/// Why a source could not answer. Shared, because it has several readers.
pub type Cause = Arc<dyn Error + Send + Sync>;

/// Turns a name into an endless stream of updates.
///
/// # Contract
///
/// - The stream never ends and never fails: a source that cannot be reached sends [`Update::Degraded`] and keeps trying,
///   with a backoff.
/// - It sends *an update* in bounded time, at least a [`Degraded`](Update::Degraded).
/// - The first content is a [`Snapshot`](Update::Snapshot) or a [`DoesNotExist`](Update::DoesNotExist). Only a source that
///   can prove the order of its events may emit a [`Delta`](Update::Delta).
/// - Dropping the stream stops the work.
///
/// # Example
///
/// A custom source that polls every few seconds. An error is an update.
///
/// ```
/// use std::{net::SocketAddr, time::Duration};
/// use futures_util::{StreamExt, stream, stream::BoxStream};
/// use tower_resolve::{Endpoint, Generation, Resolve, SourceId, Topology, Update};
///
/// struct Inventory {
///     source: SourceId,
/// }
///
/// # async fn ask(name: &str) -> Result<(u64, Vec<SocketAddr>), std::io::Error> { Ok((1, vec![])) }
/// impl Resolve for Inventory {
///     type Updates = BoxStream<'static, Update>;
///
///     fn resolve(&self, name: &str) -> Self::Updates {
///         let (name, source) = (name.to_owned(), self.source);
///         stream::unfold(Duration::ZERO, move |pause| {
///             let name = name.clone();
///             async move {
///                 tokio::time::sleep(pause).await;
///                 let update = match ask(&name).await {
///                     Ok((version, addrs)) => Update::Snapshot(Topology::new(
///                         Generation::new(source, version),
///                         addrs.into_iter().map(|addr| Endpoint::new(addr.to_string(), addr)),
///                     )),
///                     Err(error) => Update::degraded(error),
///                 };
///                 Some((update, Duration::from_secs(3)))
///             }
///         })
///         .boxed()
///     }
/// }
/// ```
pub trait Resolve: Send + Sync + 'static {
    /// The updates of one name.
    type Updates: Stream<Item = Update> + Send + 'static;

    /// Starts to follow `name`.
    fn resolve(&self, name: &str) -> Self::Updates;
}

/// An update of a source about a name.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Update {
    /// All endpoints. An empty set is an answer: no endpoint serves the name now.
    Snapshot(Topology),
    /// What changed since a generation of the same source. A consumer that does not have `from` needs a snapshot.
    Delta {
        /// Contains all changes after this generation…
        from: Generation,
        /// …and up to this one.
        to: Generation,
        /// Added or changed endpoints, whole.
        put: Vec<Arc<Endpoint>>,
        /// The ids of removed endpoints.
        removed: Vec<EndpointId>,
    },
    /// Nothing changed up to this generation: a sign of life.
    Progress(Generation),
    /// The source answered that the name does not exist.
    DoesNotExist(Generation),
    /// The source cannot be reached. The known set stays in use.
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
