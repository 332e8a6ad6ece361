//! The header names that the crates share.

use http::HeaderName;

/// The lease epoch of the endpoint that a request was meant for, as a decimal integer.
///
/// A balancer writes it; the replica's lease gate refuses another epoch than its own ([`Class::Misdirected`]), so a
/// request never reaches an instance that merely got the same address later.
///
/// [`Class::Misdirected`]: crate::Class::Misdirected
pub const LEASE_EPOCH: HeaderName = HeaderName::from_static("x-lease-epoch");

/// The fencing token of the lease under which a request is sent, as `<key>;<epoch>`.
///
/// Whoever acts under a lease writes it; the resource refuses a lower epoch than the highest it has seen of the key
/// ([`Class::Stale`]). In gRPC it is metadata of the same name.
///
/// [`Class::Stale`]: crate::Class::Stale
pub const LEASE_TOKEN: HeaderName = HeaderName::from_static("x-lease-token");

/// gRPC's status code, in trailers or in a trailers-only head.
pub const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");

/// gRPC's status message, percent-encoded.
pub const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");

/// When to come back, in milliseconds (gRFC A6); a negative value means "do not retry".
pub const GRPC_RETRY_PUSHBACK_MS: HeaderName = HeaderName::from_static("grpc-retry-pushback-ms");
