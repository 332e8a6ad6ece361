use std::{
    error::Error,
    fmt::{self, Write},
    hash::{BuildHasher, RandomState},
    str::FromStr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::Bytes;

use crate::{FencingToken, LeaseKey};

/// A process that holds a lease, or contends for it: a stable name, a random incarnation, and a payload for watchers.
///
/// The payload (an address, a version) is written with the record and never changes, because the record must not be
/// rewritten. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Holder {
    name: Arc<str>,
    incarnation: u128,
    payload: Bytes,
}

/// One attempt of one holder to get one key, with a unique id.
///
/// A store must treat a repeated `acquire` of the same claim as the same attempt, and must renew and release
/// only what was acquired by this very claim. The keeper makes a new claim for each epoch, so nothing that
/// was acquired earlier is ever adopted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    key: LeaseKey,
    holder: Holder,
    id: ClaimId,
    ttl: Duration,
}

/// The id of a [`Claim`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClaimId(u128);

/// A point in a store's history. Ordered within one store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision(u64);

/// The result of a claim that acquired the key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    token: FencingToken,
    ttl: Duration,
    revision: Revision,
    is_clean: bool,
}

/// What a store keeps of a key that is held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    token: FencingToken,
    holder: Holder,
    claim: ClaimId,
    expires_in: Option<Duration>,
}

/// A text that is not a [`Claim`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvalidClaim(());

/// A payload longer than [`Holder::MAX_PAYLOAD`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PayloadTooLong(usize);

// === impl Holder ===

impl Holder {
    /// The longest payload: 1 KiB. Every watcher of the key gets it.
    pub const MAX_PAYLOAD: usize = 1024;

    /// A holder with a new incarnation: call it once per process start.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self::restore(name, random(), Bytes::new())
    }

    /// A holder as it was read from a store. For implementations of stores.
    #[must_use]
    pub fn restore(name: &str, incarnation: u128, payload: Bytes) -> Self {
        Self {
            name: name.into(),
            incarnation,
            payload,
        }
    }

    /// Adds a payload for watchers, such as an address. Default: empty.
    ///
    /// # Errors
    ///
    /// It is longer than [`MAX_PAYLOAD`](Self::MAX_PAYLOAD).
    pub fn with_payload(self, payload: impl Into<Bytes>) -> Result<Self, PayloadTooLong> {
        let payload = payload.into();
        if payload.len() > Self::MAX_PAYLOAD {
            return Err(PayloadTooLong(payload.len()));
        }
        Ok(Self { payload, ..self })
    }

    /// The name, which stays over restarts.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Which run of it.
    #[must_use]
    pub const fn incarnation(&self) -> u128 {
        self.incarnation
    }

    /// The payload for watchers.
    #[must_use]
    pub const fn payload(&self) -> &Bytes {
        &self.payload
    }
}

impl fmt::Debug for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Holder")
            .field("name", &self.name)
            .field("incarnation", &format_args!("{:032x}", self.incarnation))
            .field("payload", &self.payload)
            .finish()
    }
}

// === impl Claim, ClaimId ===

impl Claim {
    /// A claim of `holder` to `key` for `ttl`. Keepers make them; so do tests of stores.
    #[must_use]
    pub const fn new(key: LeaseKey, holder: Holder, id: ClaimId, ttl: Duration) -> Self {
        Self {
            key,
            holder,
            id,
            ttl,
        }
    }

    /// The same wish under another id.
    pub(crate) fn with_id(&self, id: ClaimId) -> Self {
        Self { id, ..self.clone() }
    }

    /// What is claimed.
    #[must_use]
    pub const fn key(&self) -> &LeaseKey {
        &self.key
    }

    /// By whom.
    #[must_use]
    pub const fn holder(&self) -> &Holder {
        &self.holder
    }

    /// Which attempt.
    #[must_use]
    pub const fn id(&self) -> ClaimId {
        self.id
    }

    /// For how long. A store may grant another TTL: see [`Grant::ttl`].
    #[must_use]
    pub const fn ttl(&self) -> Duration {
        self.ttl
    }
}

impl fmt::Display for Claim {
    /// One line of visible ASCII, to send a [`handover_claim`](crate::Lease::handover_claim) to another process:
    /// `<key>;<id>;<ttl in seconds>;<incarnation>;<name>;<payload>`, the last two in hexadecimal.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (seconds, nanos) = (self.ttl.as_secs(), self.ttl.subsec_nanos());
        let Holder {
            name,
            incarnation,
            payload,
        } = &self.holder;
        write!(f, "{};{:032x};{seconds}.{nanos:09};", self.key, self.id.0)?;
        write!(f, "{incarnation:032x};")?;
        write_hex(f, name.as_bytes())?;
        f.write_char(';')?;
        write_hex(f, payload)
    }
}

impl FromStr for Claim {
    type Err = InvalidClaim;

    /// Reads what `Display` writes.
    fn from_str(text: &str) -> Result<Self, InvalidClaim> {
        parse_claim(text).ok_or(InvalidClaim(()))
    }
}

impl ClaimId {
    /// A new random id.
    #[must_use]
    pub fn random() -> Self {
        Self(random())
    }

    /// An id as it was written to a store.
    #[must_use]
    pub const fn from_u128(id: u128) -> Self {
        Self(id)
    }

    /// The number, to write it.
    #[must_use]
    pub const fn as_u128(self) -> u128 {
        self.0
    }

    /// The id of this keeper's `serial`th claim, of which `self` is number 0.
    pub(crate) const fn numbered(self, serial: u64) -> Self {
        Self(self.0.wrapping_add(serial as u128))
    }

    /// Whether one keeper made both. (By chance, with two keepers, once in 2^63.)
    pub(crate) const fn is_of_the_keeper_of(self, other: Self) -> bool {
        let (above, below) = (self.0.wrapping_sub(other.0), other.0.wrapping_sub(self.0));
        above <= u64::MAX as u128 || below <= u64::MAX as u128
    }
}

impl fmt::Debug for ClaimId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

// === impl Revision ===

impl Revision {
    /// Before everything.
    pub const START: Self = Self(0);

    /// A revision as a store numbers it.
    #[must_use]
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// The number.
    #[must_use]
    pub const fn number(self) -> u64 {
        self.0
    }
}

// === impl Grant ===

impl Grant {
    /// `ttl` is what the store promises, not what was asked for, counted from when it **first** applied the claim.
    #[must_use]
    pub const fn new(token: FencingToken, ttl: Duration, revision: Revision) -> Self {
        Self {
            token,
            ttl,
            revision,
            is_clean: false,
        }
    }

    /// Adds that no request can still run under an earlier epoch: the last one was released or handed over by its
    /// holder, or there was none. Without this the end counts as unclean.
    #[must_use]
    pub fn after_clean_end(self) -> Self {
        Self {
            is_clean: true,
            ..self
        }
    }

    /// Whether the epoch before this one ended in good order, as far as the store knows.
    #[must_use]
    pub const fn is_clean(&self) -> bool {
        self.is_clean
    }

    /// The token of this acquisition.
    #[must_use]
    pub const fn token(&self) -> &FencingToken {
        &self.token
    }

    /// For how long the store keeps it without a renewal.
    #[must_use]
    pub const fn ttl(&self) -> Duration {
        self.ttl
    }

    /// When in the store's history.
    #[must_use]
    pub const fn revision(&self) -> Revision {
        self.revision
    }
}

// === impl Record ===

impl Record {
    /// A record as a store keeps it.
    #[must_use]
    pub const fn new(token: FencingToken, holder: Holder, claim: ClaimId) -> Self {
        Self {
            token,
            holder,
            claim,
            expires_in: None,
        }
    }

    /// Adds how long it lasts without a renewal, where the store knows.
    #[must_use]
    pub fn expiring_in(self, expires_in: Duration) -> Self {
        Self {
            expires_in: Some(expires_in),
            ..self
        }
    }

    /// What is held.
    #[must_use]
    pub const fn key(&self) -> &LeaseKey {
        self.token.key()
    }

    /// The token of the acquisition.
    #[must_use]
    pub const fn token(&self) -> &FencingToken {
        &self.token
    }

    /// The holder.
    #[must_use]
    pub const fn holder(&self) -> &Holder {
        &self.holder
    }

    /// By which claim.
    #[must_use]
    pub const fn claim(&self) -> ClaimId {
        self.claim
    }

    /// How long it lasted without a renewal when it was read. A hint for contenders that wait; never a reason to take the key.
    #[must_use]
    pub const fn expires_in(&self) -> Option<Duration> {
        self.expires_in
    }
}

// === impl InvalidClaim, PayloadTooLong ===

impl fmt::Display for InvalidClaim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("invalid claim: expected the text that another keeper's claim was written as")
    }
}

impl Error for InvalidClaim {}

impl fmt::Display for PayloadTooLong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "a holder's payload has at most {} bytes, this one {}",
            Holder::MAX_PAYLOAD,
            self.0
        )
    }
}

impl Error for PayloadTooLong {}

fn write_hex(f: &mut fmt::Formatter<'_>, bytes: &[u8]) -> fmt::Result {
    bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
}

fn parse_claim(text: &str) -> Option<Claim> {
    let parts: [&str; 6] = text.split(';').collect::<Vec<_>>().try_into().ok()?;
    let [key, id, ttl, incarnation, name, payload] = parts;
    let (seconds, nanos) = ttl.split_once('.')?;
    let nanos = Some(nanos).filter(|nanos| nanos.len() == 9)?;
    let ttl = Duration::from_secs(decimal(seconds)?)
        .checked_add(Duration::from_nanos(decimal(nanos)?))?;
    let name = String::from_utf8(bytes_of(name)?).ok()?;
    let holder = Holder::restore(&name, number_of(incarnation)?, Bytes::new());
    let holder = holder.with_payload(bytes_of(payload)?).ok()?;
    let key = LeaseKey::new(key).ok()?;
    Some(Claim::new(key, holder, ClaimId(number_of(id)?), ttl))
}

/// The standard library's parsers of numbers accept a plus sign.
fn decimal(text: &str) -> Option<u64> {
    let is_decimal = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|_| is_decimal)
}

fn number_of(hex: &str) -> Option<u128> {
    Some(u128::from_be_bytes(bytes_of(hex)?.try_into().ok()?))
}

fn bytes_of(hex: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16);
    let pairs = hex.as_bytes().chunks(2);
    pairs
        .map(|pair| {
            let [high, low] = *pair else { return None };
            u8::try_from(digit(high)? << 4 | digit(low)?).ok()
        })
        .collect()
}

/// 128 bits that no other process draws. The standard library's hash keys are its one public source of the system's
/// randomness; what differs between a process and its fork goes in beside them.
fn random() -> u128 {
    let keys = RandomState::new();
    let salt = (std::process::id(), SystemTime::UNIX_EPOCH.elapsed().ok());
    let half = |side: u8| u128::from(keys.hash_one((side, salt)));
    half(0) << 64 | half(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn r16_a_restart_is_another_incarnation() {
        let (one, two) = (Holder::new("echo-0"), Holder::new("echo-0"));
        assert_eq!(one.name(), two.name());
        assert_ne!(one.incarnation(), two.incarnation());
        assert_ne!(one, two);
        assert!(
            one.incarnation() >> 64 != 0 && one.incarnation() as u64 != 0,
            "both halves are drawn"
        );
    }

    #[test]
    fn a_claim_is_read_as_it_is_written() {
        let claim = |name: &str, payload: Vec<u8>, ttl| {
            let key = LeaseKey::new("svc/echo/0").unwrap();
            let holder = Holder::new(name).with_payload(payload).unwrap();
            Claim::new(key, holder, ClaimId::random(), ttl)
        };
        for (name, payload, ttl) in [
            ("node-1", b"10.0.0.7:80".to_vec(), Duration::from_secs(10)),
            ("", Vec::new(), Duration::ZERO),
            ("ä;\n\0", (0..=255).collect(), Duration::MAX),
            ("n", vec![0; 1024], Duration::from_nanos(1)),
        ] {
            let claim = claim(name, payload, ttl);
            let text = claim.to_string();
            assert_eq!(text.parse(), Ok(claim), "{text}");
            assert!(text.bytes().all(|byte| byte.is_ascii_graphic()), "{text}");
        }
    }

    #[test]
    fn a_malformed_claim_is_rejected() {
        let id = "0123456789abcdef0123456789ABCDEF";
        let good = format!("a;{id};1.000000000;{id};6e;");
        assert!(good.parse::<Claim>().is_ok());
        let long = "00".repeat(Holder::MAX_PAYLOAD + 1);
        for bad in [
            String::new(),
            "a".to_owned(),
            format!("{good};"),
            format!(";{id};1.000000000;{id};6e;"),
            format!("a;{};1.000000000;{id};6e;", &id[1..]),
            format!("a;{id}0;1.000000000;{id};6e;"),
            format!("a;{id};1;{id};6e;"),
            format!("a;{id};+1.000000000;{id};6e;"),
            format!("a;{id};1.0;{id};6e;"),
            format!("a;{id};1.000000000;{id};6;"),
            format!("a;{id};1.000000000;{id};ff;"),
            format!("a;{id};1.000000000;{id};6e;+1"),
            format!("a;{id};1.000000000;{id};6e;{long}"),
        ] {
            assert_eq!(bad.parse::<Claim>(), Err(InvalidClaim(())), "{bad:?}");
        }
    }

    #[test]
    fn a_payload_is_bounded() {
        assert!(Holder::new("a").with_payload(vec![0; 1024]).is_ok());
        assert_eq!(
            Holder::new("a").with_payload(vec![0; 1025]).unwrap_err(),
            PayloadTooLong(1025)
        );
    }
}
