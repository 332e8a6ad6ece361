//! The tasks of an accept loop's connections, so that the open ones can be cut.

use std::{
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
};

use pin_project::{pin_project, pinned_drop};
use tokio::task::AbortHandle;
use tower_outcome::BoxError;

/// Cuts every [`Life`] that it created, when dropped.
///
/// It takes eight bytes per connection, and a lock when one begins and when one ends. A future to await in each task
/// would take ten times as much, which is measurable at ten thousand connections.
#[derive(Debug, Default)]
pub(crate) struct Lives(Arc<Mutex<Slots>>);

/// The future of a connection.
#[pin_project(PinnedDrop)]
struct Life<F> {
    #[pin]
    life: F,
    slots: Arc<Mutex<Slots>>,
    slot: u32,
}

#[derive(Debug, Default)]
struct Slots {
    slots: Vec<Slot>,
    free: Vec<u32>,
}

#[derive(Debug)]
enum Slot {
    Free,
    /// The task is about to be spawned. -> `Held`, or `Ended` if it has ended before that was known.
    Begun,
    /// -> `Free` when that is observed.
    Ended,
    /// -> `Free` when the task ends.
    Held(AbortHandle),
}

// === impl Lives ===

impl Lives {
    pub(crate) fn begin<F, T, E>(&self, life: F)
    where
        F: Future<Output = Result<T, E>> + Send + 'static,
        E: Into<BoxError>,
    {
        let slot = lock(&self.0).begin();
        let handle = tokio::spawn(Life {
            life,
            slots: self.0.clone(),
            slot,
        })
        .abort_handle();
        lock(&self.0).hold(slot, handle);
    }
}

impl Drop for Lives {
    fn drop(&mut self) {
        let slots = std::mem::take(&mut lock(&self.0).slots);
        // Not under the lock: a task that ends because of this takes the lock to free its slot.
        for slot in slots {
            if let Slot::Held(handle) = slot {
                handle.abort();
            }
        }
    }
}

fn lock(slots: &Mutex<Slots>) -> MutexGuard<'_, Slots> {
    slots.lock().unwrap_or_else(PoisonError::into_inner)
}

// === impl Life ===

impl<F, T, E> Future for Life<F>
where
    F: Future<Output = Result<T, E>>,
    E: Into<BoxError>,
{
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.project().life.poll(cx).map(|result| {
            if let Err(error) = result {
                tracing::debug!(
                    error = &*error.into() as &dyn std::error::Error,
                    "connection"
                );
            }
        })
    }
}

#[pinned_drop]
impl<F> PinnedDrop for Life<F> {
    fn drop(self: Pin<&mut Self>) {
        let ended = lock(&self.slots).end(self.slot);
        // Dropping the last handle of a task may free the task, which must not happen under the lock.
        drop(ended);
    }
}

// === impl Slots ===

impl Slots {
    fn begin(&mut self) -> u32 {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot::Free);
            (self.slots.len() - 1) as u32
        });
        self.slots[slot as usize] = Slot::Begun;
        slot
    }

    fn hold(&mut self, slot: u32, handle: AbortHandle) {
        match &mut self.slots[slot as usize] {
            begun @ Slot::Begun => *begun = Slot::Held(handle),
            ended => {
                *ended = Slot::Free;
                self.free.push(slot);
            }
        }
    }

    fn end(&mut self, slot: u32) -> Option<Slot> {
        // The list is empty while all are being cut.
        let place = self.slots.get_mut(slot as usize)?;
        let begun = matches!(place, Slot::Begun);
        let was = std::mem::replace(place, if begun { Slot::Ended } else { Slot::Free });
        if !begun {
            self.free.push(slot);
        }
        Some(was)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

    use super::*;

    #[tokio::test]
    async fn places_are_used_again() {
        let lives = Lives::default();
        for _ in 0..100 {
            lives.begin(async { Ok::<_, BoxError>(()) });
            tokio::task::yield_now().await;
        }
        assert!(lock(&lives.0).slots.len() < 5);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn however_they_end_each_gives_its_place_back_once() {
        let lives = Lives::default();
        for round in 0..2000 {
            lives.begin(async move {
                if round % 3 == 0 {
                    tokio::task::yield_now().await;
                }
                Ok::<_, BoxError>(())
            });
        }
        let all_are_free = || {
            let slots = lock(&lives.0);
            slots.free.len() == slots.slots.len()
        };
        while !all_are_free() {
            tokio::task::yield_now().await;
        }
        let slots = lock(&lives.0);
        let mut free = slots.free.clone();
        free.sort_unstable();
        free.dedup();
        assert_eq!(free.len(), slots.slots.len());
    }

    #[tokio::test]
    async fn what_is_left_is_cut() {
        struct Count(Arc<AtomicUsize>);
        impl Drop for Count {
            fn drop(&mut self) {
                self.0.fetch_add(1, SeqCst);
            }
        }
        let dropped = Arc::new(AtomicUsize::new(0));
        let lives = Lives::default();
        for _ in 0..10 {
            let count = Count(dropped.clone());
            lives.begin(async move {
                let _count = count;
                std::future::pending::<Result<(), BoxError>>().await
            });
        }
        tokio::task::yield_now().await;
        drop(lives);
        while dropped.load(SeqCst) < 10 {
            tokio::task::yield_now().await;
        }
    }
}
