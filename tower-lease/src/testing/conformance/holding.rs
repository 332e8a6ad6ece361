//! Acquiring, renewing, giving back, handing over.

use tokio::task::JoinSet;

use super::{Conformance, assert_fault, ok};
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
        assert!(!grant.ttl().is_zero(), "R-2: the granted TTL is told");
        let Acquired::Held(record) = ok(self.other.acquire(&self.claim(&key)).await, "acquire of a held key") else {
            panic!("R-14: a key that is held is granted to nobody else");
        };
        assert_eq!((record.token(), record.claim()), (grant.token(), claim.id()), "who holds it is told");
        let read = self.inspected(&key).await.expect("R-14: what was granted can be read");
        assert_eq!((read.token(), read.claim()), (grant.token(), claim.id()));
    }

    async fn r14_of_many_at_once_one_gets_it(&self) {
        let key = self.key();
        let mut racers = JoinSet::new();
        for racer in 0..16 {
            let store = if racer % 2 == 0 { self.one.clone() } else { self.other.clone() };
            let claim = self.claim(&key);
            racers.spawn(async move { store.acquire(&claim).await });
        }
        let answers = racers.join_all().await;
        let got = answers.iter().filter(|answer| matches!(answer, Ok(Acquired::Granted(_)))).count();
        assert_eq!(got, 1, "R-14: of 16 claims at once one is granted: {answers:?}");
    }

    async fn r15_a_repeated_claim_gets_the_same_grant(&self) {
        let (key, claim, grant) = self.held().await;
        for store in [&self.one, &self.other] {
            let again = ok(store.acquire(&claim).await, "a repeated acquire");
            assert_eq!(again, Acquired::Granted(grant.clone()), "R-15: the same claim gets the same grant");
        }
        let record = self.inspected(&key).await;
        assert_eq!(record.as_ref().map(crate::Record::token), Some(grant.token()), "R-15: it is written once");
    }

    async fn r16_the_same_name_is_not_the_same_claim(&self) {
        let (key, claim, _) = self.held().await;
        let restarted = Claim::new(key, claim.holder().clone(), ClaimId::random(), self.ttl);
        let answer = ok(self.one.acquire(&restarted).await, "acquire after a restart");
        assert!(matches!(answer, Acquired::Held(_)), "R-16: a record is not adopted because the name matches");
        assert_fault(self.one.renew(&restarted).await, Fault::Lost, "R-16: nor renewed");
    }

    async fn r11_only_the_claim_that_holds_it_can_renew(&self) {
        let (key, claim, _) = self.held().await;
        assert!(!ok(self.one.renew(&claim).await, "renew").is_zero(), "R-2: a renewal tells the TTL");
        let token = self.inspected(&key).await.map(|record| record.token().clone());
        ok(self.other.renew(&claim).await, "renew over another connection");
        let same = self.inspected(&key).await.map(|record| record.token().clone());
        assert_eq!(token, same, "R-20: a renewal changes no token");
        assert_fault(self.one.renew(&self.claim(&key)).await, Fault::Lost, "R-11: another claim holds it");
        assert_fault(self.one.renew(&self.claim(&self.key())).await, Fault::Lost, "R-11: nobody holds it");
        ok(self.one.release(&claim).await, "release");
        assert_fault(self.one.renew(&claim).await, Fault::Lost, "R-11: it was released");
    }

    async fn r30_release_is_guarded_and_idempotent(&self) {
        let (key, claim, grant) = self.held().await;
        ok(self.other.release(&self.claim(&key)).await, "R-30: a release by one that holds nothing");
        let still = self.inspected(&key).await.map(|record| record.token().clone());
        assert_eq!(still.as_ref(), Some(grant.token()), "R-30: only the claim that holds it can release it");
        ok(self.one.release(&claim).await, "release");
        ok(self.one.release(&claim).await, "R-30: a second release");
        assert_eq!(self.inspected(&key).await, None, "R-30: released is vacant");
        let next = self.claim(&key);
        self.granted(&next).await;
        ok(self.one.release(&claim).await, "R-30: a release that comes late");
        let record = self.inspected(&key).await.map(|record| record.claim());
        assert_eq!(record, Some(next.id()), "R-30: a late release does not hit the successor");
    }

    async fn r19_tokens_rise_over_release_and_revocation(&self) {
        let (key, claim, first) = self.held().await;
        ok(self.one.release(&claim).await, "release");
        let second = self.granted(&self.claim(&key)).await;
        self.assert_rises(&first, &second, "a release");
        ok(self.other.revoke(&key, None).await, "revoke");
        assert_eq!(self.inspected(&key).await, None, "revoked is vacant");
        ok(self.other.revoke(&key, None).await, "revoke of a vacant key");
        let third = self.granted(&self.claim(&key)).await;
        self.assert_rises(&second, &third, "a revocation");
    }

    /// What a release tells is the store's choice; that the others are no clean end is not.
    async fn r18_a_revocation_is_no_clean_end(&self) {
        let (key, claim, _) = self.held().await;
        ok(self.one.revoke(&key, None).await, "revoke");
        assert_fault(self.one.renew(&claim).await, Fault::Lost, "R-11: it was revoked");
        let next = self.claim(&key);
        let grant = self.granted(&next).await;
        assert!(!grant.is_clean(), "R-18: the holder of a revoked lease may be at work");
        let again = ok(self.one.acquire(&next).await, "a repeated acquire");
        assert_eq!(again, Acquired::Granted(grant), "R-15: and that is told again");
    }

    async fn r21_a_guarded_revocation_needs_its_guard(&self) {
        let (leader, leading, old) = self.held().await;
        let (key, _, _) = self.held().await;
        ok(self.one.release(&leading).await, "release");
        let new = self.granted(&self.claim(&leader)).await;
        assert_fault(self.one.revoke(&key, Some(old.token())).await, Fault::Lost, "R-21: the guard's epoch is over");
        assert!(self.inspected(&key).await.is_some(), "R-21: and nothing is revoked");
        ok(self.one.revoke(&key, Some(new.token())).await, "a guarded revoke");
        assert_eq!(self.inspected(&key).await, None);
    }

    async fn the_holder_is_kept_whole(&self) {
        let bytes: Vec<u8> = (0..Holder::MAX_PAYLOAD).map(|at| at as u8).collect();
        for payload in [bytes, Vec::new()] {
            let key = self.key();
            let holder = Holder::new("nœud \"1\"\n").with_payload(payload).expect("just as long as it may be");
            let claim = Claim::new(key.clone(), holder.clone(), ClaimId::from_u128(u128::MAX), self.ttl);
            self.granted(&claim).await;
            let record = self.inspected(&key).await.expect("held");
            assert_eq!(record.holder(), &holder, "name, incarnation and payload come back as they were");
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
        assert_fault(self.one.transfer(&stranger, &to).await, Fault::Lost, "R-20: only the holder hands over");
        let elsewhere = self.claim(&self.key());
        assert_fault(self.one.transfer(&from, &elsewhere).await, Fault::Refused, "R-25: between claims to one key");
        let new = ok(self.one.transfer(&from, &to).await, "transfer");
        self.assert_rises(&old, &new, "a transfer");
        assert!(new.is_clean(), "R-18: a transfer is a clean end");
        let record = self.inspected(&key).await.expect("R-20: no vacancy");
        assert_eq!((record.token(), record.claim()), (new.token(), to.id()));
        assert_eq!(record.holder(), to.holder(), "R-20: the successor's own record");
        assert_fault(self.one.renew(&from).await, Fault::Lost, "R-26: the old epoch is over");
        ok(self.one.release(&from).await, "R-30: a late release");
        assert!(self.inspected(&key).await.is_some(), "R-20: what was the old claim's does not take the key along");
        ok(self.other.renew(&to).await, "renew by the successor");
        let adopted = ok(self.other.acquire(&to).await, "acquire by the successor");
        assert_eq!(adopted, Acquired::Granted(new.clone()), "R-15: the successor is told the transfer's grant");
        ok(self.other.release(&to).await, "release by the successor");
        let next = self.granted(&self.claim(&key)).await;
        self.assert_rises(&new, &next, "a release after a transfer");
    }

    async fn r15_a_repeated_transfer_is_one(&self) {
        let (key, from, _) = self.held().await;
        let to = self.claim(&key);
        let first = ok(self.one.transfer(&from, &to).await, "transfer");
        let again = ok(self.other.transfer(&from, &to).await, "R-15: a repeated transfer");
        assert_eq!(first, again, "R-15: a transfer whose answer was lost is found done");
        ok(self.one.release(&to).await, "release");
        assert_fault(self.one.transfer(&from, &to).await, Fault::Lost, "R-20: nothing is left to hand over");
        assert_eq!(self.inspected(&key).await, None);
    }

    async fn r32_a_missing_ability_is_refused(&self) {
        let (key, from, _) = self.held().await;
        let result = self.one.transfer(&from, &self.claim(&key)).await;
        assert_fault(result, Fault::Refused, "R-32: an ability that is not declared is refused");
    }
}
