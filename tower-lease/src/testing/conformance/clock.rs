//! What ends by itself, and what does not while it is renewed.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::Conformance;
use crate::{Fault, LeaseStore};

impl<S: LeaseStore> Conformance<S> {
    /// Each waits for some TTLs, so all of them wait together.
    pub(super) async fn end_by_time(&self) {
        let capabilities = self.one.capabilities();
        let transfer = async {
            if capabilities.transfer() {
                self.r20_a_transferred_lease_lasts_from_the_transfer().await;
            }
        };
        let watch = async {
            if capabilities.watch() {
                self.r12_a_watch_reports_an_expiry().await;
            }
        };
        tokio::join!(
            self.r2_a_lease_lasts_as_long_as_was_granted_and_no_longer(),
            self.r7_a_lease_that_is_renewed_goes_on(),
            transfer,
            watch,
        );
    }

    async fn r2_a_lease_lasts_as_long_as_was_granted_and_no_longer(&self) {
        let start = Instant::now();
        let (key, claim, first) = self.held().await;
        self.until_vacant(&key, first.ttl() + self.lateness()).await;
        self.assert_lasted(start, first.ttl());
        self.assert_fault(|| self.one.renew(&claim), Fault::Lost, "R-11: it expired")
            .await;
        let second = self.granted(&self.claim(&key)).await;
        self.assert_rises(&first, &second, "an expiry");
        assert!(!second.is_clean(), "R-18: an expiry is no clean end");
    }

    async fn r7_a_lease_that_is_renewed_goes_on(&self) {
        let (key, claim, grant) = self.held().await;
        let start = Instant::now();
        let mut renewed = (start, grant.ttl());
        while start.elapsed() < grant.ttl() * 2 {
            sleep(grant.ttl() / 5).await;
            let sent = Instant::now();
            renewed = (
                sent,
                self.answer(|| self.one.renew(&claim), "R-7: a renewal in time")
                    .await,
            );
        }
        let token = self
            .inspected(&key)
            .await
            .map(|record| record.token().clone());
        assert_eq!(
            token.as_ref(),
            Some(grant.token()),
            "R-7: renewed, it is held past its first TTL"
        );
        let (sent, ttl) = renewed;
        self.until_vacant(&key, ttl + self.lateness()).await;
        self.assert_lasted(sent, ttl);
    }

    async fn r20_a_transferred_lease_lasts_from_the_transfer(&self) {
        let (key, from, _) = self.held().await;
        let to = self.claim(&key);
        sleep(self.ttl / 2).await;
        let sent = Instant::now();
        let grant = self
            .answer(|| self.one.transfer(&from, &to), "transfer")
            .await;
        self.until_vacant(&key, grant.ttl() + self.lateness()).await;
        self.assert_lasted(sent, grant.ttl());
    }

    /// Seen vacant by now, so it ended before now; and the store keeps it for the TTL from when it got the request,
    /// which was after `sent`. A hundredth is for the clocks.
    fn assert_lasted(&self, sent: Instant, ttl: Duration) {
        let lasted = sent.elapsed();
        assert!(
            lasted >= ttl - ttl / 100,
            "R-2: {ttl:?} were granted, and it ended after {lasted:?}"
        );
    }
}
