//! What many threads touch at once, laid out so that each has a cache line of its own.

use std::{
    array,
    cell::Cell,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
};

use crate::Totals;

/// One value for each group of threads.
#[derive(Debug)]
pub(crate) struct Striped<T>([Line<T>; STRIPES]);

/// One value with many reference counts, so that calls on different threads do not fight for one.
#[derive(Debug)]
pub(crate) struct StripedArc<T>(Arc<Root<T>>);

/// A reference to the value of a [`StripedArc`], counted on its thread's stripe.
pub(crate) type Held<T> = Arc<Line<Arc<T>>>;

#[derive(Debug)]
struct Root<T> {
    value: Arc<T>,
    held: [Held<T>; STRIPES],
}

/// A value that shares its cache line with nobody.
#[derive(Debug)]
#[repr(align(64))]
pub(crate) struct Line<T>(T);

/// How a call ended, as the totals know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Count {
    Succeeded,
    Failed,
    Soft,
    Ignored,
    Cancelled,
    Stale,
    Refused,
}

/// The counters behind [`Totals`]: one relaxed addition a call.
#[derive(Debug)]
pub(crate) struct Counters(Striped<[AtomicU64; KINDS]>);

// === impl Striped ===

impl<T> Striped<T> {
    fn new(mut value: impl FnMut() -> T) -> Self {
        Self(array::from_fn(|_| Line(value())))
    }

    /// This thread's value.
    fn mine(&self) -> &T {
        &self.0[stripe()].0
    }

    fn iter(&self) -> impl Iterator<Item = &T> {
        self.0.iter().map(|line| &line.0)
    }
}

// === impl StripedArc ===

impl<T> StripedArc<T> {
    pub(crate) fn new(value: T) -> Self {
        let value = Arc::new(value);
        let held = array::from_fn(|_| Arc::new(Line(value.clone())));
        Self(Arc::new(Root { value, held }))
    }

    pub(crate) fn get(&self) -> &T {
        &self.0.value
    }

    pub(crate) fn hold(&self) -> Held<T> {
        self.0.held[stripe()].clone()
    }
}

impl<T> Clone for StripedArc<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

// === impl Line ===

impl<T> std::ops::Deref for Line<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

// === impl Counters ===

impl Counters {
    pub(crate) fn new() -> Self {
        Self(Striped::new(|| array::from_fn(|_| AtomicU64::new(0))))
    }

    pub(crate) fn add(&self, count: Count) {
        self.0.mine()[count as usize].fetch_add(1, Relaxed);
    }

    pub(crate) fn totals(&self) -> Totals {
        let sum = |count: Count| self.0.iter().map(|stripe| stripe[count as usize].load(Relaxed)).sum();
        Totals {
            succeeded: sum(Count::Succeeded),
            failed: sum(Count::Failed),
            soft: sum(Count::Soft),
            ignored: sum(Count::Ignored),
            cancelled: sum(Count::Cancelled),
            stale: sum(Count::Stale),
            refused: sum(Count::Refused),
        }
    }
}

/// Eight threads in a circuit at once are many; more of them share. Two lines each for the references and one for the
/// counters make 1.5 KiB a circuit.
const STRIPES: usize = 8;
const KINDS: usize = 7;

fn stripe() -> usize {
    STRIPE.get() % STRIPES
}

static NEXT: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    /// Threads take the stripes in turn.
    static STRIPE: Cell<usize> = Cell::new(NEXT.fetch_add(1, Relaxed));
}
