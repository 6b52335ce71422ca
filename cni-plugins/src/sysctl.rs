//! The few switches of the network that have no netlink message. Each is read first: it is nearly always set already.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use crate::error::Error;

/// Forwarding between devices, for the family of `address`, in the network namespace we are in.
pub(crate) fn ensure_forwarding(address: IpAddr) -> Result<(), Error> {
    match address {
        IpAddr::V4(_) => ensure(Path::new("/proc/sys/net/ipv4/ip_forward"), "1"),
        IpAddr::V6(_) => ensure(Path::new("/proc/sys/net/ipv6/conf/all/forwarding"), "1"),
    }
}

/// A bridge that is a router must not believe the router advertisements of its pods.
pub(crate) fn refuse_router_advertisements(device: &str) -> Result<(), Error> {
    ensure(&of_device(device, "accept_ra"), "0")
}

/// Some images and runtimes switch IPv6 off for new devices.
pub(crate) fn enable_ipv6(device: &str) -> Result<(), Error> {
    ensure(&of_device(device, "disable_ipv6"), "0")
}

/// Lets packets of 127.0.0.1 leave and come by the device. Dangerous without something that keeps others from it.
pub(crate) fn route_localnet(device: &str) -> Result<(), Error> {
    ensure(&Path::new("/proc/sys/net/ipv4/conf").join(device).join("route_localnet"), "1")
}

fn of_device(device: &str, name: &str) -> PathBuf {
    Path::new("/proc/sys/net/ipv6/conf").join(device).join(name)
}

fn ensure(path: &Path, value: &str) -> Result<(), Error> {
    let now = fs::read_to_string(path).map_err(Error::file("read", path))?;
    if now.trim_end() == value {
        return Ok(());
    }
    fs::write(path, value).map_err(Error::file("set", path))
}
