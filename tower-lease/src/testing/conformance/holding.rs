//! Acquiring, renewing, giving back, handing over.

use tokio::task::JoinSet;

use super::{Conformance, assert_fault, known};
use crate::{Acquired, Claim, ClaimId, Fault, Holder, LeaseKey, LeaseStore};

impl<S: LeaseStore> Conformance<S> {
    pub(super) async fn hold(&self) {
        self.r14_a_free_key_is_granted_and_a_held_one_is_not().await;
        self.r14_of_many_at_once_one_gets_it().await;
        self.r15_a_repeated_claim_gets_the_same_grant().await;
        self.r16_the_same_name_is_not_the_same_claim().await;
        self.r11_only_the_claim_that_holds_it_can_renew().await;
        self.r30_release_is_guarded_and_idempotent().await;
        self.r19_tokens_rise_over_release_and_revocation().await;
        self.r18_a_revocation_is_no_clean_end().await;
        self.r21_a_guarded_revocation_needs_its_guard().await;
        self.the_holder_is_kept_whole().await;
        self.odd_keys_are_kept_apart().await;
        if self.one.capabilities().transfer() {
            self.r20_a_transfer_is_one_step().await;
            self.r15_a_repeated_transfer_is_one().await;
        } else {
            self.r32_a_missing_ability_is_refused().await;
        }
    }

    async fn r14_a_free_key_is_granted_and_a_held_one_is_not(&self) {
        let (key, claim, grant) = self.held().await;
        assert_eq!(grant.token().key(), &key, "R-25: the token is of the key");
        assert!(!grant.ttl().is_zero(), "R-2: the granted TTL is returned");
        let another = self.claim(&key);
        let answer = self
            .answer(|| self.other.acquire(&another), "acquire of a held key")
            .await;
        let Acquired::Held(record) = answer else {
            panic!("R-14: a key that is held is granted to no other claim");
        };
        assert_eq!(
            (record.token(), record.claim()),
            (grant.token(), claim.id()),
            "the holder is returned"
        );
        let read = self
            .inspected(&key)
            .await
            .expect("R-14: what was granted can be read");
        assert_eq!((read.token(), read.claim()), (grant.token(), claim.id()));
    }

    async fn r14_of_many_at_once_one_gets_it(&self) {
        let key = self.key();
        let mut racers = JoinSet::new();
        for racer in 0..16 {
            let store = if racer % 2 == 0 {
                self.one.clone()
            } else {
                self.other.clone()
            };
            let (claim, patience) = (self.claim(&key), self.patience());
            racers.spawn(async move { known(patience, || store.acquire(&claim)).await });
        }
        let answers = racers.join_all().await;
        let got = answers
            .iter()
            .filter(|answer| matches!(answer, Ok(Acquired::Granted(_))))
            .count();
        assert_eq!(
            got, 1,
            "R-14: of 16 claims at once one is granted: {answers:?}"
        );
    }

    async fn r15_a_repeated_claim_gets_the_same_grant(&self) {
        let (key, claim, grant) = self.held().await;
        for store in [&self.one, &self.other] {
            let again = self
                .answer(|| store.acquire(&claim), "a repeated acquire")
                .await;
            assert_eq!(
                again,
                Acquired::Granted(grant.clone()),
                "R-15: the same claim gets the same grant"
            );
        }
        let record = self.inspected(&key).await;
        assert_eq!(
            record.as_ref().map(crate::Record::token),
            Some(grant.token()),
            "R-15: it is written once"
        );
    }

    async fn r16_the_same_name_is_not_the_same_claim(&self) {
        let (key, claim, _) = self.held().await;
        let restarted = Claim::new(key, claim.holder().clone(), ClaimId::random(), self.ttl);
        let answer = self
            .answer(|| self.one.acquire(&restarted), "acquire after a restart")
            .await;
        assert!(
            matches!(answer, Acquired::Held(_)),
            "R-16: a record is not adopted because the name matches"
        );
        self.assert_fault(
            || self.one.renew(&restarted),
            Fault::Lost,
            "R-16: nor renewed",
        )
        .await;
    }

    async fn r11_only_the_claim_that_holds_it_can_renew(&self) {
        let (key, claim, _) = self.held().await;
        assert!(
            !self
                .answer(|| self.one.renew(&claim), "renew")
                .await
                .is_zero(),
            "R-2: a renewal returns the TTL"
        );
        let token = self
            .inspected(&key)
            .await
            .map(|record| record.token().clone());
        self.answer(|| self.other.renew(&claim), "renew over another connection")
            .await;
        let same = self
            .inspected(&key)
            .await
            .map(|record| record.token().clone());
        assert_eq!(token, same, "R-20: a renewal changes no token");
        let [another, none] = [self.claim(&key), self.claim(&self.key())];
        self.assert_fault(
            || self.one.renew(&another),
            Fault::Lost,
            "R-11: another claim holds it",
        )
        .await;
        self.assert_fault(
            || self.one.renew(&none),
            Fault::Lost,
            "R-11: it is not held",
        )
        .await;
        self.answer(|| self.one.release(&claim), "release").await;
        self.assert_fault(
            || self.one.renew(&claim),
            Fault::Lost,
            "R-11: it was released",
        )
        .await;
    }

    async fn r30_release_is_guarded_and_idempotent(&self) {
        let (key, claim, grant) = self.held().await;
        let another = self.claim(&key);
        self.answer(
            || self.other.release(&another),
            "R-30: a release by one that holds nothing",
        )
        .await;
        let still = self
            .inspected(&key)
            .await
            .map(|record| record.token().clone());
        assert_eq!(
            still.as_ref(),
            Some(grant.token()),
            "R-30: only the claim that holds it can release it"
        );
        self.answer(|| self.one.release(&claim), "release").await;
        self.answer(|| self.one.release(&claim), "R-30: a second release")
            .await;
        assert_eq!(self.inspected(&key).await, None, "R-30: released is vacant");
        let next = self.claim(&key);
        self.granted(&next).await;
        self.answer(
            || self.one.release(&claim),
            "R-30: a release that comes late",
        )
        .await;
        let record = self.inspected(&key).await.map(|record| record.claim());
        assert_eq!(
            record,
            Some(next.id()),
            "R-30: a late release does not hit the successor"
        );
    }

    async fn r19_tokens_rise_over_release_and_revocation(&self) {
        let (key, claim, first) = self.held().await;
        self.answer(|| self.one.release(&claim), "release").await;
        let second = self.granted(&self.claim(&key)).await;
        self.assert_rises(&first, &second, "a release");
        self.answer(|| self.other.revoke(&key, None), "revoke")
            .await;
        assert_eq!(self.inspected(&key).await, None, "revoked is vacant");
        self.answer(|| self.other.revoke(&key, None), "revoke of a vacant key")
            .await;
        let third = self.granted(&self.claim(&key)).await;
        self.assert_rises(&second, &third, "a revocation");
    }

    /// Whether a release is a clean end is the store's choice; a revocation never is.
    async fn r18_a_revocation_is_no_clean_end(&self) {
        let (key, claim, _) = self.held().await;
        self.answer(|| self.one.revoke(&key, None), "revoke").await;
        self.assert_fault(
            || self.one.renew(&claim),
            Fault::Lost,
            "R-11: it was revoked",
        )
        .await;
        let next = self.claim(&key);
        let grant = self.granted(&next).await;
        assert!(
            !grant.is_clean(),
            "R-18: the holder of a revoked lease may be at work"
        );
        let again = self
            .answer(|| self.one.acquire(&next), "a repeated acquire")
            .await;
        assert_eq!(
            again,
            Acquired::Granted(grant),
            "R-15: and that grant is returned again"
        );
    }

    async fn r21_a_guarded_revocation_needs_its_guard(&self) {
        let (leader, leading, old) = self.held().await;
        let (key, _, _) = self.held().await;
        self.answer(|| self.one.release(&leading), "release").await;
        let new = self.granted(&self.claim(&leader)).await;
        self.assert_fault(
            || self.one.revoke(&key, Some(old.token())),
            Fault::Lost,
            "R-21: the guard's epoch is over",
        )
        .await;
        assert!(
            self.inspected(&key).await.is_some(),
            "R-21: and nothing is revoked"
        );
        self.answer(
            || self.one.revoke(&key, Some(new.token())),
            "a guarded revoke",
        )
        .await;
        assert_eq!(self.inspected(&key).await, None);
    }

    async fn the_holder_is_kept_whole(&self) {
        let bytes: Vec<u8> = (0..Holder::MAX_PAYLOAD).map(|at| at as u8).collect();
        for payload in [bytes, Vec::new()] {
            let key = self.key();
            let holder = Holder::new("nœud \"1\"\n")
                .with_payload(payload)
                .expect("just as long as it may be");
            let claim = Claim::new(
                key.clone(),
                holder.clone(),
                ClaimId::from_u128(u128::MAX),
                self.ttl,
            );
            self.granted(&claim).await;
            let record = self.inspected(&key).await.expect("held");
            assert_eq!(
                record.holder(),
                &holder,
                "name, incarnation and payload come back as they were"
            );
            assert_eq!(record.claim(), claim.id());
        }
    }

    async fn odd_keys_are_kept_apart(&self) {
        let base = self.key();
        for tail in ["/", "/a", "/a/", "//", "%2F", "\\", "\"", "*", "~"] {
            let key = LeaseKey::new(&format!("{base}{tail}")).expect("visible ASCII");
            assert_eq!(self.inspected(&key).await, None, "{key}");
            self.granted(&self.claim(&key)).await;
            assert_eq!(self.inspected(&key).await.expect("held").key(), &key);
        }
        assert_eq!(self.inspected(&base).await, None, "{base}");
    }

    async fn r20_a_transfer_is_one_step(&self) {
        let (key, from, old) = self.held().await;
        let (to, stranger) = (self.claim(&key), self.claim(&key));
        self.assert_fault(
            || self.one.transfer(&stranger, &to),
            Fault::Lost,
            "R-20: only the holder hands over",
        )
        .await;
        let elsewhere = self.claim(&self.key());
        self.assert_fault(
            || self.one.transfer(&from, &elsewhere),
            Fault::Refused,
            "R-25: between claims to one key",
        )
        .await;
        let new = self
            .answer(|| self.one.transfer(&from, &to), "transfer")
            .await;
        self.assert_rises(&old, &new, "a transfer");
        assert!(new.is_clean(), "R-18: a transfer is a clean end");
        let record = self.inspected(&key).await.expect("R-20: no vacancy");
        assert_eq!((record.token(), record.claim()), (new.token(), to.id()));
        assert_eq!(
            record.holder(),
            to.holder(),
            "R-20: the successor's own record"
        );
        self.assert_fault(
            || self.one.renew(&from),
            Fault::Lost,
            "R-26: the old epoch is over",
        )
        .await;
        self.answer(|| self.one.release(&from), "R-30: a late release")
            .await;
        assert!(
            self.inspected(&key).await.is_some(),
            "R-20: what was the old claim's does not take the key along"
        );
        self.answer(|| self.other.renew(&to), "renew by the successor")
            .await;
        let adopted = self
            .answer(|| self.other.acquire(&to), "acquire by the successor")
            .await;
        assert_eq!(
            adopted,
            Acquired::Granted(new.clone()),
            "R-15: the successor gets the transfer's grant"
        );
        self.answer(|| self.other.release(&to), "release by the successor")
            .await;
        let next = self.granted(&self.claim(&key)).await;
        self.assert_rises(&new, &next, "a release after a transfer");
    }

    async fn r15_a_repeated_transfer_is_one(&self) {
        let (key, from, _) = self.held().await;
        let to = self.claim(&key);
        let first = self
            .answer(|| self.one.transfer(&from, &to), "transfer")
            .await;
        let again = self
            .answer(
                || self.other.transfer(&from, &to),
                "R-15: a repeated transfer",
            )
            .await;
        assert_eq!(
            first, again,
            "R-15: a transfer whose answer was lost is found done"
        );
        self.answer(|| self.one.release(&to), "release").await;
        self.assert_fault(
            || self.one.transfer(&from, &to),
            Fault::Lost,
            "R-20: nothing is left to hand over",
        )
        .await;
        assert_eq!(self.inspected(&key).await, None);
    }

    async fn r32_a_missing_ability_is_refused(&self) {
        let (key, from, _) = self.held().await;
        let result = self.one.transfer(&from, &self.claim(&key)).await;
        assert_fault(
            result,
            Fault::Refused,
            "R-32: an ability that is not declared is refused",
        );
    }
}
