use std::{
    future::poll_fn,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use futures_core::Stream;
use tokio::time::Instant;

use crate::Update;

/// The open subscriptions to a source for one name.
///
/// Usually one. A source that takes longer than the time limit has more: the one that delivers updates, the oldest one that
/// has not answered yet, and the newest one. Each stays open until a newer one has answered with content, so that a slow
/// source is not restarted again and again. Never more than [`MOST`].
#[derive(Debug)]
pub(super) struct Questions<U> {
    /// By age, the oldest first.
    open: Vec<Question<U>>,
}

#[derive(Debug)]
struct Question<U> {
    updates: Pin<Box<U>>,
    asked_at: Instant,
    said: Said,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Said {
    /// -> `Content`, `Trouble`
    Nothing,
    /// It delivers updates. -> `Trouble`
    Content,
    /// Dropped at the next query. -> `Content`
    Trouble,
}

/// An update of the source, and its subscription.
#[derive(Debug)]
pub(super) struct Word {
    /// `None`: the stream ended, and was removed.
    pub(super) update: Option<Update>,
    /// Whether it is the answer to the latest query.
    pub(super) is_latest: bool,
    /// With the first content of a subscription: when that query started.
    pub(super) asked_at: Option<Instant>,
    pub(super) index: usize,
}

// === impl Questions ===

impl<U> Questions<U> {
    pub(super) const fn new() -> Self {
        Self { open: Vec::new() }
    }

    /// Adds the new subscription, and closes those that it replaces.
    pub(super) fn ask(&mut self, updates: U, now: Instant) {
        self.open.retain(|question| question.said != Said::Trouble);
        let mut unanswered = self
            .open
            .iter()
            .enumerate()
            .filter(|(_, question)| question.said == Said::Nothing)
            .map(|(index, question)| (index, question.asked_at));
        if let (Some((oldest, asked_at)), Some((latest, _))) =
            (unanswered.next(), unanswered.next())
        {
            let has_hung = now.duration_since(asked_at) >= HANGS_AFTER;
            self.open.remove(if has_hung { oldest } else { latest });
        }
        self.open.push(Question {
            updates: Box::pin(updates),
            asked_at: now,
            said: Said::Nothing,
        });
        debug_assert!(self.open.len() <= MOST);
    }

    /// Closes the subscription of an update that cannot be used.
    pub(super) fn close(&mut self, index: usize) {
        self.open.remove(index);
    }
}

impl<U: Stream<Item = Update>> Questions<U> {
    /// The next update of any of them. Pending if there is none.
    ///
    /// # Cancel safety
    ///
    /// No update is lost.
    pub(super) async fn next(&mut self) -> Word {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Word> {
        // The latest first, because its answer has precedence.
        for index in (0..self.open.len()).rev() {
            if let Poll::Ready(update) = self.open[index].updates.as_mut().poll_next(cx) {
                return Poll::Ready(self.hear(index, update));
            }
        }
        Poll::Pending
    }

    fn hear(&mut self, index: usize, update: Option<Update>) -> Word {
        let is_latest = index + 1 == self.open.len();
        let Some(update) = update else {
            self.open.remove(index);
            return Word {
                update: None,
                is_latest,
                asked_at: None,
                index,
            };
        };
        let question = &mut self.open[index];
        if matches!(update, Update::Degraded(_)) {
            question.said = Said::Trouble;
            return Word {
                update: Some(update),
                is_latest,
                asked_at: None,
                index,
            };
        }
        let asked_at = (question.said != Said::Content).then_some(question.asked_at);
        question.said = Said::Content;
        self.open.drain(..index);
        Word {
            update: Some(update),
            is_latest,
            asked_at,
            index: 0,
        }
    }
}

/// One that delivers updates, the oldest that has not answered, and the latest.
const MOST: usize = 3;

/// A query that was not answered in this time is replaced by a later one. Longer than it takes to list the largest registry,
/// and the source is queried again during that time.
const HANGS_AFTER: Duration = Duration::from_secs(600);

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
    use tokio_stream::wrappers::UnboundedReceiverStream;

    use super::*;
    use crate::{Generation, SourceId};

    type Updates = UnboundedReceiverStream<Update>;

    struct Rig {
        questions: Questions<Updates>,
        asked: Vec<UnboundedSender<Update>>,
    }

    impl Rig {
        fn new() -> Self {
            Self {
                questions: Questions::new(),
                asked: Vec::new(),
            }
        }

        fn ask(&mut self, now: Instant) {
            let (sender, receiver): (_, UnboundedReceiver<Update>) = unbounded_channel();
            self.questions
                .ask(UnboundedReceiverStream::new(receiver), now);
            self.asked.push(sender);
        }

        fn open(&self) -> Vec<usize> {
            let open = self.asked.iter().enumerate();
            open.filter(|(_, sender)| !sender.is_closed())
                .map(|(index, _)| index)
                .collect()
        }

        fn say(&mut self, which: usize, update: Update) -> Word {
            self.asked[which].send(update).unwrap();
            self.questions.next().now_or_never().unwrap()
        }
    }

    fn progress() -> Update {
        Update::Progress(Generation::new(SourceId::new(1), 1))
    }

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn the_oldest_question_runs_on_until_a_newer_one_is_answered() {
        let (mut rig, start) = (Rig::new(), Instant::now());
        for index in 0..5 {
            rig.ask(start + index * SECOND);
        }
        assert_eq!(rig.open(), [0, 4]);
        let word = rig.say(0, progress());
        assert!(!word.is_latest && word.asked_at.is_some());
        assert_eq!(rig.open(), [0, 4], "it delivers, until a newer one does");
        rig.ask(start + 6 * SECOND);
        assert_eq!(rig.open(), [0, 4, 5]);
        assert!(rig.say(0, progress()).asked_at.is_none());
        let word = rig.say(4, progress());
        assert!(!word.is_latest);
        assert_eq!(rig.open(), [4, 5]);
        assert!(rig.say(5, progress()).is_latest);
        assert_eq!(rig.open(), [5]);
    }

    #[tokio::test(start_paused = true)]
    async fn trouble_replaces_nothing_and_is_replaced_by_the_next_question() {
        let (mut rig, now) = (Rig::new(), Instant::now());
        rig.ask(now);
        rig.ask(now);
        let word = rig.say(1, Update::degraded("busy"));
        assert!(word.is_latest && word.asked_at.is_none());
        assert_eq!(rig.open(), [0, 1]);
        rig.ask(now);
        assert_eq!(rig.open(), [0, 2]);
        rig.say(0, progress());
        rig.say(0, Update::degraded("disconnected"));
        rig.ask(now);
        assert_eq!(rig.open(), [2, 3]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_question_that_hangs_for_very_long_gives_way() {
        let (mut rig, start) = (Rig::new(), Instant::now());
        for minutes in 0..10 {
            rig.ask(start + 60 * minutes * SECOND);
        }
        assert_eq!(rig.open(), [0, 9]);
        rig.ask(start + HANGS_AFTER);
        assert_eq!(rig.open(), [9, 10]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_that_ends_or_cannot_be_used_is_closed() {
        let (mut rig, now) = (Rig::new(), Instant::now());
        rig.ask(now);
        rig.ask(now);
        rig.asked[1] = unbounded_channel().0;
        let word = rig.questions.next().now_or_never().unwrap();
        assert!(word.update.is_none() && word.is_latest);
        let word = rig.say(0, progress());
        assert!(word.is_latest);
        rig.questions.close(word.index);
        assert_eq!(rig.open(), [0_usize; 0]);
        assert!(rig.questions.next().now_or_never().is_none());
    }
}
