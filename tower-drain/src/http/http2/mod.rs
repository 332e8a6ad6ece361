//! HTTP/2: limits that hyper does not have, and the end of connections. `without_http2` replaces this module in builds
//! without the feature.

mod app;
mod body;
mod frames;
mod lent;
mod session;
mod shared;
mod state;
mod streams;
mod wire;

use std::time::Duration;

pub(super) use self::{
    session::Session,
    state::{Slot, State},
    wire::Wire,
};
use super::Http;
use crate::drain::bounded;

/// The protocols that are served.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Protocols {
    #[default]
    Both,
    Http1,
    Http2,
}

/// The settings that concern HTTP/2 only.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    max_streams: u32,
    frames: frames::Limits,
    ping_every: Duration,
    ping_within: Duration,
}

// === impl Http ===

#[cfg_attr(docsrs, doc(cfg(feature = "http2")))]
impl<App> Http<App> {
    /// Serves only HTTP/2: a connection that begins otherwise gets a `505`. Default: both.
    #[must_use]
    pub fn http2_only(self) -> Self {
        self.set(|settings| settings.protocols = Protocols::Http2)
    }

    /// How many HTTP/2 streams a connection may have open. Default: 100.
    #[must_use]
    pub fn max_streams(self, max: u32) -> Self {
        self.set(|settings| settings.http2.max_streams = max)
    }

    /// How many more streams an HTTP/2 peer may reset early in ten seconds than get a response. Default: 250.
    ///
    /// A reset is early before the response has begun, and within a second of the request: such a request costs the peer
    /// nothing, and the server a handler (CVE-2023-44487). Each stream with a response offsets one reset, so a client that
    /// cancels some of its requests is served at any rate, and so is one whose deadlines expire. The default allows
    /// two web pages of 100 requests each to be cancelled before they get a response.
    ///
    /// The connection of a peer that goes beyond it is closed with a GOAWAY (`ENHANCE_YOUR_CALM`).
    #[must_use]
    pub fn max_resets(self, max: u32) -> Self {
        self.set(|settings| settings.http2.frames.resets = max)
    }

    /// How many control frames an HTTP/2 peer may send in ten seconds while no stream makes progress: pings, settings,
    /// priorities, empty data, unknown ones. Default: 1 000. Ten window updates count as one of them.
    ///
    /// The count is reset by each HEADERS and DATA frame of either side, because clients send such frames in
    /// proportion to their traffic (grpc-go pings for each message, to measure its bandwidth). Acknowledgements of the
    /// server's frames do not count.
    ///
    /// The connection of a peer that goes beyond it is closed with a GOAWAY (`ENHANCE_YOUR_CALM`).
    #[must_use]
    pub fn max_control_frames(self, max: u32) -> Self {
        self.set(|settings| settings.http2.frames.controls = max)
    }

    /// How often an HTTP/2 peer is pinged, and how long it may take to respond. Default: 20 s and 10 s.
    #[must_use]
    pub fn ping(self, every: Duration, within: Duration) -> Self {
        self.set(|settings| {
            (settings.http2.ping_every, settings.http2.ping_within) =
                (bounded(every), bounded(within))
        })
    }

    /// How long an HTTP/2 peer may take to acknowledge the first GOAWAY before the second one is sent anyway.
    /// Default: 1 s.
    #[must_use]
    pub fn goaway_timeout(self, timeout: Duration) -> Self {
        self.set(|settings| settings.life.goaway = bounded(timeout))
    }
}

// === impl Protocols ===

impl Protocols {
    pub(super) const fn http1_only() -> Self {
        Self::Http1
    }

    pub(super) const fn includes_http1(self) -> bool {
        !matches!(self, Self::Http2)
    }

    const fn includes_http2(self) -> bool {
        !matches!(self, Self::Http1)
    }
}

// === impl Settings ===

impl Default for Settings {
    fn default() -> Self {
        Self {
            max_streams: STREAMS,
            frames: frames::Limits {
                resets: RESETS,
                controls: CONTROLS,
            },
            ping_every: PING_EVERY,
            ping_within: PING_WITHIN,
        }
    }
}

const STREAMS: u32 = 100;
const RESETS: u32 = 250;
const CONTROLS: u32 = 1000;
const PING_EVERY: Duration = Duration::from_secs(20);
const PING_WITHIN: Duration = Duration::from_secs(10);
