//! A DNS server in this process: a table of answers, and a counter of queries.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
};

use hickory_resolver::proto::{
    op::{Message, OpCode, ResponseCode},
    rr::{Name, RData, Record, RecordType, rdata::SRV},
};
use tokio::{net::UdpSocket, task::JoinHandle};

pub(crate) struct Server {
    addr: SocketAddr,
    zone: Zone,
    asked: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

#[derive(Clone)]
pub(crate) enum Answer {
    Records(u32, Vec<RData>),
    /// The name exists, without records of that kind.
    Empty,
    Code(ResponseCode),
    Silence,
}

type Zone = Arc<Mutex<HashMap<(String, Kind), Answer>>>;

/// AAAA, separate from all other kinds.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Kind {
    V6,
    Other,
}

impl Server {
    pub(crate) async fn start() -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let addr = socket.local_addr().unwrap();
        let (zone, asked) = (Zone::default(), Arc::<AtomicUsize>::default());
        let task = tokio::spawn(serve(socket, zone.clone(), asked.clone()));
        Self {
            addr,
            zone,
            asked,
            task,
        }
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    pub(crate) fn asked(&self) -> usize {
        self.asked.load(SeqCst)
    }

    pub(crate) fn a(&self, name: &str, ttl: u32, addresses: &[&str]) {
        let records = addresses
            .iter()
            .map(|address| RData::A(address.parse().unwrap()))
            .collect();
        self.set(name, Answer::Records(ttl, records));
    }

    pub(crate) fn aaaa(&self, name: &str, ttl: u32, addresses: &[&str]) {
        let records = addresses
            .iter()
            .map(|address| RData::AAAA(address.parse().unwrap()))
            .collect();
        self.set_aaaa(name, Answer::Records(ttl, records));
    }

    pub(crate) fn srv(&self, name: &str, targets: &[(u16, u16, u16, &str)]) {
        let record = |(priority, weight, port, host): &(u16, u16, u16, &str)| {
            RData::SRV(SRV::new(
                *priority,
                *weight,
                *port,
                Name::from_ascii(host).unwrap(),
            ))
        };
        self.set(
            name,
            Answer::Records(0, targets.iter().map(record).collect()),
        );
    }

    /// For all kinds but AAAA.
    pub(crate) fn set(&self, name: &str, answer: Answer) {
        self.zone
            .lock()
            .unwrap()
            .insert((name.to_owned(), Kind::Other), answer);
    }

    pub(crate) fn set_aaaa(&self, name: &str, answer: Answer) {
        self.zone
            .lock()
            .unwrap()
            .insert((name.to_owned(), Kind::V6), answer);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(socket: UdpSocket, zone: Zone, asked: Arc<AtomicUsize>) {
    let mut bytes = [0; 4096];
    loop {
        let Ok((len, client)) = socket.recv_from(&mut bytes).await else {
            continue;
        };
        let Ok(question) = Message::from_vec(&bytes[..len]) else {
            continue;
        };
        asked.fetch_add(1, SeqCst);
        if let Some(reply) = reply(&question, &zone) {
            let _ = socket.send_to(&reply.to_vec().unwrap(), client).await;
        }
    }
}

fn reply(question: &Message, zone: &Zone) -> Option<Message> {
    let query = question.queries.first()?.clone();
    let name = query.name().to_ascii().to_lowercase();
    let mut reply = Message::response(question.metadata.id, OpCode::Query);
    reply.add_query(query.clone());
    let kind = if query.query_type() == RecordType::AAAA {
        Kind::V6
    } else {
        Kind::Other
    };
    let zone = zone.lock().unwrap();
    let other = zone.get(&(name.clone(), Kind::Other));
    // Without an entry for AAAA, it fails or is missing as the name is, and is empty otherwise.
    let answer = match (zone.get(&(name, kind)), kind) {
        (None, Kind::V6) => other.map(|answer| match answer {
            Answer::Records(..) => Answer::Empty,
            answer => answer.clone(),
        }),
        (answer, _) => answer.cloned(),
    };
    match answer.unwrap_or(Answer::Code(ResponseCode::NXDomain)) {
        Answer::Records(ttl, records) => {
            reply.add_answers(
                records
                    .into_iter()
                    .map(|data| Record::from_rdata(query.name().clone(), ttl, data)),
            );
        }
        Answer::Empty => {}
        Answer::Code(code) => reply.metadata.response_code = code,
        Answer::Silence => return None,
    }
    Some(reply)
}
