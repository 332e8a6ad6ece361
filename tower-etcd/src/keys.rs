//! How keys are named in etcd.

use tower_lease::LeaseKey;

/// A prefix before all keys of a store.
///
/// Beside each lease's key stands a mark, `key;held`. It is written with the record, hangs on no etcd lease, and goes with
/// a clean end only: so an acquisition that finds one knows that the last epoch did not end in good order. A lease
/// key has no `;`, so no key is a mark.
#[derive(Clone, Debug, Default)]
pub(crate) struct Keys {
    pub(crate) prefix: String,
}

const MARK: &str = ";held";
const BOUND: &str = ";bound;";

// === impl Keys ===

impl Keys {
    pub(crate) fn of(&self, key: &LeaseKey) -> Vec<u8> {
        self.under(key.as_str())
    }

    pub(crate) fn under(&self, prefix: &str) -> Vec<u8> {
        [self.prefix.as_bytes(), prefix.as_bytes()].concat()
    }

    pub(crate) fn mark(&self, key: &LeaseKey) -> Vec<u8> {
        [
            self.prefix.as_bytes(),
            key.as_str().as_bytes(),
            MARK.as_bytes(),
        ]
        .concat()
    }

    /// Under which a key of a shared session remembers what is bound to it.
    pub(crate) fn bound(&self, key: &LeaseKey) -> Vec<u8> {
        [
            self.prefix.as_bytes(),
            key.as_str().as_bytes(),
            BOUND.as_bytes(),
        ]
        .concat()
    }

    /// The key, if it is one of ours and no mark.
    pub(crate) fn parse(&self, key: &[u8]) -> Option<LeaseKey> {
        let key = key.strip_prefix(self.prefix.as_bytes())?;
        LeaseKey::new(std::str::from_utf8(key).ok()?).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_no_keys() {
        let (keys, key) = (
            Keys {
                prefix: "app/".into(),
            },
            LeaseKey::new("svc/a").unwrap(),
        );
        assert_eq!(keys.of(&key), b"app/svc/a");
        assert_eq!(keys.parse(b"app/svc/a"), Some(key.clone()));
        assert_eq!(
            (keys.parse(&keys.mark(&key)), keys.parse(&keys.bound(&key))),
            (None, None)
        );
        assert_eq!(keys.parse(b"svc/a"), None);
    }
}
