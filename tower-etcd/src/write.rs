use bytes::Bytes;
use etcd_client::{Compare, CompareOp, Txn, TxnOp};
use tower_lease::{FencingToken, LeaseKey, Revision, StoreError};

use crate::{
    EtcdStore,
    store::{MAX_OPS, at, check_value, is_held},
};

/// A document to write or to delete, whatever it is now. See [`EtcdStore::write`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    key: LeaseKey,
    value: Option<Bytes>,
}

// === impl Write ===

impl Write {
    /// Writes it.
    pub fn put(key: LeaseKey, value: impl Into<Bytes>) -> Self {
        Self {
            key,
            value: Some(value.into()),
        }
    }

    /// Deletes it; nothing if it is not there.
    #[must_use]
    pub const fn delete(key: LeaseKey) -> Self {
        Self { key, value: None }
    }
}

// === impl EtcdStore ===

impl EtcdStore {
    /// Writes documents together, in one transaction, if that epoch holds its key in the same moment. What a
    /// leader does to its own documents needs no more; where others write them too, there is
    /// [`swap`](tower_lease::DocumentStore::swap).
    ///
    /// At most 100 at a time, each key once, in 1 MiB together (etcd takes requests of up to 1.5 MiB).
    ///
    /// # Errors
    ///
    /// [`Fault::Lost`](tower_lease::Fault::Lost) if the epoch does not hold its key, and then nothing is written.
    /// [`Fault::Refused`](tower_lease::Fault::Refused) if there are too many, or a key is a lease's or bound to one.
    pub async fn write(
        &self,
        token: &FencingToken,
        writes: impl IntoIterator<Item = Write>,
    ) -> Result<Revision, StoreError> {
        let writes: Vec<_> = writes.into_iter().collect();
        if writes.len() >= MAX_OPS {
            return Err(StoreError::refused(format!(
                "{} writes are more than fit into a transaction",
                writes.len()
            )));
        }
        writes
            .iter()
            .filter_map(|write| write.value.as_ref())
            .try_for_each(check_value)?;
        let hangs_on_none =
            |write: &Write| Compare::lease(self.keys.of(&write.key), CompareOp::Equal, 0);
        let when: Vec<_> = writes
            .iter()
            .map(hangs_on_none)
            .chain([self.holds(token)])
            .collect();
        let ops: Vec<_> = writes.iter().map(|write| self.op(write)).collect();
        let guard = TxnOp::get(self.keys.of(token.key()), None);
        let response = self
            .txn(
                self.patience(),
                Txn::new().when(when).and_then(ops).or_else([guard]),
            )
            .await?;
        if response.succeeded() {
            Ok(at(&response))
        } else if is_held(&response, token) {
            Err(StoreError::refused(
                "one of the keys is a lease's, or bound to one",
            ))
        } else {
            Err(StoreError::lost("the guard's epoch does not hold its key"))
        }
    }

    fn op(&self, write: &Write) -> TxnOp {
        let key = self.keys.of(&write.key);
        match &write.value {
            Some(value) => TxnOp::put(key, value.to_vec(), None),
            None => TxnOp::delete(key, None),
        }
    }
}
