use std::{
    collections::VecDeque,
    error::Error,
    fmt,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use http_body::{Body, Frame};

/// One step of a [`Script`].
#[derive(Debug)]
pub enum Step {
    /// A data frame.
    Data(&'static str),
    /// Trailers, one pair.
    Trailer(&'static str, &'static str),
    /// The body breaks off.
    Break,
    /// Stays pending from here on.
    Hang,
}

/// A body of scripted frames.
#[derive(Debug, Default)]
pub struct Script {
    steps: VecDeque<Step>,
    tells_end: bool,
}

/// The error of a [`Probe`](crate::Probe) and of a broken [`Script`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Broken;

// === impl Script ===

impl Script {
    /// A body that ends after `steps` without reporting it in `is_end_stream`, like a chunked body.
    pub fn new(steps: impl IntoIterator<Item = Step>) -> Self {
        Self {
            steps: steps.into_iter().collect(),
            tells_end: false,
        }
    }

    /// Makes `is_end_stream` report the end, as in a body of known length.
    #[must_use]
    pub fn telling_end(self) -> Self {
        Self {
            tells_end: true,
            ..self
        }
    }
}

impl Body for Script {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        Poll::Ready(match self.steps.pop_front() {
            Some(Step::Data(text)) => Some(Ok(Frame::data(Bytes::from_static(text.as_bytes())))),
            Some(Step::Trailer(name, value)) => {
                let pair = (
                    HeaderName::from_static(name),
                    HeaderValue::from_static(value),
                );
                Some(Ok(Frame::trailers(HeaderMap::from_iter([pair]))))
            }
            Some(Step::Break) => Some(Err(Broken)),
            Some(Step::Hang) => {
                self.steps.push_front(Step::Hang);
                return Poll::Pending;
            }
            None => None,
        })
    }

    fn is_end_stream(&self) -> bool {
        self.tells_end && self.steps.is_empty()
    }
}

// === impl Broken ===

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("broken by the test")
    }
}

impl Error for Broken {}
