use std::{
    borrow::Borrow,
    cmp::Ordering,
    error::Error,
    fmt::{self, Write},
    num::NonZeroU64,
    str::FromStr,
    sync::Arc,
};

use bytes::BytesMut;
use http::HeaderValue;

/// The name of what is leased: `svc/echo/listener/0`, `leader`.
///
/// 1 to [`MAX_LEN`](Self::MAX_LEN) bytes of visible ASCII without `;` and `,`, so that it fits into a header beside its
/// epoch. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseKey(Arc<str>);

/// Proof of one acquisition: the key, and an epoch greater than that of every earlier acquisition of this key (R-19).
///
/// A resource that remembers the highest epoch it has seen can refuse a holder that does not know yet that it was
/// replaced. Tokens of different keys have no order (R-25), so this type has no `<`: use [`compare`](Self::compare).
///
/// ```
/// use std::{cmp::Ordering, num::NonZeroU64};
/// use tower_lease::{FencingToken, LeaseKey};
///
/// let epoch = |n| NonZeroU64::new(n).unwrap();
/// let old = FencingToken::new(LeaseKey::new("leader")?, epoch(7));
/// let new = FencingToken::new(LeaseKey::new("leader")?, epoch(9));
/// assert_eq!(old.compare(&new), Ok(Ordering::Less));
/// let other = FencingToken::new(LeaseKey::new("listener/0")?, epoch(8));
/// assert!(old.compare(&other).is_err());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct FencingToken {
    key: LeaseKey,
    epoch: NonZeroU64,
}

/// A text that is no [`LeaseKey`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvalidKey(());

/// A text that is no [`FencingToken`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvalidToken(());

/// Two tokens of different keys were compared (R-25).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OtherKey(());

// === impl LeaseKey ===

impl LeaseKey {
    /// The longest key, in bytes.
    pub const MAX_LEN: usize = 512;

    /// Takes `key` if it is one.
    ///
    /// # Errors
    ///
    /// It is empty, too long, or has bytes that do not fit into a header.
    pub fn new(key: &str) -> Result<Self, InvalidKey> {
        let fits = (1..=Self::MAX_LEN).contains(&key.len());
        if fits
            && key
                .bytes()
                .all(|byte| byte.is_ascii_graphic() && !matches!(byte, b';' | b','))
        {
            Ok(Self(key.into()))
        } else {
            Err(InvalidKey(()))
        }
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for LeaseKey {
    type Err = InvalidKey;

    fn from_str(key: &str) -> Result<Self, InvalidKey> {
        Self::new(key)
    }
}

impl Borrow<str> for LeaseKey {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl AsRef<str> for LeaseKey {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for LeaseKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

// === impl FencingToken ===

impl FencingToken {
    /// A token as a store gave it out.
    #[must_use]
    pub const fn new(key: LeaseKey, epoch: NonZeroU64) -> Self {
        Self { key, epoch }
    }

    /// What it is a token of.
    #[must_use]
    pub const fn key(&self) -> &LeaseKey {
        &self.key
    }

    /// Which acquisition of the key.
    #[must_use]
    pub const fn epoch(&self) -> NonZeroU64 {
        self.epoch
    }

    /// Which of two tokens of one key is the later one.
    ///
    /// # Errors
    ///
    /// They are of different keys.
    pub fn compare(&self, other: &Self) -> Result<Ordering, OtherKey> {
        if self.key == other.key {
            Ok(self.epoch.cmp(&other.epoch))
        } else {
            Err(OtherKey(()))
        }
    }
}

impl fmt::Display for FencingToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{};{}", self.key, self.epoch)
    }
}

impl FromStr for FencingToken {
    type Err = InvalidToken;

    /// Reads what `Display` writes: `<key>;<epoch>`.
    fn from_str(text: &str) -> Result<Self, InvalidToken> {
        let (key, epoch) = split(text).ok_or(InvalidToken(()))?;
        Ok(Self::new(
            LeaseKey::new(key).map_err(|_| InvalidToken(()))?,
            epoch,
        ))
    }
}

impl From<&FencingToken> for HeaderValue {
    /// The value of [`LEASE_TOKEN`](tower_outcome::header::LEASE_TOKEN).
    fn from(token: &FencingToken) -> Self {
        // Just the room it takes makes one allocation of it.
        let digits = token.epoch.ilog10() as usize + 1;
        let mut text = BytesMut::with_capacity(token.key.as_str().len() + ";".len() + digits);
        write!(text, "{token}").expect("there is room");
        Self::from_maybe_shared(text.freeze()).expect("a lease key is visible ASCII")
    }
}

/// The parts of `<key>;<epoch>`; the key is not checked.
pub(crate) fn split(text: &str) -> Option<(&str, NonZeroU64)> {
    let (key, epoch) = text.split_once(';')?;
    // The standard library's reading of numbers allows a plus sign.
    if !epoch.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    Some((key, epoch.parse().ok()?))
}

// === impl InvalidKey, InvalidToken, OtherKey ===

impl fmt::Display for InvalidKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "a lease key is 1 to {} bytes of visible ASCII without ';' and ','",
            LeaseKey::MAX_LEN
        )
    }
}

impl Error for InvalidKey {}

impl fmt::Display for InvalidToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a fencing token is a lease key, ';', and a decimal epoch above zero")
    }
}

impl Error for InvalidToken {}

impl fmt::Display for OtherKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("tokens of different keys have no order")
    }
}

impl Error for OtherKey {}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(key: &str, epoch: u64) -> FencingToken {
        FencingToken::new(LeaseKey::new(key).unwrap(), NonZeroU64::new(epoch).unwrap())
    }

    #[test]
    fn r25_tokens_of_different_keys_have_no_order() {
        assert_eq!(token("a", 1).compare(&token("a", 2)), Ok(Ordering::Less));
        assert_eq!(token("a", 1).compare(&token("b", 2)), Err(OtherKey(())));
    }

    #[test]
    fn a_key_fits_into_a_header() {
        for bad in ["", "a b", "a;b", "a,b", "ä", "a\n", &"x".repeat(513)] {
            assert_eq!(LeaseKey::new(bad), Err(InvalidKey(())), "{bad:?}");
        }
        assert_eq!(
            "svc/echo/0".parse::<LeaseKey>().unwrap().as_str(),
            "svc/echo/0"
        );
        assert_eq!(token("a", 7).to_string(), "a;7");
    }

    #[test]
    fn a_token_is_read_as_it_is_written() {
        let token = token("svc/echo/0", u64::MAX);
        assert_eq!(token.to_string().parse(), Ok(token.clone()));
        assert_eq!(HeaderValue::from(&token), "svc/echo/0;18446744073709551615");
        for bad in [
            "",
            "a",
            "a;",
            ";7",
            "a;0",
            "a;+7",
            "a;-7",
            "a; 7",
            "a;7;8",
            "a b;7",
            "a;18446744073709551616",
        ] {
            assert_eq!(
                bad.parse::<FencingToken>(),
                Err(InvalidToken(())),
                "{bad:?}"
            );
        }
    }
}
