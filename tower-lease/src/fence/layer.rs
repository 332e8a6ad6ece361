use std::fmt;

use tower_layer::Layer;
use tower_outcome::refuse::{Auto, Fail};

use super::{Fence, FenceService, HighWaterMark, service::Missing};

/// Refuses requests whose fencing token is not the highest seen. For HTTP and gRPC. Makes [`FenceService`]s.
///
/// The token is the `x-lease-token` header ([`LEASE_TOKEN`](tower_outcome::header::LEASE_TOKEN)), in gRPC the metadata
/// of that name; [`PropagateLayer`](crate::PropagateLayer) writes it on the other side. What passes has a
/// [`FencePass`](super::FencePass) in its extensions.
pub struct FenceLayer<M, R = Fail> {
    fence: Fence<M>,
    refuse: R,
    missing: Missing,
}

// === impl FenceLayer ===

impl<M: HighWaterMark> FenceLayer<M> {
    /// A layer for this fence; any number of layers and services may share it. It rejects with an error.
    #[must_use]
    pub fn new(fence: impl Into<Fence<M>>) -> Self {
        Self {
            fence: fence.into(),
            refuse: Fail,
            missing: Missing::Refuse,
        }
    }
}

impl<M: HighWaterMark, R> FenceLayer<M, R> {
    /// Lets requests without a token pass too, without a [`FencePass`](super::FencePass): for reads, or while the
    /// holders learn to send one. Default: no, they are refused. A token that makes no sense is refused either way.
    #[must_use]
    pub fn allow_missing(mut self) -> Self {
        self.missing = Missing::Allow;
        self
    }

    /// Answers in the request's own protocol, HTTP (412) or gRPC (`FAILED_PRECONDITION`), so that the error type stays
    /// as it was (axum, tonic).
    #[must_use]
    pub fn respond(self) -> FenceLayer<M, Auto> {
        self.respond_with(Auto::new())
    }

    /// Answers with `refuse`.
    #[must_use]
    pub fn respond_with<Q>(self, refuse: Q) -> FenceLayer<M, Q> {
        FenceLayer {
            fence: self.fence,
            refuse,
            missing: self.missing,
        }
    }
}

impl<S, M, R: Clone> Layer<S> for FenceLayer<M, R> {
    type Service = FenceService<S, M, R>;

    fn layer(&self, inner: S) -> Self::Service {
        FenceService::new(inner, self.fence.clone(), self.refuse.clone(), self.missing)
    }
}

impl<M, R: Clone> Clone for FenceLayer<M, R> {
    fn clone(&self) -> Self {
        Self {
            fence: self.fence.clone(),
            refuse: self.refuse.clone(),
            missing: self.missing,
        }
    }
}

impl<M, R> fmt::Debug for FenceLayer<M, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FenceLayer")
            .field("fence", &self.fence)
            .field("missing", &self.missing)
            .finish_non_exhaustive()
    }
}
