//! Listing and watching.

use std::time::Duration;

use tokio::time::timeout;

use super::{Conformance, ok};
use crate::{LeaseKey, LeaseStore, Revision, Watch, WatchEvent};

impl<S: LeaseStore> Conformance<S> {
    pub(super) async fn watch(&self) {
        self.r12_a_watch_reports_the_present_state_first().await;
        self.r12_a_watch_reports_each_end().await;
        self.a_dropped_next_has_lost_nothing().await;
        if self.one.capabilities().transfer() {
            self.r20_watchers_of_a_transfer_see_no_vacancy().await;
        }
    }

    /// The next event, within the slack.
    pub(super) async fn next(&self, watch: &mut S::Watch, what: &str) -> WatchEvent {
        match timeout(self.slack, watch.next()).await {
            Ok(event) => ok(event, what),
            Err(_) => panic!("{what} is reported within {:?}", self.slack),
        }
    }

    async fn r12_a_watch_reports_the_present_state_first(&self) {
        let key = self.key();
        let mut watch = self.other.watch(&key, Revision::START);
        let event = self.next(&mut watch, "R-12: that a key is vacant").await;
        assert!(
            matches!(&event, WatchEvent::Vacant(vacant, _) if *vacant == key),
            "{event:?}"
        );
        let (key, claim, grant) = self.held().await;
        let mut watch = self.other.watch(&key, grant.revision());
        match self.next(&mut watch, "R-12: the holder").await {
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
            other => panic!("R-12: a key that is held is reported as held: {other:?}"),
        }
    }

    async fn r12_a_watch_reports_each_end(&self) {
        let (key, claim, first) = self.held().await;
        let mut watch = self.other.watch(&key, first.revision());
        self.next(&mut watch, "R-12: the holder").await;
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

    pub(super) async fn r12_a_watch_reports_an_expiry(&self) {
        let (key, _, grant) = self.held().await;
        let mut watch = self.other.watch(&key, grant.revision());
        self.next(&mut watch, "R-12: the holder").await;
        self.until_vacant(&key, grant.ttl() + self.lateness()).await;
        let event = self.next(&mut watch, "R-12: an expiry").await;
        assert!(
            matches!(&event, WatchEvent::Vacant(vacant, _) if *vacant == key),
            "{event:?}"
        );
    }

    pub(super) async fn vacant(
        &self,
        watch: &mut S::Watch,
        key: &LeaseKey,
        what: &str,
    ) -> Revision {
        match self.next(watch, what).await {
            WatchEvent::Vacant(vacant, at) if vacant == *key => at,
            other => panic!("{what} is reported as vacant: {other:?}"),
        }
    }

    async fn a_dropped_next_has_lost_nothing(&self) {
        let (key, claim, grant) = self.held().await;
        let mut watch = self.other.watch(&key, grant.revision());
        self.next(&mut watch, "R-12: the holder").await;
        let mut last = claim;
        for _ in 0..5 {
            _ = timeout(Duration::from_millis(1), watch.next()).await;
            self.answer(|| self.one.release(&last), "release").await;
            let what = "a release after a dropped `next`";
            self.vacant(&mut watch, &key, what).await;
            _ = timeout(Duration::from_millis(1), watch.next()).await;
            last = self.claim(&key);
            self.granted(&last).await;
            let what = "an acquisition after a dropped `next`";
            let event = self.next(&mut watch, what).await;
            assert!(
                matches!(&event, WatchEvent::Held(record, _) if record.claim() == last.id()),
                "{event:?}"
            );
        }
    }

    async fn r20_watchers_of_a_transfer_see_no_vacancy(&self) {
        let (key, from, grant) = self.held().await;
        let mut watch = self.other.watch(&key, grant.revision());
        self.next(&mut watch, "R-12: the holder").await;
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
            other => panic!("R-20: a transfer is reported as held by the successor: {other:?}"),
        }
    }
}
