//! What a [`RedisLayer`](crate::RedisLayer) charges and writes; set by its methods. `()` is the default of each.

use http::Response;
use tower_bucket::{PolicyName, Quota, RateLimitHeaders};

/// The settings of a [`RedisLayer`](crate::RedisLayer) that depend on the request or the response type.
#[derive(Clone, Copy, Debug, Default)]
pub struct Modifiers<T = (), Q = (), H = ()> {
    pub(crate) cost: T,
    pub(crate) quota: Q,
    pub(crate) headers: H,
    pub(crate) shadow: bool,
}

/// How many tokens a request costs: a function, or `()` for one token.
pub trait CostFn<Req> {
    /// The tokens.
    fn tokens(&self, request: &Req) -> u32;
}

/// The quota of a request: a function, or `()` for that of the limiter.
pub trait QuotaFn<Req> {
    /// The quota; `None` for that of the limiter.
    fn quota(&self, request: &Req) -> Option<Quota>;
}

/// Whether responses get header fields: a [`PolicyName`], or `()` for none.
pub trait DecorateResponse<Res> {
    /// Adds the fields, if the request was limited.
    fn decorate(
        &self,
        response: &mut Res,
        headers: impl FnOnce(PolicyName) -> Option<RateLimitHeaders>,
    );
}

// === impl CostFn ===

impl<Req> CostFn<Req> for () {
    fn tokens(&self, _: &Req) -> u32 {
        1
    }
}

impl<Req, F: Fn(&Req) -> u32> CostFn<Req> for F {
    fn tokens(&self, request: &Req) -> u32 {
        self(request)
    }
}

// === impl QuotaFn ===

impl<Req> QuotaFn<Req> for () {
    fn quota(&self, _: &Req) -> Option<Quota> {
        None
    }
}

impl<Req, F: Fn(&Req) -> Option<Quota>> QuotaFn<Req> for F {
    fn quota(&self, request: &Req) -> Option<Quota> {
        self(request)
    }
}

// === impl DecorateResponse ===

impl<Res> DecorateResponse<Res> for () {
    fn decorate(&self, _: &mut Res, _: impl FnOnce(PolicyName) -> Option<RateLimitHeaders>) {}
}

impl<B> DecorateResponse<Response<B>> for PolicyName {
    fn decorate(
        &self,
        response: &mut Response<B>,
        headers: impl FnOnce(Self) -> Option<RateLimitHeaders>,
    ) {
        if let Some(headers) = headers(*self) {
            headers.add_to(response.headers_mut());
        }
    }
}
