//! The state machine of a connection's lifetime: how long it may go on as it is, and when it must end.

use std::time::Duration;

use tokio::time::Instant;

/// What is known about one connection's time.
#[derive(Debug)]
pub(super) struct ConnLifecycle {
    activity: Activity,
    since: Instant,
    /// What these were when `activity` was noted: a short request comes and goes between two looks.
    requests: u32,
    progress: u32,
    stage: ShutdownStage,
    /// When it is old enough to leave.
    old: Instant,
    /// Kept for the next one: most connections never have one.
    stall: Option<Box<Stall>>,
}

/// Bytes that cannot be written.
#[derive(Debug)]
struct Stall {
    since: Instant,
    /// When the peer was seen to take some.
    moved: Instant,
    /// How much the peer had not acknowledged when that was known last.
    unacknowledged: Option<u32>,
    ask: Instant,
    asked: bool,
}

/// The durations it goes by.
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

/// What is seen at a look.
#[derive(Clone, Copy, Debug)]
pub(super) struct Observation {
    pub(super) activity: Activity,
    pub(super) requests: u32,
    /// Changes whenever the activity gets on.
    pub(super) progress: u32,
    pub(super) stalled_since: Option<Instant>,
    /// What was asked for with [`Next::Ask`], if it is known.
    pub(super) unacknowledged: Option<u32>,
    /// How long the last chance is, once closing has begun.
    pub(super) told: Option<Duration>,
    /// The last chance of one that leaves for its age.
    pub(super) chance: Duration,
    pub(super) http2: bool,
    /// HTTP/2: the ping of the first GOAWAY.
    pub(super) ping: Ping,
    /// How long the peer may take to answer it.
    pub(super) goaway: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(not(feature = "http2"), allow(dead_code))]
pub(super) enum Activity {
    /// Not a byte so far, or not enough to know its protocol.
    Silent,
    /// Nothing.
    Idle,
    /// Half a head is there.
    Head,
    /// At least one request is under way.
    Request,
    /// HTTP/2: the app is done, but the peer has not taken all of its responses.
    Held,
    /// Responses have left, but a request has not come to its end.
    Upload,
}

/// The ping of the first GOAWAY.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(not(feature = "http2"), allow(dead_code))]
pub(super) enum Ping {
    Unanswered,
    /// The peer has answered, and hyper does not know it.
    Hidden,
    /// We give the answer ourselves.
    Wanted,
    Answered,
}

/// What to do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Nothing, until then.
    Wait(Option<Instant>),
    /// Tell hyper that this connection ends.
    Goodbye,
    /// The head takes too long: say so and end.
    Late,
    /// HTTP/2: the peer has not answered the first GOAWAY, or has done so a while ago. Let hyper have the answer.
    Answer,
    /// Find out how much the peer has not acknowledged, and look again.
    Ask,
    /// Nothing is under way that could come to an end: close without hyper.
    End,
    /// It does not read what it asked for, or outstays its age: end at once.
    Cut,
}

/// How far it is on its way out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ShutdownStage {
    /// -> `Chance` when closing begins, or at its age; `Left` when it was idle too long.
    Stay,
    /// -> `Left` when a request comes, or at `until` if it is idle. Half a head has its own time.
    Chance { until: Instant },
    /// Goodbye was said. -> `Heeded` when an HTTP/2 peer has answered, `Answered` if it says nothing.
    Left { said: Instant },
    /// It opens no more streams, but may have had some in its hands. -> `Answered` at `until`.
    Heeded { until: Instant },
    /// Ends after what is under way.
    Answered,
}

// === impl ConnLifecycle ===

impl ConnLifecycle {
    /// `age`: how old this one may get, jitter and all.
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

    /// Since when it does what it does.
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

    /// How long a connection that does nothing may do so.
    fn patience(&self, limits: &Limits, seen: &Observation) -> Option<Instant> {
        match self.activity {
            Activity::Silent => Some(self.since + limits.first_byte),
            Activity::Idle => Some(self.since + limits.idle),
            // Other streams may come, so it is told first.
            Activity::Upload if seen.http2 => Some(self.since + limits.upload),
            Activity::Head | Activity::Request | Activity::Held | Activity::Upload => None,
        }
    }

    /// When half a head is late. Not while an answer before it is still held: what we had to say would come in its middle.
    fn late(&self, limits: &Limits, seen: &Observation) -> Option<Instant> {
        let free = self.activity == Activity::Head && seen.stalled_since.is_none();
        free.then(|| self.since + limits.head)
    }

    /// When a connection that only waits for its peer has waited long enough. While bytes cannot be written, that is for
    /// the write stall to tell.
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

    /// Whether hyper cannot end this connection though nothing is under way: it reads no answer to its GOAWAY while a
    /// frame of the peer's is not whole.
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

    /// However far it is on its way out.
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

    /// The peer is asked for before it is cut, and a few times before that: it may read, and still leave no room.
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

/// How often, before a peer that takes nothing is cut.
const ASKED: u32 = 4;
/// How long streams may still come that a client had queued before it heard of the GOAWAY. hyper's own sends such ones
/// after its answer to the ping; refused by the second GOAWAY they would be errors to most of its users.
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
    fn a_late_head_is_told_so_even_while_leaving() {
        for seen in [while_in(Activity::Head), told(while_in(Activity::Head))] {
            let (mut life, start) = life();
            at(&mut life, start, 0, seen);
            assert_eq!(at(&mut life, start, 10, seen), Next::Late);
        }
    }

    #[test]
    fn half_a_head_behind_an_answer_that_is_still_held_is_not_told_in_its_middle() {
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
                "that is for the write stall to tell"
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
        fn who_waits_for_what_it_says_always_gets_on(
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
                    // Else the alarm would ring for ever.
                    Next::Wait(deadline) => prop_assert!(deadline.is_none_or(|deadline| deadline > now)),
                    Next::Goodbye => goodbyes += 1,
                    Next::Late | Next::Answer | Next::Ask | Next::End | Next::Cut => {}
                }
            }
            prop_assert!(goodbyes <= 1);
        }
    }
}
