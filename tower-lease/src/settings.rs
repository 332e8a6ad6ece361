use std::time::Duration;

/// What the setters of a layer have said. It is there for [`Protocol`](crate::protocol::Protocol) alone.
#[derive(Clone, Copy, Debug, Default)]
pub struct Settings {
    pub(crate) min_remaining: Duration,
    pub(crate) in_flight: InFlight,
    pub(crate) token_in: TokenIn,
    /// The longest deadline that is asked for of a request's own.
    pub(crate) deadlines: Option<Duration>,
}

/// What becomes of requests that are inside when the lease is lost. Their answers are withheld either way, and work
/// that has not begun by then (a future that was not polled since `call`) does not begin.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum InFlight {
    /// The inner future is dropped, and the request answered with [`LeaseLost`](crate::LeaseLost), promptly.
    #[default]
    Cancel,
    /// The inner future runs to its end, and then its answer is replaced. Only for work whose effects carry the
    /// [`FencingToken`](crate::FencingToken) to a resource that checks it: a successor may be at work meanwhile, also
    /// after a [`step_down`](crate::Lease::step_down), which waits for those inside no longer than it was told to.
    Finish,
    /// The inner future may run on for so long after the loss, and is then dropped; its answer is replaced if it comes.
    ///
    /// Never for longer than the lease's [`guard`](crate::LeaseBuilder::guard), which is the part of the margin that no
    /// clock's drift can use up, counted from the end of validity at the latest; 250 ms where that was not set. After a
    /// revocation a successor may be at work meanwhile, so this too is for effects that carry the token.
    FinishWithin(Duration),
}

/// Where a request that is let in finds the [`FencingToken`](crate::FencingToken) of the epoch it runs in.
///
/// The header is `x-lease-token` ([`LEASE_TOKEN`](tower_outcome::header::LEASE_TOKEN)), in gRPC the metadata of that name. It replaces one that came with
/// the request; where it is not written, one of *our* key that came along is taken away, so that whoever passes the
/// request on spreads no made-up token in our name. One of another key is its sender's, and stays.
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
