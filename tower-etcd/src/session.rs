//! Several keys on one etcd lease.

use std::{
    collections::HashMap,
    sync::{Arc, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::Mutex;
use tower_lease::{BootClock, BootInstant, Claim, ClaimId, Clock, StoreError};

use crate::{
    codec::Session,
    keepalive::KeepAlives,
    keys::Keys,
    store::{EtcdStore, lease_of},
};

/// The etcd lease that all claims of a store hang on, and who they are.
pub(crate) struct SharedSession {
    keep_alives: Arc<KeepAlives>,
    /// Held over a renewal, so that there is one at a time; whoever waited for it shares its result.
    live: Mutex<Option<Live>>,
    claims: std::sync::Mutex<HashMap<ClaimId, Seen>>,
}

struct Live {
    lease: i64,
    ttl: Duration,
    /// When the last renewal that succeeded was sent.
    sent: BootInstant,
}

struct Seen {
    claim: Claim,
    /// How the store names keys that it came through: clones with other prefixes are on the same session.
    keys: Keys,
    /// When its keeper last asked.
    at: BootInstant,
}

/// A renewal that was sent so shortly ago serves another claim too: less than that part of the TTL.
const SHARED_FOR: u32 = 8;

// === impl SharedSession ===

impl SharedSession {
    pub(crate) fn new(keep_alives: Arc<KeepAlives>) -> Self {
        Self {
            keep_alives,
            live: Mutex::default(),
            claims: std::sync::Mutex::default(),
        }
    }

    pub(crate) fn has(&self, claim: &Claim) -> bool {
        self.claims().contains_key(&claim.id())
    }

    /// The etcd lease to hang a claim's key on, and for how long it lasts from now: renewed for it, or made.
    pub(crate) async fn join(
        &self,
        store: &EtcdStore,
        claim: &Claim,
    ) -> Result<(i64, Duration), StoreError> {
        let mut live = self.live.lock().await;
        self.see(store, claim);
        if let Some(session) = &mut *live
            && let Some(ttl) = self.extend(session, store.within(claim)).await?
        {
            let lease = session.lease;
            self.let_go(store, lease, ttl, store.within(claim)).await;
            return Ok((lease, ttl));
        }
        *live = None;
        // What the others held ended with the etcd lease.
        self.claims().retain(|id, _| *id == claim.id());
        let (lease, sent) = (lease_of(ClaimId::random()), now());
        let ttl = store.grant(lease, claim).await?;
        *live = Some(Live { lease, ttl, sent });
        Ok((lease, ttl))
    }

    /// For how long from now the session lasts; `None` if it is over.
    ///
    /// What an earlier renewal gave is told less the time since that was sent, so nobody counts from later.
    pub(crate) async fn renew(
        &self,
        store: &EtcdStore,
        claim: &Claim,
        within: Duration,
    ) -> Result<Option<Duration>, StoreError> {
        let mut live = self.live.lock().await;
        self.see(store, claim);
        let Some(session) = &mut *live else {
            return Ok(None);
        };
        let age = now().since(session.sent);
        if age < session.ttl / SHARED_FOR {
            return Ok(Some(session.ttl.saturating_sub(age)));
        }
        let lease = session.lease;
        let ttl = self.extend(session, within).await?;
        match ttl {
            Some(ttl) => self.let_go(store, lease, ttl, within).await,
            None => *live = None,
        }
        Ok(ttl)
    }

    /// A claim has ended. With the last one the session does too.
    pub(crate) async fn leave(
        &self,
        store: &EtcdStore,
        claim: &Claim,
        within: Duration,
    ) -> Result<(), StoreError> {
        let mut live = self.live.lock().await;
        let Some(lease) = live.as_ref().map(|session| session.lease) else {
            self.claims().remove(&claim.id());
            return Ok(());
        };
        store.unbind(claim.key(), lease, within).await?;
        let is_last = {
            let mut claims = self.claims();
            claims.remove(&claim.id());
            claims.is_empty()
        };
        if is_last {
            *live = None;
            store.revoke_lease(lease, within).await?;
        }
        Ok(())
    }

    async fn extend(
        &self,
        session: &mut Live,
        within: Duration,
    ) -> Result<Option<Duration>, StoreError> {
        let sent = now();
        let ttl = self.keep_alives.renew(session.lease, within).await?;
        if let Some(ttl) = ttl {
            (session.sent, session.ttl) = (sent, ttl);
        }
        Ok(ttl)
    }

    /// A keeper that has gone renews no more: its key is deleted, and what is bound to it, though the session goes on for
    /// others. So is a claim that did not get its key.
    async fn let_go(&self, store: &EtcdStore, lease: i64, ttl: Duration, within: Duration) {
        let now = now();
        let gone: Vec<_> = {
            let claims = self.claims();
            claims
                .values()
                .filter(|seen| now.since(seen.at) > ttl)
                .map(|seen| (seen.claim.clone(), seen.keys.clone()))
                .collect()
        };
        for (claim, keys) in gone {
            let store = store.clone().naming(keys);
            // If one fails, both are tried again with the next renewal.
            let ended = async {
                let delete = store.delete(&claim, Session::Shared, false);
                store.txn(within, delete).await?;
                store.unbind(claim.key(), lease, within).await
            };
            if ended.await.is_ok() {
                tracing::debug!(key = %claim.key(), "a claim of a shared session was not renewed");
                self.claims().remove(&claim.id());
            }
        }
    }

    fn see(&self, store: &EtcdStore, claim: &Claim) {
        self.claims().insert(
            claim.id(),
            Seen {
                claim: claim.clone(),
                keys: store.keys.clone(),
                at: now(),
            },
        );
    }

    fn claims(&self) -> MutexGuard<'_, HashMap<ClaimId, Seen>> {
        self.claims.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Suspend counts.
fn now() -> BootInstant {
    BootClock::new().now()
}
