//! Listing and watching.

use std::time::Duration;

use tokio::time::timeout;

use super::{Conformance, ok};
use crate::{LeaseKey, LeaseStore, Revision, Watch, WatchEvent};

impl<S: LeaseStore> Conformance<S> {
    pub(super) async fn watch(&self) {
        self.r12_a_watch_tells_the_present_state_first().await;
        self.r12_a_watch_tells_each_end().await;
        self.a_prefix_lists_what_is_under_it().await;
        self.a_prefix_watch_continues_a_listing().await;
        self.a_dropped_next_has_lost_nothing().await;
        if self.one.capabilities().transfer() {
            self.r20_watchers_of_a_transfer_see_no_vacancy().await;
        }
    }

    /// The next event, within the slack.
    pub(super) async fn next(&self, watch: &mut S::Watch, what: &str) -> WatchEvent {
        match timeout(self.slack, watch.next()).await {
            Ok(event) => ok(event, what),
            Err(_) => panic!("{what} is told within {:?}", self.slack),
        }
    }

    /// From now on. (From the start would be too much to ask of an engine that forgets.)
    pub(super) async fn watching_prefix(&self, prefix: &str) -> S::Watch {
        let listing = self.answer(|| self.other.list_prefix(prefix), "list").await;
        self.other.watch_prefix(prefix, listing.revision)
    }

    async fn r12_a_watch_tells_the_present_state_first(&self) {
        let key = self.key();
        let mut watch = self.other.watch(&key, Revision::START);
        let event = self.next(&mut watch, "R-12: that a key is vacant").await;
        assert!(
            matches!(&event, WatchEvent::Vacant(vacant, _) if *vacant == key),
            "{event:?}"
        );
        let (key, claim, grant) = self.held().await;
        let mut watch = self.other.watch(&key, grant.revision());
        match self.next(&mut watch, "R-12: who holds it").await {
            WatchEvent::Held(record, at) => {
                assert_eq!(
                    (record.token(), record.claim()),
                    (grant.token(), claim.id())
                );
                assert!(
                    at >= grant.revision(),
                    "R-12: as of the grant or later: {at:?}"
                );
            }
            other => panic!("R-12: a key that is held is told as held: {other:?}"),
        }
    }

    async fn r12_a_watch_tells_each_end(&self) {
        let (key, claim, first) = self.held().await;
        let mut watch = self.other.watch(&key, first.revision());
        self.next(&mut watch, "R-12: who holds it").await;
        self.answer(|| self.one.release(&claim), "release").await;
        let released = self.vacant(&mut watch, &key, "R-12: a release").await;
        assert!(released > first.revision(), "R-12: after the grant");
        let second = self.granted(&self.claim(&key)).await;
        let event = self.next(&mut watch, "R-12: an acquisition").await;
        assert!(
            matches!(&event, WatchEvent::Held(record, _) if record.token() == second.token()),
            "{event:?}"
        );
        self.answer(|| self.one.revoke(&key, None), "revoke").await;
        let revoked = self.vacant(&mut watch, &key, "R-12: a revocation").await;
        assert!(
            revoked >= second.revision() && revoked > released,
            "R-12: in order"
        );
    }

    pub(super) async fn r12_a_watch_tells_an_expiry(&self) {
        let (key, _, grant) = self.held().await;
        let mut watch = self.other.watch(&key, grant.revision());
        self.next(&mut watch, "R-12: who holds it").await;
        self.until_vacant(&key, grant.ttl() + self.lateness()).await;
        let event = self.next(&mut watch, "R-12: an expiry").await;
        assert!(
            matches!(&event, WatchEvent::Vacant(vacant, _) if *vacant == key),
            "{event:?}"
        );
    }

    async fn vacant(&self, watch: &mut S::Watch, key: &LeaseKey, what: &str) -> Revision {
        match self.next(watch, what).await {
            WatchEvent::Vacant(vacant, at) if vacant == *key => at,
            other => panic!("{what} is told as vacant: {other:?}"),
        }
    }

    async fn a_prefix_lists_what_is_under_it(&self) {
        let base = self.key();
        let mut expected = Vec::new();
        for tail in ["/b", "/a", "/a/1", "0"] {
            let key = LeaseKey::new(&format!("{base}{tail}")).expect("visible ASCII");
            self.granted(&self.claim(&key)).await;
            expected.extend(Some(key).filter(|_| tail.starts_with('/')));
        }
        expected.sort();
        let prefix = format!("{base}/");
        let listing = self
            .answer(|| self.other.list_prefix(&prefix), "list")
            .await;
        let keys: Vec<_> = listing
            .records
            .iter()
            .map(|record| record.key().clone())
            .collect();
        assert_eq!(
            keys, expected,
            "a listing is what is under the prefix, sorted by key"
        );
        assert!(listing.documents.is_empty());
        assert_eq!(
            listing.records[0].holder().payload().as_ref(),
            b"10.0.0.7:80"
        );
    }

    async fn a_prefix_watch_continues_a_listing(&self) {
        let base = self.key();
        let prefix = format!("{base}/");
        let [first, second] = ["1", "2"]
            .map(|tail| LeaseKey::new(&format!("{prefix}{tail}")).expect("visible ASCII"));
        let (one, two) = (self.claim(&first), self.claim(&second));
        self.granted(&one).await;
        let listing = self
            .answer(|| self.other.list_prefix(&prefix), "list")
            .await;
        // All this happens before the watch is opened, and beside it.
        self.held().await;
        let grant = self.granted(&two).await;
        self.answer(|| self.one.release(&one), "release").await;
        let mut watch = self.other.watch_prefix(&prefix, listing.revision);
        let event = self.next(&mut watch, "what came after the listing").await;
        let WatchEvent::Held(record, held_at) = event else {
            panic!("an acquisition is told as held: {event:?}")
        };
        assert_eq!(
            (record.key(), record.token()),
            (&second, grant.token()),
            "no event is missed, none is of before"
        );
        let released_at = self.vacant(&mut watch, &first, "a release").await;
        assert!(
            listing.revision < held_at && held_at < released_at,
            "in order"
        );
        self.answer(|| self.one.revoke(&second, None), "revoke")
            .await;
        assert!(self.vacant(&mut watch, &second, "a revocation").await > released_at);
    }

    async fn a_dropped_next_has_lost_nothing(&self) {
        let base = self.key();
        let mut watch = self.watching_prefix(&format!("{base}/")).await;
        for number in 0..10 {
            let key = LeaseKey::new(&format!("{base}/{number}")).expect("visible ASCII");
            _ = timeout(Duration::from_millis(1), watch.next()).await;
            self.granted(&self.claim(&key)).await;
            let event = self
                .next(&mut watch, "an event after a dropped `next`")
                .await;
            assert!(
                matches!(&event, WatchEvent::Held(record, _) if *record.key() == key),
                "{number}: {event:?}"
            );
        }
    }

    async fn r20_watchers_of_a_transfer_see_no_vacancy(&self) {
        let (key, from, grant) = self.held().await;
        let mut watch = self.other.watch(&key, grant.revision());
        self.next(&mut watch, "R-12: who holds it").await;
        let to = self.claim(&key);
        let new = self
            .answer(|| self.one.transfer(&from, &to), "transfer")
            .await;
        match self.next(&mut watch, "R-20: a transfer").await {
            WatchEvent::Held(record, at) => {
                assert_eq!((record.token(), record.claim()), (new.token(), to.id()));
                assert!(
                    at >= new.revision() && at > grant.revision(),
                    "R-20: in order"
                );
            }
            other => panic!("R-20: a transfer is told as held by the successor: {other:?}"),
        }
    }
}
