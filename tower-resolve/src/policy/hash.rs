use super::{Candidates, PickContext};

/// How much more than the mean an endpoint may have in flight before its keys go to the next one ("consistent hashing
/// with bounded loads", Mirrokni, Thorup and Zadimoghaddam, 2017). Off by default.
///
/// It keeps a single popular key from overloading its endpoint; in exchange that key then has two endpoints. With few
/// requests in flight the bound is one request, so a client that sends several requests at once reaches several endpoints:
/// it does not suit sessions, nor caches that are filled by requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bound(u32);

// === impl Bound ===

impl Bound {
    /// No bound: a key goes to its endpoint as long as that is ready. The default.
    pub const NONE: Self = Self(u32::MAX);

    /// This percentage above the mean. The paper shows that with 25 a change of the set moves few keys more than necessary.
    #[must_use]
    pub const fn percent(more: u32) -> Self {
        Self(more)
    }

    /// Whether one more request would be too many: more than `ceil((1 + c) · (m + 1) / n)`, by weight.
    pub(super) fn is_over<C: Candidates>(self, candidates: &C, index: usize) -> bool {
        if self == Self::NONE {
            return false;
        }
        let requests = u128::from(candidates.total_in_flight() + 1) * (100 + u128::from(self.0));
        let share = requests * u128::from(candidates.weight(index));
        let most = share.div_ceil(100 * u128::from(candidates.total_weight()));
        u128::from(candidates.in_flight(index)) + 1 > most
    }
}

impl Default for Bound {
    fn default() -> Self {
        Self::NONE
    }
}

/// A key made of bytes of a request: a user name, a cookie, a path. The same in every process and every version, so that all
/// clients agree on its endpoint.
///
/// FNV-1a, with the finalizer of MurmurHash3 to spread it. Not for keys that an attacker can choose to collide: they would
/// all go to one endpoint, which the [`Bound`] then limits.
#[must_use]
pub fn key(bytes: &[u8]) -> u64 {
    mixed(bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3)
    }))
}

/// MurmurHash3's 64-bit finalizer: each bit of the input changes half of the output's.
pub(crate) const fn mixed(mut hash: u64) -> u64 {
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^ hash >> 33
}

/// The key of a request; a request without one gets any endpoint.
pub(super) fn key_of(context: &PickContext) -> u64 {
    context.key().map_or_else(|| fastrand::u64(..), mixed)
}

/// Whether this key has not moved to this endpoint yet, because the endpoint is in slow start. Each key moves once, at its
/// own warmth.
pub(super) fn is_to_come<C: Candidates>(candidates: &C, index: usize, key: u64) -> bool {
    let warmth = candidates.warmth(index);
    // Spread in another way than on the ring.
    warmth < 1.0 && (mixed(key.rotate_left(32)) >> 40) as f32 >= warmth * (1 << 24) as f32
}

/// How many candidates a pick tries to find an endpoint below its bound. By the definition of the bound at least a fifth of
/// all are.
pub(super) const LOOKS: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::testing::Some;

    #[test]
    fn a_key_is_the_same_everywhere() {
        // Written down, so that a change of the function is seen.
        assert_eq!(key(b""), mixed(0xcbf2_9ce4_8422_2325));
        assert_eq!(key(b"user-1"), 4_729_620_347_622_785_477);
        assert_ne!(key(b"user-1"), key(b"user-2"));
    }

    #[test]
    fn the_bound_is_above_the_mean_and_rounded_up() {
        let over =
            |loads: &[u32], index| Bound::percent(25).is_over(&Some::with_loads(loads), index);
        assert!(!over(&[0, 0, 0, 0], 0), "one request is always allowed");
        assert!(over(&[1, 0, 0, 0], 0), "ceil(1.25 x 2 / 4) = 1");
        assert!(!over(&[4, 4, 4, 4], 0), "ceil(1.25 x 17 / 4) = 6");
        assert!(over(&[6, 4, 4, 2], 0));
        assert!(!Bound::NONE.is_over(&Some::with_loads(&[1000, 0]), 0));
    }
}
