//! The state machine of a connection's lifetime: how long it may stay in a state, and when it must end.

use std::time::Duration;

use tokio::time::Instant;

/// The times of one connection.
#[derive(Debug)]
pub(super) struct ConnLifecycle {
    activity: Activity,
    since: Instant,
    /// Their values when `activity` was recorded: a short request may begin and end between two observations.
    requests: u32,
    progress: u32,
    stage: ShutdownStage,
    /// When it reaches its maximum age.
    old: Instant,
    /// Kept for the next stall: most connections never have one.
    stall: Option<Box<Stall>>,
}

/// Bytes that cannot be written.
#[derive(Debug)]
struct Stall {
    since: Instant,
    /// When the peer last took some of them.
    moved: Instant,
    /// How much was unacknowledged at the last check.
    unacknowledged: Option<u32>,
    ask: Instant,
    asked: bool,
}

/// The limits.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) first_byte: Duration,
    pub(super) head: Duration,
    pub(super) idle: Duration,
    pub(super) write_stall: Duration,
    /// How long a request may make no progress once its response has left.
    pub(super) upload: Duration,
    pub(super) age: Duration,
    pub(super) age_grace: Duration,
    pub(super) goaway: Duration,
}

/// The connection as observed at one instant.
#[derive(Clone, Copy, Debug)]
pub(super) struct Observation {
    pub(super) activity: Activity,
    pub(super) requests: u32,
    /// Changes whenever the activity makes progress.
    pub(super) progress: u32,
    pub(super) stalled_since: Option<Instant>,
    /// The result of [`Next::Ask`], if it is known.
    pub(super) unacknowledged: Option<u32>,
    /// How long the last chance is, once closing has begun.
    pub(super) told: Option<Duration>,
    /// The last chance of a connection that ends because of its age.
    pub(super) chance: Duration,
    pub(super) http2: bool,
    /// HTTP/2: the ping of the first GOAWAY.
    pub(super) ping: Ping,
    /// How long the peer may take to acknowledge it.
    pub(super) goaway: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(not(feature = "http2"), allow(dead_code))]
pub(super) enum Activity {
    /// No byte so far, or too few to decide the protocol.
    Silent,
    /// Idle.
    Idle,
    /// A part of a head has arrived.
    Head,
    /// At least one request is under way.
    Request,
    /// HTTP/2: the app is done, but the peer has not taken all of the responses.
    Held,
    /// Responses have been sent, but a request has not ended.
    Upload,
}

/// The ping of the first GOAWAY.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(not(feature = "http2"), allow(dead_code))]
pub(super) enum Ping {
    Unanswered,
    /// The peer has acknowledged it, and hyper does not know that yet.
    Hidden,
    /// The acknowledgement is made here.
    Wanted,
    Answered,
}

/// The next action.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Wait until then.
    Wait(Option<Instant>),
    /// Begin hyper's graceful shutdown.
    Goodbye,
    /// The head takes too long: respond with `408` and close.
    Late,
    /// HTTP/2: the peer has not acknowledged the first GOAWAY, or did so a while ago. Pass the acknowledgement to hyper.
    Answer,
    /// Find out how much the peer has not acknowledged, and check again.
    Ask,
    /// No request is under way that could complete: close without hyper.
    End,
    /// The peer does not read its responses, or the age limit has passed: close at once.
    Cut,
}

/// How far the shutdown of the connection has got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ShutdownStage {
    /// -> `Chance` when closing begins, or at its age; `Left` when it was idle too long.
    Stay,
    /// -> `Left` when a request arrives, or at `until` if idle. A partial head has its own timeout.
    Chance { until: Instant },
    /// Graceful shutdown has begun. -> `Heeded` when an HTTP/2 peer acknowledges it, `Answered` if it does not in time.
    Left { said: Instant },
    /// The peer opens no more streams, but may have some queued. -> `Answered` at `until`.
    Heeded { until: Instant },
    /// Ends after the requests under way.
    Answered,
}

// === impl ConnLifecycle ===

impl ConnLifecycle {
    /// `age`: the maximum age, with jitter.
    pub(super) fn new(now: Instant, age: Duration) -> Self {
        Self {
            activity: Activity::Silent,
            since: now,
            requests: 0,
            progress: 0,
            stage: ShutdownStage::Stay,
            old: now + age,
            stall: None,
        }
    }

    /// Since when the activity has not changed.
    pub(super) const fn since(&self) -> Instant {
        self.since
    }

    pub(super) const fn stays(&self) -> bool {
        matches!(self.stage, ShutdownStage::Stay)
    }

    pub(super) fn next(&mut self, limits: &Limits, seen: &Observation, now: Instant) -> Next {
        self.note(seen, now);
        self.decide(limits, seen, now);
        if let Some(next) = self.look_at_stall(limits, seen, now) {
            return next;
        }
        if now >= self.outlived(limits) {
            return Next::Cut;
        }
        match self.stage {
            ShutdownStage::Chance { until } if self.ends_chance(seen, until, now) => {
                self.stage = ShutdownStage::Left { said: now };
                Next::Goodbye
            }
            ShutdownStage::Left { said }
                if seen.ping == Ping::Unanswered && now >= said + seen.goaway =>
            {
                self.answer()
            }
            ShutdownStage::Heeded { until } if now >= until => self.answer(),
            ShutdownStage::Answered if self.is_stuck(seen) => Next::End,
            _ if self.late(limits, seen).is_some_and(|late| now >= late) => Next::Late,
            _ if self.overdue(limits, seen).is_some_and(|due| now >= due) => Next::End,
            _ => Next::Wait(self.deadline(limits, seen)),
        }
    }

    fn answer(&mut self) -> Next {
        self.stage = ShutdownStage::Answered;
        Next::Answer
    }

    fn note(&mut self, seen: &Observation, now: Instant) {
        let noted = (self.activity, self.requests, self.progress);
        if noted != (seen.activity, seen.requests, seen.progress) {
            (self.activity, self.requests, self.progress) =
                (seen.activity, seen.requests, seen.progress);
            self.since = now;
        }
    }

    fn decide(&mut self, limits: &Limits, seen: &Observation, now: Instant) {
        if let (ShutdownStage::Left { .. }, Ping::Hidden) = (self.stage, seen.ping) {
            self.stage = ShutdownStage::Heeded {
                until: now + STRAGGLERS,
            };
        }
        if self.stage != ShutdownStage::Stay {
            return;
        }
        if let Some(chance) = seen.told {
            self.stage = ShutdownStage::Chance {
                until: now + chance,
            };
        } else if now >= self.old {
            self.stage = ShutdownStage::Chance {
                until: now + seen.chance,
            };
        } else if self.patience(limits, seen).is_some_and(|end| now >= end) {
            self.stage = ShutdownStage::Chance { until: now };
        }
    }

    /// How long a connection may stay idle.
    fn patience(&self, limits: &Limits, seen: &Observation) -> Option<Instant> {
        match self.activity {
            Activity::Silent => Some(self.since + limits.first_byte),
            Activity::Idle => Some(self.since + limits.idle),
            // Other streams may be opened, so a GOAWAY is sent first.
            Activity::Upload if seen.http2 => Some(self.since + limits.upload),
            Activity::Head | Activity::Request | Activity::Held | Activity::Upload => None,
        }
    }

    /// The deadline of a partial head. None while a response before it is still held: a `408` would be written into its
    /// middle.
    fn late(&self, limits: &Limits, seen: &Observation) -> Option<Instant> {
        let free = self.activity == Activity::Head && seen.stalled_since.is_none();
        free.then(|| self.since + limits.head)
    }

    /// The deadline of a connection that only waits for its peer. While bytes cannot be written, the write stall decides
    /// instead.
    fn overdue(&self, limits: &Limits, seen: &Observation) -> Option<Instant> {
        let patience = match self.activity {
            _ if seen.stalled_since.is_some() => return None,
            Activity::Held => limits.write_stall,
            Activity::Upload if !seen.http2 || self.stage == ShutdownStage::Answered => {
                limits.upload
            }
            _ => return None,
        };
        Some(self.since + patience)
    }

    /// Whether hyper cannot end this connection though no request is under way: it reads no acknowledgement of its GOAWAY
    /// while a frame of the peer is incomplete.
    fn is_stuck(&self, seen: &Observation) -> bool {
        self.activity == Activity::Idle && seen.ping == Ping::Wanted
    }

    fn ends_chance(&self, seen: &Observation, until: Instant, now: Instant) -> bool {
        match self.activity {
            _ if self.has_its_own_time(seen) => false,
            Activity::Silent | Activity::Idle => now >= until,
            _ => true,
        }
    }

    /// Whether the last chance lasts until this is over. hyper may end a connection of HTTP/1 in the middle of an upload
    /// that has its response.
    fn has_its_own_time(&self, seen: &Observation) -> bool {
        match self.activity {
            Activity::Head => true,
            Activity::Upload => !seen.http2,
            _ => false,
        }
    }

    fn look_at_stall(&mut self, limits: &Limits, seen: &Observation, now: Instant) -> Option<Next> {
        let since = seen.stalled_since?;
        let limit = limits.write_stall;
        match &mut self.stall {
            Some(stall) if stall.since == since => stall.look(limit, seen.unacknowledged, now),
            Some(stall) => {
                **stall = Stall::new(since, limit);
                stall.look(limit, None, now)
            }
            none => none
                .insert(Box::new(Stall::new(since, limit)))
                .look(limit, None, now),
        }
    }

    /// In any stage of the shutdown.
    fn outlived(&self, limits: &Limits) -> Instant {
        self.old + limits.age_grace
    }

    fn deadline(&self, limits: &Limits, seen: &Observation) -> Option<Instant> {
        let activity = match self.activity {
            Activity::Head => self.late(limits, seen),
            Activity::Held => self.overdue(limits, seen),
            Activity::Upload if !self.stays() || !seen.http2 => self.overdue(limits, seen),
            _ if self.stays() => self.patience(limits, seen),
            _ => None,
        };
        let stage = match self.stage {
            ShutdownStage::Stay => Some(self.old),
            ShutdownStage::Chance { until } if !self.has_its_own_time(seen) => Some(until),
            ShutdownStage::Left { said } if seen.ping == Ping::Unanswered => {
                Some(said + seen.goaway)
            }
            ShutdownStage::Heeded { until } => Some(until),
            _ => None,
        };
        let stall = seen.stalled_since.zip(self.stall.as_ref());
        let stall = stall.map(|(_, stall)| stall.due(limits.write_stall));
        [activity, stage, stall, Some(self.outlived(limits))]
            .into_iter()
            .flatten()
            .min()
    }
}

// === impl Stall ===

impl Stall {
    fn new(since: Instant, limit: Duration) -> Self {
        Self {
            since,
            moved: since,
            unacknowledged: None,
            ask: since + limit / ASKED,
            asked: false,
        }
    }

    /// The unacknowledged bytes are checked before the peer is cut, and a few times before that: a peer may read without
    /// making room for a write.
    fn look(&mut self, limit: Duration, unacknowledged: Option<u32>, now: Instant) -> Option<Next> {
        if std::mem::take(&mut self.asked) {
            let moved = self.unacknowledged.zip(unacknowledged);
            if moved.is_some_and(|(before, after)| after < before) {
                self.moved = now;
            }
            (self.unacknowledged, self.ask) = (unacknowledged, now + limit / ASKED);
            return (now >= self.moved + limit).then_some(Next::Cut);
        }
        self.asked = now >= self.due(limit);
        self.asked.then_some(Next::Ask)
    }

    fn due(&self, limit: Duration) -> Instant {
        self.ask.min(self.moved + limit)
    }
}

/// How often they are checked before a peer that takes nothing is cut.
const ASKED: u32 = 4;
/// How long streams may still be opened that a client had queued before it received the GOAWAY. hyper's client sends
/// such streams after it has acknowledged the ping; if the second GOAWAY refused them, most of its users would see errors.
const STRAGGLERS: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    const LIMITS: Limits = Limits {
        first_byte: secs(10),
        head: secs(10),
        idle: secs(75),
        write_stall: secs(30),
        upload: secs(5),
        age: secs(3600),
        age_grace: secs(60),
        goaway: secs(1),
    };

    const CALM: Observation = Observation {
        activity: Activity::Idle,
        requests: 1,
        progress: 0,
        stalled_since: None,
        unacknowledged: None,
        told: None,
        chance: secs(2),
        http2: false,
        ping: Ping::Answered,
        goaway: LIMITS.goaway,
    };

    fn while_in(activity: Activity) -> Observation {
        Observation { activity, ..CALM }
    }

    fn told(seen: Observation) -> Observation {
        Observation {
            told: Some(secs(1)),
            ..seen
        }
    }

    fn at(life: &mut ConnLifecycle, start: Instant, at: u64, seen: Observation) -> Next {
        match life.next(&LIMITS, &seen, start + secs(at)) {
            Next::Ask => life.next(&LIMITS, &seen, start + secs(at)),
            next => next,
        }
    }

    const fn half_secs(half: u64) -> Duration {
        Duration::from_millis(500 * half)
    }

    fn life() -> (ConnLifecycle, Instant) {
        let start = Instant::now();
        (ConnLifecycle::new(start, LIMITS.age), start)
    }

    #[test]
    fn each_thing_it_does_has_its_own_patience() {
        let (mut life, start) = life();
        let wait = |seconds: u64| Next::Wait(Some(start + secs(seconds)));
        assert_eq!(
            at(
                &mut life,
                start,
                0,
                Observation {
                    requests: 0,
                    ..while_in(Activity::Silent)
                }
            ),
            wait(10)
        );
        assert_eq!(
            at(&mut life, start, 4, while_in(Activity::Head)),
            wait(14),
            "from its first byte"
        );
        assert_eq!(
            at(&mut life, start, 9, while_in(Activity::Head)),
            wait(14),
            "and not from each"
        );
        assert_eq!(
            at(&mut life, start, 9, while_in(Activity::Request)),
            wait(3600),
            "a handler may take its time"
        );
        assert_eq!(
            at(&mut life, start, 100, while_in(Activity::Idle)),
            wait(175)
        );
        assert_eq!(
            at(&mut life, start, 175, while_in(Activity::Idle)),
            Next::Goodbye
        );
    }

    #[test]
    fn a_short_request_between_two_looks_begins_the_idle_time_anew() {
        let (mut life, start) = life();
        at(&mut life, start, 0, CALM);
        let next = at(
            &mut life,
            start,
            70,
            Observation {
                requests: 2,
                ..CALM
            },
        );
        assert_eq!(next, Next::Wait(Some(start + secs(145))));
    }

    #[test]
    fn a_late_head_gets_a_408_even_while_leaving() {
        for seen in [while_in(Activity::Head), told(while_in(Activity::Head))] {
            let (mut life, start) = life();
            at(&mut life, start, 0, seen);
            assert_eq!(at(&mut life, start, 10, seen), Next::Late);
        }
    }

    #[test]
    fn no_408_is_written_into_the_middle_of_a_response_that_is_still_held() {
        let (mut life, start) = life();
        let stalled = |since| Observation {
            stalled_since: Some(start + secs(since)),
            ..while_in(Activity::Head)
        };
        at(&mut life, start, 0, stalled(0));
        assert_eq!(
            at(&mut life, start, 12, stalled(11)),
            Next::Wait(Some(start + half_secs(37)))
        );
        assert_eq!(
            at(&mut life, start, 20, while_in(Activity::Head)),
            Next::Late,
            "once it is gone"
        );
    }

    #[test]
    fn an_idle_one_has_a_last_chance_and_a_request_uses_it() {
        let (mut life, start) = life();
        at(&mut life, start, 0, CALM);
        assert_eq!(
            at(&mut life, start, 5, told(CALM)),
            Next::Wait(Some(start + secs(6)))
        );
        assert_eq!(at(&mut life, start, 6, told(CALM)), Next::Goodbye);

        let mut life = ConnLifecycle::new(start, LIMITS.age);
        at(&mut life, start, 5, told(CALM));
        let used = life.next(
            &LIMITS,
            &told(while_in(Activity::Request)),
            start + Duration::from_millis(5500),
        );
        assert_eq!(used, Next::Goodbye, "after this request");
        assert!(
            matches!(at(&mut life, start, 7, told(CALM)), Next::Wait(_)),
            "once"
        );
    }

    #[test]
    fn a_silent_one_waits_for_the_end_of_its_chance_and_for_nothing_that_is_past() {
        let (mut life, start) = life();
        at(&mut life, start, 0, while_in(Activity::Silent));
        let told = Observation {
            told: Some(secs(3)),
            ..while_in(Activity::Silent)
        };
        assert_eq!(
            at(&mut life, start, 9, told),
            Next::Wait(Some(start + secs(12))),
            "and not for its first byte"
        );
        assert_eq!(at(&mut life, start, 12, told), Next::Goodbye);
    }

    #[test]
    fn half_a_head_outlives_the_last_chance() {
        let (mut life, start) = life();
        at(&mut life, start, 5, told(while_in(Activity::Head)));
        assert_eq!(
            at(&mut life, start, 8, told(while_in(Activity::Head))),
            Next::Wait(Some(start + secs(15)))
        );
        assert_eq!(
            at(&mut life, start, 9, told(while_in(Activity::Request))),
            Next::Goodbye
        );
    }

    #[test]
    fn a_goaway_that_is_not_answered_is_answered_for_the_peer_once() {
        let (mut life, start) = life();
        let deaf = Observation {
            ping: Ping::Unanswered,
            ..told(while_in(Activity::Request))
        };
        assert_eq!(at(&mut life, start, 0, deaf), Next::Goodbye);
        assert_eq!(
            at(&mut life, start, 0, deaf),
            Next::Wait(Some(start + secs(1)))
        );
        assert_eq!(at(&mut life, start, 1, deaf), Next::Answer);
        assert!(matches!(at(&mut life, start, 2, deaf), Next::Wait(_)));
    }

    #[test]
    fn a_goaway_that_is_answered_leaves_time_for_streams_on_their_way() {
        let (mut life, start) = life();
        let at_ms = |life: &mut ConnLifecycle, ms, ping| {
            life.next(
                &LIMITS,
                &Observation { ping, ..told(CALM) },
                start + Duration::from_millis(ms),
            )
        };
        at_ms(&mut life, 0, Ping::Unanswered);
        assert_eq!(at_ms(&mut life, 1000, Ping::Unanswered), Next::Goodbye);
        let until = start + Duration::from_millis(1120);
        assert_eq!(
            at_ms(&mut life, 1020, Ping::Hidden),
            Next::Wait(Some(until))
        );
        assert_eq!(at_ms(&mut life, 1120, Ping::Hidden), Next::Answer);
        assert!(matches!(
            at_ms(&mut life, 1130, Ping::Answered),
            Next::Wait(_)
        ));
    }

    #[test]
    fn an_old_one_leaves_as_if_closing_and_is_cut_after_its_grace() {
        let (mut life, start) = life();
        at(&mut life, start, 3599, CALM);
        assert_eq!(
            at(&mut life, start, 3600, CALM),
            Next::Wait(Some(start + secs(3602)))
        );
        assert_eq!(
            at(&mut life, start, 3601, while_in(Activity::Request)),
            Next::Goodbye
        );
        assert_eq!(
            at(&mut life, start, 3602, while_in(Activity::Request)),
            Next::Wait(Some(start + secs(3660)))
        );
        assert_eq!(
            at(&mut life, start, 3660, while_in(Activity::Request)),
            Next::Cut
        );
    }

    #[test]
    fn one_that_does_not_read_is_cut_and_one_that_reads_a_little_is_not() {
        let (mut life, start) = life();
        let stalled = |since| Observation {
            stalled_since: Some(start + secs(since)),
            ..while_in(Activity::Request)
        };
        assert_eq!(
            at(&mut life, start, 10, stalled(5)),
            Next::Wait(Some(start + half_secs(25)))
        );
        assert_eq!(
            at(&mut life, start, 35, stalled(20)),
            Next::Wait(Some(start + half_secs(85))),
            "some was written"
        );
        assert_eq!(
            at(&mut life, start, 49, stalled(20)),
            Next::Wait(Some(start + secs(50)))
        );
        assert_eq!(at(&mut life, start, 50, stalled(20)), Next::Cut);
    }

    #[test]
    fn one_that_reads_and_leaves_no_room_is_not_cut_until_it_reads_no_more() {
        let (mut life, start) = life();
        let mut left = 1_000_000;
        let mut look = |at: u64, takes| {
            let seen = |unacknowledged| Observation {
                stalled_since: Some(start),
                unacknowledged,
                ..while_in(Activity::Request)
            };
            left -= takes;
            let now = start + secs(at);
            match life.next(&LIMITS, &seen(None), now) {
                Next::Ask => life.next(&LIMITS, &seen(Some(left)), now),
                next => next,
            }
        };
        for second in (0..600).step_by(5) {
            assert!(matches!(look(second, 1000), Next::Wait(_)), "{second}");
        }
        let cut = (600..).find(|second| look(*second, 0) == Next::Cut);
        assert!(cut.is_some_and(|cut| (623..=630).contains(&cut)), "{cut:?}");
    }

    #[test]
    fn responses_that_are_not_taken_end_the_connection_and_those_that_are_do_not() {
        for answered in [Ping::Answered, Ping::Unanswered] {
            let (mut life, start) = life();
            let held = |progress| Observation {
                progress,
                ping: answered,
                ..while_in(Activity::Held)
            };
            assert_eq!(
                at(&mut life, start, 0, held(0)),
                Next::Wait(Some(start + secs(30)))
            );
            assert_eq!(
                at(&mut life, start, 29, held(1)),
                Next::Wait(Some(start + secs(59)))
            );
            let blocked = Observation {
                stalled_since: Some(start + secs(50)),
                ..held(1)
            };
            assert_eq!(
                at(&mut life, start, 60, blocked),
                Next::Wait(Some(start + half_secs(135))),
                "the write stall decides"
            );
            assert_eq!(at(&mut life, start, 61, held(1)), Next::End);
        }
    }

    #[test]
    fn responses_that_are_not_taken_end_a_connection_that_has_left() {
        let (mut life, start) = life();
        let held = told(while_in(Activity::Held));
        assert_eq!(at(&mut life, start, 0, held), Next::Goodbye);
        assert_eq!(
            at(&mut life, start, 0, held),
            Next::Wait(Some(start + secs(30)))
        );
        assert_eq!(at(&mut life, start, 30, held), Next::End);
    }

    #[test]
    fn an_answer_that_hyper_does_not_read_ends_an_idle_connection_and_no_other() {
        let (mut life, start) = life();
        let busy = |ping| Observation {
            ping,
            ..told(while_in(Activity::Request))
        };
        assert_eq!(
            at(&mut life, start, 0, busy(Ping::Unanswered)),
            Next::Goodbye
        );
        assert_eq!(
            at(&mut life, start, 1, busy(Ping::Unanswered)),
            Next::Answer
        );
        assert!(matches!(
            at(&mut life, start, 1, busy(Ping::Wanted)),
            Next::Wait(_)
        ));
        let idle = Observation {
            ping: Ping::Wanted,
            ..told(CALM)
        };
        assert_eq!(at(&mut life, start, 9, idle), Next::End);
    }

    #[test]
    fn one_that_has_left_before_is_cut_at_its_age_too() {
        let (mut life, start) = life();
        at(&mut life, start, 0, CALM);
        assert_eq!(at(&mut life, start, 75, CALM), Next::Goodbye);
        let stream = while_in(Activity::Request);
        assert_eq!(
            at(&mut life, start, 3600, stream),
            Next::Wait(Some(start + secs(3660)))
        );
        assert_eq!(at(&mut life, start, 3660, stream), Next::Cut);
    }

    proptest! {
        #[test]
        fn waiting_until_the_returned_instant_always_makes_progress(
            looks in proptest::collection::vec((0_u8..6, 0_u64..20, any::<bool>(), any::<bool>()), 1..30),
        ) {
            let (mut life, start) = life();
            let (mut now, mut goodbyes, mut told) = (start, 0, false);
            for (activity, wait, tell, acknowledged) in looks {
                now += secs(wait);
                told |= tell;
                let activity = [Activity::Silent, Activity::Idle, Activity::Head, Activity::Request, Activity::Held, Activity::Upload][activity as usize];
                let ping = if acknowledged { Ping::Hidden } else { Ping::Unanswered };
                let seen = Observation { activity, told: told.then_some(secs(1)), ping, ..CALM };
                match life.next(&LIMITS, &seen, now) {
                    // Else the timer would fire for ever.
                    Next::Wait(deadline) => prop_assert!(deadline.is_none_or(|deadline| deadline > now)),
                    Next::Goodbye => goodbyes += 1,
                    Next::Late | Next::Answer | Next::Ask | Next::End | Next::Cut => {}
                }
            }
            prop_assert!(goodbyes <= 1);
        }
    }
}
