use std::{
    collections::{BTreeMap, HashMap},
    num::NonZeroU16,
    time::Duration,
};

use tokio::time::Instant;
use tower_outcome::{Ejected, EjectionBudget};

use crate::{EndpointId, backoff::FOR_EVER};

/// Ejects endpoints by the outcomes of their requests: after a number of consecutive failures, and when the success rate of
/// one is far below the mean.
///
/// The first ejection lasts 30 s, and each further one longer, up to 5 minutes; each interval (10 s) without one takes a
/// step back. The [classification](crate::balance::BalanceBuilder::classify) of the balance decides what a failure is;
/// refused connections and local rejections are not. Requests that were abandoned before their response are not counted, so
/// put a timeout around each endpoint, in `make`, and not only around the balance. The rules and numbers are Envoy's and
/// gRPC's (gRFC A50) unless noted otherwise.
///
/// ```
/// use std::time::Duration;
/// use tower_resolve::{Balance, health::Outlier};
///
/// let builder = Balance::builder().http().outlier(Outlier::new().ejection(Duration::from_secs(10)));
/// # let _ = builder;
/// ```
#[derive(Clone, Debug)]
pub struct Outlier {
    consecutive: Option<NonZeroU16>,
    deviations: Option<f64>,
    min_requests: u64,
    interval: Duration,
    ejection: Duration,
    max_ejection: Duration,
    max_ejected: u8,
}

/// The endpoints that are out because of their health. Sans-IO: time comes in, decisions go out.
#[derive(Debug)]
pub(crate) struct Ward {
    outlier: Option<Outlier>,
    patients: BTreeMap<EndpointId, Patient>,
    sweep_at: Option<Instant>,
    /// The counts of each at the last sweep.
    before: HashMap<EndpointId, (u64, u64)>,
}

/// The counts of an endpoint, for a sweep: requests ended, and failed.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) id: EndpointId,
    pub(crate) ended: u64,
    pub(crate) failed: u64,
}

#[derive(Debug, Default)]
struct Patient {
    ejection: Option<Ejection>,
    /// Failing its health checks.
    is_ill: bool,
    /// The number of ejections, minus the intervals without one since.
    times: u32,
}

#[derive(Debug)]
struct Ejection {
    until: Instant,
    /// Its place in the budget of its priority and zone.
    place: Ejected,
}

// === impl Outlier ===

impl Outlier {
    /// Starts with the defaults.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            consecutive: NonZeroU16::new(5),
            deviations: Some(1.9),
            min_requests: 100,
            interval: Duration::from_secs(10),
            ejection: Duration::from_secs(30),
            max_ejection: Duration::from_secs(300),
            max_ejected: 50,
        }
    }

    /// The number of consecutive failures; `None` disables it. Default: 5.
    #[must_use]
    pub fn consecutive(self, failures: impl Into<Option<NonZeroU16>>) -> Self {
        Self {
            consecutive: failures.into(),
            ..self
        }
    }

    /// How far below the mean success rate, in standard deviations; `None` disables it. Evaluated once per interval, among
    /// endpoints with enough requests, of which there must be five. Default: 1.9.
    #[must_use]
    pub fn deviations(self, deviations: impl Into<Option<f64>>) -> Self {
        Self {
            deviations: deviations.into(),
            ..self
        }
    }

    /// The number of requests in an interval that are enough to compare endpoints. Default: 100.
    #[must_use]
    pub fn min_requests(self, requests: u64) -> Self {
        Self {
            min_requests: requests,
            ..self
        }
    }

    /// The length of an interval. Default: 10 s.
    #[must_use]
    pub fn interval(self, interval: Duration) -> Self {
        Self {
            interval: interval.clamp(Duration::from_millis(1), FOR_EVER),
            ..self
        }
    }

    /// The duration of the first ejection; the *n*th in short order lasts *n* times that, plus a random tenth, so that
    /// several do not come back at once. Default: 30 s.
    #[must_use]
    pub fn ejection(self, time: Duration) -> Self {
        Self {
            ejection: time.min(FOR_EVER),
            ..self
        }
    }

    /// The maximum duration of an ejection. Default: 5 minutes.
    #[must_use]
    pub fn max_ejection(self, time: Duration) -> Self {
        Self {
            max_ejection: time.min(FOR_EVER),
            ..self
        }
    }

    /// The percentage of the endpoints of a priority and zone that may be out at once because of their responses, including
    /// those whose circuits took from the [budget](crate::balance::BalanceBuilder::build); one of two or more always may,
    /// the last never, and all while the priorities and zones after it can take the load. When the set shrinks, or its
    /// standby fails, the excess comes back, in the order in which the ejections end. Default: 50: if more than half fail,
    /// the cause is more likely the requests than the endpoints. (Envoy and gRPC: 10, which with ten endpoints keeps the
    /// second failing one in.)
    #[must_use]
    pub fn max_ejected(self, percent: u8) -> Self {
        Self {
            max_ejected: percent.min(100),
            ..self
        }
    }

    pub(crate) const fn max_ejected_percent(&self) -> u8 {
        self.max_ejected
    }

    /// The number of consecutive failures that is evaluated; 0 for none.
    pub(crate) fn strikes(&self) -> u16 {
        self.consecutive.map_or(0, NonZeroU16::get)
    }
}

impl Default for Outlier {
    fn default() -> Self {
        Self::new()
    }
}

// === impl Ward ===

impl Ward {
    pub(crate) fn new(outlier: Option<Outlier>) -> Self {
        Self {
            outlier,
            patients: BTreeMap::new(),
            sweep_at: None,
            before: HashMap::new(),
        }
    }

    /// It reached the number of consecutive failures, or is far below the mean. Returns whether it is ejected.
    pub(crate) fn strike(
        &mut self,
        id: &EndpointId,
        budget: &EjectionBudget,
        now: Instant,
    ) -> bool {
        let Some(outlier) = &self.outlier else {
            return false;
        };
        let is_ejected = |patient: &Patient| patient.ejection.is_some();
        if self.patients.get(id).is_some_and(is_ejected) {
            return false;
        }
        let Some(place) = budget.try_eject() else {
            tracing::debug!(endpoint = %id, ?budget, "too many are out to eject one more");
            return false;
        };
        let patient = self.patients.entry(id.clone()).or_default();
        patient.times = patient.times.saturating_add(1);
        let time = outlier
            .ejection
            .saturating_mul(patient.times)
            .min(outlier.max_ejection);
        let until = now + time + time.mul_f64(fastrand::f64() / 10.0);
        patient.ejection = Some(Ejection { until, place });
        true
    }

    /// Compares all endpoints, once per interval. Returns those to [strike](Self::strike), the worst first.
    pub(crate) fn sweep(&mut self, all: Vec<Seen>, now: Instant) -> Vec<EndpointId> {
        let Some(outlier) = &self.outlier else {
            return Vec::new();
        };
        self.sweep_at = Some(now + outlier.interval);
        self.patients.retain(|_, patient| {
            patient.times -= u32::from(patient.ejection.is_none() && patient.times > 0);
            patient.is_out() || patient.times > 0
        });
        let mut rates = Vec::new();
        let mut next = HashMap::with_capacity(all.len());
        for Seen { id, ended, failed } in all {
            let (ended_before, failed_before) = self.before.get(&id).copied().unwrap_or_default();
            let (ended_now, failed_now) = (
                ended.saturating_sub(ended_before),
                failed.saturating_sub(failed_before),
            );
            if ended_now >= outlier.min_requests.max(1) {
                rates.push((
                    1.0 - failed_now.min(ended_now) as f64 / ended_now as f64,
                    id.clone(),
                ));
            }
            next.insert(id, (ended, failed));
        }
        self.before = next;
        let Some(limit) = outlier
            .deviations
            .and_then(|deviations| limit(&rates, deviations))
        else {
            return Vec::new();
        };
        // The worst first, because the budget may not suffice for all.
        rates.sort_by(|(one, _), (other, _)| one.total_cmp(other));
        let below = rates.into_iter().take_while(|(rate, _)| *rate < limit);
        below.map(|(_, id)| id).collect()
    }

    /// The endpoints that come back now.
    pub(crate) fn readmit(&mut self, now: Instant) -> Vec<EndpointId> {
        let mut back = Vec::new();
        for (id, patient) in &mut self.patients {
            let is_over = |ejection: &mut Ejection| ejection.until <= now;
            if patient.ejection.take_if(is_over).is_some() && !patient.is_ill {
                back.push(id.clone());
            }
        }
        back
    }

    /// The ejected endpoints, in the order in which they would come back.
    pub(crate) fn ejected(&self) -> Vec<EndpointId> {
        let patients = self.patients.iter();
        let ejected =
            patients.filter_map(|(id, patient)| Some((patient.ejection.as_ref()?.until, id)));
        let mut ejected: Vec<_> = ejected.collect();
        ejected.sort();
        ejected.into_iter().map(|(_, id)| id.clone()).collect()
    }

    /// Ends an ejection early. Returns whether it is in now.
    pub(crate) fn pardon(&mut self, id: &EndpointId) -> bool {
        let Some(patient) = self.patients.get_mut(id) else {
            return false;
        };
        patient.ejection.take().is_some() && !patient.is_ill
    }

    /// It has another budget from now on. Returns whether it is in because of that: the new budget was exhausted.
    pub(crate) fn transfer(&mut self, id: &EndpointId, budget: &EjectionBudget) -> bool {
        let patient = self.patients.get_mut(id);
        let Some((patient, ejection)) = patient.and_then(|patient| {
            let ejection = patient.ejection.take()?;
            Some((patient, ejection))
        }) else {
            return false;
        };
        let Ejection { until, place } = ejection;
        drop(place);
        patient.ejection = budget.try_eject().map(|place| Ejection { until, place });
        !patient.is_out()
    }

    /// The result of the health check changed. Returns whether it is in or out now, if that changed.
    pub(crate) fn checked(&mut self, id: &EndpointId, is_well: bool) -> Option<bool> {
        let patient = self.patients.entry(id.clone()).or_default();
        let was_out = patient.is_out();
        patient.is_ill = !is_well;
        let is_out = patient.is_out();
        if !is_out && patient.times == 0 {
            self.patients.remove(id);
        }
        (was_out != is_out).then_some(is_out)
    }

    pub(crate) fn forget(&mut self, id: &EndpointId) {
        self.patients.remove(id);
        self.before.remove(id);
    }

    /// When to call it again.
    pub(crate) fn next(&self) -> Option<Instant> {
        let back = self
            .patients
            .values()
            .filter_map(|patient| Some(patient.ejection.as_ref()?.until))
            .min();
        back.into_iter().chain(self.sweep_at).min()
    }

    /// No endpoint is left: [`next`](Self::next) must not return a time at which there is nothing to do.
    pub(crate) fn pause_sweeps(&mut self) {
        self.sweep_at = None;
    }

    /// Whether a comparison is due. The first interval begins with the first endpoint.
    pub(crate) fn is_sweep_due(&mut self, now: Instant) -> bool {
        let Some(outlier) = &self.outlier else {
            return false;
        };
        *self.sweep_at.get_or_insert(now + outlier.interval) <= now
    }
}

// === impl Patient ===

impl Patient {
    const fn is_out(&self) -> bool {
        self.ejection.is_some() || self.is_ill
    }
}

/// The mean minus this number of standard deviations. `None` if there are too few to compare.
fn limit(rates: &[(f64, EndpointId)], deviations: f64) -> Option<f64> {
    if rates.len() < FEW {
        return None;
    }
    let count = rates.len() as f64;
    let mean = rates.iter().map(|(rate, _)| rate).sum::<f64>() / count;
    let variance = rates
        .iter()
        .map(|(rate, _)| (rate - mean).powi(2))
        .sum::<f64>()
        / count;
    Some(mean - deviations * variance.sqrt())
}

/// With fewer endpoints than this, a mean and a deviation are meaningless.
const FEW: usize = 5;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ward() -> Ward {
        Ward::new(Some(Outlier::new()))
    }

    fn id(index: usize) -> EndpointId {
        format!("e{index}").into()
    }

    fn budget(members: usize) -> EjectionBudget {
        let budget = EjectionBudget::new();
        budget.set_members(members);
        budget
    }

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn an_ejection_ends_and_each_one_is_longer_until_there_was_quiet() {
        let (mut ward, budget, mut now) = (ward(), budget(10), Instant::now());
        for times in 1..=12_u32 {
            assert!(ward.strike(&id(0), &budget, now));
            assert!(!ward.strike(&id(0), &budget, now), "once");
            let until = ward.next().unwrap();
            let time = (30 * SECOND * times).min(300 * SECOND);
            assert!(
                until >= now + time && until <= now + time + time / 10 + SECOND / 1000,
                "{times}"
            );
            assert!(ward.readmit(until - SECOND).is_empty());
            assert_eq!(ward.readmit(until), [id(0)]);
            now = until;
        }
        for _ in 0..12 {
            assert!(ward.sweep(vec![], now).is_empty());
        }
        assert!(ward.patients.is_empty(), "forgiven");
    }

    #[test]
    fn at_most_as_many_are_ejected_as_the_budget_allows() {
        let (mut ward, budget, now) = (ward(), budget(11), Instant::now());
        let _circuit = budget.try_eject().unwrap();
        let ejected = (0..11)
            .filter(|index| ward.strike(&id(*index), &budget, now))
            .count();
        assert_eq!((ejected, budget.out()), (4, 5), "half of eleven together");
        ward.forget(&id(0));
        assert_eq!(budget.out(), 4, "what was removed gives its place back");
        assert!(ward.pardon(&ward.ejected()[0].clone()));
        assert_eq!(budget.out(), 3);
        drop(ward);
        assert_eq!(budget.out(), 1);
    }

    #[test]
    fn an_ejection_that_moves_to_another_budget_needs_a_place_there() {
        let (mut ward, from, to, now) = (ward(), budget(4), budget(2), Instant::now());
        assert!(ward.strike(&id(0), &from, now) && ward.strike(&id(1), &from, now));
        let until = ward.next();
        assert!(!ward.transfer(&id(0), &to));
        assert_eq!((from.out(), to.out(), ward.next()), (1, 1, until));
        assert!(ward.transfer(&id(1), &to), "there is no other place");
        assert_eq!((from.out(), to.out()), (0, 1));
        assert!(!ward.transfer(&id(2), &to), "it was never ejected");
    }

    #[test]
    fn checks_and_ejections_are_independent() {
        let (mut ward, budget, now) = (ward(), budget(10), Instant::now());
        assert!(ward.strike(&id(0), &budget, now));
        assert_eq!(ward.checked(&id(0), false), None, "out it is");
        assert!(ward.readmit(now + 60 * SECOND).is_empty(), "still ill");
        assert_eq!(budget.out(), 0, "failing checks take no place");
        assert_eq!(ward.checked(&id(0), true), Some(false));
    }

    #[test]
    fn an_endpoint_far_below_the_mean_is_ejected_and_one_a_little_below_is_not() {
        let seen = |turn: u64, bad: u64| {
            let of = move |index: usize| {
                let failed = if index == 3 { bad } else { turn };
                Seen {
                    id: id(index),
                    ended: 200 * turn,
                    failed,
                }
            };
            (0..10).map(of).collect::<Vec<_>>()
        };
        let (mut ward, now) = (ward(), Instant::now());
        assert_eq!(ward.sweep(seen(1, 40), now), [id(3)]);
        assert!(
            ward.sweep(seen(2, 41), now + 10 * SECOND).is_empty(),
            "only this turn's count"
        );
        let mut few = Ward::new(Some(Outlier::new()));
        assert!(
            few.sweep(seen(1, 40)[..4].to_vec(), now).is_empty(),
            "too few to compare"
        );
        let mut idle = Ward::new(Some(Outlier::new().min_requests(201)));
        assert!(
            idle.sweep(seen(1, 40), now).is_empty(),
            "too little to judge by"
        );
    }

    proptest! {
        /// In any sequence the share holds, ejected endpoints come back, and no place of the budget is lost.
        #[test]
        fn the_share_holds(events in proptest::collection::vec((0_usize..12, 0_u8..6, 0_u32..40), 0..200), known in 1_usize..12) {
            let (mut ward, mut now) = (ward(), Instant::now());
            let budget = budget(known);
            let members: Vec<_> = (0..12).map(|_| budget.for_member()).collect();
            for (index, what, seconds) in events {
                now += seconds * SECOND;
                ward.readmit(now);
                match what {
                    0 => ward.forget(&id(index)),
                    1 => drop(ward.sweep(vec![], now)),
                    2 => drop(ward.pardon(&id(index))),
                    3 => drop(ward.transfer(&id(index), &members[index])),
                    _ => drop(ward.strike(&id(index % known), &members[index % known], now)),
                }
                prop_assert!(budget.out() <= budget.max_out(), "{} of {known}", budget.out());
                prop_assert_eq!(budget.out(), ward.ejected().len());
            }
            ward.readmit(now + 400 * SECOND);
            prop_assert_eq!((budget.out(), ward.ejected().len()), (0, 0));
        }
    }
}
