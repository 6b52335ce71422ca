//! rtnetlink without a runtime: one socket, and an executor whose only event is an answer on it.
//! A plugin lives for a millisecond and asks the kernel a dozen questions one after another; the kernel answers before
//! `send` returns. What is asked, and why, is in the files below.

pub(crate) mod bridge;
pub(crate) mod pod;
pub(crate) mod veth;

use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};

use berth_api::cni::result::Cidr;
use bytes::BufMut;
use futures_util::TryStreamExt;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::MsgFlags;
use rtnetlink::packet_core::{NLM_F_ACK, NLM_F_REQUEST};
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use rtnetlink::packet_route::link::{InfoKind, LinkAttribute, LinkExtentMask, LinkFlags, LinkInfo, LinkMessage};
use rtnetlink::packet_route::route::RouteMessage;
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::proto::Connection;
use rtnetlink::sys::{self, AsyncSocket, SocketAddr};
use rtnetlink::{Error as RtError, Handle};

/// Longest that the kernel may take over one answer. It answers at once; a socket that lost an answer must not hang us.
const ANSWER_MS: u16 = 10_000;

/// A hardware address.
pub(crate) type Mac = [u8; 6];

/// A device, as the kernel tells of it.
#[derive(Clone, Debug)]
pub(crate) struct Device {
    pub(crate) index: u32,
    pub(crate) mac: Mac,
    pub(crate) mtu: u32,
    pub(crate) up: bool,
    pub(crate) kind: Option<InfoKind>,
    /// Index of the bridge it is a port of.
    pub(crate) controller: Option<u32>,
    /// For one end of a veth pair: index of the other, in its own namespace.
    pub(crate) peer: Option<u32>,
}

/// A netlink socket of the namespace in which it was opened.
pub(crate) struct Links {
    connection: Connection<RouteNetlinkMessage, Socket>,
    handle: Handle,
}

impl Links {
    /// Opens it in the namespace that the thread is in.
    pub(crate) fn open() -> io::Result<Self> {
        let (connection, handle, _unsolicited) = rtnetlink::from_socket(Socket::new(sys::protocols::NETLINK_ROUTE)?);
        Ok(Links { connection, handle })
    }

    /// The device called `name`.
    pub(crate) fn by_name(&mut self, name: &str) -> io::Result<Option<Device>> {
        let request = self.handle.link().get();
        let request = request.set_filter_mask(AddressFamily::Unspec, vec![LinkExtentMask::SkipStats]);
        match self.wait(request.match_name(name).execute().try_next()) {
            Ok(message) => Ok(message.map(|m| Device::from(&m))),
            Err(e) if is(&e, Errno::ENODEV) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Creates a device; `EEXIST` when the name is taken.
    pub(crate) fn create(&mut self, message: LinkMessage) -> io::Result<()> {
        let request = self.handle.link().add(message);
        self.wait(request.execute())
    }

    /// Changes a device that is named or numbered in the message.
    pub(crate) fn change(&mut self, message: LinkMessage) -> io::Result<()> {
        let request = self.handle.link().add(message).set_flags(NLM_F_REQUEST | NLM_F_ACK);
        self.wait(request.execute())
    }

    /// Deletes the device called `name`, synchronously; none is no error.
    pub(crate) fn remove(&mut self, name: &str) -> io::Result<()> {
        let message = rtnetlink::LinkUnspec::new_with_name(name).build();
        let request = self.handle.link().del_with_message(message);
        none_is_fine(self.wait(request.execute()), Errno::ENODEV)
    }

    /// Gives a device an address; to have it already is no error.
    pub(crate) fn ensure_address(&mut self, device: u32, address: Cidr) -> io::Result<()> {
        let mut request = self.handle.address().add(device, address.address(), address.prefix());
        if address.address().is_ipv6() {
            // The address is ours by its lease: without this it would be unusable for a second, while the kernel asks
            // the bridge whether somebody has it.
            request.message_mut().attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
        }
        none_is_fine(self.wait(request.execute()), Errno::EEXIST)
    }

    /// The addresses of a device.
    pub(crate) fn addresses(&mut self, device: u32) -> io::Result<Vec<AddressMessage>> {
        let request = self.handle.address().get().set_link_index_filter(device);
        self.wait(request.execute().try_collect())
    }

    /// Takes an address from its device; not to have it is no error.
    pub(crate) fn remove_address(&mut self, address: AddressMessage) -> io::Result<()> {
        let request = self.handle.address().del(address);
        none_is_fine(self.wait(request.execute()), Errno::EADDRNOTAVAIL)
    }

    /// Adds a route; `EEXIST` when one to the same destination is there, wherever that leads.
    pub(crate) fn add_route(&mut self, route: RouteMessage) -> io::Result<()> {
        let request = self.handle.route().add(route);
        self.wait(request.execute())
    }

    /// The routes of one family.
    pub(crate) fn routes(&mut self, family: AddressFamily) -> io::Result<Vec<RouteMessage>> {
        let mut all = RouteMessage::default();
        all.header.address_family = family;
        let request = self.handle.route().get(all);
        self.wait(request.execute().try_collect())
    }

    /// Runs one request to its end. There is one task and one source of events, so the waker has nothing to do.
    fn wait<T>(&mut self, request: impl Future<Output = Result<T, RtError>>) -> io::Result<T> {
        let mut request = pin!(request);
        let mut context = Context::from_waker(Waker::noop());
        loop {
            if let Poll::Ready(answer) = request.as_mut().poll(&mut context) {
                return answer.map_err(to_io);
            }
            if Pin::new(&mut self.connection).poll(&mut context).is_ready() {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            self.connection.socket_mut().wait_readable()?;
            if Pin::new(&mut self.connection).poll(&mut context).is_ready() {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
        }
    }
}

impl Device {
    fn from(message: &LinkMessage) -> Self {
        let mut device = Device {
            index: message.header.index,
            mac: Mac::default(),
            mtu: 0,
            up: message.header.flags.contains(LinkFlags::Up),
            kind: None,
            controller: None,
            peer: None,
        };
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::Address(mac) => device.mac = mac.as_slice().try_into().unwrap_or_default(),
                LinkAttribute::Mtu(mtu) => device.mtu = *mtu,
                LinkAttribute::Controller(index) => device.controller = Some(*index),
                LinkAttribute::Link(index) => device.peer = Some(*index),
                LinkAttribute::LinkInfo(infos) => {
                    device.kind = infos.iter().find_map(|info| match info {
                        LinkInfo::Kind(kind) => Some(kind.clone()),
                        _ => None,
                    });
                }
                _ => {}
            }
        }
        device
    }
}

/// The address in an answer.
pub(crate) fn address_of(message: &AddressMessage) -> Option<Cidr> {
    let find = |local| {
        message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Local(address) if local => Some(*address),
            AddressAttribute::Address(address) if !local => Some(*address),
            _ => None,
        })
    };
    // IPv6 has only the second; of IPv4 the first is ours and the second a peer's.
    Cidr::new(find(true).or_else(|| find(false))?, message.header.prefix_len)
}

/// `aa:bb:cc:dd:ee:ff`.
pub(crate) fn mac_to_text(mac: Mac) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// Reads `aa:bb:cc:dd:ee:ff`; `None` if it is not that, or not the address of one device.
pub(crate) fn mac_from_text(text: &str) -> Option<Mac> {
    let bytes = text.split(':').map(|part| match part.len() {
        2 => u8::from_str_radix(part, 16).ok(),
        _ => None,
    });
    let mac: Mac = bytes.collect::<Option<Vec<_>>>()?.try_into().ok()?;
    (mac[0] & 1 == 0 && mac != Mac::default()).then_some(mac)
}

/// The netlink name of an address's family.
pub(crate) fn family_of(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

/// Whether the kernel said `errno`.
pub(crate) fn is(error: &io::Error, errno: Errno) -> bool {
    error.raw_os_error() == Some(errno as i32)
}

fn none_is_fine(result: io::Result<()>, errno: Errno) -> io::Result<()> {
    result.or_else(|e| if is(&e, errno) { Ok(()) } else { Err(e) })
}

fn to_io(error: RtError) -> io::Error {
    match error {
        RtError::NetlinkError(message) => message.to_io(),
        other => io::Error::other(other.to_string()),
    }
}

/// A netlink socket that never blocks; who must wait calls `wait_readable`.
struct Socket(sys::Socket);

impl Socket {
    fn wait_readable(&self) -> io::Result<()> {
        wait_readable(&self.0)
    }
}

/// Waits for the kernel's answer on a netlink socket.
pub(crate) fn wait_readable(socket: &sys::Socket) -> io::Result<()> {
    let mut fds = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
    loop {
        return match poll(&mut fds, PollTimeout::from(ANSWER_MS)) {
            Ok(0) => Err(io::ErrorKind::TimedOut.into()),
            Ok(_) => Ok(()),
            Err(Errno::EINTR) => continue,
            Err(e) => Err(e.into()),
        };
    }
}

/// `WouldBlock` is `Pending`: `Links::wait` asks again when there is something to read.
fn pending<T>(result: io::Result<T>) -> Poll<io::Result<T>> {
    match result {
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => Poll::Pending,
        result => Poll::Ready(result),
    }
}

const DONT_WAIT: i32 = MsgFlags::MSG_DONTWAIT.bits();

impl AsyncSocket for Socket {
    fn socket_ref(&self) -> &sys::Socket {
        &self.0
    }

    fn socket_mut(&mut self) -> &mut sys::Socket {
        &mut self.0
    }

    fn new(protocol: isize) -> io::Result<Self> {
        sys::Socket::new(protocol).map(Socket)
    }

    fn poll_send(&self, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        pending(self.0.send(buf, DONT_WAIT))
    }

    fn poll_send_to(&self, _: &mut Context<'_>, buf: &[u8], to: &SocketAddr) -> Poll<io::Result<usize>> {
        pending(self.0.send_to(buf, to, DONT_WAIT))
    }

    fn poll_recv<B: BufMut>(&self, _: &mut Context<'_>, buf: &mut B) -> Poll<io::Result<()>> {
        pending(self.0.recv(buf, DONT_WAIT).map(drop))
    }

    fn poll_recv_from<B: BufMut>(&self, _: &mut Context<'_>, buf: &mut B) -> Poll<io::Result<SocketAddr>> {
        pending(self.0.recv_from(buf, DONT_WAIT).map(|(_, from)| from))
    }

    fn poll_recv_from_full(&self, _: &mut Context<'_>) -> Poll<io::Result<(Vec<u8>, SocketAddr)>> {
        // Only multicast listeners with overlong messages ask for this; it would block.
        Poll::Ready(Err(io::ErrorKind::Unsupported.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mac_survives_text() {
        let mac = [0x0a, 0x58, 10, 1, 2, 255];
        assert_eq!(mac_to_text(mac), "0a:58:0a:01:02:ff");
        assert_eq!(mac_from_text("0A:58:0a:01:02:ff"), Some(mac));
        for bad in
            ["", "0a:58:0a:01:02", "0a:58:0a:01:02:ff:00", "0b:58:0a:01:02:ff", "a:58:0a:01:02:ff", "00:00:00:00:00:00"]
        {
            assert_eq!(mac_from_text(bad), None, "{bad}");
        }
    }

    #[test]
    fn every_namespace_has_a_loopback_device() {
        let mut links = Links::open().unwrap();
        let lo = links.by_name("lo").unwrap().unwrap();
        assert_eq!(lo.index, 1);
        assert!(links.by_name("no-such-device").unwrap().is_none());
    }
}
