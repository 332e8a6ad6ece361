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
/// Several mechanisms eject endpoints: a circuit per endpoint, an outlier detector. Each considers one endpoint only, so
/// together they could eject all of them, and a single client with a request to which every endpoint answers `500` would
/// turn off the service for all clients. This handle holds the common count. A balancer creates one per priority and zone,
/// keeps the number of [members](Self::set_members) current and gives each endpoint [a handle](Self::for_member);
/// mechanisms call [`try_eject`](Self::try_eject) on it before they eject that endpoint.
///
/// By default at most half of the members may be out, at least one of two or more, and **never the last one**. Endpoints
/// that cannot serve at all (connection refused, lease vacant) are not counted and need no permission, because sending
/// requests to them would help no client. While [another set](Self::set_standby) can take the whole load, all members
/// may be out.
///
/// Clones share the count. Each call is one or two atomic operations; none is made for an admitted request.
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
    /// Set on the handle of one member.
    member: Option<Arc<Member>>,
}

/// An ejected endpoint. Dropping this returns it to service and frees its place in the budget.
#[must_use = "dropping it returns the endpoint to service"]
pub struct Ejected {
    shared: Arc<Shared>,
    member: Option<Arc<Member>>,
}

struct Shared {
    /// The number of members in the upper half, of those that are out in the lower. All changes are read-modify-write
    /// operations on this word, so the two numbers are always consistent.
    word: AtomicU64,
    max_percent: u8,
    /// Not part of the word: a decision that races with a change of this flag may use either value.
    has_standby: AtomicBool,
}

/// One member of the set.
///
/// The word counts the member's guards; [`AWAY`] is set while it is not meant to serve. While it serves and has guards, it
/// holds one place in the budget: taken before the first guard is counted, given back after the last one is dropped.
struct Member {
    word: AtomicU32,
}

// === impl EjectionBudget ===

impl EjectionBudget {
    /// At most half of the members may be out, like Envoy's default panic threshold. The set is empty at first.
    #[must_use]
    pub fn new() -> Self {
        Self::with_max_percent(50)
    }

    /// At most `percent` of the members may be out, rounded down, but at least one; values above 100 mean 100. The last member
    /// always stays in service. The set is empty at first.
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

    /// A handle for one member of the set; its clones stand for the same member. A member that several mechanisms eject at
    /// the same time counts once. When it [leaves](Self::set_serving), its place is free at once, even if a request in
    /// flight keeps an [`Ejected`] alive.
    #[must_use]
    pub fn for_member(&self) -> Self {
        let word = AtomicU32::new(0);
        Self {
            shared: self.shared.clone(),
            member: Some(Arc::new(Member { word })),
        }
    }

    /// Sets whether the [member](Self::for_member) of this handle is meant to serve; initially it is. A member that is not
    /// holds no place in the budget and cannot be ejected. No effect on the handle of a whole set.
    pub fn set_serving(&self, is_serving: bool) {
        if let Some(member) = &self.member {
            member.set_serving(is_serving, &self.shared);
        }
    }

    /// Whether the [member](Self::for_member) of this handle is ejected. Always false on the handle of a whole set.
    #[must_use]
    pub fn is_out(&self) -> bool {
        let word = self.member.as_ref().map(|member| member.word.load(Acquire));
        word.is_some_and(|word| word & !AWAY > 0)
    }

    /// Sets whether endpoints outside of this set can take its whole load; initially they cannot. While they can, all
    /// members may be out, including the last one.
    pub fn set_standby(&self, has_standby: bool) {
        self.shared.has_standby.store(has_standby, Release);
    }

    /// Sets the number of endpoints that are meant to serve, ejected ones included. Ejected endpoints stay ejected when the
    /// set shrinks; no more can be ejected until enough of them are back.
    pub fn set_members(&self, members: usize) {
        let members = u32::try_from(members).unwrap_or(u32::MAX);
        let set = |word| Some(pack(members, unpack(word).1));
        // Never fails: `set` always returns `Some`.
        let _ = self.shared.word.fetch_update(AcqRel, Acquire, set);
    }

    /// The number of endpoints in the set.
    #[must_use]
    pub fn members(&self) -> usize {
        unpack(self.shared.word.load(Acquire)).0 as usize
    }

    /// The number of ejected endpoints.
    #[must_use]
    pub fn out(&self) -> usize {
        unpack(self.shared.word.load(Acquire)).1 as usize
    }

    /// How many endpoints may be out at once with the current number of members.
    #[must_use]
    pub fn max_out(&self) -> usize {
        self.shared.max_out(self.members() as u32) as usize
    }

    /// Ejects one endpoint, or returns `None` if too many are out already: the endpoint has to stay in service.
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
        // The lower half counts the taken places, so it is at least one here and the subtraction does not borrow from
        // the upper half.
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
        // The last guard of a member that serves. While it is away, its place is free already.
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
            // It is still ejected, so it takes a place even if that is one more than allowed.
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
    fn a_member_that_leaves_frees_its_place_even_if_a_guard_is_still_held() {
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
