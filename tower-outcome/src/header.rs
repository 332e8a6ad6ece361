//! Header names used by several of the crates.

use http::HeaderName;

/// The lease epoch of the endpoint that a request was meant for, as a decimal integer.
///
/// Set by a balancer. The lease gate of the replica rejects a request for another epoch ([`Class::Misdirected`]), so a
/// request never reaches an instance that was given the same address later.
///
/// [`Class::Misdirected`]: crate::Class::Misdirected
pub const LEASE_EPOCH: HeaderName = HeaderName::from_static("x-lease-epoch");

/// The fencing token of the lease under which a request is sent, as `<key>;<epoch>`.
///
/// Set by the holder of the lease. The resource rejects an epoch lower than the highest one it has received for that key
/// ([`Class::Stale`]). In gRPC it is metadata of the same name.
///
/// [`Class::Stale`]: crate::Class::Stale
pub const LEASE_TOKEN: HeaderName = HeaderName::from_static("x-lease-token");

/// gRPC's status code, in trailers or in a trailers-only head.
pub const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");

/// gRPC's status message, percent-encoded.
pub const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");

/// The delay before a retry, in milliseconds (gRFC A6). A negative value means "do not retry".
pub const GRPC_RETRY_PUSHBACK_MS: HeaderName = HeaderName::from_static("grpc-retry-pushback-ms");
