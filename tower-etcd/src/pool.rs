//! One connection per member, and which of them is asked.

use std::{
    future::Future,
    sync::atomic::{AtomicU32, AtomicUsize, Ordering},
    time::Duration,
};

use etcd_client::{Client, ConnectOptions, Error};
use tokio::{sync::Mutex, time::timeout};
use tower_lease::Fault;

use crate::fault::Failed;

pub(crate) struct Pool {
    members: Box<[Member]>,
    /// The one that is asked.
    at: AtomicUsize,
    options: ConnectOptions,
    request_timeout: Duration,
}

struct Member {
    url: String,
    /// Held while it connects and authenticates, so that this happens once.
    link: Mutex<Link>,
    /// In a row.
    timeouts: AtomicU32,
}

#[derive(Default)]
struct Link {
    client: Option<Client>,
    /// How often it was made or got another token.
    generation: u64,
}

/// A client of one member, as it was when it was taken.
pub(crate) struct Taken {
    pub(crate) client: Client,
    pub(crate) member: usize,
    generation: u64,
}

/// A connection on which that many requests in a row had no answer is thrown away. (HTTP/2 pings find a dead one too,
/// but not before eight seconds.)
const MAX_TIMEOUTS: u32 = 2;

// === impl Pool ===

impl Pool {
    pub(crate) fn new(
        endpoints: &[String],
        first: usize,
        options: ConnectOptions,
        request_timeout: Duration,
    ) -> Self {
        let member = |url: &String| Member {
            url: url.clone(),
            link: Mutex::default(),
            timeouts: AtomicU32::new(0),
        };
        let members = endpoints.iter().map(member).collect();
        Self {
            members,
            at: AtomicUsize::new(first),
            options,
            request_timeout,
        }
    }

    pub(crate) fn endpoints(&self) -> Vec<&str> {
        self.members.iter().map(|member| &*member.url).collect()
    }

    /// Asks the present member, and the next one if nothing came of that. What may have happened is not repeated here.
    pub(crate) async fn call<T, F>(
        &self,
        within: Duration,
        request: impl Fn(Client) -> F,
    ) -> Result<T, Failed>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let mut tries = self.members.len();
        loop {
            tries -= 1;
            match self.ask(within, &request).await {
                Err(failed) if tries > 0 && failed.may_go_elsewhere() => {}
                result => return result,
            }
        }
    }

    async fn ask<T, F>(&self, within: Duration, request: &impl Fn(Client) -> F) -> Result<T, Failed>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let member = self.at();
        let asked = timeout(within, async {
            let taken = self.take(member).await?;
            match request(taken.client.clone()).await.map_err(Failed::Etcd) {
                Err(failed) if failed.is_stale_token() => {
                    let client = self.refresh(&taken).await?;
                    request(client).await.map_err(Failed::Etcd)
                }
                result => result,
            }
        });
        let result = asked.await.unwrap_or(Err(Failed::TimedOut(within)));
        self.note(member, result.as_ref().err()).await;
        result
    }

    /// The member that is asked now.
    pub(crate) fn at(&self) -> usize {
        self.at.load(Ordering::Relaxed)
    }

    /// Goes on from a member that failed, unless somebody has done so already.
    pub(crate) fn leave(&self, member: usize) {
        let next = (member + 1) % self.members.len();
        let moved = self
            .at
            .compare_exchange(member, next, Ordering::Relaxed, Ordering::Relaxed);
        if moved.is_ok() && next != member {
            tracing::debug!(
                from = self.members[member].url,
                to = self.members[next].url,
                "etcd member"
            );
        }
    }

    /// A client of that member, connected if it was not.
    pub(crate) async fn take(&self, member: usize) -> Result<Taken, Failed> {
        let mut link = self.members[member].link.lock().await;
        let client = match &link.client {
            Some(client) => client.clone(),
            None => {
                let client =
                    Client::connect([&self.members[member].url], Some(self.options.clone())).await;
                link.generation += 1;
                link.client.insert(client.map_err(Failed::Etcd)?).clone()
            }
        };
        Ok(Taken {
            client,
            member,
            generation: link.generation,
        })
    }

    /// Gets another token, unless somebody has done so since the client was taken.
    pub(crate) async fn refresh(&self, taken: &Taken) -> Result<Client, Failed> {
        let mut link = self.members[taken.member].link.lock().await;
        if link.generation == taken.generation {
            taken.client.refresh_token().await.map_err(Failed::Etcd)?;
            link.generation += 1;
        }
        Ok(link.client.clone().unwrap_or_else(|| taken.client.clone()))
    }

    /// Draws conclusions about a member from how a request ended there.
    pub(crate) async fn note(&self, member: usize, failed: Option<&Failed>) {
        let Some(failed) = failed else {
            self.members[member].timeouts.store(0, Ordering::Relaxed);
            return;
        };
        if failed.fault() == Fault::Unknown || failed.may_go_elsewhere() {
            self.leave(member);
        }
        if matches!(failed, Failed::TimedOut(_)) {
            self.suspect(member).await;
        }
    }

    /// A request had no answer in time. Leaves the member, and throws its connection away if that goes on.
    pub(crate) async fn suspect(&self, member: usize) {
        self.leave(member);
        let member = &self.members[member];
        if member.timeouts.fetch_add(1, Ordering::Relaxed) + 1 >= MAX_TIMEOUTS
            && let Ok(mut link) = timeout(self.request_timeout, member.link.lock()).await
        {
            member.timeouts.store(0, Ordering::Relaxed);
            link.client = None;
        }
    }

    /// Connects to every member anew at its next use. Requests under way go on where they are.
    pub(crate) fn reconnect(&self) {
        for member in &self.members {
            // One that is connecting now need not do so again.
            if let Ok(mut link) = member.link.try_lock() {
                link.client = None;
            }
        }
    }
}
