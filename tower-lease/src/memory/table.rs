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

#[cfg(test)]
mod tests;

/// The store's state machine: a table of records. The caller passes the time.
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

    /// Inserts a record, and logs the event.
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

    /// Ends what is over. Done before everything else, so no call sees a record past its end.
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

    /// When the next record ends, unless it is renewed.
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

    /// Ends an epoch; its holder may not know, so without a release that is no clean end.
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
