//! The crate as its users see it: drains, servers and connections, on loopback and on networks of the tests' own.

#[cfg(feature = "http")]
mod accept;
#[cfg(feature = "http")]
mod auto_traits;
#[cfg(all(feature = "http", target_os = "linux"))]
mod bound;
#[cfg(feature = "http")]
mod connect_info;
#[cfg(all(feature = "http", unix))]
mod descriptors;
#[cfg(feature = "http")]
mod disconnects;
#[cfg(feature = "http2")]
mod eviction;
#[cfg(all(feature = "handoff", feature = "http", target_os = "linux"))]
mod handoff;
#[cfg(all(feature = "handoff", feature = "http2", target_os = "linux"))]
mod handoff_lossless;
#[cfg(feature = "http")]
mod http1;
#[cfg(all(feature = "http", not(feature = "http2")))]
mod http1_only;
#[cfg(feature = "http2")]
mod http2;
#[cfg(all(feature = "http", target_os = "linux"))]
mod idle;
mod layer;
#[cfg(feature = "http")]
mod limits;
#[cfg(feature = "http2")]
mod limits_http2;
#[cfg(feature = "http2")]
mod others;
mod phases;
#[cfg(feature = "http")]
mod proxy;
#[cfg(feature = "http")]
mod server;
#[cfg(all(feature = "signal", unix))]
mod signal;
#[cfg(all(feature = "http", target_os = "linux"))]
mod slow_readers;
#[cfg(feature = "http")]
mod support;
#[cfg(all(feature = "http2", feature = "tls"))]
mod tls;
#[cfg(feature = "http2")]
mod uploads;
