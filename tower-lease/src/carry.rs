//! How a lease goes along with a request and its answer: not at all, or as HTTP can.

use http::{HeaderMap, Request, Response};
use http_body::Body;
use tower_outcome::header::LEASE_EPOCH;

use crate::{Clock, LeaseBody, Ticket, WrongInstance};

/// What is done to a request that is let in, and to its answer. The two ways are [`Neutral`] and [`Http`].
pub trait Carry<Req, Res, C: Clock>: sealed::Sealed {
    /// The answer, with the ticket attached where there is a place for it.
    type Response;

    /// Looks at a request that is about to be let in, and gives it the token.
    ///
    /// # Errors
    ///
    /// It is meant for another instance.
    fn board(request: &mut Req, ticket: &Ticket<C>) -> Result<(), WrongInstance>;

    /// Attaches the ticket to the answer.
    fn attach(response: Res, ticket: Ticket<C>) -> Self::Response;
}

/// Any protocol: the request and the answer stay as they are, and the answer itself is the end. For a connection
/// service, whose answer is the end of the connection, that is exact.
#[derive(Clone, Copy, Debug)]
pub enum Neutral {}

/// HTTP: the request gets the [`FencingToken`](crate::FencingToken) as an extension and is refused when its
/// `x-lease-epoch` header names another epoch; the answer's body breaks off when the lease is lost (R-28, I3).
#[derive(Clone, Copy, Debug)]
pub enum Http {}

mod sealed {
    #[expect(unnameable_types, reason = "that is what seals the trait")]
    pub trait Sealed {}
    impl Sealed for super::Neutral {}
    impl Sealed for super::Http {}
}

// === impl Neutral ===

impl<Req, Res, C: Clock> Carry<Req, Res, C> for Neutral {
    type Response = Res;

    fn board(_: &mut Req, _: &Ticket<C>) -> Result<(), WrongInstance> {
        Ok(())
    }

    fn attach(response: Res, _: Ticket<C>) -> Res {
        response
    }
}

// === impl Http ===

impl<A, B: Body, C: Clock> Carry<Request<A>, Response<B>, C> for Http {
    type Response = Response<LeaseBody<B, C>>;

    fn board(request: &mut Request<A>, ticket: &Ticket<C>) -> Result<(), WrongInstance> {
        if !names_us(request.headers(), ticket.epoch().get()) {
            return Err(WrongInstance::new(ticket.epoch()));
        }
        request.extensions_mut().insert(ticket.token());
        Ok(())
    }

    fn attach(response: Response<B>, ticket: Ticket<C>) -> Self::Response {
        response.map(|body| LeaseBody::new(body, ticket))
    }
}

/// No header names everyone; one that makes no sense names nobody.
fn names_us(headers: &HeaderMap, epoch: u64) -> bool {
    let mut named = headers.get_all(LEASE_EPOCH).iter();
    named.all(|value| value.to_str().ok().and_then(|value| value.parse().ok()) == Some(epoch))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_names_us_by_our_epoch_or_by_none() {
        let headers = |values: &[&'static str]| {
            values.iter().map(|value| (LEASE_EPOCH, http::HeaderValue::from_static(value))).collect::<HeaderMap>()
        };
        assert!(names_us(&headers(&[]), 7));
        assert!(names_us(&headers(&["7"]), 7));
        for other in [&["6"][..], &["8"], &[""], &["x"], &["-7"], &["7", "8"]] {
            assert!(!names_us(&headers(other), 7), "{other:?}");
        }
    }
}
