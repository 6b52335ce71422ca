//! The few switches of the network that have no netlink message. Each is read first: it is nearly always set already.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use crate::error::Error;

/// Forwarding between devices, for the family of `address`, in the network namespace we are in.
pub(crate) fn ensure_forwarding(address: IpAddr) -> Result<(), Error> {
    match address {
        IpAddr::V4(_) => ensure(Path::new("/proc/sys/net/ipv4/ip_forward"), "1"),
        IpAddr::V6(_) => {
            let forwarding = Path::new("/proc/sys/net/ipv6/conf/all/forwarding");
            if !is(forwarding, "1")? {
                keep_router_advertisements()?;
            }
            ensure(forwarding, "1")
        }
    }
}

/// A host that forwards no longer believes the routers of its uplinks, and drops the default route that it has from them,
/// where `accept_ra` is 1; 2 says that it should all the same. Source: the kernel's Documentation/networking/ip-sysctl.rst.
fn keep_router_advertisements() -> Result<(), Error> {
    let devices = Path::new("/proc/sys/net/ipv6/conf");
    for device in fs::read_dir(devices).map_err(Error::file("list", devices))?.filter_map(Result::ok) {
        let path = device.path().join("accept_ra");
        // `all` decides nothing here, and what devices are born with is the administrator's.
        if matches!(device.file_name().to_str(), Some("all" | "default")) || !is(&path, "1").unwrap_or(false) {
            continue;
        }
        match fs::write(&path, "2") {
            // Gone since.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            result => result.map_err(Error::file("set", &path))?,
        }
    }
    Ok(())
}

/// A bridge that is a router must not believe the router advertisements of its pods. Without IPv6 nobody does.
pub(crate) fn refuse_router_advertisements(device: &str) -> Result<(), Error> {
    let path = of_device(device, "accept_ra");
    if path.exists() { ensure(&path, "0") } else { Ok(()) }
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

fn is(path: &Path, value: &str) -> Result<bool, Error> {
    let now = fs::read_to_string(path).map_err(Error::file("read", path))?;
    Ok(now.trim_end() == value)
}

fn ensure(path: &Path, value: &str) -> Result<(), Error> {
    if is(path, value)? {
        return Ok(());
    }
    fs::write(path, value).map_err(Error::file("set", path))
}
