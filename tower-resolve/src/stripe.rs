//! Counters and references that many threads write with each request, laid out to avoid contention for a cache line.

use std::{
    array,
    cell::Cell,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
};

/// One value for each of up to 16 threads, each in separate cache lines. Further threads share.
#[derive(Debug)]
pub(crate) struct Stripes<T>(Box<[Line<T>; STRIPES]>);

/// One value with many reference counts.
#[derive(Debug)]
pub(crate) struct StripedArc<T>([Arc<Line<Arc<T>>>; STRIPES]);

/// A reference to the value of a [`StripedArc`], counted on its thread's stripe.
pub(crate) type Held<T> = Arc<Line<Arc<T>>>;

/// Two lines of the usual 64 bytes, because processors fetch them in pairs.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(crate) struct Line<T>(pub(crate) T);

/// A sum to which each thread adds in a separate line.
#[derive(Debug, Default)]
pub(crate) struct Sum(Stripes<AtomicU64>);

// === impl Stripes ===

impl<T> Stripes<T> {
    pub(crate) fn new(mut make: impl FnMut() -> T) -> Self {
        Self(Box::new(array::from_fn(|_| Line(make()))))
    }

    /// This thread's.
    pub(crate) fn own(&self) -> &T {
        &self.0[stripe()].0
    }
}

impl<T: Default> Default for Stripes<T> {
    fn default() -> Self {
        Self::new(T::default)
    }
}

// === impl StripedArc ===

impl<T> StripedArc<T> {
    pub(crate) fn new(value: &Arc<T>) -> Self {
        Self(array::from_fn(|_| Arc::new(Line(value.clone()))))
    }

    /// A new reference.
    pub(crate) fn hold(&self) -> Held<T> {
        self.0[stripe()].clone()
    }

    pub(crate) fn get(&self) -> &T {
        &self.0[0].0
    }
}

// === impl Sum ===

impl Sum {
    pub(crate) fn add(&self, number: u64) {
        self.0.own().fetch_add(number, Relaxed);
    }

    pub(crate) fn subtract(&self, number: u64) {
        self.0.own().fetch_sub(number, Relaxed);
    }

    /// Exact up to concurrent additions. A single stripe may be negative: what was added on one thread is subtracted on
    /// another.
    pub(crate) fn get(&self) -> u64 {
        let sum = self
            .0
            .0
            .iter()
            .fold(0_u64, |sum, line| sum.wrapping_add(line.0.load(Relaxed)));
        if sum > u64::MAX / 2 { 0 } else { sum }
    }
}

/// The stripe of this thread: assigned in turn on first use.
fn stripe() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static OWN: Cell<usize> = const { Cell::new(usize::MAX) };
    }
    OWN.with(|own| match own.get() {
        usize::MAX => {
            let stripe = NEXT.fetch_add(1, Relaxed) % STRIPES;
            own.set(stripe);
            stripe
        }
        stripe => stripe,
    })
}

const STRIPES: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sum_counts_over_threads() {
        let sum = Sum::default();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..1_000).for_each(|_| sum.add(1)));
            }
        });
        assert_eq!(sum.get(), 4_000);
        sum.subtract(4_000);
        assert_eq!(sum.get(), 0, "taken off by another thread");
    }

    #[test]
    fn a_value_lives_as_long_as_the_last_reference() {
        let value = Arc::new(7);
        let striped = StripedArc::new(&value);
        let held = striped.hold();
        let weak = Arc::downgrade(&value);
        drop((striped, value));
        assert_eq!(*held.0, 7);
        assert!(weak.upgrade().is_some());
        drop(held);
        assert!(weak.upgrade().is_none());
    }
}
