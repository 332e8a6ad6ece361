use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    num::NonZeroU64,
    ops::Bound,
    time::Duration,
};

use tokio::time::Instant;

use crate::{
    Acquired, Claim, ClaimId, Fault, FencingToken, Grant, LeaseKey, Listing, Record, Revision, StoreError, WatchEvent,
};

/// The heart of the store: a table of records, told what time it is.
#[derive(Debug, Default)]
pub(crate) struct Table {
    /// The number of changes so far; it numbers the tokens too, so they grow over deletion and re-creation.
    revision: u64,
    entries: BTreeMap<LeaseKey, Entry>,
    /// The same entries by when they end.
    ends: BTreeSet<(Instant, LeaseKey)>,
    /// The latest changes, one per revision, up to `revision`.
    log: VecDeque<WatchEvent>,
}

/// Events that a reader asked for are no longer in the log.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Forgotten;

#[derive(Debug)]
struct Entry {
    record: Record,
    ttl: Duration,
    end: Instant,
}

pub(crate) const MAX_RECORDS: usize = 100_000;
pub(crate) const MAX_LOG: usize = 1_024;

// === impl Table ===

impl Table {
    pub(crate) fn acquire(&mut self, claim: &Claim, now: Instant) -> Result<Acquired, StoreError> {
        self.sweep(now);
        if let Some(entry) = self.entries.get(claim.key()) {
            return Ok(entry.answer(claim.id(), now));
        }
        if self.entries.len() >= MAX_RECORDS {
            return Err(StoreError::refused("the store is full"));
        }
        let end = end(now, claim.ttl())?;
        let key = claim.key().clone();
        let token = FencingToken::new(key.clone(), self.next_epoch());
        let entry = Entry { record: Record::new(token, claim.holder().clone(), claim.id()), ttl: claim.ttl(), end };
        let answer = entry.answer(claim.id(), now);
        self.tell(WatchEvent::Held(entry.record.clone(), Revision::new(self.revision + 1)));
        self.ends.insert((end, key.clone()));
        self.entries.insert(key, entry);
        Ok(answer)
    }

    pub(crate) fn renew(&mut self, claim: &Claim, now: Instant) -> Result<Duration, StoreError> {
        self.sweep(now);
        let Some(entry) = self.entries.get_mut(claim.key()).filter(|entry| entry.record.claim() == claim.id()) else {
            return Err(StoreError::new(Fault::Lost));
        };
        let end = end(now, entry.ttl)?;
        self.ends.remove(&(entry.end, claim.key().clone()));
        self.ends.insert((end, claim.key().clone()));
        entry.end = end;
        Ok(entry.ttl)
    }

    pub(crate) fn release(&mut self, claim: &Claim, now: Instant) {
        self.sweep(now);
        if self.entries.get(claim.key()).is_some_and(|entry| entry.record.claim() == claim.id()) {
            self.remove(claim.key());
        }
    }

    pub(crate) fn revoke(&mut self, key: &LeaseKey, now: Instant) {
        self.sweep(now);
        self.remove(key);
    }

    pub(crate) fn inspect(&mut self, key: &LeaseKey, now: Instant) -> Option<Record> {
        self.sweep(now);
        self.entries.get(key).map(|entry| entry.read(now))
    }

    pub(crate) fn list(&mut self, prefix: &str, now: Instant) -> Listing {
        self.sweep(now);
        let from = self.entries.range::<str, _>((Bound::Included(prefix), Bound::Unbounded));
        let records = from.take_while(|(key, _)| key.as_str().starts_with(prefix));
        Listing { revision: self.revision(), records: records.map(|(_, entry)| entry.read(now)).collect() }
    }

    /// Ends what is over. Done before everything else, so nobody sees a record past its end, run or not run.
    pub(crate) fn sweep(&mut self, now: Instant) {
        while let Some((end, key)) = self.ends.first()
            && *end <= now
        {
            let key = key.clone();
            self.remove(&key);
        }
    }

    /// The first change after `after` that `fits`, looking at no more than the log.
    pub(crate) fn after(
        &self,
        after: Revision,
        fits: impl Fn(&LeaseKey) -> bool,
    ) -> Result<Option<&WatchEvent>, Forgotten> {
        let forgotten = self.revision - self.log.len() as u64;
        let skip = after.number().checked_sub(forgotten).filter(|_| after <= self.revision()).ok_or(Forgotten)?;
        let skip = usize::try_from(skip).unwrap_or(usize::MAX);
        Ok(self.log.iter().skip(skip).find(|event| key_of(event).is_some_and(&fits)))
    }

    pub(crate) fn revision(&self) -> Revision {
        Revision::new(self.revision)
    }

    /// When the next record ends, if nobody renews it.
    pub(crate) fn next_end(&self) -> Option<Instant> {
        self.ends.first().map(|(end, _)| *end)
    }

    fn next_epoch(&self) -> NonZeroU64 {
        NonZeroU64::MIN.saturating_add(self.revision)
    }

    fn remove(&mut self, key: &LeaseKey) {
        if let Some(entry) = self.entries.remove(key) {
            self.ends.remove(&(entry.end, key.clone()));
            self.tell(WatchEvent::Vacant(key.clone(), Revision::new(self.revision + 1)));
        }
    }

    fn tell(&mut self, event: WatchEvent) {
        self.revision += 1;
        if self.log.len() == MAX_LOG {
            self.log.pop_front();
        }
        self.log.push_back(event);
    }
}

// === impl Entry ===

impl Entry {
    fn read(&self, now: Instant) -> Record {
        self.record.clone().expiring_in(self.end.saturating_duration_since(now))
    }

    fn answer(&self, claim: ClaimId, now: Instant) -> Acquired {
        if self.record.claim() != claim {
            return Acquired::Held(self.read(now));
        }
        let token = self.record.token().clone();
        let revision = Revision::new(token.epoch().get());
        Acquired::Granted(Grant::new(token, self.ttl, revision))
    }
}

pub(crate) fn revision_of(event: &WatchEvent) -> Option<Revision> {
    match event {
        WatchEvent::Held(_, revision) | WatchEvent::Vacant(_, revision) => Some(*revision),
        WatchEvent::Lagged => None,
    }
}

fn key_of(event: &WatchEvent) -> Option<&LeaseKey> {
    match event {
        WatchEvent::Held(record, _) => Some(record.key()),
        WatchEvent::Vacant(key, _) => Some(key),
        WatchEvent::Lagged => None,
    }
}

fn end(now: Instant, ttl: Duration) -> Result<Instant, StoreError> {
    now.checked_add(ttl).ok_or_else(|| StoreError::refused("the TTL does not fit into time"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::Holder;

    const TTL: Duration = Duration::from_secs(10);

    fn key(name: &str) -> LeaseKey {
        LeaseKey::new(name).unwrap()
    }

    fn claim(name: &str, id: u128) -> Claim {
        Claim::new(key(name), Holder::new("h"), ClaimId::from_u128(id), TTL)
    }

    fn granted(acquired: Result<Acquired, StoreError>) -> Option<u64> {
        match acquired.unwrap() {
            Acquired::Granted(grant) => Some(grant.token().epoch().get()),
            Acquired::Held(_) => None,
        }
    }

    #[test]
    fn r15_a_repeated_claim_gets_the_same_grant_and_is_written_once() {
        let (mut table, now) = (Table::default(), Instant::now());
        let first = table.acquire(&claim("a", 1), now).unwrap();
        let later = now + Duration::from_secs(1);
        assert_eq!(table.acquire(&claim("a", 1), later).unwrap(), first);
        assert_eq!(table.revision(), Revision::new(1));
        assert_eq!(table.next_end(), Some(now + TTL), "and it lasts no longer for that");
        assert_eq!(granted(table.acquire(&claim("a", 2), later)), None);
    }

    #[test]
    fn r30_only_the_claim_that_holds_it_can_release_or_renew() {
        let (mut table, now) = (Table::default(), Instant::now());
        table.acquire(&claim("a", 1), now).unwrap();
        table.release(&claim("a", 2), now);
        assert!(table.inspect(&key("a"), now).is_some());
        assert_eq!(table.renew(&claim("a", 2), now).unwrap_err().fault(), Fault::Lost);
        table.release(&claim("a", 1), now);
        table.release(&claim("a", 1), now);
        assert!(table.inspect(&key("a"), now).is_none());
    }

    #[test]
    fn r6_a_record_ends_without_anybody_sweeping() {
        let (mut table, now) = (Table::default(), Instant::now());
        table.acquire(&claim("a", 1), now).unwrap();
        assert_eq!(table.renew(&claim("a", 1), now + TTL).unwrap_err().fault(), Fault::Lost);
        assert_eq!(granted(table.acquire(&claim("a", 2), now + TTL)), Some(3), "1 acquired, 2 expired, 3");
    }

    #[test]
    fn a_prefix_lists_only_what_is_under_it() {
        let (mut table, now) = (Table::default(), Instant::now());
        for (id, name) in ["svc/a/1", "svc/a/2", "svc/b/1", "svc/a"].iter().enumerate() {
            table.acquire(&claim(name, id as u128), now).unwrap();
        }
        let listing = table.list("svc/a/", now);
        let keys: Vec<_> = listing.records.iter().map(|record| record.key().as_str()).collect();
        assert_eq!(keys, ["svc/a/1", "svc/a/2"]);
        assert_eq!(listing.revision, Revision::new(4));
    }

    #[test]
    fn the_log_is_bounded_and_says_what_it_forgot() {
        let (mut table, now) = (Table::default(), Instant::now());
        for id in 0..=MAX_LOG as u128 {
            table.acquire(&claim("a", id), now).unwrap();
            table.release(&claim("a", id), now);
        }
        assert_eq!(table.log.len(), MAX_LOG);
        assert_eq!(table.after(Revision::START, |_| true), Err(Forgotten));
        let floor = Revision::new(table.revision - MAX_LOG as u64);
        let first = table.after(floor, |_| true).unwrap().and_then(revision_of);
        assert_eq!(first, Some(Revision::new(floor.number() + 1)));
        assert_eq!(table.after(table.revision(), |_| true), Ok(None));
        assert_eq!(table.after(Revision::new(u64::MAX), |_| true), Err(Forgotten), "of another store's history");
    }

    #[derive(Clone, Debug)]
    enum Op {
        Acquire(u8, u8),
        Renew(u8, u8),
        Release(u8, u8),
        Revoke(u8),
        Pass(u64),
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            3 => (0..2_u8, 0..4_u8).prop_map(|(key, claim)| Op::Acquire(key, claim)),
            1 => (0..2_u8, 0..4_u8).prop_map(|(key, claim)| Op::Renew(key, claim)),
            1 => (0..2_u8, 0..4_u8).prop_map(|(key, claim)| Op::Release(key, claim)),
            1 => (0..2_u8).prop_map(Op::Revoke),
            2 => (0..12_u64).prop_map(Op::Pass),
        ]
    }

    proptest! {
        /// R-19, I4: over any history, a key's new tokens only grow, and a watcher sees every change once, in order.
        #[test]
        fn r19_tokens_only_grow(history in proptest::collection::vec(op(), 1..80)) {
            let (mut table, mut now) = (Table::default(), Instant::now());
            let mut highest = [(0, u128::MAX); 2];
            for (step, op) in history.into_iter().enumerate() {
                let of = |key: u8, id: u8| claim(["a", "b"][usize::from(key)], id.into());
                match op {
                    Op::Acquire(key, id) => if let Some(epoch) = granted(table.acquire(&of(key, id), now)) {
                        let high = &mut highest[usize::from(key)];
                        prop_assert!(epoch > high.0 || (epoch, id.into()) == *high, "step {step}");
                        *high = (epoch, id.into());
                    },
                    Op::Renew(key, id) => drop(table.renew(&of(key, id), now)),
                    Op::Release(key, id) => table.release(&of(key, id), now),
                    Op::Revoke(name) => table.revoke(of(name, 0).key(), now),
                    Op::Pass(seconds) => now += Duration::from_secs(seconds),
                }
                prop_assert_eq!(table.entries.len(), table.ends.len());
            }
            let mut seen = Revision::START;
            while let Some(event) = table.after(seen, |_| true).unwrap() {
                let revision = revision_of(event).unwrap();
                prop_assert_eq!(revision.number(), seen.number() + 1);
                seen = revision;
            }
            prop_assert_eq!(seen, table.revision());
        }
    }
}
