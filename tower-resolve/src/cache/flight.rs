use std::{
    fmt,
    panic::AssertUnwindSafe,
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::AtomicU64},
};

use futures_util::{FutureExt, StreamExt};
use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep_until},
};

use super::{
    Cached,
    entry::{Entry, Jitter, Limits, Seen, Told},
};
use crate::{Generation, Resolve, Update, diff::Applied};

/// One remembered name.
pub(super) struct Name {
    pub(super) text: Arc<str>,
    /// When it was asked for last, in questions.
    pub(super) used: AtomicU64,
    state: Mutex<State>,
    told: watch::Sender<Told>,
    invalidated: Notify,
}

#[derive(Default)]
struct State {
    entry: Entry,
    is_flying: bool,
}

/// Tells, however the task ends, that nobody asks for the name any more.
struct Landing(Option<Arc<Name>>);

// === impl Name ===

impl Name {
    pub(super) fn new(text: Arc<str>, used: u64) -> Self {
        Self {
            text,
            used: AtomicU64::new(used),
            state: Mutex::default(),
            told: watch::Sender::default(),
            invalidated: Notify::new(),
        }
    }

    pub(super) fn is_idle(&self) -> bool {
        !self.state().is_flying
    }

    pub(super) fn peek(&self, limits: &Limits, now: Instant) -> Option<Cached> {
        let state = self.state();
        if state.entry.expires_at(limits).is_some_and(|at| at <= now) {
            return None;
        }
        let topology = state.entry.topology()?.clone();
        Some(Cached {
            topology,
            age: state.entry.age(now),
            degraded: state.entry.degraded().cloned(),
        })
    }

    pub(super) fn invalidate(&self, generation: Generation) -> bool {
        let seen = self.state().entry.invalidate(generation);
        // Once, however many say so at the same time.
        if seen == Seen::Newer {
            tracing::info!(name = %self.text, ?generation, "a newer generation was seen; asking again");
            self.invalidated.notify_one();
        }
        seen != Seen::Known
    }

    /// Tells followers what is known now, if that is news. Returns when to look again.
    fn tell(&self, limits: &Limits, now: Instant) -> Instant {
        let state = self.state();
        let told = state.entry.told(limits, now);
        self.told.send_if_modified(|before| {
            let is_news = *before != told;
            if is_news {
                *before = told;
            }
            is_news
        });
        let ask_at = state.entry.ask_at(limits, now);
        state
            .entry
            .expires_at(limits)
            .filter(|at| *at > now)
            .map_or(ask_at, |expires_at| expires_at.min(ask_at))
    }

    /// Whether it is time to ask; if so, it counts as asked.
    fn is_due(&self, limits: &Limits, now: Instant) -> bool {
        let mut state = self.state();
        let is_due = state.entry.ask_at(limits, now) <= now;
        if is_due {
            state.entry.asked(now, Jitter::draw());
        }
        is_due
    }

    /// Returns whether the source's stream can still be used.
    fn hear(&self, update: Option<Update>, limits: &Limits, now: Instant) -> bool {
        let mut state = self.state();
        let Some(update) = update else {
            tracing::warn!(name = %self.text, "a source ended its updates");
            state.entry.broke_off(now);
            return false;
        };
        match state.entry.apply(update, limits, now) {
            Applied::Gap => {
                tracing::warn!(name = %self.text, "a source left a gap; asking for a snapshot");
                false
            }
            Applied::Held => {
                tracing::warn!(name = %self.text, "a great loss right after trouble was held back until it is confirmed");
                true
            }
            _ => true,
        }
    }

    /// The source panicked: trouble like any other, but told louder.
    fn broke(&self, limits: &Limits, now: Instant) {
        tracing::error!(name = %self.text, "a source panicked; it is asked again");
        let mut state = self.state();
        let _ = state
            .entry
            .apply(Update::degraded("the source panicked"), limits, now);
    }

    /// Whether nobody follows any more. Decided under the lock under which one begins to.
    fn land(&self) -> bool {
        let mut state = self.state();
        state.is_flying = self.told.receiver_count() > 0;
        !state.is_flying
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Name")
            .field("text", &self.text)
            .finish_non_exhaustive()
    }
}

// === impl Landing ===

impl Drop for Landing {
    fn drop(&mut self) {
        if let Some(name) = self.0.take() {
            name.state().is_flying = false;
        }
    }
}

/// Follows a name; the first to do so sends the task on its way.
pub(super) fn follow<R: Resolve>(
    name: &Arc<Name>,
    resolver: &Arc<R>,
    limits: Limits,
) -> watch::Receiver<Told> {
    let mut state = name.state();
    let mut told = name.told.subscribe();
    told.mark_changed();
    if !state.is_flying {
        state.entry.abandoned();
        // What was told last may have expired since.
        name.told
            .send_replace(state.entry.told(&limits, Instant::now()));
        tokio::spawn(keep_flying(name.clone(), resolver.clone(), limits));
        state.is_flying = true;
    }
    told
}

/// Flies until nobody follows, over the panics of a source too: those who follow cannot see them.
async fn keep_flying<R: Resolve>(name: Arc<Name>, resolver: Arc<R>, limits: Limits) {
    let mut landing = Landing(Some(name.clone()));
    while AssertUnwindSafe(fly(&name, &*resolver, limits))
        .catch_unwind()
        .await
        .is_err()
    {
        name.broke(&limits, Instant::now());
    }
    // Told already; somebody else may fly from here on.
    landing.0 = None;
}

/// Asks the source for as long as somebody follows: when it is due, and when what is known turned out to be old.
async fn fly<R: Resolve>(name: &Name, resolver: &R, limits: Limits) {
    let mut updates = pin!(None);
    loop {
        let now = Instant::now();
        if name.is_due(&limits, now) {
            updates.set(Some(resolver.resolve(&name.text)));
        }
        let look_at = name.tell(&limits, now);
        tokio::select! {
            biased;
            () = name.told.closed() => {
                if name.land() {
                    return;
                }
            }
            update = next(updates.as_mut().as_pin_mut()) => {
                if !name.hear(update, &limits, Instant::now()) {
                    updates.set(None);
                }
            }
            () = name.invalidated.notified() => {}
            () = sleep_until(look_at) => {}
        }
    }
}

async fn next<U: futures_core::Stream<Item = Update>>(
    updates: Option<std::pin::Pin<&mut U>>,
) -> Option<Update> {
    match updates {
        Some(mut updates) => updates.next().await,
        None => std::future::pending().await,
    }
}
