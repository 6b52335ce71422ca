//! The `loopback` plugin: brings `lo` up inside the pod.

use berth_api::cni::call::{ARG_NETNS_OWNED, Call};
use berth_api::cni::result::{AddResult, Interface, IpConfig};
use rtnetlink::LinkUnspec;

use crate::config::Network;
use crate::error::Error;
use crate::link::{Device, Links, address_of, mac_to_text};
use crate::netns::Netns;
use crate::skel::Plugin;

const LO: &str = "lo";

/// See the file's first lines.
pub struct Loopback;

impl Plugin for Loopback {
    fn operations(&self) -> &'static [&'static str] {
        &["lo_add", "lo_del"]
    }

    fn add(&self, call: &Call, network: &Network) -> Result<AddResult, Error> {
        network.options::<serde_json::Value>(&[])?;
        let pod = Netns::open(call.netns.as_deref().unwrap_or("".as_ref()))?;
        let (mut links, lo) = open(&pod)?;
        if !lo.up {
            let up = LinkUnspec::new_with_index(lo.index).up().build();
            step!("lo_add::up", links.change(up)).map_err(Error::kernel("bring up lo in", pod.path().display()))?;
        }
        match network.prev_result()? {
            Some(result) => Ok(result),
            None => result(&mut links, &lo, &pod),
        }
    }

    fn del(&self, call: &Call, _: &Network) -> Result<(), Error> {
        // The device goes with the namespace; to take it down first would only cost the kernel a grace period.
        if call.args.is_set(ARG_NETNS_OWNED) {
            return Ok(());
        }
        let Some(path) = &call.netns else { return Ok(()) };
        let Some(pod) = Netns::open_if_there(path)? else { return Ok(()) };
        let (mut links, lo) = open(&pod)?;
        let down = LinkUnspec::new_with_index(lo.index).down().build();
        step!("lo_del::down", links.change(down)).map_err(Error::kernel("take down lo in", pod.path().display()))
    }

    fn check(&self, call: &Call, _: &Network) -> Result<(), Error> {
        let pod = Netns::open(call.netns.as_deref().unwrap_or("".as_ref()))?;
        match open(&pod)?.1.up {
            true => Ok(()),
            false => Err(Error::Changed(format!("lo in {} is down", pod.path().display()))),
        }
    }

    fn gc(&self, _: &Call, _: &Network) -> Result<(), Error> {
        Ok(())
    }

    fn status(&self, _: &Call, _: &Network) -> Result<(), Error> {
        Ok(())
    }
}

fn open(pod: &Netns) -> Result<(Links, Device), Error> {
    let place = pod.path().display();
    let mut links = pod.inside(|| Links::open().map_err(Error::kernel("open netlink socket in", place)))?;
    let lo = links.by_name(LO).map_err(Error::kernel("look for lo in", pod.path().display()))?;
    let missing = || Error::kernel("look for lo in", pod.path().display())(std::io::ErrorKind::NotFound.into());
    Ok((links, lo.ok_or_else(missing)?))
}

/// The device with the addresses that the kernel gave it when it came up: none of a family that is switched off.
fn result(links: &mut Links, lo: &Device, pod: &Netns) -> Result<AddResult, Error> {
    let addresses =
        links.addresses(lo.index).map_err(Error::kernel("list addresses of lo in", pod.path().display()))?;
    let interface = Interface {
        name: LO.into(),
        mac: mac_to_text(lo.mac),
        sandbox: pod.path().to_string_lossy().into_owned(),
        ..Default::default()
    };
    let ips = addresses.iter().filter_map(address_of);
    let ips = ips.map(|address| IpConfig { address, gateway: None, interface: Some(0) }).collect();
    Ok(AddResult { interfaces: vec![interface], ips, ..Default::default() })
}
