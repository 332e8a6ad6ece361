use std::{
    fmt,
    panic::AssertUnwindSafe,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::AtomicU64},
    time::Duration,
};

use futures_util::FutureExt;
use tokio::{
    runtime::Handle,
    sync::{Notify, watch},
    time::{Instant, sleep, sleep_until},
};

use super::{
    Cached,
    entry::{Entry, Jitter, Limits, Seen, Told},
    questions::{Questions, Word},
};
use crate::{Generation, Resolve, Update, diff::Applied};

/// One cached name.
pub(super) struct Name {
    pub(super) text: Arc<str>,
    /// The value of the counter of uses at its last use, for eviction.
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

/// Records, however the task ends, that the name is not queried any more.
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

    /// It has no followers. (The task may have ended before them.)
    pub(super) fn is_idle(&self) -> bool {
        !self.state().is_flying && self.told.receiver_count() == 0
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
        // Once, for any number of concurrent reports.
        if seen == Seen::Newer {
            tracing::info!(name = %self.text, ?generation, "a newer generation was seen; asking again");
            self.invalidated.notify_one();
        }
        seen != Seen::Known
    }

    /// Sends the current state to followers, if it changed. Returns when to call it again.
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

    /// Whether a query is due; if so, it counts as started.
    fn is_due(&self, limits: &Limits, now: Instant) -> bool {
        let mut state = self.state();
        let is_due = state.entry.ask_at(limits, now) <= now;
        if is_due {
            state.entry.asked(now, Jitter::draw());
        }
        is_due
    }

    /// Returns whether the subscription that this came from can still be used.
    fn hear(&self, word: Word, limits: &Limits, now: Instant) -> bool {
        let mut state = self.state();
        let entry = &mut state.entry;
        let Some(update) = word.update else {
            tracing::warn!(name = %self.text, "a source ended its updates");
            if word.is_latest {
                entry.broke_off(now);
            }
            return true;
        };
        if let Some(asked_at) = word.asked_at {
            entry.took(now.duration_since(asked_at));
        }
        let (was_behind, before) = (entry.is_behind(), entry.restarted());
        let applied = entry.apply(update, word.is_latest, limits, now);
        if entry.is_behind() && !was_behind {
            let cause = entry.degraded().map(tracing::field::display);
            tracing::warn!(name = %self.text, cause, "a source answers with older generations; the last set stays in use");
        }
        if entry.restarted() != before {
            tracing::warn!(name = %self.text, "a source counts from one again; it is taken for a new one");
        }
        match applied {
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

    /// The source panicked: trouble like any other, but logged at a higher level.
    fn broke(&self, limits: &Limits, now: Instant) {
        tracing::error!(name = %self.text, "a source panicked; it is asked again");
        let mut state = self.state();
        let _ = state
            .entry
            .apply(Update::degraded("the source panicked"), true, limits, now);
    }

    /// Whether there are no followers any more. Decided under the lock that a new follower takes.
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
            // One of the remaining followers continues.
            name.told.send_modify(|_| {});
        }
    }
}

/// What a follower needs to keep its name up to date: [`Following`], without the type of the resolver.
pub(super) trait Flight: Send + Sync {
    /// Starts the task again if it ended with its runtime. Returns whether it runs.
    fn keep(&self) -> bool;
}

struct Following<R> {
    name: Arc<Name>,
    resolver: Arc<R>,
    limits: Limits,
}

/// Follows a name; the first follower starts the task.
pub(super) fn follow<R: Resolve>(
    name: &Arc<Name>,
    resolver: &Arc<R>,
    limits: Limits,
) -> (watch::Receiver<Told>, Arc<dyn Flight>) {
    let following = Following {
        name: name.clone(),
        resolver: resolver.clone(),
        limits,
    };
    let mut told = name.told.subscribe();
    told.mark_changed();
    following.take_off();
    (told, Arc::new(following))
}

// === impl Following ===

impl<R: Resolve> Following<R> {
    /// Starts the task, unless it runs already. Returns whether it was started.
    fn take_off(&self) -> bool {
        // The task needs timers; without them its panics would be attributed to the source.
        drop(sleep(Duration::ZERO));
        let mut state = self.name.state();
        if state.is_flying {
            return false;
        }
        state.is_flying = true;
        state.entry.abandoned();
        // The last reported set may have expired since.
        let told = state.entry.told(&self.limits, Instant::now());
        drop(state);
        self.name.told.send_replace(told);
        // A runtime that shuts down drops it here, unpolled: not under the lock, and the guard resets the flag.
        let landing = Landing(Some(self.name.clone()));
        tokio::spawn(keep_flying(
            landing,
            self.name.clone(),
            self.resolver.clone(),
            self.limits,
        ));
        true
    }
}

impl<R: Resolve> Flight for Following<R> {
    fn keep(&self) -> bool {
        if self.name.state().is_flying {
            return true;
        }
        if Handle::try_current().is_err() {
            return false;
        }
        if self.take_off() {
            tracing::info!(name = %self.name.text, "the runtime that followed a name ended; it is followed from another one");
        }
        self.name.state().is_flying
    }
}

/// Runs until there are no followers, and survives panics of a source, which followers cannot see.
async fn keep_flying<R: Resolve>(
    mut landing: Landing,
    name: Arc<Name>,
    resolver: Arc<R>,
    limits: Limits,
) {
    while AssertUnwindSafe(fly(&name, &*resolver, limits))
        .catch_unwind()
        .await
        .is_err()
    {
        name.broke(&limits, Instant::now());
    }
    // Reported already; another task may run from here on.
    landing.0 = None;
}

/// Queries the source while there are followers: when it is due, and when the known set turned out to be old.
async fn fly<R: Resolve>(name: &Name, resolver: &R, limits: Limits) {
    let mut questions = Questions::new();
    loop {
        let now = Instant::now();
        if name.is_due(&limits, now) {
            questions.ask(resolver.resolve(&name.text), now);
        }
        let look_at = name.tell(&limits, now);
        tokio::select! {
            biased;
            () = name.told.closed() => {
                if name.land() {
                    return;
                }
            }
            word = questions.next() => {
                let index = word.index;
                if !name.hear(word, &limits, Instant::now()) {
                    questions.close(index);
                }
            }
            () = name.invalidated.notified() => {}
            () = sleep_until(look_at) => {}
        }
    }
}
