//! What went through the interfaces of a pod's network namespace, as the kernel's own counters have it.

use std::fs;
use std::io;
use std::path::PathBuf;

use crate::netns;

/// Counters of the namespace that the reading thread is in.
const COUNTERS: &str = "/proc/thread-self/net/dev";
const ROUTES: &str = "/proc/thread-self/net/route";
const ROUTES_V6: &str = "/proc/thread-self/net/ipv6_route";

/// The interfaces of one namespace, without `lo`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Network {
    /// That of the default route; the first one when there is no such route.
    pub(crate) default: Option<Interface>,
    pub(crate) others: Vec<Interface>,
}

/// One interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Interface {
    pub(crate) name: String,
    pub(crate) received: Traffic,
    pub(crate) sent: Traffic,
}

/// One direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Traffic {
    pub(crate) bytes: u64,
    pub(crate) packets: u64,
    pub(crate) errors: u64,
    pub(crate) dropped: u64,
}

impl Network {
    /// Of each of these pinned namespaces; `None` for one that is gone. Blocks.
    ///
    /// # Errors
    /// There is no thread to look with.
    pub(super) fn read(pins: &[PathBuf]) -> io::Result<Vec<Option<Self>>> {
        if pins.is_empty() {
            return Ok(Vec::new());
        }
        let file = |path| fs::read_to_string(path).unwrap_or_default();
        let look = move || Ok(Self::parse(&fs::read_to_string(COUNTERS)?, &file(ROUTES), &file(ROUTES_V6)));
        let looked = netns::look_into(pins, look)?;
        let told = |(pin, found): (&PathBuf, io::Result<io::Result<Self>>)| match found.flatten() {
            Ok(network) => Some(network),
            // The pod was stopped since.
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => {
                tracing::warn!(namespace = %pin.display(), %error, "read a pod's network counters");
                None
            }
        };
        Ok(pins.iter().zip(looked).map(told).collect())
    }

    /// All of them.
    pub(crate) fn interfaces(&self) -> impl Iterator<Item = &Interface> {
        self.default.iter().chain(&self.others)
    }

    pub(super) fn parse(counters: &str, routes: &str, routes_v6: &str) -> Self {
        let mut interfaces: Vec<_> = counters.lines().filter_map(Interface::parse).collect();
        let default = default_v4(routes).or_else(|| default_v6(routes_v6));
        let at = default.and_then(|name| interfaces.iter().position(|i| i.name == name)).unwrap_or(0);
        let default = (at < interfaces.len()).then(|| interfaces.remove(at));
        Self { default, others: interfaces }
    }
}

impl Interface {
    /// `NAME: ` and sixteen numbers; `None` for the two headings and for `lo`.
    fn parse(line: &str) -> Option<Self> {
        let (name, numbers) = line.split_once(':')?;
        let numbers: Vec<u64> = numbers.split_whitespace().map_while(|n| n.parse().ok()).collect();
        let traffic = |first: usize| {
            let at = |offset| numbers.get(first + offset).copied();
            Some(Traffic { bytes: at(0)?, packets: at(1)?, errors: at(2)?, dropped: at(3)? })
        };
        let name = name.trim();
        if name == "lo" {
            return None;
        }
        Some(Self { name: name.to_owned(), received: traffic(0)?, sent: traffic(8)? })
    }
}

/// A route to anywhere: destination and mask zero.
fn default_v4(routes: &str) -> Option<&str> {
    routes.lines().skip(1).find_map(|line| {
        let columns: Vec<_> = line.split_whitespace().collect();
        (columns.get(1) == Some(&"00000000") && columns.get(7) == Some(&"00000000")).then(|| columns[0])
    })
}

/// The same of version 6, which has no heading; the kernel's own entry of that form is on `lo`.
fn default_v6(routes: &str) -> Option<&str> {
    routes.lines().find_map(|line| {
        let columns: Vec<_> = line.split_whitespace().collect();
        let name = *columns.get(9)?;
        let anywhere = columns[0].bytes().all(|b| b == b'0') && columns[1] == "00";
        (anywhere && name != "lo").then_some(name)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const COUNTERS: &str = "\
Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:       1       1    0    0    0     0          0         0        1       1    0    0    0     0       0          0
  net1:      10      20    30   40    0     0          0         0       50      60   70   80    0     0       0          0
eth0:1234567890      2    3    4    0     0          0         0        5       6    7    8    0     0       0          0
";

    #[test]
    fn counters_are_read_and_the_default_route_tells_which_interface_is_first() {
        let routes = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n\
            eth0\t00000000\t0100C00A\t0003\t0\t0\t0\t00000000\t0\t0\t0\n";
        let network = Network::parse(COUNTERS, routes, "");
        let eth0 = network.default.expect("a default route");
        assert_eq!(eth0.name, "eth0");
        assert_eq!(eth0.received, Traffic { bytes: 1_234_567_890, packets: 2, errors: 3, dropped: 4 });
        assert_eq!(eth0.sent, Traffic { bytes: 5, packets: 6, errors: 7, dropped: 8 });
        assert_eq!(network.others.len(), 1, "without lo");
        assert_eq!(network.others[0].name, "net1");
    }

    #[test]
    fn a_default_route_of_version_6_counts_and_none_means_the_first() {
        let zero = "0".repeat(32);
        let v6 = format!(
            "{zero} 00 {zero} 00 {zero} ffffffff 00000001 00000000 00200200 lo\n\
             {zero} 00 {zero} 00 fe800000000000000000000000000001 00000400 00000001 00000000 00000003 eth0\n"
        );
        assert_eq!(Network::parse(COUNTERS, "", &v6).default.map(|i| i.name).as_deref(), Some("eth0"));
        assert_eq!(Network::parse(COUNTERS, "", "").default.map(|i| i.name).as_deref(), Some("net1"));
        assert_eq!(Network::parse("", "", ""), Network::default());
    }
}
