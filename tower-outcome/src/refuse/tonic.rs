use tonic::{
    Code, Status,
    metadata::{MetadataMap, MetadataValue},
};

use crate::{BoxError, Refusal};

use super::grpc::pushback_millis;

/// Converts the error of a client stack for a tonic client, which would make `UNKNOWN` of a local rejection.
///
/// A [`Refusal`] in the chain becomes the status of its class with `grpc-retry-pushback-ms`, and the error itself is the
/// `source()` of the status, so [`Refusal::find`] finds it there too. Any other error is converted with
/// [`Status::from_error`].
///
/// ```
/// use tonic::Code;
/// use tower_outcome::{BoxError, Class, Refusal, refuse};
///
/// // In a stack around a channel: `ServiceBuilder::new().map_err(refuse::status).layer(circuit).service(channel)`
/// let open: BoxError = Refusal::new(Class::Unavailable, "circuit-open").into();
/// assert_eq!(refuse::status(open).code(), Code::Unavailable);
/// ```
#[must_use]
pub fn status(error: BoxError) -> Status {
    match Refusal::find(&*error) {
        Some(&refusal) => {
            let mut status = to_status(refusal, error.to_string());
            status.set_source(error.into());
            status
        }
        None => Status::from_error(error),
    }
}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        let mut status = to_status(refusal, refusal.to_string());
        status.set_source(std::sync::Arc::new(refusal));
        status
    }
}

fn to_status(refusal: Refusal, message: String) -> Status {
    let code = Code::from_i32(refusal.class().grpc_status().into());
    let mut metadata = MetadataMap::new();
    if let Some(millis) = pushback_millis(&refusal) {
        metadata.insert("grpc-retry-pushback-ms", MetadataValue::from(millis));
    }
    Status::with_metadata(code, message, metadata)
}

#[cfg(test)]
mod tests {
    use std::{error::Error, time::Duration};

    use super::*;
    use crate::{Class, Unsent};

    const LIMITED: Refusal = Refusal::new(Class::Limited, "rate");

    #[test]
    fn a_rejection_has_the_code_and_the_retry_hint_of_its_refusal() {
        let refusal = LIMITED.with_retry_after(Some(Duration::from_micros(1_500)));
        for status in [Status::from(refusal), status(refusal.into())] {
            assert_eq!(status.code(), Code::ResourceExhausted);
            assert_eq!(status.message(), "too many requests (rate)");
            assert_eq!(
                status.metadata().get("grpc-retry-pushback-ms").unwrap(),
                "2"
            );
            assert_eq!(Refusal::find(&status), Some(&refusal));
        }
        assert!(Status::from(LIMITED).metadata().is_empty());
    }

    #[test]
    fn a_rejection_is_found_in_the_chain_and_the_message_is_that_of_the_error() {
        let status = status(Unsent::new((), LIMITED).into());
        assert_eq!(status.code(), Code::ResourceExhausted);
        assert_eq!(status.message(), "the request was not sent");
        assert!(
            status
                .source()
                .is_some_and(|error| error.is::<Unsent<()>>())
        );
    }

    #[test]
    fn other_errors_are_converted_as_tonic_does() {
        let unknown = status("connection reset".into());
        assert_eq!(unknown.code(), Code::Unknown);
        let inner: BoxError = Status::not_found("no such user").into();
        assert_eq!(status(inner).code(), Code::NotFound);
    }

    /// What a generated client does with the error of its service.
    #[test]
    fn a_tonic_client_gets_the_status_through_its_own_conversion() {
        let error: BoxError = status(LIMITED.into()).into();
        assert_eq!(Status::from_error(error).code(), Code::ResourceExhausted);
    }
}
