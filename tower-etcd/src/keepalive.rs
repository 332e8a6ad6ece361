//! Keeping etcd leases alive, one request at a time on a stream of their own.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use etcd_client::{Error, LeaseKeepAliveStream, LeaseKeeper};
use tokio::time::{Instant, timeout};

use crate::{fault::Failed, pool::Pool};

/// The streams of one process, by lease.
pub(crate) struct KeepAlives {
    pool: Arc<Pool>,
    slots: Mutex<Slots>,
}

#[derive(Default)]
struct Slots {
    by_lease: HashMap<i64, Slot>,
    /// Numbers the requests, so that a late one does not put its stream where it does not belong.
    requests: u64,
}

enum Slot {
    /// Nothing is outstanding on it.
    Idle { stream: Box<Stream>, since: Instant },
    /// A request is. If another one comes, that had no answer in time: its stream is never used again.
    Asked {
        request: u64,
        member: usize,
        since: Instant,
    },
}

/// What a request found in its slot.
enum Before {
    Nothing,
    Idle(Box<Stream>),
    /// An earlier request to that member, which was not answered.
    Stuck(usize),
}

struct Stream {
    keeper: LeaseKeeper,
    answers: LeaseKeepAliveStream,
    member: usize,
}

/// The streams of leases that nobody renewed for so long are closed when another one is opened.
const FORGET_AFTER: Duration = Duration::from_secs(3_600);

// === impl KeepAlives ===

impl KeepAlives {
    pub(crate) fn new(pool: Arc<Pool>) -> Self {
        Self {
            pool,
            slots: Mutex::default(),
        }
    }

    /// Renews the lease; `None` if there is no such lease (any more).
    ///
    /// Whoever drops this, or is not answered in time, takes the stream down: the answer to that request must not be
    /// taken for that to a later one.
    pub(crate) async fn renew(
        &self,
        lease: i64,
        within: Duration,
    ) -> Result<Option<Duration>, Failed> {
        let (request, before) = self.begin(lease);
        if let Before::Stuck(member) = before {
            self.pool.suspect(member).await;
        }
        let member = self.pool.at();
        self.mark(lease, request, member);
        // A stream to a member that was left in the meantime is of no use.
        let taken = before.stream().filter(|stream| stream.member == member);
        let asked = timeout(within, self.ask(lease, member, taken)).await;
        let result = asked.unwrap_or(Err(Failed::TimedOut(within)));
        self.pool.note(member, result.as_ref().err()).await;
        match result {
            Ok((stream, Some(ttl))) => {
                self.end(lease, request, Some(stream));
                Ok(Some(ttl))
            }
            Ok((_, None)) => {
                self.end(lease, request, None);
                Ok(None)
            }
            Err(failed) => {
                self.end(lease, request, None);
                if failed.is_lease_gone() {
                    Ok(None)
                } else {
                    Err(failed)
                }
            }
        }
    }

    /// The lease is over.
    pub(crate) fn forget(&self, lease: i64) {
        self.slots().by_lease.remove(&lease);
    }

    async fn ask(
        &self,
        lease: i64,
        member: usize,
        taken: Option<Box<Stream>>,
    ) -> Result<(Box<Stream>, Option<Duration>), Failed> {
        let mut stream = match taken {
            Some(stream) => stream,
            None => self.open(lease, member).await?,
        };
        stream.keeper.keep_alive().await.map_err(Failed::Etcd)?;
        let answer = stream.answers.message().await.map_err(Failed::Etcd)?;
        let Some(answer) = answer else {
            return Err(Failed::Etcd(Error::LeaseKeepAliveError(
                "the stream has ended".to_owned(),
            )));
        };
        let ttl = u64::try_from(answer.ttl())
            .ok()
            .filter(|ttl| *ttl > 0)
            .map(Duration::from_secs);
        Ok((stream, ttl))
    }

    /// The client throws the TTL of the first answer away, so a stream is opened before the request that counts.
    async fn open(&self, lease: i64, member: usize) -> Result<Box<Stream>, Failed> {
        let taken = self.pool.take(member).await?;
        let open = |client: etcd_client::Client| async move {
            client.lease_client().keep_alive(lease).await
        };
        let opened = match open(taken.client.clone()).await.map_err(Failed::Etcd) {
            Err(failed) if failed.is_stale_token() => {
                let client = self.pool.refresh(&taken).await?;
                open(client).await.map_err(Failed::Etcd)
            }
            opened => opened,
        };
        let (keeper, answers) = opened?;
        Ok(Box::new(Stream {
            keeper,
            answers,
            member,
        }))
    }

    /// Takes what is there, and says that a request is under way.
    fn begin(&self, lease: i64) -> (u64, Before) {
        let (mut slots, now) = (self.slots(), Instant::now());
        slots.requests += 1;
        let request = slots.requests;
        let asked = Slot::Asked {
            request,
            member: self.pool.at(),
            since: now,
        };
        let before = match slots.by_lease.insert(lease, asked) {
            Some(Slot::Idle { stream, .. }) => Before::Idle(stream),
            Some(Slot::Asked { member, .. }) => Before::Stuck(member),
            None => Before::Nothing,
        };
        if matches!(before, Before::Nothing) {
            slots
                .by_lease
                .retain(|_, slot| now.saturating_duration_since(slot.since()) < FORGET_AFTER);
        }
        (request, before)
    }

    fn mark(&self, lease: i64, request: u64, at: usize) {
        if let Some(Slot::Asked {
            request: present,
            member,
            ..
        }) = self.slots().by_lease.get_mut(&lease)
            && *present == request
        {
            *member = at;
        }
    }

    /// Puts the stream back for the next one, unless a later request is under way.
    fn end(&self, lease: i64, request: u64, stream: Option<Box<Stream>>) {
        let mut slots = self.slots();
        if !matches!(slots.by_lease.get(&lease), Some(Slot::Asked { request: present, .. }) if *present == request)
        {
            return;
        }
        match stream {
            Some(stream) => slots.by_lease.insert(
                lease,
                Slot::Idle {
                    stream,
                    since: Instant::now(),
                },
            ),
            None => slots.by_lease.remove(&lease),
        };
    }

    fn slots(&self) -> MutexGuard<'_, Slots> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Slot, Before ===

impl Slot {
    fn since(&self) -> Instant {
        match self {
            Self::Idle { since, .. } | Self::Asked { since, .. } => *since,
        }
    }
}

impl Before {
    fn stream(self) -> Option<Box<Stream>> {
        match self {
            Self::Idle(stream) => Some(stream),
            Self::Nothing | Self::Stuck(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use etcd_client::{Client, ConnectOptions};
    use testkit::{Etcd, Proxy, Way};
    use tower_lease::Fault;

    use super::*;

    const PATIENCE: Duration = Duration::from_millis(500);
    const TTL: Duration = Duration::from_secs(60);

    /// the answers carry no number, so the late one to an earlier request must find nobody.
    #[tokio::test]
    #[ignore = "needs etcd"]
    async fn r8_a_late_answer_is_not_taken_for_that_to_a_later_request() {
        let etcd = Etcd::start().await;
        let proxy = Proxy::start(etcd.addr(0)).await.unwrap();
        let mut client = Client::connect(etcd.endpoints(), None).await.unwrap();
        let lease = client.lease_grant(60, None).await.unwrap().id();
        let urls = [format!("http://{}", proxy.addr())];
        let keep_alives = KeepAlives::new(Arc::new(Pool::new(
            &urls,
            0,
            ConnectOptions::new(),
            PATIENCE,
        )));
        for _ in 0..2 {
            assert_eq!(keep_alives.renew(lease, TTL).await.unwrap(), Some(TTL));
        }
        proxy.cut(Way::ToClient);
        assert_eq!(
            keep_alives
                .renew(lease, PATIENCE)
                .await
                .unwrap_err()
                .fault(),
            Fault::Unknown
        );
        // The answer arrives now; the next request does not.
        proxy.heal();
        proxy.cut(Way::ToServer);
        assert_eq!(
            keep_alives
                .renew(lease, PATIENCE)
                .await
                .unwrap_err()
                .fault(),
            Fault::Unknown
        );
        proxy.heal();
        assert_eq!(keep_alives.renew(lease, TTL).await.unwrap(), Some(TTL));
        client.lease_revoke(lease).await.unwrap();
        assert_eq!(keep_alives.renew(lease, TTL).await.unwrap(), None);
        assert!(
            keep_alives.slots().by_lease.is_empty(),
            "and nothing is kept of it"
        );
    }
}
