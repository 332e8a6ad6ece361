//! Replaces `http2` in builds without that feature: a connection that begins HTTP/2 is closed, so the settings are the
//! only type here of which a value exists.

use std::{
    convert::Infallible,
    io,
    marker::PhantomData,
    task::{Context, Poll},
};

use tokio::{io::ReadBuf, time::Instant};

use super::lifecycle::{Activity, Ping};

/// HTTP/1.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Protocols;

#[derive(Clone, Debug, Default)]
pub(super) struct Settings;

/// All responses are one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Slot;

#[derive(Debug)]
pub(super) enum State {}

pub(super) enum Wire {}

pub(super) struct Session<App, Io, B> {
    never: Infallible,
    _types: PhantomData<(App, Io, B)>,
}

// === impl Protocols ===

impl Protocols {
    pub(super) const fn http1_only() -> Self {
        Self
    }

    pub(super) const fn includes_http1(self) -> bool {
        true
    }
}

// === impl Slot ===

impl Slot {
    pub(super) const fn of(_: u32) -> Self {
        Self
    }
}

// === impl State ===

impl State {
    pub(super) const fn activity(&self) -> Activity {
        match *self {}
    }

    pub(super) const fn sent(&self) -> u32 {
        match *self {}
    }

    pub(super) const fn received(&self) -> u32 {
        match *self {}
    }

    pub(super) const fn note_congested(&self, _: Instant, _: Instant) {
        match *self {}
    }

    pub(super) const fn ping(&self) -> Ping {
        match *self {}
    }

    pub(super) const fn set_ping(&self, _: Ping) {
        match *self {}
    }
}

// === impl Wire ===

impl Wire {
    pub(super) fn note_read<C>(&mut self, _: &mut [u8], _: &C) -> io::Result<()> {
        match *self {}
    }

    pub(super) fn answer_ping<C>(&mut self, _: &mut ReadBuf<'_>, _: &C) -> bool {
        match *self {}
    }

    pub(super) fn say(&mut self, _: &mut ReadBuf<'_>) -> bool {
        match *self {}
    }

    pub(super) fn note_sent<C>(
        &mut self,
        _: &[io::IoSlice<'_>],
        _: &Poll<io::Result<usize>>,
        _: &C,
    ) {
        match *self {}
    }
}

// === impl Session ===

impl<App, Io, B> Session<App, Io, B> {
    /// Returns the stream.
    pub(super) fn begin<S, C>(stream: S, _: App, _: &C) -> Result<Self, S> {
        Err(stream)
    }

    pub(super) fn poll(&mut self, _: &mut Context<'_>) -> Poll<hyper::Result<()>> {
        match self.never {}
    }

    pub(super) fn graceful_shutdown(&mut self) {
        match self.never {}
    }

    pub(super) fn after_flood<L>(self) -> Option<L> {
        match self.never {}
    }

    pub(super) fn end<L>(self) -> Option<L> {
        match self.never {}
    }
}
