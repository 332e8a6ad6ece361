use super::Refuse;
use crate::{BoxError, Refused};

/// Rejects with a boxed error, for `downcast_ref` or [`Refusal::find`](crate::Refusal::find).
#[derive(Clone, Copy, Debug, Default)]
pub struct Fail;

impl<Req, Res, E: Into<BoxError>> Refuse<Req, Res, E> for Fail {
    type Response = Res;
    type Error = BoxError;
    type Context = ();

    fn context(&self, _: &Req) {}

    fn refuse<X: Refused>(&self, (): (), refused: X) -> Result<Res, BoxError> {
        Err(refused.into())
    }

    fn pass(result: Result<Res, E>) -> Result<Res, BoxError> {
        result.map_err(Into::into)
    }
}
