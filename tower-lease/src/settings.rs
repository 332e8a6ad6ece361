use std::time::Duration;

/// The settings of a layer. Public only because [`Protocol`](crate::protocol::Protocol) names it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Settings {
    pub(crate) min_remaining: Duration,
    pub(crate) in_flight: InFlight,
    pub(crate) token_in: TokenIn,
    /// The longest deadline that is taken from a request.
    pub(crate) deadlines: Option<Duration>,
}

/// What happens to in-flight requests when the lease is lost. Their responses are replaced in each case. A
/// future that was not polled before the loss does not start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum InFlight {
    /// The inner future is dropped, and the request fails with [`LeaseLost`](crate::LeaseLost) at once.
    #[default]
    Cancel,
    /// The inner future runs to its end, and then its response is replaced. Only for work whose effects carry the
    /// [`FencingToken`](crate::FencingToken) to a resource that checks it: a successor may be at work meanwhile, also
    /// after a [`step_down`](crate::Lease::step_down), which waits for requests in flight for a limited time only.
    Finish,
    /// The inner future may run for this long after the loss, and is then dropped; a response that it produces is
    /// replaced.
    ///
    /// Never for longer than the lease's [`guard`](crate::LeaseBuilder::guard), which is the part of the margin that no
    /// clock's drift can use up, counted from the end of validity at the latest; 250 ms where that was not set. After a
    /// revocation a successor may be at work meanwhile, so this too is for effects that carry the token.
    FinishWithin(Duration),
}

/// Where an admitted request finds the [`FencingToken`](crate::FencingToken) of the epoch it runs in.
///
/// The header is `x-lease-token` ([`LEASE_TOKEN`](tower_outcome::header::LEASE_TOKEN)), in gRPC the metadata of that name. It replaces one that came with
/// the request; where it is not written, one of *our* key that came along is removed, so that a service which forwards the
/// request does not forward a forged token of this key. One of another key is its sender's, and stays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum TokenIn {
    /// In its extensions, for handlers: three small allocations if nothing else is there.
    #[default]
    Extensions,
    /// In its headers, for what passes the request on as it is (a proxy): one allocation for the value.
    Header,
    /// In both.
    Both,
    /// Nowhere: no allocation. For services without effects that need fencing.
    Nowhere,
}
