//! Fencing at the resource: requests whose token is lower than the highest one seen are rejected (R-21).
//!
//! A lease keeps well-behaved holders apart. What keeps *all* apart is this check, made by the resource itself, because
//! a holder may be late to learn that it was replaced: a long pause, a request that took its time on the network.
//!
//! ```text
//!   holder, epoch 7 ── x-lease-token: leader;7 ──►┐
//!                                                 ├─► FenceLayer ──► the resource        floor: 9, durable
//!   holder, epoch 9 ── x-lease-token: leader;9 ──►┘     7 < 9: 412, FAILED_PRECONDITION
//! ```
//!
//! - [`FenceLayer`] over HTTP or gRPC services; [`Fence::admit`] for any other protocol.
//! - [`HighWaterMark`]: where the highest tokens are kept, durably. An empty memory is not a floor, so there is no fence without
//!   one: [`StoreMark`] asks the lease store, [`FileMark`] (feature `file`) keeps a file, yours may be a table beside the
//!   data. Several fences of one process before one resource take clones of one mark.
//! - [`Fenced`], a value that only the bearer of the highest token may change: no I/O, any protocol.
//!
//! The layer checks on admission. A request that passed may still be on its way when a higher token comes; where that
//! would do harm, make the check and the effect one step: [`Fenced`], a conditional write in the resource's own
//! database, or [`FencePass::is_current`] right before the effect, which narrows the gap without closing it.
//!
//! A mark that the resource keeps trusts each token, so a forged one with a very high epoch locks every holder out. Authenticate
//! clients that send tokens as you authenticate writers, or use [`StoreMark`]: the store knows which tokens it granted.
//!
//! After the lease store was restored from a backup its tokens may have gone back, and the fence refuses them (R-24).
//! That is right: raise the store's revision (etcd: `etcdutl snapshot restore` with `--bump-revision` and
//! `--mark-compacted`, since 3.5.10), or lower the marks by hand, knowing what was written meanwhile.
//!
//! A token that is known costs a look into a map, without a lock, and three small allocations for the
//! [`FencePass`] in the request's extensions. One that is new costs a question to the mark.
//!
//! # Example
//!
//! ```
//! use std::convert::Infallible;
//!
//! use http::{Request, Response, StatusCode};
//! use tower::{Layer, ServiceExt, service_fn};
//! use tower_lease::{LeaseKey, fence::{Fence, FenceLayer, MemoryMark}};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let fence = Fence::of_key(LeaseKey::new("leader")?, MemoryMark::new()).build();
//! let resource = service_fn(|_: Request<String>| async { Ok::<_, Infallible>(Response::new("written".to_owned())) });
//! let resource = FenceLayer::new(&fence).respond().layer(resource);
//!
//! let write = |token: &str| Request::builder().header("x-lease-token", token).body(String::new()).unwrap();
//! assert_eq!(resource.clone().oneshot(write("leader;7")).await?.status(), StatusCode::OK);
//! assert_eq!(resource.clone().oneshot(write("leader;9")).await?.status(), StatusCode::OK);
//! assert_eq!(resource.clone().oneshot(write("leader;7")).await?.status(), StatusCode::PRECONDITION_FAILED);
//! # Ok(())
//! # }
//! ```

mod cached_high_water;
mod error;
#[expect(clippy::module_inception, reason = "the file is named after its type")]
mod fence;
#[cfg(feature = "file")]
mod file;
mod future;
mod high_water_mark;
mod layer;
mod service;
mod table;
mod value;

#[cfg(feature = "file")]
pub use self::file::FileMark;
pub use self::{
    error::StaleToken,
    fence::{Fence, FenceBuilder, FenceCounts, FencePass},
    future::FenceFuture,
    high_water_mark::{HighWaterMark, MemoryMark, StoreMark},
    layer::FenceLayer,
    service::FenceService,
    table::HighWaterCache,
    value::{FenceGuard, Fenced},
};
