//! Handles, layers and services go anywhere: into a router, a task, a static.

use http::{Request, Response};
use testkit::Probe;
use tower_bucket::{
    Admitted, And, BucketLayer, BucketService, ClientIp, Exhausted, Header, Keyed, KeyedLimiter,
    Limiter, Network, NotANetwork, OnMissingKey, Path, PeerIp, PolicyName, ProxiedIp, Queue, Quota,
    RateLimitHeaders, ResponseFuture, Share, Snapshot, UriPath, WaitFuture,
};
use tower_outcome::refuse::{Auto, Fail};

fn value<T: Send + Sync + Unpin + 'static>() {}
fn handle<T: Clone + Send + Sync + Unpin + 'static>() {}
fn small<T: Copy + Send + Sync + Unpin + 'static>() {}
fn sent<T: Send + Sync + 'static>() {}
fn debug<T: std::fmt::Debug>() {}

/// A key that is neither `Send` nor `Sync`: it is not kept, so that does not matter.
type Odd = std::rc::Rc<u8>;

#[test]
fn handles_and_layers_go_anywhere() {
    handle::<Limiter>();
    handle::<KeyedLimiter<Odd>>();
    handle::<KeyedLimiter<str>>();
    handle::<BucketLayer<Limiter>>();
    handle::<BucketLayer<Keyed<PeerIp, ClientIp>, Auto>>();
    handle::<BucketService<Probe, Keyed<Header, Odd>, Fail>>();
    handle::<BucketService<Probe, And<Limiter, Keyed<ProxiedIp, ClientIp>>, Auto, Queue>>();
    handle::<(Header, ProxiedIp, UriPath, Queue)>();
    small::<(
        Admitted,
        ClientIp,
        Exhausted,
        RateLimitHeaders,
        Network,
        NotANetwork,
        OnMissingKey,
        Path,
        PeerIp,
        PolicyName,
    )>();
    small::<(Quota, Share, Snapshot)>();
}

#[test]
fn a_future_is_sent_and_pinned_as_the_inner_one_is() {
    value::<ResponseFuture<Probe, Fail, Request<String>>>();
    value::<ResponseFuture<Probe, Auto, Request<String>>>();
    debug::<ResponseFuture<Probe, Auto, Request<String>>>();
    debug::<WaitFuture<Probe, Limiter, Auto, Request<String>>>();
    sent::<WaitFuture<Probe, Keyed<PeerIp, ClientIp>, Auto, Request<String>>>();
}

#[test]
fn a_response_of_any_type_may_be_rejected() {
    type Plain = tower::util::BoxCloneSyncService<&'static str, Response<()>, std::io::Error>;
    handle::<BucketService<Plain, Limiter>>();
    debug::<ResponseFuture<Plain, Fail, &'static str>>();
}
