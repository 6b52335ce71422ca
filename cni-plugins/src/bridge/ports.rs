//! Published ports of an attachment: what the capability `portMappings` asks for, paired with the pod's addresses.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};

use berth_api::cni::call::Call;
use berth_api::cni::config::Attachment;
use berth_api::cni::result::{AddResult, Cidr};
use serde::Deserialize;

use super::options::Options;
use crate::config::{DeserializeAt, Network};
use crate::error::Error;
use crate::nat::{Ports, Protocol, Published};
use crate::sysctl::route_localnet;

/// Where the capability's arguments are. Source: CNI CONVENTIONS.md.
const FIELD: &str = "runtimeConfig.portMappings";

/// One mapping as it is asked for.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Asked {
    host_port: u16,
    container_port: u16,
    #[serde(default)]
    protocol: String,
    #[serde(rename = "hostIP", default)]
    host_ip: String,
}

/// One mapping, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mapping {
    protocol: Protocol,
    /// `None`: every address of the host, of both families.
    host: Option<IpAddr>,
    host_port: u16,
    pod_port: u16,
}

/// Reads the mappings of a call; those without a port of the host publish nothing.
pub(super) fn mappings(network: &Network) -> Result<Vec<Mapping>, Error> {
    let Some(list) = network.at(&["runtimeConfig", "portMappings"]).filter(|list| !list.is_null()) else {
        return Ok(Vec::new());
    };
    let asked = Vec::<Asked>::deserialize_at(list, FIELD)?;
    let published = asked.iter().enumerate().filter(|(_, asked)| asked.host_port != 0);
    published.map(|(index, asked)| asked.check(index)).collect()
}

impl Asked {
    fn check(&self, index: usize) -> Result<Mapping, Error> {
        let wrong = |name: &str, problem: String| Error::config(format!("{FIELD}[{index}].{name}"), problem);
        if self.container_port == 0 {
            return Err(wrong("containerPort", "is 0".into()));
        }
        let protocol = match self.protocol.to_ascii_lowercase().as_str() {
            "" | "tcp" => Protocol::Tcp,
            "udp" => Protocol::Udp,
            other => return Err(wrong("protocol", format!("{other:?} is not supported, only tcp and udp"))),
        };
        let host = match self.host_ip.as_str() {
            "" => None,
            text => match text.parse() {
                Ok(ip) => Some(ip),
                Err(_) => return Err(wrong("hostIP", format!("{text:?} is no address"))),
            },
        };
        Ok(Mapping { protocol, host, host_port: self.host_port, pod_port: self.container_port })
    }
}

/// Each mapping with the pod's first address of the family it is for.
fn plan(mappings: &[Mapping], result: &AddResult) -> Result<Vec<Published>, Error> {
    let pod = |v4: bool| result.ips.iter().map(|ip| ip.address.address()).find(|ip| ip.is_ipv4() == v4);
    let mut all = Vec::new();
    for mapping in mappings {
        let hosts = match mapping.host {
            Some(ip) => vec![ip],
            None => vec![IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)],
        };
        for host in hosts {
            match pod(host.is_ipv4()) {
                Some(pod) => all.push(Published {
                    protocol: mapping.protocol,
                    host,
                    host_port: mapping.host_port,
                    pod,
                    pod_port: mapping.pod_port,
                }),
                None if mapping.host.is_none() => {}
                None => {
                    let problem = format!("{host} cannot lead to the pod, which has no address of that family");
                    return Err(Error::config(format!("{FIELD}[].hostIP"), problem));
                }
            }
        }
    }
    Ok(all)
}

/// Publishes what the call asks for, and nothing else, for the attachment.
pub(super) fn publish(call: &Call, options: &Options, mappings: &[Mapping], result: &AddResult) -> Result<(), Error> {
    if mappings.is_empty() {
        return Ok(());
    }
    let wanted = plan(mappings, result)?;
    for one in &wanted {
        if let Some(holder) = listener(one) {
            return Err(Error::PortTaken { port: one.to_string(), holder });
        }
    }
    let subnets: Vec<Cidr> = result.ips.iter().map(|ip| ip.address.network()).collect();
    let name = match (call.args.get("K8S_POD_NAMESPACE"), call.args.get("K8S_POD_NAME")) {
        (Some(namespace), Some(name)) => format!("{namespace}/{name}"),
        _ => String::new(),
    };
    Ports::open(&options.nft_table)?.publish((&owner(call), &name), &wanted, &subnets, &options.bridge)?;
    if wanted.iter().any(|one| one.pod.is_ipv4()) {
        // Behind the guard, which the transaction has made.
        step!("cni_add::route-localnet", route_localnet(&options.bridge))?;
    }
    Ok(())
}

/// Ends what the attachment has published.
pub(super) fn withdraw(call: &Call, options: &Options, mappings: &[Mapping]) -> Result<(), Error> {
    // Asking the kernel costs more than the rest of DEL.
    if mappings.is_empty() { Ok(()) } else { Ports::open(&options.nft_table)?.withdraw(&owner(call)) }
}

/// The first of the mappings that is not in force.
pub(super) fn missing(
    call: &Call,
    options: &Options,
    mappings: &[Mapping],
    result: &AddResult,
) -> Result<Option<String>, Error> {
    if mappings.is_empty() {
        return Ok(None);
    }
    let missing = Ports::open(&options.nft_table)?.missing(&owner(call), &plan(mappings, result)?)?;
    Ok(missing.map(|one| one.to_string()))
}

fn owner(call: &Call) -> Attachment {
    Attachment { container_id: call.container_id.clone(), ifname: call.ifname.clone() }
}

/// A process of the host that listens there, which would hear nothing any more from outside.
fn listener(one: &Published) -> Option<String> {
    let address = SocketAddr::new(one.host, one.host_port);
    let bound = match one.protocol {
        Protocol::Tcp => TcpListener::bind(address).map(drop),
        Protocol::Udp => UdpSocket::bind(address).map(drop),
    };
    match bound {
        // Another error (an address that the host does not have yet) is nobody's holding it.
        Err(e) if e.kind() == io::ErrorKind::AddrInUse => socket_at(one).map(|inode| process_with(&inode)),
        _ => None,
    }
}

/// Inode of the socket that waits for whoever comes to this port. A connection that goes out by it is in nobody's way.
/// Source: proc_net_tcp.rst: local address and port in hex, state (0A listens; 07 is a UDP socket without a peer), inode.
fn socket_at(one: &Published) -> Option<String> {
    let (files, waits) = match one.protocol {
        Protocol::Tcp => (["/proc/net/tcp", "/proc/net/tcp6"], "0A"),
        Protocol::Udp => (["/proc/net/udp", "/proc/net/udp6"], "07"),
    };
    let tables: Vec<String> = files.iter().filter_map(|file| fs::read_to_string(file).ok()).collect();
    let waiting = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (_, port) = fields.get(1)?.rsplit_once(':')?;
        let is_it = u16::from_str_radix(port, 16) == Ok(one.host_port) && fields.get(3) == Some(&waits);
        is_it.then(|| fields.get(9).map(|inode| (*inode).to_owned())).flatten()
    };
    tables.iter().flat_map(|table| table.lines().skip(1)).find_map(waiting)
}

/// The first process that has the socket open.
fn process_with(inode: &str) -> String {
    let socket = format!("socket:[{inode}]");
    let has_it = |process: &fs::DirEntry| {
        let open = fs::read_dir(process.path().join("fd")).into_iter().flatten().flatten();
        open.filter_map(|fd| fs::read_link(fd.path()).ok()).any(|to| to.as_os_str() == socket.as_str())
    };
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    match processes.into_iter().find(has_it) {
        Some(process) => {
            let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            format!("the host's process {} ({})", process.file_name().to_string_lossy(), name.trim())
        }
        None => "a process of the host".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn read(mappings: Value) -> Result<Vec<Mapping>, Error> {
        let config = json!({"cniVersion": "1.1.0", "name": "n", "runtimeConfig": {"portMappings": mappings}});
        let Value::Object(config) = config else { unreachable!() };
        super::mappings(&Network::new(config).unwrap())
    }

    #[test]
    fn mappings_are_read_and_those_without_a_host_port_left_out() {
        let read = read(json!([
            {"hostPort": 8080, "containerPort": 80},
            {"hostPort": 0, "containerPort": 81},
            {"hostPort": 53, "containerPort": 5353, "protocol": "UDP", "hostIP": "fd00::1"},
        ]));
        let expected = [
            Mapping { protocol: Protocol::Tcp, host: None, host_port: 8080, pod_port: 80 },
            Mapping { protocol: Protocol::Udp, host: "fd00::1".parse().ok(), host_port: 53, pod_port: 5353 },
        ];
        assert_eq!(read.unwrap(), expected);
    }

    #[test]
    fn a_wrong_mapping_is_refused_by_its_path() {
        for (mapping, field) in [
            (json!({"hostPort": 70000, "containerPort": 80}), "runtimeConfig.portMappings"),
            (json!({"hostPort": 80, "containerPort": 0}), "runtimeConfig.portMappings[0].containerPort"),
            (
                json!({"hostPort": 80, "containerPort": 80, "protocol": "sctp"}),
                "runtimeConfig.portMappings[0].protocol",
            ),
            (json!({"hostPort": 80, "containerPort": 80, "hostIP": "a"}), "runtimeConfig.portMappings[0].hostIP"),
        ] {
            let error = read(json!([mapping])).unwrap_err().to_string();
            assert!(error.contains(field), "{field} is not in: {error}");
        }
    }

    #[test]
    fn each_family_that_the_pod_has_is_published() {
        let (_, result) = AddResult::from_value(json!({
            "cniVersion": "1.1.0", "ips": [{"address": "10.0.0.2/24"}],
        }))
        .unwrap();
        let any = Mapping { protocol: Protocol::Tcp, host: None, host_port: 80, pod_port: 8080 };
        let planned: Vec<_> =
            plan(&[any], &result).unwrap().iter().map(|p| (p.to_string(), p.pod.to_string())).collect();
        assert_eq!(planned, [("0.0.0.0:80/tcp".to_owned(), "10.0.0.2".to_owned())]);
        let v6 = Mapping { host: "::".parse().ok(), ..any };
        assert!(plan(&[v6], &result).unwrap_err().to_string().contains("no address of that family"));
    }
}
