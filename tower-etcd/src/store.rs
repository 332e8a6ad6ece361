use std::{fmt, future::Future, num::NonZeroU64, sync::Arc, time::Duration};

use bytes::Bytes;
use etcd_client::{
    Client, Compare, CompareOp, GetOptions, KeyValue, LeaseGrantOptions, PutOptions,
    ResponseHeader, Txn, TxnOp, TxnOpResponse, TxnResponse,
};
use tower_lease::{
    Acquired, Capabilities, Claim, ClaimId, Document, DocumentStore, Fault, FencingToken, Grant,
    LeaseKey, LeaseStore, Listing, Record, Revision, StoreError, Swap, Swapped, fencing,
};

use crate::{
    Cluster, EtcdWatch,
    codec::{self, MAGIC, Session, Written},
    fault::Failed,
    keepalive::KeepAlives,
    keys::Keys,
    session::SharedSession,
    watch::{Follow, Range, revision},
};

/// The leases and documents of an etcd cluster. Cheap to clone.
///
/// | | how |
/// |---|---|
/// | acquire | one key, put if it does not exist, on an etcd lease whose id follows from the claim (R-15, R-17) |
/// | token | the revision of that put, which is the key's `mod_revision` until it ends or is handed over (R-20) |
/// | renew | a keep-alive and then a linearizable check of the key, neither of them an entry in etcd's log: a keep-alive alone proves nothing (R-7) |
/// | release | the key is deleted if it still is this claim's, then the etcd lease is revoked (R-30) |
/// | guarded writes | `mod_revision(key) == token` in the same transaction (R-21) |
pub struct EtcdStore {
    pub(crate) cluster: Cluster,
    pub(crate) keys: Keys,
    min_ttl: Duration,
    keep_alives: Arc<KeepAlives>,
    session: Option<Arc<SharedSession>>,
}

/// What is at a key.
#[derive(Debug)]
pub(crate) enum Found {
    Vacant,
    Document(Bytes, Revision),
    Record(Held),
}

/// A record, and where it hangs.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) written: Written,
    pub(crate) token: NonZeroU64,
    pub(crate) lease: i64,
    /// The epoch before it ended in good order.
    is_clean: bool,
}

/// Below five seconds a change of etcd's leader is often longer than what is left of a lease (measured: 3 of 12 at 3 s,
/// none of 16 at 5 s).
const MIN_TTL: Duration = Duration::from_secs(5);
/// etcd looks for leases to revoke that often.
const EXPIRY_GRANULARITY: Duration = Duration::from_millis(500);
/// An attempt of a keeper lasts a tenth of the TTL. A request must be over before, so that the next attempt finds
/// that its member was left.
const ATTEMPTS_PER_TTL: u32 = 12;
const MIN_ATTEMPT: Duration = Duration::from_millis(100);
/// For one page of a listing; fewer when values are long.
const PAGE: i64 = 1_000;
/// A key that is taken and taken back faster than we look.
const MAX_LOOKS: usize = 4;
/// etcd's default for the operations of a transaction is 128.
pub(crate) const MAX_OPS: usize = 100;
const HANDED_OVER: &[u8] = b"handed over";

// === impl EtcdStore ===

impl EtcdStore {
    /// The store of that cluster, with every key as it is.
    #[must_use]
    pub fn new(cluster: &Cluster) -> Self {
        let keep_alives = Arc::new(KeepAlives::new(cluster.shared.calls.clone()));
        Self {
            cluster: cluster.clone(),
            keys: Keys::default(),
            min_ttl: MIN_TTL,
            keep_alives,
            session: None,
        }
    }

    /// Puts `prefix` before every key in etcd. Default: none. Tokens and records do not show it. A role that may use a
    /// lease needs its key and what begins with `key;`, best by the whole prefix.
    #[must_use]
    pub fn with_prefix(self, prefix: &str) -> Self {
        self.naming(Keys {
            prefix: prefix.to_owned(),
        })
    }

    pub(crate) fn naming(self, keys: Keys) -> Self {
        Self { keys, ..self }
    }

    /// The shortest TTL that a keeper may ask for. Default: 5 s, which outlives a change of etcd's leader. The engine's
    /// own floor is 2 s with its default timings; what is below that is raised.
    #[must_use]
    pub fn with_min_ttl(self, min_ttl: Duration) -> Self {
        Self { min_ttl, ..self }
    }

    /// Hangs all keys that are acquired through this store and its clones on one etcd lease, so that they cost one
    /// renewal, and end together when the process dies. Default: an etcd lease for each key.
    ///
    /// A clone that is given another prefix afterwards is on the same one.
    ///
    /// The first claim's TTL is that of all, until none is left. A claim that is not renewed for that long loses its key
    /// with the next renewal of another.
    #[must_use]
    pub fn with_shared_session(self) -> Self {
        let session = SharedSession::new(self.keep_alives.clone());
        Self {
            session: Some(Arc::new(session)),
            ..self
        }
    }

    pub(crate) async fn call<T, F>(
        &self,
        within: Duration,
        request: impl Fn(Client) -> F,
    ) -> Result<T, Failed>
    where
        F: Future<Output = Result<T, etcd_client::Error>>,
    {
        self.cluster.shared.calls.call(within, request).await
    }

    pub(crate) async fn txn(&self, within: Duration, txn: Txn) -> Result<TxnResponse, Failed> {
        self.call(within, |client| {
            let txn = txn.clone();
            async move { client.kv_client().txn(txn).await }
        })
        .await
    }

    /// Follows a key or a prefix from the revision after `seen` on; from now on if there is none.
    ///
    /// A watch that begins where the history was compacted is not told what was deleted in the very revision of the
    /// compaction (seen on 3.4.23). So a read at `seen` decides whether anything is missing. It also finds a `seen` that
    /// the cluster has not reached, which is one of another history.
    ///
    /// Watches and reads have connections of their own. When the endpoints lead to another cluster than before, one may be
    /// connected to the old one still: the read tells that too, and then both connect again.
    pub(crate) async fn follow(
        &self,
        key: Vec<u8>,
        range: Range,
        seen: Option<Revision>,
    ) -> Result<Follow, StoreError> {
        let start = seen.map_or(0, |seen| seen.number() + 1);
        let mut follow = Follow::open(
            &self.cluster.shared.watches,
            key.clone(),
            range,
            start,
            self.patience(),
        )
        .await?;
        let options = GetOptions::new()
            .with_revision(seen.map_or(0, |seen| seen.number().cast_signed()))
            .with_limit(1)
            .with_keys_only();
        let key = if key.is_empty() { vec![0] } else { key };
        let read = self.call(self.patience(), |client| {
            let (key, options) = (key.clone(), options.clone());
            async move { client.kv_client().get(key, Some(options)).await }
        });
        match read.await {
            Err(failed) if failed.is_out_of_history() => follow.is_compacted = true,
            Err(failed) => return Err(failed.into()),
            Ok(read) => {
                let cluster = read.header().map_or(0, ResponseHeader::cluster_id);
                if !is_same_cluster(cluster, follow.cluster) {
                    self.cluster.reconnect();
                    return Err(StoreError::unknown(
                        "the watch is of another cluster than the store",
                    ));
                }
            }
        }
        Ok(follow)
    }

    /// What is at the key, and as of when.
    pub(crate) async fn look(&self, key: &LeaseKey) -> Result<(Found, Revision), StoreError> {
        self.look_within(key, self.patience()).await
    }

    async fn look_within(
        &self,
        key: &LeaseKey,
        within: Duration,
    ) -> Result<(Found, Revision), StoreError> {
        let response = self
            .txn(within, Txn::new().and_then(self.gets(key)))
            .await?;
        Ok((found(&response), at(&response)))
    }

    pub(crate) fn patience(&self) -> Duration {
        self.cluster.shared.request_timeout
    }

    /// For one request on behalf of a claim.
    pub(crate) fn within(&self, claim: &Claim) -> Duration {
        self.patience()
            .min(MIN_ATTEMPT.max(claim.ttl() / ATTEMPTS_PER_TTL))
    }

    fn gets(&self, key: &LeaseKey) -> Vec<TxnOp> {
        vec![
            TxnOp::get(self.keys.of(key), None),
            TxnOp::get(self.keys.mark(key), None),
        ]
    }

    /// The key is this claim's.
    fn is_ours(&self, claim: &Claim, session: Session) -> Compare {
        Compare::value(
            self.keys.of(claim.key()),
            CompareOp::Equal,
            codec::encode(claim, session),
        )
    }

    fn is_at(&self, key: &LeaseKey, revision: u64) -> Compare {
        Compare::mod_revision(
            self.keys.of(key),
            CompareOp::Equal,
            i64::try_from(revision).unwrap_or(i64::MAX),
        )
    }

    pub(crate) fn holds(&self, token: &FencingToken) -> Compare {
        self.is_at(token.key(), token.epoch().get())
    }

    // --- acquiring ---

    /// Hands the key from one claim to the next if it is still the first one's.
    fn hand_over(&self, from: &Claim, session: Session, to: &Claim, lease: i64) -> Txn {
        let options = PutOptions::new().with_lease(lease);
        let put = TxnOp::put(
            self.keys.of(to.key()),
            codec::encode(to, Session::Own),
            Some(options),
        );
        let then = [
            vec![put, TxnOp::put(self.keys.mark(to.key()), HANDED_OVER, None)],
            self.gets(to.key()),
        ]
        .concat();
        Txn::new()
            .when([self.is_ours(from, session)])
            .and_then(then)
            .or_else(self.gets(to.key()))
    }

    /// Put if it does not exist; the mark says how the last epoch ended.
    fn take(&self, claim: &Claim, lease: i64, session: Session) -> Txn {
        let (key, mark) = (self.keys.of(claim.key()), self.keys.mark(claim.key()));
        let put = TxnOp::put(
            key.clone(),
            codec::encode(claim, session),
            Some(PutOptions::new().with_lease(lease)),
        );
        let then = [
            vec![put, TxnOp::put(mark, "", None)],
            self.gets(claim.key()),
        ]
        .concat();
        Txn::new()
            .when([Compare::create_revision(key, CompareOp::Equal, 0)])
            .and_then(then)
            .or_else(self.gets(claim.key()))
    }

    /// Makes the etcd lease of a claim. If it is there already, an earlier attempt of this claim made it.
    pub(crate) async fn grant(&self, lease: i64, claim: &Claim) -> Result<Duration, StoreError> {
        let within = self.within(claim);
        let ttl = i64::try_from(claim.ttl().as_nanos().div_ceil(1_000_000_000))
            .unwrap_or(i64::MAX)
            .max(1);
        let options = LeaseGrantOptions::new().with_id(lease);
        let granted = self.call(within, |client| {
            let options = options.clone();
            async move { client.lease_client().grant(ttl, Some(options)).await }
        });
        match granted.await {
            Ok(granted) => Ok(seconds(granted.ttl())),
            Err(failed) if failed.is_lease_there() => self.again(lease, within).await,
            Err(failed) => Err(failed.into()),
        }
    }

    /// The TTL of an etcd lease that an earlier request made, from now on: it is renewed, because nobody knows how much of
    /// it is left, and whoever asks counts from this request.
    async fn again(&self, lease: i64, within: Duration) -> Result<Duration, StoreError> {
        let ttl = self.keep_alives.renew(lease, within).await?;
        ttl.ok_or_else(|| StoreError::unknown("the etcd lease of this claim has just ended"))
    }

    /// Whether a claim holds its key, as of a quorum's present state.
    ///
    /// Both branches read the key, though a comparison is all that is asked for: etcd answers a transaction without
    /// operations from the applied state of the member that was asked, however far that is behind, and one that reads
    /// only after the leader has confirmed with a quorum that the member is up to date (ReadIndex).
    async fn check(
        &self,
        claim: &Claim,
        session: Session,
        within: Duration,
    ) -> Result<(), StoreError> {
        let read = || {
            TxnOp::get(
                self.keys.of(claim.key()),
                Some(GetOptions::new().with_count_only()),
            )
        };
        let check = Txn::new()
            .when([self.is_ours(claim, session)])
            .and_then([read()])
            .or_else([read()]);
        if self.txn(within, check).await?.succeeded() {
            Ok(())
        } else {
            Err(StoreError::lost("the key is gone, or another's"))
        }
    }

    pub(crate) async fn revoke_lease(
        &self,
        lease: i64,
        within: Duration,
    ) -> Result<(), StoreError> {
        self.keep_alives.forget(lease);
        let revoked = self.call(within, |client| async move {
            client.lease_client().revoke(lease).await
        });
        match revoked.await {
            Ok(_) => Ok(()),
            Err(failed) if failed.is_lease_gone() => Ok(()),
            Err(failed) => Err(failed.into()),
        }
    }

    /// What to say of a key that was not taken: it is ours already, another's, or no lease.
    async fn answer(&self, claim: &Claim, found: Found) -> Result<Acquired, StoreError> {
        match found {
            Found::Record(held) if held.written.claim == claim.id() => {
                let within = self.within(claim);
                let ttl = self.again(held.lease, within).await?;
                // Only now: a keep-alive alone proves nothing.
                self.check(claim, held.written.session, within)
                    .await
                    .map_err(unsure)?;
                Ok(Acquired::Granted(held.grant(claim.key().clone(), ttl)))
            }
            Found::Record(held) => Ok(Acquired::Held(held.record(claim.key().clone()))),
            Found::Document(..) => Err(StoreError::refused("the key is a document")),
            Found::Vacant => Err(StoreError::unknown("etcd said both yes and no")),
        }
    }

    // --- ending ---

    /// Key and mark, so that the next one knows of a clean end.
    pub(crate) fn delete(&self, claim: &Claim, session: Session, is_clean: bool) -> Txn {
        let mut ops = vec![TxnOp::delete(self.keys.of(claim.key()), None)];
        if is_clean {
            ops.push(TxnOp::delete(self.keys.mark(claim.key()), None));
        }
        Txn::new()
            .when([self.is_ours(claim, session)])
            .and_then(ops)
    }

    /// Lets go of what a claim's key hangs or would have hung on.
    async fn give_up(&self, claim: &Claim, within: Duration) -> Result<(), StoreError> {
        match self.session.as_ref().filter(|session| session.has(claim)) {
            Some(session) => session.leave(self, claim, within).await,
            None => self.revoke_lease(lease_of(claim.id()), within).await,
        }
    }

    /// How a claim's record is written.
    fn session_of(&self, claim: &Claim) -> Session {
        if self
            .session
            .as_ref()
            .is_some_and(|session| session.has(claim))
        {
            Session::Shared
        } else {
            Session::Own
        }
    }

    /// Deletes what is bound to an epoch of a shared session that has ended. (That of a session of its own goes with it.)
    /// Nothing if a later epoch of the same session has the key.
    pub(crate) async fn unbind(
        &self,
        key: &LeaseKey,
        lease: i64,
        within: Duration,
    ) -> Result<(), StoreError> {
        let prefix = self.keys.bound(key);
        let options = GetOptions::new().with_prefix();
        let index = self.call(within, |client| {
            let (prefix, options) = (prefix.clone(), options.clone());
            async move { client.kv_client().get(prefix, Some(options)).await }
        });
        let index = index.await?;
        let bound = index.kvs().iter().filter(|entry| entry.lease() == lease);
        let ops: Vec<_> = bound
            .flat_map(|entry| self.unbind_one(entry, &prefix))
            .collect();
        for ops in ops.chunks(MAX_OPS) {
            let has_ended = Compare::lease(self.keys.of(key), CompareOp::NotEqual, lease);
            self.txn(within, Txn::new().when([has_ended]).and_then(ops))
                .await?;
        }
        Ok(())
    }

    /// The document goes unless it was written since without being bound.
    fn unbind_one(&self, entry: &KeyValue, prefix: &[u8]) -> [TxnOp; 2] {
        let document = [
            self.keys.prefix.as_bytes(),
            entry.key().strip_prefix(prefix).unwrap_or_default(),
        ]
        .concat();
        let is_bound =
            Compare::mod_revision(document.clone(), CompareOp::Equal, entry.mod_revision());
        let delete = Txn::new()
            .when([is_bound])
            .and_then([TxnOp::delete(document, None)]);
        [TxnOp::txn(delete), TxnOp::delete(entry.key(), None)]
    }

    /// Ends what an epoch hung on, after its key has gone or gone to another.
    async fn clean_up(
        &self,
        key: &LeaseKey,
        session: Session,
        lease: i64,
        within: Duration,
    ) -> Result<(), StoreError> {
        match session {
            Session::Own => self.revoke_lease(lease, within).await,
            Session::Shared => self.unbind(key, lease, within).await,
        }
    }

    // --- reading much ---

    async fn page(
        &self,
        from: &[u8],
        end: &[u8],
        revision: i64,
        limit: i64,
    ) -> Result<etcd_client::GetResponse, Failed> {
        let options = GetOptions::new()
            .with_range(end)
            .with_limit(limit)
            .with_revision(revision);
        self.call(self.patience(), |client| {
            let (from, options) = (from.to_vec(), options.clone());
            async move { client.kv_client().get(from, Some(options)).await }
        })
        .await
    }

    /// All keys under a prefix, as of one revision.
    pub(crate) async fn list(
        &self,
        prefix: &str,
    ) -> Result<(Vec<KeyValue>, ResponseHeader), StoreError> {
        let mut from = self.keys.under(prefix);
        let end = end_of(&from);
        if from.is_empty() {
            // The first key there can be; none at all is an error.
            from.push(0);
        }
        let (mut all, mut header, mut limit) = (Vec::new(), None, PAGE);
        loop {
            let at = header.as_ref().map_or(0, ResponseHeader::revision);
            let mut page = match self.page(&from, &end, at, limit).await {
                Err(failed) if failed.is_too_long() && limit > 1 => {
                    limit /= 2;
                    continue;
                }
                page => page?,
            };
            header = header.or(page.take_header());
            let found = page.take_kvs();
            if let Some(last) = found.last() {
                from = [last.key(), &[0]].concat();
            }
            all.extend(found);
            if !page.more() {
                return Ok((
                    all,
                    header.ok_or_else(|| StoreError::unknown("etcd answered without a header"))?,
                ));
            }
        }
    }

    // --- documents ---

    /// The conditions of a swap, and what to look at when they do not hold.
    fn swap_txn(&self, swap: &Swap, ops: Vec<TxnOp>) -> Txn {
        let mut when = vec![match swap.expected() {
            Some(seen) => self.is_at(swap.key(), seen.number()),
            None => Compare::create_revision(self.keys.of(swap.key()), CompareOp::Equal, 0),
        }];
        let mut otherwise = vec![TxnOp::get(self.keys.of(swap.key()), None)];
        if let Some(guard) = swap.guard() {
            when.push(self.holds(guard));
            otherwise.push(TxnOp::get(self.keys.of(guard.key()), None));
        }
        Txn::new().when(when).and_then(ops).or_else(otherwise)
    }

    fn swap_ops(&self, swap: &Swap, bound: Option<&Held>) -> Vec<TxnOp> {
        let key = self.keys.of(swap.key());
        let Some(value) = swap.value() else {
            return self.delete_ops(swap);
        };
        let Some(held) = bound else {
            return vec![TxnOp::put(key, value.to_vec(), None)];
        };
        let options = PutOptions::new().with_lease(held.lease);
        let mut ops = vec![TxnOp::put(key, value.to_vec(), Some(options.clone()))];
        if let (Session::Shared, Some(guard)) = (held.written.session, swap.guard()) {
            ops.push(TxnOp::put(self.bound_entry(guard, swap), "", Some(options)));
        }
        ops
    }

    /// The document, and what a shared session may remember of it: an epoch may last for years.
    fn delete_ops(&self, swap: &Swap) -> Vec<TxnOp> {
        let entry = swap.guard().map(|guard| self.bound_entry(guard, swap));
        [Some(self.keys.of(swap.key())), entry]
            .into_iter()
            .flatten()
            .map(|key| TxnOp::delete(key, None))
            .collect()
    }

    fn bound_entry(&self, guard: &FencingToken, swap: &Swap) -> Vec<u8> {
        [
            &self.keys.bound(guard.key()),
            swap.key().as_str().as_bytes(),
        ]
        .concat()
    }

    /// Why a swap was not carried out: the guard first, then the kind of the key, then what is there.
    fn not_swapped(&self, swap: &Swap, response: &TxnResponse) -> Result<Swapped, StoreError> {
        let found: Vec<_> = response.op_responses().iter().map(first_of).collect();
        let guard = found.get(1).and_then(Option::as_ref);
        if swap
            .guard()
            .is_some_and(|token| guard.is_none_or(|guard| !is_of(guard, token)))
        {
            return Err(StoreError::lost("the guard's epoch does not hold its key"));
        }
        match found
            .first()
            .and_then(Option::as_ref)
            .map_or(Found::Vacant, Found::of)
        {
            Found::Record(_) => Err(StoreError::refused("the key is a lease")),
            Found::Vacant => Ok(Swapped::Changed(None)),
            Found::Document(value, at) => Ok(Swapped::Changed(Some(Document::new(
                swap.key().clone(),
                value,
                at,
            )))),
        }
    }

    /// The record that guards a swap, if the document is to hang on the same etcd lease.
    async fn guard_of(&self, swap: &Swap) -> Result<Option<Held>, StoreError> {
        let Some(token) = swap
            .guard()
            .filter(|_| swap.is_bound() && swap.value().is_some())
        else {
            return Ok(None);
        };
        match self.look(token.key()).await?.0 {
            Found::Record(held) if held.token == token.epoch() => Ok(Some(held)),
            _ => Err(StoreError::lost("the guard's epoch does not hold its key")),
        }
    }
}

impl LeaseStore for EtcdStore {
    type Watch = EtcdWatch;
    type Fencing = fencing::Monotonic;

    fn capabilities(&self) -> Capabilities {
        Capabilities::new()
            .with_min_ttl(self.min_ttl)
            .with_expiry_granularity(EXPIRY_GRANULARITY)
    }

    async fn acquire(&self, claim: &Claim) -> Result<Acquired, StoreError> {
        let within = self.within(claim);
        // Who waits asks again and again: a look costs less than an etcd lease made for nothing.
        let (there, _) = self.look_within(claim.key(), within).await?;
        if !matches!(there, Found::Vacant) {
            return self.answer(claim, there).await;
        }
        let (lease, ttl) = match &self.session {
            Some(session) => session.join(self, claim).await?,
            None => {
                let lease = lease_of(claim.id());
                (lease, self.grant(lease, claim).await?)
            }
        };
        let taken = self
            .txn(within, self.take(claim, lease, self.session_of(claim)))
            .await?;
        match found(&taken) {
            Found::Record(held) if taken.succeeded() => {
                Ok(Acquired::Granted(held.grant(claim.key().clone(), ttl)))
            }
            Found::Record(held) if held.written.claim == claim.id() => {
                self.answer(claim, Found::Record(held)).await
            }
            // Somebody was faster. Our etcd lease ends by itself: revoking it might hit an earlier attempt of this very
            // claim, which was granted in the meantime and whose answer is on its way.
            found => self.answer(claim, found).await,
        }
    }

    async fn renew(&self, claim: &Claim) -> Result<Duration, StoreError> {
        let within = self.within(claim);
        let (ttl, session) = match &self.session {
            Some(session) if session.has(claim) => {
                (session.renew(self, claim, within).await?, Session::Shared)
            }
            _ => (
                self.keep_alives.renew(lease_of(claim.id()), within).await?,
                Session::Own,
            ),
        };
        let Some(ttl) = ttl else {
            return Err(StoreError::lost("the etcd lease is gone"));
        };
        self.check(claim, session, within).await?;
        Ok(ttl)
    }

    async fn release(&self, claim: &Claim) -> Result<(), StoreError> {
        let within = self.within(claim);
        self.txn(within, self.delete(claim, self.session_of(claim), true))
            .await?;
        self.give_up(claim, within).await
    }

    async fn revoke(&self, key: &LeaseKey, guard: Option<&FencingToken>) -> Result<(), StoreError> {
        let within = self.patience();
        for _ in 0..MAX_LOOKS {
            let (there, _) = self.look(key).await?;
            let mut when = match &there {
                Found::Record(held) => vec![self.is_at(key, held.token.get())],
                // Nothing to take; but a guard is still to be checked.
                Found::Vacant | Found::Document(..) if guard.is_some() => Vec::new(),
                Found::Vacant | Found::Document(..) => return Ok(()),
            };
            let delete = when
                .iter()
                .map(|_| TxnOp::delete(self.keys.of(key), None))
                .collect::<Vec<_>>();
            let otherwise: Vec<_> = guard
                .iter()
                .map(|guard| TxnOp::get(self.keys.of(guard.key()), None))
                .collect();
            when.extend(guard.map(|guard| self.holds(guard)));
            let response = self
                .txn(
                    within,
                    Txn::new().when(when).and_then(delete).or_else(otherwise),
                )
                .await?;
            if response.succeeded() {
                let Found::Record(held) = there else {
                    return Ok(());
                };
                return self
                    .clean_up(key, held.written.session, held.lease, within)
                    .await;
            }
            if let Some(guard) = guard
                && !is_held(&response, guard)
            {
                return Err(StoreError::lost("the guard's epoch does not hold its key"));
            }
        }
        Err(StoreError::refused(
            "the key changes hands faster than it can be taken",
        ))
    }

    async fn inspect(&self, key: &LeaseKey) -> Result<Option<Record>, StoreError> {
        Ok(match self.look(key).await?.0 {
            Found::Record(held) => Some(held.record(key.clone())),
            Found::Vacant | Found::Document(..) => None,
        })
    }

    fn watch(&self, key: &LeaseKey, _from: Revision) -> EtcdWatch {
        // The state it reports first is read now, and is never older than `from`.
        EtcdWatch::of_key(self.clone(), key.clone())
    }

    async fn transfer(&self, from: &Claim, to: &Claim) -> Result<Grant, StoreError> {
        if from.key() != to.key() {
            return Err(StoreError::refused(
                "a lease is handed over under its own key",
            ));
        }
        let (within, lease) = (self.within(from), lease_of(to.id()));
        let (there, _) = self.look_within(from.key(), within).await?;
        let Found::Record(held) = there else {
            return Err(StoreError::lost("nobody holds the key"));
        };
        if held.written.claim == to.id() {
            let ttl = self.again(held.lease, within).await?;
            // Only now: a keep-alive alone proves nothing.
            self.check(to, held.written.session, within).await?;
            return Ok(held.grant(to.key().clone(), ttl));
        }
        if held.written.claim != from.id() {
            return Err(StoreError::lost("the key is another's"));
        }
        let ttl = self.grant(lease, to).await?;
        let response = self
            .txn(
                within,
                self.hand_over(from, held.written.session, to, lease),
            )
            .await?;
        let Found::Record(now) = found(&response) else {
            return Err(StoreError::lost("nobody holds the key"));
        };
        if now.written.claim != to.id() {
            let _ = self.revoke_lease(lease, within).await;
            return Err(StoreError::lost("the key is another's"));
        }
        // What hung on the old epoch goes; if this fails, when its etcd lease ends.
        let _ = self
            .clean_up(from.key(), held.written.session, held.lease, within)
            .await;
        if let Some(session) = &self.session {
            let _ = session.leave(self, from, within).await;
        }
        Ok(now.grant(to.key().clone(), ttl))
    }
}

impl DocumentStore for EtcdStore {
    async fn list_prefix(&self, prefix: &str) -> Result<Listing, StoreError> {
        let (found, header) = self.list(prefix).await?;
        let (mut records, mut documents) = (Vec::new(), Vec::new());
        for found in &found {
            let Some(key) = self.keys.parse(found.key()) else {
                continue;
            };
            match Found::of(found) {
                Found::Record(held) => records.push(held.record(key)),
                Found::Document(value, at) => documents.push(Document::new(key, value, at)),
                Found::Vacant => {}
            }
        }
        Ok(Listing {
            revision: revision(header.revision()),
            records,
            documents,
        })
    }

    fn watch_prefix(&self, prefix: &str, after: Revision) -> EtcdWatch {
        EtcdWatch::of_prefix(self.clone(), prefix, after)
    }

    async fn read(&self, key: &LeaseKey) -> Result<Option<Document>, StoreError> {
        Ok(match self.look(key).await?.0 {
            Found::Document(value, at) => Some(Document::new(key.clone(), value, at)),
            Found::Vacant | Found::Record(_) => None,
        })
    }

    async fn swap(&self, swap: &Swap) -> Result<Swapped, StoreError> {
        let (bound, unfit) = (self.guard_of(swap).await?, unfit(swap));
        // What does not fit is not written; but whatever else is wrong comes first.
        let ops = if unfit.is_some() {
            Vec::new()
        } else {
            self.swap_ops(swap, bound.as_ref())
        };
        let response = self.txn(self.patience(), self.swap_txn(swap, ops)).await?;
        match unfit {
            _ if !response.succeeded() => self.not_swapped(swap, &response),
            Some(error) => Err(error),
            None => Ok(Swapped::Done(at(&response))),
        }
    }
}

impl Clone for EtcdStore {
    fn clone(&self) -> Self {
        Self {
            cluster: self.cluster.clone(),
            keys: self.keys.clone(),
            min_ttl: self.min_ttl,
            keep_alives: self.keep_alives.clone(),
            session: self.session.clone(),
        }
    }
}

impl fmt::Debug for EtcdStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EtcdStore")
            .field("cluster", &self.cluster)
            .field("prefix", &self.keys.prefix)
            .field("shared_session", &self.session.is_some())
            .finish_non_exhaustive()
    }
}

// === impl Found, Held ===

impl Found {
    pub(crate) fn of(found: &KeyValue) -> Self {
        Self::with_mark(found, None)
    }

    fn with_mark(found: &KeyValue, mark: Option<&KeyValue>) -> Self {
        let at = revision(found.mod_revision());
        match (codec::decode(found.value()), NonZeroU64::new(at.number())) {
            (Some(written), Some(token)) => {
                let is_clean = mark.is_some_and(|mark| is_clean(mark, found.mod_revision()));
                Self::Record(Held {
                    written,
                    token,
                    lease: found.lease(),
                    is_clean,
                })
            }
            _ => Self::Document(Bytes::copy_from_slice(found.value()), at),
        }
    }
}

impl Held {
    pub(crate) fn revision(&self) -> Revision {
        Revision::new(self.token.get())
    }

    pub(crate) fn record(self, key: LeaseKey) -> Record {
        Record::new(
            FencingToken::new(key, self.token),
            self.written.holder,
            self.written.claim,
        )
    }

    fn grant(&self, key: LeaseKey, ttl: Duration) -> Grant {
        let grant = Grant::new(FencingToken::new(key, self.token), ttl, self.revision());
        if self.is_clean {
            grant.after_clean_end()
        } else {
            grant
        }
    }
}

/// The acquisition at that revision made the mark, so there was none; or it took over in good order.
fn is_clean(mark: &KeyValue, token: i64) -> bool {
    mark.create_revision() == token || (mark.mod_revision() == token && mark.value() == HANDED_OVER)
}

/// The id of a claim's etcd lease. It follows from the claim, so that a repeated attempt makes no second one.
pub(crate) fn lease_of(claim: ClaimId) -> i64 {
    let id = claim.as_u128();
    // The finaliser of SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", 2014).
    let mut mixed = (id >> 64) as u64 ^ id as u64;
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    // etcd takes zero for "choose one", and wants it positive.
    ((mixed ^ (mixed >> 31)) & i64::MAX as u64)
        .max(1)
        .cast_signed()
}

/// What the last two reads of a transaction found: a key and its mark.
fn found(response: &TxnResponse) -> Found {
    let gets = response.op_responses();
    let mut gets = gets
        .iter()
        .filter(|op| matches!(op, TxnOpResponse::Get(_)))
        .map(first_of);
    let (found, mark) = (gets.next().flatten(), gets.next().flatten());
    found.map_or(Found::Vacant, |found| {
        Found::with_mark(&found, mark.as_ref())
    })
}

fn first_of(op: &TxnOpResponse) -> Option<KeyValue> {
    let TxnOpResponse::Get(got) = op else {
        return None;
    };
    got.kvs().first().cloned()
}

pub(crate) fn is_held(response: &TxnResponse, guard: &FencingToken) -> bool {
    let found = response.op_responses().first().and_then(first_of);
    found.is_some_and(|found| is_of(&found, guard))
}

fn is_of(found: &KeyValue, token: &FencingToken) -> bool {
    revision(found.mod_revision()).number() == token.epoch().get()
}

pub(crate) fn at(response: &TxnResponse) -> Revision {
    revision(response.header().map_or(0, ResponseHeader::revision))
}

/// Whether two ids may be of one cluster: 0 is that of a server that does not say.
pub(crate) const fn is_same_cluster(one: u64, other: u64) -> bool {
    one == other || one == 0 || other == 0
}

/// To an acquisition "lost" is no answer.
fn unsure(error: StoreError) -> StoreError {
    if error.fault() == Fault::Lost {
        StoreError::unknown(error)
    } else {
        error
    }
}

fn seconds(seconds: i64) -> Duration {
    Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
}

fn unfit(swap: &Swap) -> Option<StoreError> {
    swap.value().and_then(|value| check_value(value).err())
}

/// What no document may be.
pub(crate) fn check_value(value: &Bytes) -> Result<(), StoreError> {
    if value.len() > Document::MAX_LEN {
        return Err(StoreError::refused(format!(
            "a document has at most {} bytes",
            Document::MAX_LEN
        )));
    }
    if value.starts_with(MAGIC) {
        return Err(StoreError::refused(
            "a document must not look like a lease's record",
        ));
    }
    Ok(())
}

/// The first key after all that begin with `prefix`; a zero byte, which etcd takes for "no end", if there is none.
fn end_of(prefix: &[u8]) -> Vec<u8> {
    let last = prefix.iter().rposition(|&byte| byte < u8::MAX);
    last.map_or(vec![0], |last| {
        [&prefix[..last], &[prefix[last] + 1]].concat()
    })
}

#[cfg(test)]
mod tests {
    use etcd_client::ConnectOptions;
    use testkit::{Etcd, Proxy};
    use tower_lease::Holder;

    use super::*;
    use crate::{cluster::Shared, pool::Pool};

    const LONG: Duration = Duration::from_secs(60);
    /// For a loaded machine: an answer that is late is an answer.
    const PATIENCE: Duration = Duration::from_secs(20);
    /// A member answers from its own memory in a millisecond.
    const BRIEFLY: Duration = Duration::from_secs(1);

    /// A store that asks one member, and asks it too when it knows of no leader.
    fn store_of(endpoint: &str) -> EtcdStore {
        store_with(endpoint, endpoint)
    }

    fn store_with(calls: &str, watches: &str) -> EtcdStore {
        store_over(calls, watches, &ConnectOptions::new())
    }

    fn store_over(calls: &str, watches: &str, options: &ConnectOptions) -> EtcdStore {
        let pool = |endpoint: &str| {
            Arc::new(Pool::new(
                &[endpoint.to_owned()],
                0,
                options.clone(),
                PATIENCE,
            ))
        };
        let shared = Shared {
            calls: pool(calls),
            watches: pool(watches),
            request_timeout: PATIENCE,
        };
        EtcdStore::new(&Cluster {
            shared: Arc::new(shared),
        })
    }

    fn claim(name: &str) -> Claim {
        let key = LeaseKey::new(name).unwrap();
        Claim::new(key, Holder::new("test"), ClaimId::random(), LONG)
    }

    /// pings go on while nothing is asked, and etcd hangs up after the third that has no stream, however rare they
    /// are. So these are more frequent than a [`Cluster`]'s, to wait less.
    #[tokio::test]
    #[ignore = "needs etcd"]
    async fn r10_an_idle_connection_is_good_when_it_is_needed() {
        let etcd = Etcd::start().await;
        let proxy = Proxy::start(etcd.addr(0)).await.unwrap();
        let url = format!("http://{}", proxy.addr());
        let second = Duration::from_secs(1);
        let options = ConnectOptions::new()
            .with_keep_alive(second, 10 * second)
            .with_keep_alive_while_idle(true);
        let (store, claim) = (store_over(&url, &url, &options), claim("k"));
        let acquired = store.acquire(&claim).await.unwrap();
        assert!(matches!(acquired, Acquired::Granted(_)), "{acquired:?}");
        let before = proxy.accepted();
        for _ in 0..2 {
            tokio::time::sleep(5 * second).await;
            let found = store.inspect(claim.key()).await.unwrap();
            assert!(found.is_some_and(|record| record.claim() == claim.id()));
        }
        store.renew(&claim).await.unwrap();
        assert!(proxy.accepted() > before, "etcd hung up in between");
    }

    /// The endpoints lead to another cluster than before, and requests have their old connection still.
    #[tokio::test]
    #[ignore = "needs etcd"]
    async fn a_watch_of_another_cluster_is_refused_and_both_connect_again() {
        let (old, new) = (Etcd::start().await, Etcd::start().await);
        let proxy = Proxy::start(old.addr(0)).await.unwrap();
        let store = store_with(&format!("http://{}", proxy.addr()), &new.endpoints()[0]);
        let key = LeaseKey::new("k").unwrap();
        store.look(&key).await.unwrap();
        // What is connected stays connected to the old one.
        proxy.lead_to(new.addr(0));
        let follow = async |seen| store.follow(b"k".to_vec(), Range::Key, seen).await;
        let refused = follow(None).await.err();
        assert_eq!(refused.map(|error| error.fault()), Some(Fault::Unknown));
        let follow = follow(Some(Revision::new(1))).await.unwrap();
        assert_ne!(follow.cluster, 0);
    }

    /// etcd answers a transaction without operations from the memory of the member that is asked, however old that is.
    #[tokio::test]
    #[ignore = "needs etcd"]
    async fn r7_a_member_without_a_quorum_confirms_no_claim() {
        let etcd = Etcd::cluster(3).await;
        for alone in 0..3 {
            let (store, claim) = (
                store_of(&etcd.endpoints()[alone]),
                claim(&format!("k{alone}")),
            );
            let acquired = store.acquire(&claim).await.unwrap();
            assert!(matches!(acquired, Acquired::Granted(_)), "{acquired:?}");
            let check = |within| store.check(&claim, Session::Own, within);
            check(PATIENCE).await.unwrap();
            let others: Vec<_> = (0..3).filter(|member| *member != alone).collect();
            others.iter().for_each(|member| etcd.pause(*member));
            let checked = check(BRIEFLY).await;
            others.iter().for_each(|member| etcd.resume(*member));
            let fault = checked.map_err(|error| error.fault());
            assert_eq!(fault, Err(Fault::Unknown), "member {alone} alone");
            etcd.leader().await;
            while check(PATIENCE).await.is_err() {}
        }
    }

    #[test]
    fn r15_claims_of_one_keeper_have_etcd_leases_of_their_own() {
        let first = ClaimId::random().as_u128();
        let leases: std::collections::BTreeSet<_> = (0..1_000)
            .map(|n| lease_of(ClaimId::from_u128(first.wrapping_add(n))))
            .collect();
        assert_eq!(leases.len(), 1_000);
        assert!(leases.iter().all(|lease| *lease > 0));
        assert_eq!(
            lease_of(ClaimId::from_u128(first)),
            lease_of(ClaimId::from_u128(first))
        );
    }

    #[test]
    fn a_prefix_has_an_end() {
        assert_eq!(end_of(b"svc/"), b"svc0");
        assert_eq!(end_of(b"a\xff"), b"b");
        assert_eq!(end_of(b""), b"\0");
    }
}
