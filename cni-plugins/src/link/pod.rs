//! The pod's end of a network: its addresses and routes, set from inside its namespace.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use berth_api::cni::result::{AddResult, Cidr, Route};
use nix::errno::Errno;
use rtnetlink::packet_route::route::{RouteAttribute, RouteHeader, RouteMessage, RouteMetric, RouteScope};
use rtnetlink::{LinkUnspec, RouteMessageBuilder};

use super::{Device, Links, address_of, family_of, is};
use crate::error::Error;
use crate::netns::Netns;
use crate::sysctl;

/// A netlink socket inside a pod, and the pod's device.
pub(crate) struct PodLinks<'a> {
    pod: &'a Netns,
    links: Links,
    ifname: &'a str,
}

impl<'a> PodLinks<'a> {
    /// Opens the socket inside.
    pub(crate) fn open(pod: &'a Netns, ifname: &'a str) -> Result<Self, Error> {
        let opened =
            pod.inside(|| Links::open().map_err(Error::kernel("open netlink socket in", pod.path().display())));
        Ok(PodLinks { pod, links: opened?, ifname })
    }

    /// The pod's device, if it is there.
    pub(crate) fn find(&mut self) -> Result<Option<Device>, Error> {
        let thing = format!("{} in {}", self.ifname, self.pod.path().display());
        self.links.by_name(self.ifname).map_err(Error::kernel("look for device", thing))
    }

    /// Brings the device up with the addresses and routes of `result`.
    pub(crate) fn configure(&mut self, device: &Device, result: &AddResult) -> Result<(), Error> {
        if !device.up {
            let up = LinkUnspec::new_with_index(device.index).up().build();
            let done = step!("cni_add::pod-up", self.links.change(up));
            done.map_err(Error::kernel("bring up", self.thing("device")))?;
        }
        for ip in &result.ips {
            self.ensure_address(device, ip.address)?;
        }
        for route in &result.routes {
            self.ensure_route(message(device, route, result), route.dst)?;
        }
        Ok(())
    }

    fn ensure_route(&mut self, route: RouteMessage, dst: Cidr) -> Result<(), Error> {
        let thing = format!("to {dst} in {}", self.pod.path().display());
        match step!("cni_add::route", self.links.add_route(route.clone())) {
            // Another network's, or what an earlier call added.
            Err(e) if is(&e, Errno::EEXIST) && self.has_route(&route, dst)? => Ok(()),
            added => added.map_err(Error::kernel("add route", thing)),
        }
    }

    fn has_route(&mut self, route: &RouteMessage, dst: Cidr) -> Result<bool, Error> {
        let there = self.links.routes(family_of(dst.address()));
        let there = there.map_err(Error::kernel("list routes in", self.pod.path().display()))?;
        Ok(there.iter().any(|other| leads_alike(other, route)))
    }

    fn ensure_address(&mut self, device: &Device, address: Cidr) -> Result<(), Error> {
        let added = match step!("cni_add::addr", self.links.ensure_address(device.index, address)) {
            // IPv6 is switched off for new devices in this pod, and the network gives it an address all the same.
            Err(e) if is(&e, Errno::EACCES) && address.address().is_ipv6() => {
                self.pod.inside(|| sysctl::enable_ipv6(self.ifname))?;
                self.links.ensure_address(device.index, address)
            }
            result => result,
        };
        added.map_err(Error::kernel("give address", self.thing(address)))
    }

    /// Takes every address from the device, so that nothing in the pod can speak under them any more.
    pub(crate) fn remove_addresses(&mut self) -> Result<(), Error> {
        let Some(device) = self.find()? else { return Ok(()) };
        let addresses = self.links.addresses(device.index).map_err(Error::kernel("list", self.thing("addresses")))?;
        for address in addresses {
            let thing = address_of(&address).map(|a| a.to_string()).unwrap_or_default();
            let removed = step!("cni_del::addr", self.links.remove_address(address));
            removed.map_err(Error::kernel("remove address", self.thing(thing)))?;
        }
        Ok(())
    }

    /// Checks that the device is up and has the addresses and routes of `result`.
    pub(crate) fn check(&mut self, result: &AddResult) -> Result<Device, Error> {
        let device = self.find()?.ok_or_else(|| Error::Changed(format!("{} is gone", self.thing("device"))))?;
        if !device.up {
            return Err(Error::Changed(format!("{} is down", self.thing("device"))));
        }
        let there = self.links.addresses(device.index).map_err(Error::kernel("list", self.thing("addresses")))?;
        for ip in &result.ips {
            if !there.iter().any(|a| address_of(a) == Some(ip.address)) {
                return Err(Error::Changed(format!("address {} is gone", self.thing(ip.address))));
            }
        }
        for route in &result.routes {
            if !self.has_route(&message(&device, route, result), route.dst)? {
                let problem = format!("route to {} in {} is gone", route.dst, self.pod.path().display());
                return Err(Error::Changed(problem));
            }
        }
        Ok(device)
    }

    fn thing(&self, what: impl std::fmt::Display) -> String {
        format!("{what} of {} in {}", self.ifname, self.pod.path().display())
    }
}

/// The next hop of a route that names none: the gateway of the first address of its family.
fn next_hop(route: &Route, result: &AddResult) -> Option<IpAddr> {
    let of_family = |gateway: &IpAddr| gateway.is_ipv4() == route.dst.address().is_ipv4();
    route.gw.or_else(|| result.ips.iter().filter_map(|ip| ip.gateway).find(of_family))
}

fn message(device: &Device, route: &Route, result: &AddResult) -> RouteMessage {
    let gateway = next_hop(route, result);
    let dst = route.dst.network();
    let mut message = match dst.address() {
        IpAddr::V4(ip) => {
            let builder = RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(ip, dst.prefix());
            match gateway {
                Some(IpAddr::V4(gateway)) => builder.gateway(gateway),
                Some(IpAddr::V6(gateway)) => builder.via(gateway),
                None => builder.scope(RouteScope::Link),
            }
            .build()
        }
        IpAddr::V6(ip) => {
            let builder = RouteMessageBuilder::<Ipv6Addr>::new().destination_prefix(ip, dst.prefix());
            match gateway {
                Some(IpAddr::V6(gateway)) => builder.gateway(gateway),
                _ => builder,
            }
            .build()
        }
    };
    message.attributes.push(RouteAttribute::Oif(device.index));
    if let Some(scope) = route.scope {
        message.header.scope = scope.into();
    }
    if let Some(priority) = route.priority {
        message.attributes.push(RouteAttribute::Priority(priority));
    }
    match route.table {
        None => {}
        Some(table) => match u8::try_from(table) {
            Ok(table) => message.header.table = table,
            Err(_) => {
                message.header.table = RouteHeader::RT_TABLE_UNSPEC;
                message.attributes.push(RouteAttribute::Table(table));
            }
        },
    }
    let metrics = [route.mtu.map(RouteMetric::Mtu), route.advmss.map(RouteMetric::Advmss)];
    let metrics: Vec<_> = metrics.into_iter().flatten().collect();
    if !metrics.is_empty() {
        message.attributes.push(RouteAttribute::Metrics(metrics));
    }
    message
}

/// Same destination, device and next hop; what else the kernel says of a route is its own.
fn leads_alike(a: &RouteMessage, b: &RouteMessage) -> bool {
    let key = |route: &RouteMessage| {
        let find = |pick: fn(&RouteAttribute) -> bool| route.attributes.iter().find(|a| pick(a)).cloned();
        // The kernel leaves out a destination of no bits.
        let dst = find(|a| matches!(a, RouteAttribute::Destination(_)));
        let dst = dst.filter(|_| route.header.destination_prefix_length > 0);
        let oif = find(|a| matches!(a, RouteAttribute::Oif(_)));
        let gateway = find(|a| matches!(a, RouteAttribute::Gateway(_) | RouteAttribute::Via(_)));
        (route.header.destination_prefix_length, dst, oif, gateway)
    };
    key(a) == key(b)
}
