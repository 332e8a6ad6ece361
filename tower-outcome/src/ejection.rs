use std::{
    fmt,
    sync::{
        Arc,
        atomic::{
            AtomicBool, AtomicU32, AtomicU64,
            Ordering::{AcqRel, Acquire, Release},
        },
    },
};

/// How many endpoints of a set may be out of service at once, because of what they answered.
///
/// Several mechanisms take endpoints out: a circuit per endpoint, an outlier detector. Each sees only its own endpoint,
/// so together they could take out all of them, and one client with a request that every endpoint answers with `500`
/// would turn the service off for the others. This handle is the one place that counts. A balancer makes one per
/// priority and zone, keeps its [members](Self::set_members) up to date and gives each endpoint
/// [its own handle](Self::for_member), for the mechanisms that ask it
/// [before they take that endpoint out](Self::try_eject).
///
/// At most half of the members may be out by default, at least one may where there are two or more, and **the last
/// one never**. What is out for a reason that cannot be answered (a refused connection, a vacant lease) does not ask
/// and is not counted: sending requests there would help no client. While [another set](Self::set_standby) can take all of
/// the load, all may be out: requests to failing endpoints would help no client either.
///
/// Clones share the count. A call is one or two atomic operations; none is made for an admitted request.
///
/// ```
/// use tower_outcome::EjectionBudget;
///
/// let budget = EjectionBudget::new();
/// budget.set_members(3);
/// let first = budget.try_eject().expect("one of three may be out");
/// assert!(budget.try_eject().is_none(), "half of three is one");
/// drop(first); // the endpoint is back
/// assert_eq!(budget.out(), 0);
/// ```
///
/// Source of the rule: Envoy's `max_ejection_percent` (10 % by default there, and one endpoint always) and its panic
/// threshold, which sends traffic to all endpoints again once half of them are unhealthy.
#[derive(Clone)]
pub struct EjectionBudget {
    shared: Arc<Shared>,
    /// Whose handle this is, if it is one member's.
    member: Option<Arc<Member>>,
}

/// An endpoint that is out of service. Dropping this gives its place in the budget back.
#[must_use = "dropping it says that the endpoint is back in service"]
pub struct Ejected {
    shared: Arc<Shared>,
    member: Option<Arc<Member>>,
}

struct Shared {
    /// Members in the upper half, those that are out in the lower. All changes are read-modify-write on this one word,
    /// so it is consistent at any time.
    word: AtomicU64,
    max_percent: u8,
    /// Beside the word: the share is a rule of thumb, and whoever sets this has seen the other set before.
    has_standby: AtomicBool,
}

/// One member of the set.
///
/// The word counts its guards; [`AWAY`] marks that it is not meant to serve. While it serves and has guards, it has one
/// place in the budget: taken before the first guard is counted, given back after the last one was.
struct Member {
    word: AtomicU32,
}

// === impl EjectionBudget ===

impl EjectionBudget {
    /// Half of the members at most, which is where Envoy's panic threshold is by default. Has no members yet.
    #[must_use]
    pub fn new() -> Self {
        Self::with_max_percent(50)
    }

    /// The largest share of the members that may be out at once, in percent, rounded down but at least one; more than 100
    /// means 100. The last member always stays. Has no members yet.
    #[must_use]
    pub fn with_max_percent(percent: u8) -> Self {
        Self {
            shared: Arc::new(Shared {
                word: AtomicU64::new(0),
                max_percent: percent.min(100),
                has_standby: AtomicBool::new(false),
            }),
            member: None,
        }
    }

    /// A handle for one member of the set, and for its clones. However many mechanisms take that member out at once, it is
    /// out once, and [when it leaves](Self::set_serving) its place is free at once, even if a request that is still in
    /// flight keeps its [`Ejected`] alive.
    #[must_use]
    pub fn for_member(&self) -> Self {
        let word = AtomicU32::new(0);
        Self {
            shared: self.shared.clone(),
            member: Some(Arc::new(Member { word })),
        }
    }

    /// Whether the [member](Self::for_member) of this handle is meant to serve; it is at first. One that is not has no
    /// place in the budget: what took it out before is not counted, and it cannot be taken out. Without effect on the
    /// handle of a whole set.
    pub fn set_serving(&self, is_serving: bool) {
        if let Some(member) = &self.member {
            member.set_serving(is_serving, &self.shared);
        }
    }

    /// Whether the [member](Self::for_member) of this handle is out. Never with the handle of a whole set.
    #[must_use]
    pub fn is_out(&self) -> bool {
        let word = self.member.as_ref().map(|member| member.word.load(Acquire));
        word.is_some_and(|word| word & !AWAY > 0)
    }

    /// Whether other endpoints, outside of the set, can take all of its load; they cannot at first. While they can, all
    /// members may be out, the last one too.
    pub fn set_standby(&self, has_standby: bool) {
        self.shared.has_standby.store(has_standby, Release);
    }

    /// Sets how many endpoints the set has: those that are meant to serve, in or out. What is out stays out when the set
    /// shrinks; nothing more can go out until enough have come back.
    pub fn set_members(&self, members: usize) {
        let members = u32::try_from(members).unwrap_or(u32::MAX);
        let set = |word| Some(pack(members, unpack(word).1));
        // Never fails: `set` always answers.
        let _ = self.shared.word.fetch_update(AcqRel, Acquire, set);
    }

    /// How many endpoints the set has.
    #[must_use]
    pub fn members(&self) -> usize {
        unpack(self.shared.word.load(Acquire)).0 as usize
    }

    /// How many of them are out.
    #[must_use]
    pub fn out(&self) -> usize {
        unpack(self.shared.word.load(Acquire)).1 as usize
    }

    /// How many of them may be out at once, with as many members as there are now.
    #[must_use]
    pub fn max_out(&self) -> usize {
        self.shared.max_out(self.members() as u32) as usize
    }

    /// Asks to take one endpoint out. `None`: too many are out already, so it has to stay in service.
    pub fn try_eject(&self) -> Option<Ejected> {
        let may = match &self.member {
            Some(member) => member.take(&self.shared),
            None => self.shared.take(),
        };
        may.then(|| Ejected {
            shared: self.shared.clone(),
            member: self.member.clone(),
        })
    }
}

impl Default for EjectionBudget {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for EjectionBudget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (members, out) = unpack(self.shared.word.load(Acquire));
        f.debug_struct("EjectionBudget")
            .field("members", &members)
            .field("out", &out)
            .field("max_percent", &self.shared.max_percent)
            .finish()
    }
}

// === impl Ejected ===

impl Drop for Ejected {
    fn drop(&mut self) {
        match &self.member {
            Some(member) => member.give_back(&self.shared),
            None => self.shared.give_back(),
        }
    }
}

impl fmt::Debug for Ejected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ejected").finish_non_exhaustive()
    }
}

// === impl Shared ===

impl Shared {
    fn take(&self) -> bool {
        let take = |word| {
            let (members, out) = unpack(word);
            (out < self.max_out(members)).then(|| pack(members, out + 1))
        };
        self.word.fetch_update(AcqRel, Acquire, take).is_ok()
    }

    fn give_back(&self) {
        // The lower half counts the places that are taken, so it is at least one here and nothing is borrowed from the
        // upper.
        self.word.fetch_sub(1, AcqRel);
    }

    fn max_out(&self, members: u32) -> u32 {
        if self.has_standby.load(Acquire) {
            return members;
        }
        let share = u64::from(members) * u64::from(self.max_percent) / 100;
        // The share is at most `members`, so it fits.
        (share as u32).max(1).min(members.saturating_sub(1))
    }
}

// === impl Member ===

impl Member {
    fn take(&self, shared: &Shared) -> bool {
        loop {
            let guards = self.word.load(Acquire);
            if guards & AWAY != 0 {
                return false;
            }
            let is_first = guards == 0;
            if is_first && !shared.take() {
                return false;
            }
            if self.exchange(guards, guards + 1) {
                return true;
            }
            if is_first {
                shared.give_back();
            }
        }
    }

    fn give_back(&self, shared: &Shared) {
        // The last guard of one that serves; of one that is away, the place is free already.
        if self.word.fetch_sub(1, AcqRel) == 1 {
            shared.give_back();
        }
    }

    fn set_serving(&self, is_serving: bool, shared: &Shared) {
        if !is_serving {
            let before = self.word.fetch_or(AWAY, AcqRel);
            if before & AWAY == 0 && before > 0 {
                shared.give_back();
            }
            return;
        }
        loop {
            let before = self.word.load(Acquire);
            if before & AWAY == 0 {
                return;
            }
            let guards = before & !AWAY;
            // What is out is out, be it one too many.
            if guards > 0 {
                shared.word.fetch_add(1, AcqRel);
            }
            if self.exchange(before, guards) {
                return;
            }
            if guards > 0 {
                shared.give_back();
            }
        }
    }

    fn exchange(&self, before: u32, after: u32) -> bool {
        self.word
            .compare_exchange(before, after, AcqRel, Acquire)
            .is_ok()
    }
}

const AWAY: u32 = 1 << 31;

fn pack(members: u32, out: u32) -> u64 {
    u64::from(members) << 32 | u64::from(out)
}

fn unpack(word: u64) -> (u32, u32) {
    ((word >> 32) as u32, word as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(percent: u8, members: usize) -> EjectionBudget {
        let budget = EjectionBudget::with_max_percent(percent);
        budget.set_members(members);
        budget
    }

    #[test]
    fn the_last_member_never_goes_out() {
        for percent in [0, 10, 50, 100, 255] {
            for members in 0..20 {
                let budget = of(percent, members);
                let out: Vec<_> = std::iter::from_fn(|| budget.try_eject()).collect();
                assert_eq!(out.len(), budget.max_out());
                assert!(members == 0 || out.len() < members, "{percent} {members}");
            }
        }
    }

    #[test]
    fn the_share_is_rounded_down_but_one_of_two_may_always_go() {
        let max_out = |percent, members| of(percent, members).max_out();
        assert_eq!(
            [1, 2, 3, 4, 5, 10].map(|n| max_out(50, n)),
            [0, 1, 1, 2, 2, 5]
        );
        assert_eq!([1, 2, 9, 10, 20].map(|n| max_out(10, n)), [0, 1, 1, 1, 2]);
        assert_eq!(max_out(100, usize::MAX), u32::MAX as usize - 1);
    }

    #[test]
    fn what_comes_back_leaves_its_place_to_another() {
        let budget = of(50, 4);
        let (first, _second) = (budget.try_eject().unwrap(), budget.try_eject().unwrap());
        assert!(budget.try_eject().is_none());
        drop(first);
        assert_eq!(budget.out(), 1);
        assert!(budget.clone().try_eject().is_some());
    }

    #[test]
    fn a_set_that_shrinks_keeps_those_out_and_lets_no_more_go() {
        let budget = of(50, 8);
        let out: Vec<_> = std::iter::from_fn(|| budget.try_eject()).collect();
        budget.set_members(3);
        assert_eq!(
            (budget.members(), budget.out(), budget.max_out()),
            (3, 4, 1)
        );
        assert!(budget.try_eject().is_none());
        drop(out);
        assert_eq!((budget.members(), budget.out()), (3, 0));
        assert!(budget.try_eject().is_some());
    }

    #[test]
    fn a_member_is_out_once_however_many_take_it_out() {
        let budget = of(50, 4);
        let (one, other, third) = (
            budget.for_member(),
            budget.for_member(),
            budget.for_member(),
        );
        let (outlier, circuit) = (one.try_eject().unwrap(), one.clone().try_eject().unwrap());
        assert_eq!(budget.out(), 1);
        let out = other.try_eject().unwrap();
        assert!(third.try_eject().is_none(), "two of four");
        drop(outlier);
        assert_eq!(
            (budget.out(), one.out()),
            (2, 2),
            "its circuit is open still"
        );
        drop(circuit);
        assert_eq!(budget.out(), 1);
        assert!(third.try_eject().is_some());
        drop(out);
    }

    #[test]
    fn a_member_that_leaves_gives_its_place_back_whoever_holds_the_guard() {
        let budget = of(50, 4);
        let members: Vec<_> = (0..4).map(|_| budget.for_member()).collect();
        let held = [&members[0], &members[1]].map(|member| member.try_eject().unwrap());
        assert!(members[2].try_eject().is_none());
        members[0].set_serving(false);
        members[0].set_serving(false);
        assert_eq!(budget.out(), 1);
        assert!(members[0].try_eject().is_none(), "it has no place any more");
        let third = members[2].try_eject().unwrap();
        members[0].set_serving(true);
        assert_eq!(budget.out(), 3, "out it is; nothing more goes");
        assert!(members[3].try_eject().is_none());
        members[0].set_serving(false);
        drop(held);
        drop(third);
        members[0].set_serving(true);
        assert_eq!((budget.out(), budget.members()), (0, 4));
    }

    #[test]
    fn with_a_standby_all_may_be_out_and_without_it_nothing_more_goes() {
        let budget = of(50, 3);
        budget.set_standby(true);
        let mut out: Vec<_> = std::iter::from_fn(|| budget.try_eject()).collect();
        assert_eq!((out.len(), budget.max_out()), (3, 3));
        budget.set_standby(false);
        assert_eq!((budget.out(), budget.max_out()), (3, 1));
        out.truncate(1);
        assert!(budget.try_eject().is_none());
        out.clear();
        assert!(budget.try_eject().is_some());
    }

    #[test]
    fn members_that_come_and_go_on_threads_leave_nothing_behind() {
        let budget = of(50, 9);
        let members: Vec<_> = (0..3).map(|_| budget.for_member()).collect();
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let members = &members;
                scope.spawn(move || {
                    for round in 0..3000 {
                        let member = &members[(thread + round) % 3];
                        let ejected = member.try_eject();
                        member.set_serving(round % 5 == 0);
                        let again = member.try_eject();
                        member.set_serving(true);
                        drop((ejected, again));
                    }
                });
            }
        });
        assert_eq!((budget.members(), budget.out()), (9, 0));
    }

    #[test]
    fn threads_never_take_more_than_the_share() {
        let budget = of(50, 9);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for round in 0..2000 {
                        let ejected = budget.try_eject();
                        assert!(budget.out() <= 5);
                        budget.set_members(9 + round % 2); // half of both is four or five
                        drop(ejected);
                        budget.set_members(9);
                    }
                });
            }
        });
        assert_eq!((budget.members(), budget.out()), (9, 0));
    }
}
