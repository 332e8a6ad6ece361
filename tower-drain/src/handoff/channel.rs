//! A packet socket between two processes that passes descriptors.

use std::{
    convert::Infallible,
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix,
    },
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::{
    fs::{Mode, fchmod},
    net::{
        AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
        SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags,
        SocketType, accept_with, bind, connect, listen, recvmsg, sendmsg, socket_with,
        sockopt::socket_peercred,
    },
    process::{Uid, geteuid},
};
use tokio::{
    io::Interest,
    net::UnixDatagram,
    time::{sleep, timeout},
};

use super::message::{MOST, Message, PACKET};

/// One end of the connection.
#[derive(Debug)]
pub(crate) struct Channel(Polled);

/// The listening socket to which the next process connects.
#[derive(Debug)]
pub(crate) struct Porch(Polled);

/// A socket that is registered with the runtime.
///
/// It is not a datagram socket, but of tokio's safe types this one makes the fewest assumptions: it registers the socket,
/// and runs a closure when the socket is ready.
#[derive(Debug)]
struct Polled(UnixDatagram);

// === impl Channel ===

impl Channel {
    /// Connects to `path`; `None` if no process listens there.
    pub(crate) fn knock(path: &Path) -> io::Result<Option<Self>> {
        let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, FLAGS, None)?;
        match connect(&socket, &SocketAddrUnix::new(path)?) {
            Ok(()) => {}
            Err(rustix::io::Errno::NOENT | rustix::io::Errno::CONNREFUSED) => return Ok(None),
            Err(error) => return Err(error.into()),
        }
        Self::new(socket).map(Some)
    }

    fn new(socket: OwnedFd) -> io::Result<Self> {
        check_user(&socket)?;
        Polled::new(socket).map(Self)
    }

    pub(crate) async fn send(&self, message: &Message, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let bytes = message.encode();
        self.0
            .when(Interest::WRITABLE, |socket| send(socket, &bytes, fds))
            .await
    }

    /// `None` when the other end is closed.
    pub(crate) async fn receive(&self) -> io::Result<Option<(Message, Vec<OwnedFd>)>> {
        match self.0.when(Interest::READABLE, receive).await {
            // The other process died before it read our message.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(None),
            received => received,
        }
    }

    /// As [`receive`](Self::receive), for a message that must arrive at once.
    pub(crate) async fn expect(&self) -> io::Result<(Message, Vec<OwnedFd>)> {
        timeout(ANSWER, self.receive())
            .await?
            .and_then(|received| received.ok_or(io::ErrorKind::UnexpectedEof.into()))
    }
}

fn send(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    sendmsg(
        socket,
        &[IoSlice::new(bytes)],
        &mut ancillary,
        SendFlags::NOSIGNAL,
    )?;
    Ok(())
}

fn receive(socket: BorrowedFd<'_>) -> io::Result<Option<(Message, Vec<OwnedFd>)>> {
    let mut bytes = vec![0; PACKET];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(
        socket,
        &mut [IoSliceMut::new(&mut bytes)],
        &mut ancillary,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    let fds = ancillary
        .drain()
        .filter_map(rights)
        .flatten()
        .collect::<Vec<_>>();
    if received
        .flags
        .intersects(ReturnFlags::CTRUNC | ReturnFlags::TRUNC)
    {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "a packet was cut",
        ));
    }
    if received.bytes == 0 {
        return Ok(None);
    }
    let message = Message::decode(&bytes[..received.bytes]).map_err(io::Error::other)?;
    Ok(Some((message, fds)))
}

fn rights(message: RecvAncillaryMessage<'_>) -> Option<Vec<OwnedFd>> {
    match message {
        RecvAncillaryMessage::ScmRights(fds) => Some(fds.collect()),
        _ => None,
    }
}

fn check_user(socket: &OwnedFd) -> io::Result<()> {
    if may_meet(socket_peercred(socket)?.uid, geteuid()) {
        Ok(())
    } else {
        Err(io::ErrorKind::PermissionDenied.into())
    }
}

/// Sockets are exchanged only with a process of the same user, or of root.
fn may_meet(other: Uid, own: Uid) -> bool {
    other == own || other.is_root()
}

// === impl Porch ===

impl Porch {
    /// Listens at `path`, in place of another process: from now on the next process connects to this one.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, FLAGS, None)?;
        // Before the socket has a name: there is no moment in which other users can connect, and no link to follow.
        fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
        let own = beside(path);
        // Left by a process with the same process id that died.
        let _ = std::fs::remove_file(&own);
        bind(&socket, &SocketAddrUnix::new(&own)?)?;
        listen(&socket, 8)?;
        std::fs::rename(&own, path)?;
        Polled::new(socket).map(Self)
    }

    /// Rejects processes that connect too early, for as long as it is polled.
    pub(crate) async fn turn_away(&self) -> Infallible {
        loop {
            let turned = match self.answer().await {
                Ok(channel) => refuse(&channel).await,
                Err(error) => Err(error),
            };
            if turned.is_err() {
                sleep(KNOCK).await;
            }
        }
    }

    pub(crate) async fn answer(&self) -> io::Result<Channel> {
        let socket = self
            .0
            .when(Interest::READABLE, |socket| Ok(accept_with(socket, FLAGS)?))
            .await?;
        Channel::new(socket)
    }
}

/// Reads its message first: closing with unread data would reset the connection, and lose our message.
async fn refuse(channel: &Channel) -> io::Result<()> {
    channel.expect().await?;
    channel.send(&Message::Refused, &[]).await
}

// === impl Polled ===

impl Polled {
    fn new(socket: OwnedFd) -> io::Result<Self> {
        UnixDatagram::from_std(unix::net::UnixDatagram::from(socket)).map(Self)
    }

    async fn when<T>(
        &self,
        interest: Interest,
        mut act: impl FnMut(BorrowedFd<'_>) -> io::Result<T>,
    ) -> io::Result<T> {
        self.0.async_io(interest, || act(self.0.as_fd())).await
    }
}

fn beside(path: &Path) -> PathBuf {
    let mut own = path.as_os_str().to_owned();
    own.push(format!(".{}", std::process::id()));
    own.into()
}

const FLAGS: SocketFlags = SocketFlags::CLOEXEC.union(SocketFlags::NONBLOCK);
/// How long the other process may take to send a message that it must send at once.
const ANSWER: Duration = Duration::from_secs(5);
/// The pause after a connection failed or was rejected.
pub(crate) const KNOCK: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use rustix::net::socketpair;

    use super::*;

    fn pair() -> (OwnedFd, OwnedFd) {
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, FLAGS, None).unwrap()
    }

    fn is_cut(received: io::Result<Option<(Message, Vec<OwnedFd>)>>) -> bool {
        received.is_err_and(|error| error.kind() == io::ErrorKind::InvalidData)
    }

    #[test]
    fn only_the_same_user_and_root_meet() {
        let (root, one, other) = (Uid::ROOT, Uid::from_raw(1000), Uid::from_raw(1001));
        assert!(may_meet(one, one) && may_meet(root, one) && may_meet(root, root));
        assert!(
            !may_meet(other, one) && !may_meet(one, root),
            "a process that is not root passes no sockets to root"
        );
    }

    #[test]
    fn a_packet_with_more_descriptors_than_there_may_be_is_refused_whole() {
        let (here, there) = pair();
        let (fds, ready) = (vec![there.as_fd(); MOST], Message::Ready.encode());
        send(here.as_fd(), &ready, &fds).unwrap();
        let (message, received) = receive(there.as_fd()).unwrap().unwrap();
        assert_eq!((message, received.len()), (Message::Ready, MOST));

        let more = vec![there.as_fd(); 2 * MOST];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2 * MOST))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        assert!(ancillary.push(SendAncillaryMessage::ScmRights(&more)));
        sendmsg(
            &here,
            &[IoSlice::new(&ready)],
            &mut ancillary,
            SendFlags::NOSIGNAL,
        )
        .unwrap();
        assert!(is_cut(receive(there.as_fd())));
    }

    #[test]
    fn a_packet_longer_than_there_may_be_is_refused_though_it_begins_well() {
        let (here, there) = pair();
        let mut long = Message::Ready.encode();
        long.resize(PACKET + 1, 0);
        send(here.as_fd(), &long, &[]).unwrap();
        assert!(is_cut(receive(there.as_fd())));
        drop(here);
        assert!(
            receive(there.as_fd()).unwrap().is_none(),
            "and then the other end is gone"
        );
    }
}
