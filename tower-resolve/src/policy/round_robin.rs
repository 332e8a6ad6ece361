use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use super::{Candidates, Policy, Turn};
use crate::stripe::Stripes;

/// One candidate after the other.
///
/// Clones of a balance share the round; each thread walks one of its own (up to 16 of them), so that threads do not
/// fight for one counter: with *t* threads, no endpoint is ever more than *t* requests ahead of another. A round starts
/// somewhere at random, so that many clients started at once do not walk in step.
#[derive(Debug)]
pub struct RoundRobin {
    next: Stripes<AtomicUsize>,
}

// === impl RoundRobin ===

impl RoundRobin {
    /// The policy; it has no knobs.
    #[must_use]
    pub fn new() -> Self {
        Self {
            next: Stripes::new(|| AtomicUsize::new(fastrand::u32(..) as usize)),
        }
    }
}

impl Default for RoundRobin {
    fn default() -> Self {
        Self::new()
    }
}

impl<Req> Policy<Req> for RoundRobin {
    type Table = ();

    fn table<C: Candidates>(&self, _: &C) {}

    fn pick<C: Candidates>(&self, (): &(), candidates: &C, _: &Turn) -> usize {
        self.next.own().fetch_add(1, Relaxed) % candidates.count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::testing::{Some, picks};

    #[test]
    fn each_gets_its_turn() {
        let picks = picks(&RoundRobin::new(), &Some::with_loads(&[9, 0, 0]), 30);
        assert_eq!(picks, [10; 3], "whatever it has in flight");
    }

    #[test]
    fn on_several_threads_nobody_is_further_ahead_than_there_are_threads() {
        let (policy, candidates) = (RoundRobin::new(), Some::of(&[1; 7]));
        let picked = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4)
                .map(|_| scope.spawn(|| picks(&policy, &candidates, 1_003)))
                .collect();
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap())
                .fold(vec![0; 7], |mut sum, picks| {
                    sum.iter_mut()
                        .zip(picks)
                        .for_each(|(sum, picks)| *sum += picks);
                    sum
                })
        });
        assert!(
            picked.iter().max().unwrap() - picked.iter().min().unwrap() <= 4,
            "{picked:?}"
        );
    }
}
