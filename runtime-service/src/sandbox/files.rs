//! The files that a pod lends to each of its containers: hostname, hosts, resolv.conf.

use std::fmt::Write;
use std::fs;
use std::os::unix::fs::chown;
use std::path::Path;

use berth_api::cri::DnsConfig;

use super::Error;
use crate::host::selinux;

/// What the files say.
pub(crate) struct Files<'a> {
    pub(crate) hostname: &'a str,
    pub(crate) dns: Option<&'a DnsConfig>,
    /// The pod uses the host's network, and so the host's names.
    pub(crate) host_network: bool,
    /// Root of the pod, where that is not root of the host.
    pub(crate) owner: Option<(u32, u32)>,
    /// SELinux's.
    pub(crate) label: Option<&'a str>,
}

/// systemd-resolved's list of real servers, for a host whose own file names only its local stub.
const RESOLVED: &str = "/run/systemd/resolve/resolv.conf";

/// Writes them into `dir`.
///
/// # Errors
/// A file cannot be written, or the host's resolv.conf cannot be read.
pub(crate) fn write(dir: &Path, files: &Files<'_>) -> Result<(), Error> {
    let put = |name: &str, text: &str| {
        let path = dir.join(name);
        let written = fs::write(&path, text).and_then(|()| match files.owner {
            Some((uid, gid)) => chown(&path, Some(uid), Some(gid)),
            None => Ok(()),
        });
        let written = written.and_then(|()| files.label.map_or(Ok(()), |label| selinux::label_file(&path, label)));
        written.map_err(|source| Error::Write { path, source })
    };
    put("hostname", &format!("{}\n", files.hostname))?;
    let hosts = match files.host_network {
        true => read_host("/etc/hosts")?,
        false => format!(
            "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::0\tip6-localnet\n\
             ff00::0\tip6-mcastprefix\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n127.0.1.1\t{}\n",
            files.hostname
        ),
    };
    put("hosts", &hosts)?;
    let resolv = match files.dns {
        Some(dns) if !(dns.servers.is_empty() && dns.searches.is_empty() && dns.options.is_empty()) => render(dns),
        _ if files.host_network => read_host("/etc/resolv.conf")?,
        _ => match without_loopback(&read_host("/etc/resolv.conf")?) {
            Some(text) => text,
            // Only stubs: what they forward to is what a pod, which cannot reach the host's loopback, must ask itself.
            None => without_loopback(&read_host(RESOLVED)?).unwrap_or_default(),
        },
    };
    put("resolv.conf", &resolv)
}

fn read_host(path: &str) -> Result<String, Error> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(text),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
        Err(source) => Err(Error::Resolv { path: path.into(), source }),
    }
}

fn render(dns: &DnsConfig) -> String {
    let mut text = String::new();
    if !dns.searches.is_empty() {
        let _ = writeln!(text, "search {}", dns.searches.join(" "));
    }
    for server in &dns.servers {
        let _ = writeln!(text, "nameserver {server}");
    }
    if !dns.options.is_empty() {
        let _ = writeln!(text, "options {}", dns.options.join(" "));
    }
    text
}

/// The text without servers on a loopback address; `None` when it named only such.
fn without_loopback(text: &str) -> Option<String> {
    let server = |line: &str| line.trim().strip_prefix("nameserver").map(|a| a.trim().to_owned());
    let loopback = |address: &str| address.starts_with("127.") || address == "::1";
    let servers: Vec<String> = text.lines().filter_map(server).collect();
    if !servers.is_empty() && servers.iter().all(|s| loopback(s)) {
        return None;
    }
    let kept = text.lines().filter(|line| !server(line).is_some_and(|s| loopback(&s)));
    Some(kept.map(|line| format!("{line}\n")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_servers_are_left_out() {
        for (text, result) in [
            ("nameserver 1.2.3.4\n", Some("nameserver 1.2.3.4\n")),
            ("search a\nnameserver 127.0.0.53\nnameserver 1.2.3.4\n", Some("search a\nnameserver 1.2.3.4\n")),
            ("nameserver 127.0.0.53\nnameserver ::1\n", None),
            ("search a\n", Some("search a\n")),
            ("", Some("")),
        ] {
            assert_eq!(without_loopback(text).as_deref(), result, "{text}");
        }
    }

    #[test]
    fn dns_config_becomes_a_resolv_conf() {
        let list = |l: &[&str]| l.iter().map(|s| s.to_string()).collect();
        let dns = DnsConfig {
            servers: list(&["10.0.0.1", "10.0.0.2"]),
            searches: list(&["a.b", "c"]),
            options: list(&["ndots:5"]),
        };
        assert_eq!(render(&dns), "search a.b c\nnameserver 10.0.0.1\nnameserver 10.0.0.2\noptions ndots:5\n");
    }
}
