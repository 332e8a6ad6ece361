//! Documents, and the leases that guard them.

use super::{Conformance, assert_fault, ok};
use crate::{Document, DocumentStore, Fault, FencingToken, LeaseKey, Swap, Swapped, WatchEvent};

impl<S: DocumentStore> Conformance<S> {
    pub(super) async fn document(&self) {
        self.a_prefix_lists_what_is_under_it().await;
        self.a_document_is_compared_and_set().await;
        self.of_many_swaps_at_once_one_is_done().await;
        self.r21_a_guarded_write_needs_its_guard().await;
        self.a_bound_document_ends_with_its_epoch().await;
        self.a_key_is_a_lease_or_a_document().await;
        self.a_document_has_a_greatest_length().await;
        if self.one.capabilities().watch() {
            self.a_prefix_watch_continues_a_listing().await;
            self.a_prefix_watch_reports_documents_too().await;
        }
    }

    /// Leases go by themselves; documents do not.
    pub(super) async fn clean_up(&self) {
        for document in self
            .answer(|| self.one.list_prefix(&self.prefix), "list")
            .await
            .documents
        {
            ok(self.one.swap(&Swap::delete(&document)).await, "swap");
        }
    }

    async fn written(&self, swap: &Swap) -> Document {
        let swapped = ok(self.one.swap(swap).await, "swap");
        let Swapped::Done(at) = swapped else {
            panic!("a swap that finds what it expects is done: {swapped:?}")
        };
        let document = self
            .found(swap.key())
            .await
            .expect("what was written can be read");
        assert_eq!(
            document.revision(),
            at,
            "a swap returns the revision that can be read"
        );
        document
    }

    async fn found(&self, key: &LeaseKey) -> Option<Document> {
        self.answer(|| self.other.read(key), "read").await
    }

    async fn a_document_is_compared_and_set(&self) {
        let key = self.key();
        assert_eq!(self.found(&key).await, None);
        let bytes: Vec<u8> = (0..=255).collect();
        let first = self
            .written(&Swap::create(key.clone(), bytes.clone()))
            .await;
        assert_eq!((first.key(), first.value().as_ref()), (&key, &bytes[..]));
        let again = ok(
            self.other.swap(&Swap::create(key.clone(), "x")).await,
            "swap",
        );
        assert_eq!(
            again,
            Swapped::Changed(Some(first.clone())),
            "it is there already"
        );
        let second = self.written(&Swap::replace(&first, "")).await;
        assert!(second.revision() > first.revision() && second.value().is_empty());
        let stale = ok(self.other.swap(&Swap::replace(&first, "y")).await, "swap");
        assert_eq!(
            stale,
            Swapped::Changed(Some(second.clone())),
            "it has changed since"
        );
        let stale = ok(self.other.swap(&Swap::delete(&first)).await, "swap");
        assert_eq!(
            stale,
            Swapped::Changed(Some(second.clone())),
            "nor is it deleted then"
        );
        assert!(matches!(
            ok(self.one.swap(&Swap::delete(&second)).await, "swap"),
            Swapped::Done(_)
        ));
        assert_eq!(self.found(&key).await, None, "deleted");
        let gone = ok(self.other.swap(&Swap::replace(&second, "z")).await, "swap");
        assert_eq!(gone, Swapped::Changed(None), "it is gone");
        let third = self.written(&Swap::create(key, "new")).await;
        assert!(
            third.revision() > second.revision(),
            "a revision does not come again"
        );
    }

    async fn of_many_swaps_at_once_one_is_done(&self) {
        let first = self.written(&Swap::create(self.key(), "0")).await;
        let mut racers = tokio::task::JoinSet::new();
        for racer in 0..8 {
            let store = if racer % 2 == 0 {
                self.one.clone()
            } else {
                self.other.clone()
            };
            let swap = Swap::replace(&first, racer.to_string());
            racers.spawn(async move { store.swap(&swap).await });
        }
        let answers = racers.join_all().await;
        let done = answers
            .iter()
            .filter(|answer| matches!(answer, Ok(Swapped::Done(_))))
            .count();
        assert_eq!(done, 1, "of 8 swaps at once one is done: {answers:?}");
    }

    async fn r21_a_guarded_write_needs_its_guard(&self) {
        let (leader, leading, old) = self.held().await;
        let first = self
            .written(&Swap::create(self.key(), "one").guarded_by(old.token()))
            .await;
        self.answer(|| self.one.renew(&leading), "renew").await;
        let second = self
            .written(&Swap::replace(&first, "two").guarded_by(old.token()))
            .await;
        self.answer(|| self.one.release(&leading), "release").await;
        let late = Swap::replace(&second, "late").guarded_by(old.token());
        assert_fault(
            self.one.swap(&late).await,
            Fault::Lost,
            "R-21: the guard is not held",
        );
        let new = self.granted(&self.claim(&leader)).await;
        assert_fault(
            self.one.swap(&late).await,
            Fault::Lost,
            "R-21: a later epoch holds it",
        );
        assert_eq!(
            self.found(second.key()).await.as_ref(),
            Some(&second),
            "R-21: and nothing is written"
        );
        self.written(&Swap::replace(&second, "three").guarded_by(new.token()))
            .await;
        let foreign = FencingToken::new(self.key(), new.token().epoch());
        let foreign = Swap::create(self.key(), "x").guarded_by(&foreign);
        assert_fault(
            self.one.swap(&foreign).await,
            Fault::Lost,
            "R-25: a token of a key that is not held",
        );
    }

    async fn a_bound_document_ends_with_its_epoch(&self) {
        let (_, claim, grant) = self.held().await;
        let [gone, kept] = [self.key(), self.key()];
        self.written(&Swap::create(gone.clone(), "x").bound_to(grant.token()))
            .await;
        let bound = self
            .written(&Swap::create(kept.clone(), "x").bound_to(grant.token()))
            .await;
        self.written(&Swap::replace(&bound, "y")).await;
        self.answer(|| self.one.release(&claim), "release").await;
        assert_eq!(
            self.found(&gone).await,
            None,
            "a bound document ends with a release"
        );
        assert!(
            self.found(&kept).await.is_some(),
            "one that was written since without that stays"
        );
        if self.one.capabilities().transfer() {
            let (key, from, grant) = self.held().await;
            let handed = self.key();
            self.written(&Swap::create(handed.clone(), "x").bound_to(grant.token()))
                .await;
            let to = self.claim(&key);
            self.answer(|| self.one.transfer(&from, &to), "transfer")
                .await;
            self.answer(|| self.one.release(&from), "release by the old holder")
                .await;
            assert_eq!(
                self.found(&handed).await,
                None,
                "and with a transfer, once the old holder has let go"
            );
        }
    }

    pub(super) async fn a_bound_document_ends_with_an_expiry(&self) {
        let (key, _, grant) = self.held().await;
        let expiring = self.key();
        self.written(&Swap::create(expiring.clone(), "x").bound_to(grant.token()))
            .await;
        self.until_vacant(&key, grant.ttl() + self.lateness()).await;
        assert_eq!(
            self.found(&expiring).await,
            None,
            "a bound document ends with an expiry"
        );
    }

    async fn a_key_is_a_lease_or_a_document(&self) {
        let (key, ..) = self.held().await;
        let swap = self.one.swap(&Swap::create(key.clone(), "x")).await;
        assert_fault(swap, Fault::Refused, "a lease is not written over");
        assert_eq!(self.found(&key).await, None, "a lease is no document");
        let document = self.written(&Swap::create(self.key(), "x")).await;
        let claim = self.claim(document.key());
        self.assert_fault(
            || self.one.acquire(&claim),
            Fault::Refused,
            "a document is not acquired",
        )
        .await;
        assert_eq!(
            self.inspected(document.key()).await,
            None,
            "a document is no lease"
        );
    }

    async fn a_document_has_a_greatest_length(&self) {
        let long = Swap::create(self.key(), vec![7; Document::MAX_LEN + 1]);
        assert_fault(
            self.one.swap(&long).await,
            Fault::Refused,
            "a value that is too long",
        );
        let document = self
            .written(&Swap::create(self.key(), vec![7; Document::MAX_LEN]))
            .await;
        assert_eq!(document.value().len(), Document::MAX_LEN);
    }

    async fn a_prefix_watch_reports_documents_too(&self) {
        let base = self.key();
        let prefix = format!("{base}/");
        let [document, lease] = ["d", "l"]
            .map(|tail| LeaseKey::new(&format!("{prefix}{tail}")).expect("visible ASCII"));
        let mut watch = self.watching_prefix(&prefix).await;
        self.granted(&self.claim(&lease)).await;
        let event = self.next(&mut watch, "an acquisition").await;
        assert!(matches!(event, WatchEvent::Held(..)), "{event:?}");
        let first = self.written(&Swap::create(document.clone(), "x")).await;
        let event = self.next(&mut watch, "a write").await;
        assert_eq!(event, WatchEvent::Written(first.clone()));
        let listing = self
            .answer(|| self.other.list_prefix(&prefix), "list")
            .await;
        assert_eq!(
            listing.documents,
            std::slice::from_ref(&first),
            "a listing has the documents too"
        );
        assert_eq!(listing.records.len(), 1, "beside the records");
        ok(self.one.swap(&Swap::delete(&first)).await, "swap");
        let event = self.next(&mut watch, "a deletion").await;
        assert!(
            matches!(&event, WatchEvent::Deleted(gone, at) if *gone == document && *at > first.revision()),
            "{event:?}"
        );
    }

    /// From now on. (From the start would be too much to ask of an engine that forgets.)
    async fn watching_prefix(&self, prefix: &str) -> S::Watch {
        let listing = self.answer(|| self.other.list_prefix(prefix), "list").await;
        self.other.watch_prefix(prefix, listing.revision)
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
            panic!("an acquisition is reported as held: {event:?}")
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
}
