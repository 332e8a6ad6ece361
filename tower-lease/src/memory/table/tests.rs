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
fn r6_a_record_ends_without_a_sweep() {
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
fn r18_a_grant_reports_how_the_last_epoch_ended() {
    let (mut table, now) = (Table::default(), Instant::now());
    let is_clean = |table: &mut Table, id, now| match table.acquire(&claim("a", id), now).unwrap() {
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
    let token = |table: &mut Table, id, now| match table.acquire(&claim("lead", id), now).unwrap() {
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
fn the_log_is_bounded_and_reports_what_it_forgot() {
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
