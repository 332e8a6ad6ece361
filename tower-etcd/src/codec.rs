//! How a record is written: a line for programs, the name, the payload. `etcdctl get` shows it well.
//!
//! ```text
//! tower-lease/1 <claim> <incarnation> own|shared <length of the name>
//! <name>
//! <payload>
//! ```
//!
//! Whatever does not begin like that is a document. The text of a claim's record follows from the claim alone, so "does
//! this claim hold the key" is a comparison of values, which every transaction can make (R-7, R-30).

use bytes::Bytes;
use tower_lease::{Claim, ClaimId, Holder};

/// A record as it was found.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Written {
    pub(crate) holder: Holder,
    pub(crate) claim: ClaimId,
    pub(crate) session: Session,
}

/// What the key hangs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Session {
    /// An etcd lease of its own, which ends with it.
    Own,
    /// An etcd lease that other keys hang on too.
    Shared,
}

/// No document may begin like this.
pub(crate) const MAGIC: &[u8] = b"tower-lease/1 ";

pub(crate) fn encode(claim: &Claim, session: Session) -> Vec<u8> {
    let (holder, name) = (claim.holder(), claim.holder().name());
    let session = if session == Session::Own {
        "own"
    } else {
        "shared"
    };
    let (id, incarnation) = (claim.id().as_u128(), holder.incarnation());
    let head = format!(
        "tower-lease/1 {id:032x} {incarnation:032x} {session} {}\n{name}\n",
        name.len()
    );
    [head.as_bytes(), holder.payload()].concat()
}

/// `None` for what no version of this crate wrote.
pub(crate) fn decode(value: &[u8]) -> Option<Written> {
    let rest = value.strip_prefix(MAGIC)?;
    let end = rest.iter().position(|&byte| byte == b'\n')?;
    let mut words = std::str::from_utf8(&rest[..end]).ok()?.split(' ');
    let claim = ClaimId::from_u128(u128::from_str_radix(words.next()?, 16).ok()?);
    let incarnation = u128::from_str_radix(words.next()?, 16).ok()?;
    let session = match words.next()? {
        "own" => Session::Own,
        "shared" => Session::Shared,
        _ => return None,
    };
    let length: usize = words.next()?.parse().ok()?;
    let (name, payload) = rest[end + 1..].split_at_checked(length)?;
    let payload = Bytes::copy_from_slice(payload.strip_prefix(b"\n")?);
    let holder = Holder::restore(std::str::from_utf8(name).ok()?, incarnation, payload);
    Some(Written {
        holder,
        claim,
        session,
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tower_lease::LeaseKey;

    use super::*;

    fn claim(name: &str, payload: &'static [u8]) -> Claim {
        let holder = Holder::restore(name, u128::MAX - 7, Bytes::from_static(payload));
        Claim::new(
            LeaseKey::new("k").unwrap(),
            holder,
            ClaimId::from_u128(9),
            Duration::from_secs(5),
        )
    }

    #[test]
    fn what_is_written_is_read_again() {
        for claim in [
            claim("echo-0", b"10.0.0.7:80"),
            claim("", b""),
            claim("zwei\nZeilen ü", b"\n\x00\xff\n"),
        ] {
            for session in [Session::Own, Session::Shared] {
                let written = decode(&encode(&claim, session)).unwrap();
                assert_eq!(
                    written,
                    Written {
                        holder: claim.holder().clone(),
                        claim: claim.id(),
                        session
                    }
                );
            }
        }
    }

    #[test]
    fn what_is_no_record_is_none_and_nothing_panics() {
        let whole = encode(&claim("echo-0", b""), Session::Own);
        for length in 0..whole.len() {
            assert_eq!(decode(&whole[..length]), None, "cut at {length}");
        }
        for bad in [
            "",
            "tower-lease/2 x",
            "tower-lease/1 1 2 own 99999999999999999999\n",
            "tower-lease/1 1 2 own 3\n\u{fc}\u{fc}",
        ] {
            assert_eq!(decode(bad.as_bytes()), None, "{bad}");
        }
    }
}
