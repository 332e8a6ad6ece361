//! Keys become fingerprints: 64 bits that an attacker cannot aim at.
//!
//! # Which hash, and why
//!
//! Two keys of one fingerprint share a bucket, and the fingerprint selects the slots of a key. So no client must be able to make
//! keys that meet a victim's, or that crowd one place. That takes a secret seed and a hash whose collisions depend on it; it
//! takes no cryptographic hash, because an attacker sees no outputs: only whether a bucket is shared, which for any pair of
//! keys happens once in 2^64.
//!
//! - SipHash-1-3, the standard library's, is the strong choice and 162 instructions for an address, half of a check.
//! - `ahash` is strong where it may use AES instructions, which a portable build may not; what it falls back to there is
//!   what its successor does:
//! - `foldhash` multiplies 64 by 64 bits and folds the product, with secret numbers in both factors: about 20
//!   instructions. Its *quality* variant mixes once more, so that all 64 bits are good. Its authors claim resistance to
//!   attackers that cannot study the hash's outputs, which is our case.
//!
//! Its own seeds come from addresses and the time. Ours come from the operating system, by way of [`RandomState`]: one for
//! the process and one for each limiter.

use std::{
    hash::{BuildHasher, Hash, RandomState},
    sync::OnceLock,
};

use foldhash::{SharedSeed, quality::SeedableRandomState};

/// A key's hash; never zero, which is the mark of an empty slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Fingerprint(pub(crate) u64);

/// Makes fingerprints, each limiter its own.
#[derive(Clone, Debug)]
pub(crate) struct Seed(SeedableRandomState);

// === impl Seed ===

impl Seed {
    pub(crate) fn random() -> Self {
        let shared = SHARED.get_or_init(|| SharedSeed::from_u64(random_number()));
        Self(SeedableRandomState::with_seed(random_number(), shared))
    }

    #[inline]
    pub(crate) fn fingerprint<K: Hash + ?Sized>(&self, key: &K) -> Fingerprint {
        Fingerprint::from(self.0.hash_one(key))
    }
}

// === impl Fingerprint ===

impl From<u64> for Fingerprint {
    #[inline]
    fn from(hash: u64) -> Self {
        Self(hash.max(1))
    }
}

fn random_number() -> u64 {
    RandomState::new().hash_one(())
}

static SHARED: OnceLock<SharedSeed> = OnceLock::new();

#[cfg(test)]
mod tests {
    use std::{collections::HashSet, net::IpAddr};

    use super::*;
    use crate::ClientIp;

    #[test]
    fn a_key_has_one_fingerprint_in_each_limiter() {
        let (one, other) = (Seed::random(), Seed::random());
        assert_eq!(
            one.fingerprint("alice"),
            one.fingerprint(&String::from("alice"))
        );
        assert_ne!(one.fingerprint("alice"), one.fingerprint("bob"));
        assert_ne!(one.fingerprint("alice"), other.fingerprint("alice"));
    }

    #[test]
    fn neighbouring_addresses_are_spread_evenly_by_their_upper_and_lower_bits() {
        let seed = Seed::random();
        let v4 = (0..50_000_u32).map(|low| IpAddr::from((0x0A00_0000 + low).to_be_bytes()));
        let v6 = (0..50_000_u128)
            .map(|net| IpAddr::from(((0x2001_0DB8 << 96) | (net << 64)).to_be_bytes()));
        let all: Vec<u64> = v4
            .chain(v6)
            .map(|addr| seed.fingerprint(&ClientIp::from(addr)).0)
            .collect();
        assert_eq!(
            all.iter().collect::<HashSet<_>>().len(),
            all.len(),
            "no two are the same"
        );
        for shift in [0, 20, 40, 54] {
            let mut buckets = [0; 1024];
            all.iter()
                .for_each(|hash| buckets[(hash >> shift) as usize % 1024] += 1);
            // 98 on average, by chance between 60 and 140.
            let (least, most) = (buckets.iter().min().unwrap(), buckets.iter().max().unwrap());
            assert!(
                *least > 40 && *most < 170,
                "{least}..={most} of bits from {shift}"
            );
        }
    }
}
