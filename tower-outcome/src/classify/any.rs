use super::{AtHead, Classify, ClassifyEnd, ClassifyResponse, broken};
use crate::{Outcome, Refusal, body::End};

/// Any `Err` is a failure and any response a success. Works for every protocol; the default of all layers.
///
/// An `Err` in which [`Refusal::of`] finds a refusal is ignored.
#[derive(Clone, Copy, Debug, Default)]
pub struct AnyErr;

/// A classification by a function. Created by [`from_fn`].
#[derive(Clone, Copy, Debug)]
pub struct FromFn<F>(F);

/// Classifies the result of a call with a function.
///
/// ```
/// use tower_outcome::{Outcome, classify};
///
/// let slow_down = classify::from_fn(|result: Result<&u16, &std::io::Error>| match result {
///     Ok(429) => Outcome::THROTTLED,
///     Ok(_) => Outcome::SUCCESS,
///     Err(_) => Outcome::FAILURE,
/// });
/// # let _ = slow_down;
/// ```
pub fn from_fn<F, Res, E>(judge: F) -> FromFn<F>
where
    F: Fn(Result<&Res, &E>) -> Outcome + Clone,
{
    FromFn(judge)
}

// === impl AnyErr ===

impl<Req> Classify<Req> for AnyErr {
    type Classifier = Self;

    fn classify(&self, _: &Req) -> Self {
        Self
    }
}

impl<Res, E: 'static> ClassifyResponse<Res, E> for AnyErr {
    type Scope = AtHead;

    fn head(&self, _: &Res) -> Option<Outcome> {
        Some(Outcome::SUCCESS)
    }

    fn error(&self, error: &E) -> Outcome {
        broken(Refusal::of(error))
    }
}

impl ClassifyEnd for AnyErr {
    fn end(self, _: End<'_>) -> Outcome {
        Outcome::SUCCESS
    }
}

// === impl FromFn ===

impl<F: Clone, Req> Classify<Req> for FromFn<F> {
    type Classifier = Self;

    fn classify(&self, _: &Req) -> Self {
        self.clone()
    }
}

impl<F, Res, E> ClassifyResponse<Res, E> for FromFn<F>
where
    F: Fn(Result<&Res, &E>) -> Outcome,
{
    type Scope = AtHead;

    fn head(&self, response: &Res) -> Option<Outcome> {
        Some((self.0)(Ok(response)))
    }

    fn error(&self, error: &E) -> Outcome {
        (self.0)(Err(error))
    }
}

impl<F> ClassifyEnd for FromFn<F> {
    fn end(self, _: End<'_>) -> Outcome {
        Outcome::SUCCESS
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{BoxError, Class, Verdict};

    #[test]
    fn an_error_is_a_failure_and_a_local_rejection_is_not() {
        let classifier = Classify::<()>::classify(&AnyErr, &());
        let broken: BoxError = "connection reset".into();
        let refused: BoxError = Refusal::new(Class::Limited, "rate").into();
        let judge = |error| ClassifyResponse::<(), BoxError>::error(&classifier, error).verdict();
        assert_eq!(judge(&broken), Verdict::Failure);
        assert_eq!(judge(&refused), Verdict::Ignore);
    }

    #[test]
    fn a_function_classifies_responses_and_errors() {
        let classifier = from_fn(|result: Result<&u8, &u8>| match result {
            Ok(1) => Outcome::SUCCESS,
            Ok(_) => Outcome::THROTTLED,
            Err(_) => Outcome::FAILURE,
        });
        assert_eq!(classifier.head(&1), Some(Outcome::SUCCESS));
        assert_eq!(classifier.head(&2), Some(Outcome::THROTTLED));
        assert_eq!(classifier.error(&0), Outcome::FAILURE);
    }
}
