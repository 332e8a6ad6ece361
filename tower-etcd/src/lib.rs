//! etcd as the lease store of [`tower-lease`](tower_lease) and as a source of endpoints for `tower-resolve`.
#![forbid(unsafe_code)]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod cluster;
mod codec;
mod error;
mod fault;
mod keepalive;
mod keys;
mod pool;
#[cfg(feature = "resolve")]
mod resolver;
mod session;
mod store;
#[cfg(feature = "tls")]
mod tls;
mod watch;

#[cfg(feature = "resolve")]
#[cfg_attr(docsrs, doc(cfg(feature = "resolve")))]
pub use self::resolver::{Entry, EtcdResolver, EtcdUpdates};
#[cfg(feature = "tls")]
#[cfg_attr(docsrs, doc(cfg(feature = "tls")))]
pub use self::tls::Tls;
pub use self::{
    cluster::{Cluster, ClusterBuilder},
    error::BuildError,
    store::EtcdStore,
    watch::EtcdWatch,
};
