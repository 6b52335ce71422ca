//! Flags of `run` that hold several things: mounts and published ports.

use berth_api::cri::{Mount, PortMapping, Protocol};

/// `HOST-PATH:PATH[:ro|:rw]`.
pub(super) fn mount(text: &str) -> Result<Mount, String> {
    let parts: Vec<&str> = text.split(':').collect();
    let (host_path, container_path, readonly) = match parts[..] {
        [host, path] | [host, path, "rw"] => (host, path, false),
        [host, path, "ro"] => (host, path, true),
        _ => return Err(format!("{text:?} is not HOST-PATH:PATH[:ro]")),
    };
    if !host_path.starts_with('/') || !container_path.starts_with('/') {
        return Err(format!("{text:?}: both paths must begin with /"));
    }
    Ok(Mount { host_path: host_path.into(), container_path: container_path.into(), readonly, ..Default::default() })
}

/// `[IP:]HOST-PORT:PORT[/PROTOCOL]`; an IPv6 address in brackets.
pub(super) fn port(text: &str) -> Result<PortMapping, String> {
    let wrong = || format!("{text:?} is not [IP:]HOST-PORT:PORT[/udp|/sctp]");
    let (rest, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let protocol = Protocol::from_str_name(&protocol.to_uppercase()).ok_or_else(wrong)?;
    let (rest, container_port) = rest.rsplit_once(':').ok_or_else(wrong)?;
    let (host_ip, host_port) = rest.rsplit_once(':').unwrap_or(("", rest));
    let number = |port: &str| port.parse::<u16>().ok().filter(|port| *port > 0).map(i32::from).ok_or_else(wrong);
    Ok(PortMapping {
        protocol: protocol.into(),
        container_port: number(container_port)?,
        host_port: number(host_port)?,
        host_ip: host_ip.trim_start_matches('[').trim_end_matches(']').into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_and_ports_are_understood() {
        let ro = mount("/a:/b:ro").unwrap();
        assert_eq!((ro.host_path.as_str(), ro.container_path.as_str(), ro.readonly), ("/a", "/b", true));
        assert!(mount("a:/b").is_err() && mount("/a").is_err() && mount("/a:/b:rx").is_err());
        let check = |text: &str, ip: &str, host, inside, protocol: Protocol| {
            let port = port(text).unwrap();
            assert_eq!((port.host_ip.as_str(), port.host_port, port.container_port), (ip, host, inside));
            assert_eq!(port.protocol(), protocol);
        };
        check("8080:80", "", 8080, 80, Protocol::Tcp);
        check("127.0.0.1:53:5353/udp", "127.0.0.1", 53, 5353, Protocol::Udp);
        check("[::1]:80:80", "::1", 80, 80, Protocol::Tcp);
        assert!(port("80").is_err() && port("0:80").is_err() && port("80:80/icmp").is_err());
    }
}
