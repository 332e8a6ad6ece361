//! etcd as the lease store of [`tower-lease`](tower_lease), and as a source of endpoints for `tower-resolve`.
//!
//! [`EtcdStore`] is a [`LeaseStore`](tower_lease::LeaseStore): what is leased is a key, the fencing token is the revision
//! in which it was taken, and etcd ends what nobody renews. `EtcdResolver` (feature `resolve`) follows the same keys as
//! endpoints. Both stand on a [`Cluster`], the connections to etcd's members. It helps when the processes that must agree
//! on who serves run on several machines; on one machine tower-lease's own `MemoryStore` does.
//!
//! ```text
//!   Lease ◄─ Keeper ─► EtcdStore ──┐                  ┌─ one connection per member for requests
//!                                  ├──► Cluster ──────┤    the next member when one does not answer in time
//!   Balance ◄──── EtcdResolver ────┘                  └─ one per member for watches
//! ```
//!
//! # What is special about etcd
//!
//! - **A keep-alive that succeeded proves nothing.** Until 3.5.23 and 3.6.5 etcd could answer one with success for a lease
//!   that was revoked already, and the key may have been deleted by hand. So a renewal here is a keep-alive *and then* a
//!   linearizable check of the key: it succeeds only if this very claim holds the key in a state that a quorum confirms as
//!   current. (The check is a transaction that also reads the key. One that only compares is answered by the member that was
//!   asked from its own state, which may be old.) Neither is an entry in etcd's log.
//! - **A lease that was renewed correctly can be revoked**, when a leader was paused for longer than the TTL and goes on.
//!   So the keeper watches its own key, and what is written needs a guard: [`swap`](tower_lease::DocumentStore::swap) and
//!   [`EtcdStore::write`] compare the token in the same transaction.
//! - **A watch can lose a deletion to a compaction** in the very revision of the compaction (seen on 3.4.23). So after each
//!   opening a read at the revision before tells whether history is missing; then it is listed again.
//! - **A member that was paused keeps its connections open.** So every request has a time, a watch without news asks for a
//!   sign of life every two seconds, and whoever is not answered asks the next member, and connects anew after two
//!   requests without an answer.
//!
//! # What it costs
//!
//! A renewal is two small requests (figures are in the README). A key that is held is two keys in etcd, because a mark
//! beside it (`key;held`) tells the next holder whether the last one ended in good order; the mark of one that did not
//! stays until the key's next good end, some 80 bytes without a lease. Building needs `protoc` and its well-known
//! definitions.
//!
//! # Examples
//!
//! With defaults:
//!
//! ```no_run
//! use tower_etcd::{Cluster, EtcdStore};
//! use tower_lease::{Holder, Lease, LeaseKey};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
//! let cluster = Cluster::builder(["http://10.0.0.1:2379", "http://10.0.0.2:2379", "http://10.0.0.3:2379"]).build()?;
//! let store = EtcdStore::new(&cluster);
//! let (lease, keeper) = Lease::builder(store, LeaseKey::new("leader")?, Holder::new("node-1")).build()?;
//! tokio::spawn(keeper.run());
//! println!("we lead, epoch {}", lease.held().await?.epoch());
//! # Ok(())
//! # }
//! ```
//!
//! Tuned: a user, several keys on one renewal, and a write that only the leader of this moment can do.
//!
//! ```no_run
//! use std::time::Duration;
//! use tower_etcd::{Cluster, EtcdStore, Write};
//! use tower_lease::{Holder, Lease, LeaseKey};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
//! let cluster = Cluster::builder(["http://10.0.0.1:2379", "http://10.0.0.2:2379", "http://10.0.0.3:2379"])
//!     .user("app", "secret")
//!     .request_timeout(Duration::from_millis(700))
//!     .build()?;
//! let store = EtcdStore::new(&cluster).with_prefix("app/").with_shared_session();
//! let builder = Lease::builder(store.clone(), LeaseKey::new("leader")?, Holder::new("node-1"));
//! let (lease, keeper) = builder.ttl(Duration::from_secs(5)).require_fencing().build()?;
//! tokio::spawn(keeper.run());
//!
//! let token = lease.held().await?;
//! store.write(&token, [Write::put(LeaseKey::new("topology")?, "a, b")]).await?;
//! # Ok(())
//! # }
//! ```
//!
//! # Errors
//!
//! [`BuildError`] says what is wrong with a cluster's description. Everything else is a
//! [`StoreError`](tower_lease::StoreError), told by what may have happened: not sent when no connection could be made;
//! refused when etcd said no at its door; lost when the key is another's; unknown when there was no answer in time, the
//! connection broke, or etcd itself does not know.
//!
//! # Panics
//!
//! None of our own. It needs a Tokio runtime with its timer and its sockets.
//!
//! # Cancel safety
//!
//! Every future may be dropped. What a dropped call did is unknown, and the same call finds out: ids of etcd leases follow
//! from the claim, so nothing is acquired twice. A dropped renewal takes its stream down, because the answer to it must
//! not be taken for that to the next one. Watches and updates lose nothing.
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
mod write;

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
    write::Write,
};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
