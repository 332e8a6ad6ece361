use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    num::NonZeroU64,
    ops::Bound,
    time::Duration,
};

use tokio::time::Instant;

use crate::{
    Acquired, Claim, ClaimId, Document, Fault, FencingToken, Grant, LeaseKey, Listing, Record,
    Revision, StoreError, Swap, Swapped, WatchEvent,
};

/// The heart of the store: a table of records, told what time it is.
#[derive(Clone, Debug, Default)]
pub(crate) struct Table {
    /// The number of changes so far; it numbers the tokens too, so they grow over deletion and re-creation.
    revision: u64,
    entries: BTreeMap<LeaseKey, Entry>,
    /// The same entries by when they end.
    ends: BTreeSet<(Instant, LeaseKey)>,
    documents: BTreeMap<LeaseKey, Page>,
    /// Vacant keys whose last epoch did not end in good order.
    unclean: BTreeSet<LeaseKey>,
    /// There were too many of those: every end counts as unclean.
    forgot_unclean: bool,
    /// The latest changes, one per revision, up to `revision`.
    log: VecDeque<WatchEvent>,
}

/// Events that a reader asked for are no longer in the log.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Forgotten;

#[derive(Clone, Debug)]
struct Entry {
    record: Record,
    ttl: Duration,
    end: Instant,
    is_clean: bool,
    /// Documents that end with this epoch.
    bound: BTreeSet<LeaseKey>,
}

#[derive(Clone, Debug)]
struct Page {
    document: Document,
    /// The epoch it ends with.
    bound: Option<FencingToken>,
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
        if self.documents.contains_key(claim.key()) {
            return Err(StoreError::refused("the key is a document"));
        }
        self.has_room()?;
        let is_clean = !self.forgot_unclean && !self.unclean.contains(claim.key());
        let grant = self.install(claim, is_clean, end(now, claim.ttl())?);
        self.unclean.remove(claim.key());
        Ok(Acquired::Granted(grant))
    }

    /// another claim's record in the place of this one's, with the next token.
    pub(crate) fn transfer(
        &mut self,
        from: &Claim,
        to: &Claim,
        now: Instant,
    ) -> Result<Grant, StoreError> {
        self.sweep(now);
        if from.key() != to.key() {
            return Err(StoreError::refused(
                "a lease is transferred between claims to the same key",
            ));
        }
        match self.entries.get(to.key()) {
            Some(entry) if entry.record.claim() == to.id() => return Ok(entry.grant()),
            Some(entry) if entry.record.claim() == from.id() => {}
            _ => return Err(StoreError::new(Fault::Lost)),
        }
        let end = end(now, to.ttl())?;
        if let Some(old) = self.entries.remove(from.key()) {
            self.ends.remove(&(old.end, from.key().clone()));
            self.unbind(&old);
        }
        Ok(self.install(to, true, end))
    }

    /// Puts a record where none is, and tells that.
    fn install(&mut self, claim: &Claim, is_clean: bool, end: Instant) -> Grant {
        let key = claim.key().clone();
        let record = Record::new(
            FencingToken::new(key.clone(), self.next_epoch()),
            claim.holder().clone(),
            claim.id(),
        );
        self.tell(WatchEvent::Held(
            record.clone(),
            Revision::new(self.revision + 1),
        ));
        self.ends.insert((end, key.clone()));
        let entry = Entry {
            record,
            ttl: claim.ttl(),
            end,
            is_clean,
            bound: BTreeSet::new(),
        };
        let grant = entry.grant();
        self.entries.insert(key, entry);
        grant
    }

    pub(crate) fn renew(&mut self, claim: &Claim, now: Instant) -> Result<Duration, StoreError> {
        self.sweep(now);
        let Some(entry) = self
            .entries
            .get_mut(claim.key())
            .filter(|entry| entry.record.claim() == claim.id())
        else {
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
        if self
            .entries
            .get(claim.key())
            .is_some_and(|entry| entry.record.claim() == claim.id())
        {
            self.remove(claim.key());
            self.unclean.remove(claim.key());
        }
    }

    pub(crate) fn revoke(
        &mut self,
        key: &LeaseKey,
        guard: Option<&FencingToken>,
        now: Instant,
    ) -> Result<(), StoreError> {
        self.sweep(now);
        self.check(guard)?;
        self.remove(key);
        Ok(())
    }

    pub(crate) fn inspect(&mut self, key: &LeaseKey, now: Instant) -> Option<Record> {
        self.sweep(now);
        self.entries.get(key).map(|entry| entry.read(now))
    }

    pub(crate) fn list(&mut self, prefix: &str, now: Instant) -> Listing {
        self.sweep(now);
        let records = under(&self.entries, prefix).map(|entry| entry.read(now));
        let documents = under(&self.documents, prefix).map(|page| page.document.clone());
        Listing {
            revision: self.revision(),
            records: records.collect(),
            documents: documents.collect(),
        }
    }

    pub(crate) fn read(&mut self, key: &LeaseKey, now: Instant) -> Option<Document> {
        self.sweep(now);
        self.documents.get(key).map(|page| page.document.clone())
    }

    /// the look at the guard and the write are one step.
    pub(crate) fn swap(&mut self, swap: &Swap, now: Instant) -> Result<Swapped, StoreError> {
        self.sweep(now);
        self.check(swap.guard())?;
        if self.entries.contains_key(swap.key()) {
            return Err(StoreError::refused("the key is a lease"));
        }
        let found = self.documents.get(swap.key()).map(|page| &page.document);
        if found.map(Document::revision) != swap.expected() {
            return Ok(Swapped::Changed(found.cloned()));
        }
        let is_new = found.is_none();
        match swap.value() {
            Some(value) if value.len() > Document::MAX_LEN => {
                return Err(StoreError::refused(format!(
                    "a document has at most {} bytes",
                    Document::MAX_LEN
                )));
            }
            Some(value) => {
                if is_new {
                    self.has_room()?;
                }
                self.release_page(swap.key());
                let document = Document::new(
                    swap.key().clone(),
                    value.clone(),
                    Revision::new(self.revision + 1),
                );
                let bound = self.bind(swap);
                self.documents.insert(
                    swap.key().clone(),
                    Page {
                        document: document.clone(),
                        bound,
                    },
                );
                self.tell(WatchEvent::Written(document));
            }
            None => {
                self.release_page(swap.key());
                self.delete(swap.key());
            }
        }
        Ok(Swapped::Done(self.revision()))
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
        fits: impl Fn(&WatchEvent) -> bool,
    ) -> Result<Option<&WatchEvent>, Forgotten> {
        let forgotten = self.revision - self.log.len() as u64;
        let skip = after
            .number()
            .checked_sub(forgotten)
            .filter(|_| after <= self.revision())
            .ok_or(Forgotten)?;
        let skip = usize::try_from(skip).unwrap_or(usize::MAX);
        Ok(self.log.iter().skip(skip).find(|event| fits(event)))
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

    fn has_room(&self) -> Result<(), StoreError> {
        if self.entries.len() + self.documents.len() < MAX_RECORDS {
            Ok(())
        } else {
            Err(StoreError::refused("the store is full"))
        }
    }

    fn check(&self, guard: Option<&FencingToken>) -> Result<(), StoreError> {
        let holds = |token: &FencingToken| {
            self.entries
                .get(token.key())
                .is_some_and(|e| e.record.token() == token)
        };
        if guard.is_none_or(holds) {
            Ok(())
        } else {
            Err(StoreError::lost("the guard's epoch does not hold its key"))
        }
    }

    /// Ends an epoch; its holder may not know, so until told otherwise that is no clean end.
    fn remove(&mut self, key: &LeaseKey) {
        if let Some(entry) = self.entries.remove(key) {
            self.ends.remove(&(entry.end, key.clone()));
            self.tell(WatchEvent::Vacant(
                key.clone(),
                Revision::new(self.revision + 1),
            ));
            self.unbind(&entry);
            self.forgot_unclean |= self.unclean.len() >= MAX_RECORDS;
            if !self.forgot_unclean {
                self.unclean.insert(key.clone());
            }
        }
    }

    fn delete(&mut self, key: &LeaseKey) {
        if self.documents.remove(key).is_some() {
            self.tell(WatchEvent::Deleted(
                key.clone(),
                Revision::new(self.revision + 1),
            ));
        }
    }

    fn bind(&mut self, swap: &Swap) -> Option<FencingToken> {
        let token = swap.guard().filter(|_| swap.is_bound())?;
        self.entries
            .get_mut(token.key())?
            .bound
            .insert(swap.key().clone());
        Some(token.clone())
    }

    /// A document that is written or deleted does not end with the epoch that it was bound to.
    fn release_page(&mut self, key: &LeaseKey) {
        let Some(Page {
            bound: Some(token), ..
        }) = self.documents.get(key)
        else {
            return;
        };
        if let Some(entry) = self.entries.get_mut(token.key()) {
            entry.bound.remove(key);
        }
    }

    /// Deletes what is bound to this epoch.
    fn unbind(&mut self, ended: &Entry) {
        ended.bound.iter().for_each(|key| self.delete(key));
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
        self.record
            .clone()
            .expiring_in(self.end.saturating_duration_since(now))
    }

    fn answer(&self, claim: ClaimId, now: Instant) -> Acquired {
        if self.record.claim() != claim {
            return Acquired::Held(self.read(now));
        }
        Acquired::Granted(self.grant())
    }

    fn grant(&self) -> Grant {
        let token = self.record.token().clone();
        let revision = Revision::new(token.epoch().get());
        let grant = Grant::new(token, self.ttl, revision);
        if self.is_clean {
            grant.after_clean_end()
        } else {
            grant
        }
    }
}

/// What is in a map under a prefix.
fn under<'a, T>(map: &'a BTreeMap<LeaseKey, T>, prefix: &'a str) -> impl Iterator<Item = &'a T> {
    let from = map.range::<str, _>((Bound::Included(prefix), Bound::Unbounded));
    from.take_while(move |(key, _)| key.as_str().starts_with(prefix))
        .map(|(_, found)| found)
}

pub(crate) fn revision_of(event: &WatchEvent) -> Option<Revision> {
    match event {
        WatchEvent::Held(_, at) | WatchEvent::Vacant(_, at) | WatchEvent::Deleted(_, at) => {
            Some(*at)
        }
        WatchEvent::Written(document) => Some(document.revision()),
        WatchEvent::Lagged => None,
    }
}

pub(crate) fn key_of(event: &WatchEvent) -> Option<&LeaseKey> {
    match event {
        WatchEvent::Held(record, _) => Some(record.key()),
        WatchEvent::Vacant(key, _) | WatchEvent::Deleted(key, _) => Some(key),
        WatchEvent::Written(document) => Some(document.key()),
        WatchEvent::Lagged => None,
    }
}

fn end(now: Instant, ttl: Duration) -> Result<Instant, StoreError> {
    now.checked_add(ttl)
        .ok_or_else(|| StoreError::refused("the TTL does not fit into time"))
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
        assert_eq!(
            table.next_end(),
            Some(now + TTL),
            "and it lasts no longer for that"
        );
        assert_eq!(granted(table.acquire(&claim("a", 2), later)), None);
    }

    #[test]
    fn r30_only_the_claim_that_holds_it_can_release_or_renew() {
        let (mut table, now) = (Table::default(), Instant::now());
        table.acquire(&claim("a", 1), now).unwrap();
        table.release(&claim("a", 2), now);
        assert!(table.inspect(&key("a"), now).is_some());
        assert_eq!(
            table.renew(&claim("a", 2), now).unwrap_err().fault(),
            Fault::Lost
        );
        table.release(&claim("a", 1), now);
        table.release(&claim("a", 1), now);
        assert!(table.inspect(&key("a"), now).is_none());
    }

    #[test]
    fn r6_a_record_ends_without_anybody_sweeping() {
        let (mut table, now) = (Table::default(), Instant::now());
        table.acquire(&claim("a", 1), now).unwrap();
        assert_eq!(
            table.renew(&claim("a", 1), now + TTL).unwrap_err().fault(),
            Fault::Lost
        );
        assert_eq!(
            granted(table.acquire(&claim("a", 2), now + TTL)),
            Some(3),
            "1 acquired, 2 expired, 3"
        );
    }

    #[test]
    fn a_prefix_lists_only_what_is_under_it() {
        let (mut table, now) = (Table::default(), Instant::now());
        for (id, name) in ["svc/a/1", "svc/a/2", "svc/b/1", "svc/a"]
            .iter()
            .enumerate()
        {
            table.acquire(&claim(name, id as u128), now).unwrap();
        }
        let listing = table.list("svc/a/", now);
        let keys: Vec<_> = listing
            .records
            .iter()
            .map(|record| record.key().as_str())
            .collect();
        assert_eq!(keys, ["svc/a/1", "svc/a/2"]);
        assert_eq!(listing.revision, Revision::new(4));
    }

    #[test]
    fn r20_a_transfer_leaves_no_vacancy_and_raises_the_token() {
        let (mut table, now) = (Table::default(), Instant::now());
        let first = granted(table.acquire(&claim("a", 1), now)).unwrap();
        let later = now + Duration::from_secs(4);
        assert_eq!(
            table
                .transfer(&claim("a", 9), &claim("a", 2), later)
                .unwrap_err()
                .fault(),
            Fault::Lost
        );
        assert_eq!(
            table
                .transfer(&claim("a", 1), &claim("b", 2), later)
                .unwrap_err()
                .fault(),
            Fault::Refused
        );
        let grant = table
            .transfer(&claim("a", 1), &claim("a", 2), later)
            .unwrap();
        assert!(grant.token().epoch().get() > first && grant.is_clean());
        assert_eq!(
            table
                .transfer(&claim("a", 1), &claim("a", 2), later)
                .unwrap(),
            grant,
            "R-15: once"
        );
        assert_eq!(
            table.acquire(&claim("a", 2), later).unwrap(),
            Acquired::Granted(grant)
        );
        assert_eq!(table.next_end(), Some(later + TTL));
        assert_eq!(
            table.renew(&claim("a", 1), later).unwrap_err().fault(),
            Fault::Lost
        );
        let told: Vec<_> = table
            .log
            .iter()
            .map(|event| matches!(event, WatchEvent::Held(..)))
            .collect();
        assert_eq!(told, [true, true], "no vacancy in between");
    }

    #[test]
    fn r18_a_grant_tells_how_the_last_epoch_ended() {
        let (mut table, now) = (Table::default(), Instant::now());
        let is_clean =
            |table: &mut Table, id, now| match table.acquire(&claim("a", id), now).unwrap() {
                Acquired::Granted(grant) => grant.is_clean(),
                Acquired::Held(record) => panic!("{record:?}"),
            };
        assert!(is_clean(&mut table, 1, now), "nobody was there before");
        table.release(&claim("a", 1), now);
        assert!(is_clean(&mut table, 2, now), "released");
        table.revoke(&key("a"), None, now).unwrap();
        assert!(
            !is_clean(&mut table, 3, now),
            "revoked: the holder may be at work"
        );
        assert!(
            !is_clean(&mut table, 3, now),
            "the same answer to the same claim"
        );
        assert!(!is_clean(&mut table, 4, now + TTL), "expired");
    }

    #[test]
    fn r21_a_guarded_write_needs_its_guard_in_the_same_step() {
        let (mut table, now) = (Table::default(), Instant::now());
        let token =
            |table: &mut Table, id, now| match table.acquire(&claim("lead", id), now).unwrap() {
                Acquired::Granted(grant) => grant.token().clone(),
                Acquired::Held(record) => panic!("{record:?}"),
            };
        let old = token(&mut table, 1, now);
        let create = Swap::create(key("doc"), "one").guarded_by(&old);
        let Swapped::Done(at) = table.swap(&create, now).unwrap() else {
            panic!("it is not there")
        };
        let seen = table.read(&key("doc"), now).unwrap();
        assert_eq!((seen.value().as_ref(), seen.revision()), (&b"one"[..], at));
        assert_eq!(
            table.swap(&create, now).unwrap(),
            Swapped::Changed(Some(seen.clone()))
        );
        let new = token(&mut table, 2, now + TTL);
        let late = table.swap(&Swap::replace(&seen, "stale").guarded_by(&old), now + TTL);
        assert_eq!(late.unwrap_err().fault(), Fault::Lost);
        assert_eq!(
            table
                .revoke(&key("x"), Some(&old), now + TTL)
                .unwrap_err()
                .fault(),
            Fault::Lost
        );
        assert!(matches!(
            table
                .swap(&Swap::delete(&seen).guarded_by(&new), now + TTL)
                .unwrap(),
            Swapped::Done(_)
        ));
        assert_eq!(
            table.swap(&Swap::delete(&seen), now + TTL).unwrap(),
            Swapped::Changed(None)
        );
    }

    #[test]
    fn a_bound_document_ends_with_its_epoch_unless_written_since_without_it() {
        let (mut table, now) = (Table::default(), Instant::now());
        let Acquired::Granted(grant) = table.acquire(&claim("a", 1), now).unwrap() else {
            panic!()
        };
        for name in ["a/phase", "a/kept"] {
            table
                .swap(&Swap::create(key(name), "x").bound_to(grant.token()), now)
                .unwrap();
        }
        let kept = table.read(&key("a/kept"), now).unwrap();
        table.swap(&Swap::replace(&kept, "y"), now).unwrap();
        assert_eq!(table.list("a/", now).documents.len(), 2);
        table.release(&claim("a", 1), now);
        let left: Vec<_> = table
            .list("a", now)
            .documents
            .iter()
            .map(|left| left.key().to_string())
            .collect();
        assert_eq!(left, ["a/kept"]);
        assert!(
            matches!(table.log.back(), Some(WatchEvent::Deleted(gone, _)) if *gone == key("a/phase"))
        );
    }

    /// An epoch may last for years, and bind a document for every client that comes and goes.
    #[test]
    fn what_is_no_longer_bound_is_not_remembered() {
        let (mut table, now) = (Table::default(), Instant::now());
        let Acquired::Granted(grant) = table.acquire(&claim("a", 1), now).unwrap() else {
            panic!()
        };
        for number in 0..10 {
            let key = key(&format!("a/{number}"));
            for _ in 0..2 {
                let swap = match table.read(&key, now) {
                    None => Swap::create(key.clone(), "x"),
                    Some(seen) => Swap::replace(&seen, "y"),
                };
                table.swap(&swap.bound_to(grant.token()), now).unwrap();
            }
            let seen = table.read(&key, now).unwrap();
            let gone = if number & 1 == 0 {
                Swap::delete(&seen)
            } else {
                Swap::replace(&seen, "kept")
            };
            assert_eq!(table.entries[grant.token().key()].bound.len(), 1);
            table.swap(&gone, now).unwrap();
            assert!(table.entries[grant.token().key()].bound.is_empty());
        }
        table.release(&claim("a", 1), now);
        assert_eq!(table.list("a/", now).documents.len(), 5);
    }

    #[test]
    fn a_key_is_a_lease_or_a_document() {
        let (mut table, now) = (Table::default(), Instant::now());
        table.acquire(&claim("a", 1), now).unwrap();
        assert_eq!(
            table
                .swap(&Swap::create(key("a"), "x"), now)
                .unwrap_err()
                .fault(),
            Fault::Refused
        );
        table.swap(&Swap::create(key("b"), "x"), now).unwrap();
        assert_eq!(
            table.acquire(&claim("b", 1), now).unwrap_err().fault(),
            Fault::Refused
        );
        let long = Swap::create(key("c"), vec![0; Document::MAX_LEN + 1]);
        assert_eq!(table.swap(&long, now).unwrap_err().fault(), Fault::Refused);
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
        assert_eq!(
            table.after(Revision::new(u64::MAX), |_| true),
            Err(Forgotten),
            "of another store's history"
        );
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
                    Op::Revoke(name) => table.revoke(of(name, 0).key(), None, now).unwrap(),
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
