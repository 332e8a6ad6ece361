//! System calls without a safe wrapper: descriptors that the environment names by number, a filter that chooses among the
//! sockets of a port, a socket's minimum TTL, and how much of its send queue is unacknowledged. Nothing else in this crate
//! is unsafe.
#![expect(unsafe_code, reason = "see above")]
#![cfg_attr(
    not(feature = "handoff"),
    expect(dead_code, reason = "the first two are for handoffs")
)]

use std::{
    io,
    os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd},
    sync::atomic::{AtomicBool, Ordering::Relaxed},
};

/// From now on the socket receives no SYN but those of hosts on the same link that send with the maximum TTL (RFC 5082).
/// Segments of a handshake under way still arrive.
///
/// An IPv6 socket that takes IPv4 too has both limits. It needs no privilege.
pub(crate) fn turn_away_newcomers(socket: impl AsFd) -> io::Result<()> {
    set_least_ttl(&socket, GREATEST_TTL)
}

/// From now on a connection that was accepted from such a socket receives all segments again.
pub(crate) fn hear_all(connection: impl AsFd) -> io::Result<()> {
    set_least_ttl(&connection, 0)
}

fn set_least_ttl(socket: impl AsFd, least: libc::c_int) -> io::Result<()> {
    let ipv4 = set(&socket, libc::IPPROTO_IP, libc::IP_MINTTL, &least);
    let ipv6 = set(&socket, libc::IPPROTO_IPV6, libc::IPV6_MINHOPCOUNT, &least);
    // An IPv4 socket has no hop count.
    ipv4.and(ipv6.or_else(|error| {
        if error.raw_os_error() == Some(libc::ENOPROTOOPT) {
            Ok(())
        } else {
            Err(error)
        }
    }))
}

/// How many bytes in a connection's send queue the peer has not acknowledged, sent or not.
#[cfg(feature = "http")]
pub(crate) fn unacknowledged(connection: impl AsFd) -> Option<u32> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: for a socket, which is open while it is borrowed, the kernel writes one integer, which lives until the call
    // returns. For another descriptor the call fails, or also writes an integer.
    let result = unsafe {
        libc::ioctl(
            connection.as_fd().as_raw_fd(),
            libc::TIOCOUTQ,
            &raw mut bytes,
        )
    };
    if result == 0 {
        u32::try_from(bytes).ok()
    } else {
        None
    }
}

/// Takes the descriptors from 3 on that `LISTEN_FDS` counts, the first time it is called; later calls return none. A
/// number that is not a descriptor is `None`.
///
/// The variable transfers the ownership of these descriptors to the process that `LISTEN_PID` names, which the caller has
/// checked. They are closed on `exec` from now on.
pub(crate) fn take_listen_fds(count: usize) -> Vec<Option<OwnedFd>> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    if TAKEN.swap(true, Relaxed) {
        return Vec::new();
    }
    let count = RawFd::try_from(count.min(LISTEN_FDS)).unwrap_or(0);
    (FIRST..FIRST + count).map(take).collect()
}

fn take(number: RawFd) -> Option<OwnedFd> {
    // SAFETY: `fcntl` with these commands reads and writes flags of a number, be it a descriptor or not.
    let flags = unsafe { libc::fcntl(number, libc::F_GETFD) };
    // SAFETY: as above.
    if flags < 0 || unsafe { libc::fcntl(number, libc::F_SETFD, flags | libc::FD_CLOEXEC) } < 0 {
        return None;
    }
    // SAFETY: it is open, and by the protocol of `LISTEN_FDS` this process owns it; `TAKEN` ensures that it is taken once.
    Some(unsafe { OwnedFd::from_raw_fd(number) })
}

/// From now on the port's new connections go to the socket with this index: sockets count from 0 in the order in which
/// they began to listen, and one that is closed is replaced by the last.
pub(crate) fn steer(socket: impl AsFd, index: u32) -> io::Result<()> {
    let mut program = [libc::sock_filter {
        code: RETURN,
        jt: 0,
        jf: 0,
        k: index,
    }];
    let filter = libc::sock_fprog {
        len: 1,
        filter: program.as_mut_ptr(),
    };
    // The kernel copies the program, which has the given length, before the call returns.
    set(
        &socket,
        libc::SOL_SOCKET,
        libc::SO_ATTACH_REUSEPORT_CBPF,
        &filter,
    )
}

fn set<T>(socket: impl AsFd, level: libc::c_int, option: libc::c_int, value: &T) -> io::Result<()> {
    let (value, size) = (
        (&raw const *value).cast(),
        size_of::<T>() as libc::socklen_t,
    );
    // SAFETY: the kernel reads `size` bytes of the value, which lives until the call returns.
    let result =
        unsafe { libc::setsockopt(socket.as_fd().as_raw_fd(), level, option, value, size) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

const GREATEST_TTL: libc::c_int = 255;

/// More than any configuration has; a nonsensical number must not allocate memory.
const LISTEN_FDS: usize = 4096;
/// `SD_LISTEN_FDS_START`.
const FIRST: RawFd = 3;
/// `BPF_RET | BPF_K`.
const RETURN: u16 = 0x06;

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        os::{fd::IntoRawFd, unix::net::UnixStream},
    };

    use super::*;

    #[test]
    fn a_number_that_is_no_descriptor_is_not_taken() {
        assert!(take(RawFd::MAX).is_none());
        assert!(take(-1).is_none());
    }

    #[test]
    #[cfg_attr(miri, ignore = "needs `fcntl` with `F_SETFD`")]
    fn a_taken_descriptor_is_open_and_closed_on_exec() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        rustix::io::fcntl_setfd(&ours, rustix::io::FdFlags::empty()).unwrap();
        let taken = take(ours.into_raw_fd()).unwrap();
        assert_eq!(
            rustix::io::fcntl_getfd(&taken).unwrap(),
            rustix::io::FdFlags::CLOEXEC
        );
        let mut taken = UnixStream::from(taken);
        taken.write_all(b"it").unwrap();
        drop(taken);
        let mut read = Vec::new();
        theirs.read_to_end(&mut read).unwrap(); // ends, because dropping it closes it
        assert_eq!(read, b"it");
    }

    #[test]
    #[cfg_attr(miri, ignore = "needs `setsockopt` with options of Linux")]
    fn an_option_that_a_socket_does_not_have_is_an_error() {
        let (unix, _other) = UnixStream::pair().unwrap();
        assert!(turn_away_newcomers(&unix).is_err());
        assert!(steer(&unix, 0).is_err());
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        turn_away_newcomers(&tcp).unwrap();
        hear_all(&tcp).unwrap();
    }
}
