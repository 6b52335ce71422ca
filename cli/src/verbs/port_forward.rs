//! `port-forward`: ports of this host that lead into a pod.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use berth_api::cri::PortForwardRequest;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::error::Error;
use crate::node::Node;
use crate::output::{line, short};
use crate::stream;
use crate::stream::spdy::{Connection, Stream};
use crate::stream::tls::Tls;

#[derive(clap::Args)]
pub(crate) struct PortForward {
    #[command(flatten)]
    tls: Tls,
    /// Id of the pod
    #[arg(value_name = "POD-ID")]
    id: String,
    /// A port of the pod, with another one here if wanted; an empty one here is any free one
    #[arg(required = true, value_name = "[LOCAL:]REMOTE", value_parser = ports)]
    ports: Vec<(u16, u16)>,
}

/// `80`, `8080:80` or `:80`.
fn ports(text: &str) -> Result<(u16, u16), String> {
    let number = |text: &str| text.parse::<u16>().map_err(|_| format!("{text:?} is no port"));
    let (local, remote) = match text.split_once(':') {
        None => (number(text)?, number(text)?),
        Some(("", remote)) => (0, number(remote)?),
        Some((local, remote)) => (number(local)?, number(remote)?),
    };
    if remote == 0 { Err("0 is no port of a pod".into()) } else { Ok((local, remote)) }
}

impl PortForward {
    pub(crate) async fn run(self, node: &Node) -> Result<(), Error> {
        let request = PortForwardRequest { pod_sandbox_id: self.id.clone(), port: Vec::new() };
        let deed = format!("forward ports to pod {}", short(&self.id));
        let mut runtime = node.runtime().await?;
        let url = node.quick(&deed, runtime.port_forward(request)).await?.url;
        let connection = Arc::new(stream::connect(&url, "portforward.k8s.io", &self.tls).await?);
        let mut listening = JoinSet::new();
        for (local, remote) in self.ports {
            for listener in listeners(local).await? {
                let at = listener.local_addr().map_err(|e| Error::Refused(format!("listen: {e}")))?;
                line(format!("Forwarding from {at} -> {remote}"))?;
                listening.spawn(serve(listener, remote, connection.clone()));
            }
        }
        connection.closed().await;
        Err(Error::Refused(format!("{deed}: the runtime has hung up")))
    }
}

/// At both loopback addresses; one of them may not be there.
async fn listeners(port: u16) -> Result<Vec<TcpListener>, Error> {
    let fail = |error: std::io::Error| Error::Refused(format!("listen at port {port}: {error}"));
    let first = TcpListener::bind((IpAddr::from(Ipv4Addr::LOCALHOST), port)).await.map_err(fail)?;
    let port = first.local_addr().map_err(fail)?.port();
    let second = TcpListener::bind((IpAddr::from(Ipv6Addr::LOCALHOST), port)).await;
    Ok([Some(first), second.ok()].into_iter().flatten().collect())
}

async fn serve(listener: TcpListener, port: u16, connection: Arc<Connection>) {
    let mut relays = JoinSet::new();
    let mut number = 0_u64;
    while let Ok((client, _)) = listener.accept().await {
        number += 1;
        // No other listener of this process has the same.
        let id = format!("{}-{number}", listener.local_addr().map_or_else(|_| port.to_string(), |at| at.to_string()));
        let connection = connection.clone();
        relays.spawn(async move {
            if let Err(error) = relay(client, port, &id, &connection).await {
                eprintln!("berth: port {port}: {error}");
            }
        });
        while relays.try_join_next().is_some() {}
    }
}

async fn relay(client: TcpStream, port: u16, id: &str, connection: &Connection) -> Result<(), String> {
    let text = |error: std::io::Error| error.to_string();
    let port = port.to_string();
    let open = |kind| {
        let headers = [("streamtype", kind), ("port", port.as_str()), ("requestid", id)];
        async move { connection.open(&headers).await }
    };
    let mut error = open("error").await.map_err(text)?;
    error.output.end().await.map_err(text)?;
    let Stream { output, input } = open("data").await.map_err(text)?;
    let (mut from, mut to) = client.into_split();
    // Where the other side may be gone, so is who would care.
    let up = async {
        let mut piece = vec![0; 16 << 10];
        while let Ok(length @ 1..) = from.read(&mut piece).await {
            if output.write(&piece[..length]).await.is_err() {
                return;
            }
        }
        let _ = output.end().await;
    };
    let down = async {
        // Ours, and gone with its end: a piece that nobody takes would keep those of all others waiting.
        let mut input = input;
        while let Some(piece) = input.next().await {
            if to.write_all(&piece).await.is_err() {
                drop(input);
                let _ = output.reset().await;
                return;
            }
        }
        let _ = to.shutdown().await;
    };
    let told = async {
        let mut told = Vec::new();
        while let Some(piece) = error.input.next().await {
            told.extend(piece);
        }
        told
    };
    tokio::pin!(up);
    let ((), told) = tokio::select! {
        both = async { tokio::join!(down, told) } => both,
        () = async { (&mut up).await; std::future::pending().await } => ((), Vec::new()),
    };
    if told.is_empty() { Ok(()) } else { Err(String::from_utf8_lossy(&told).into_owned()) }
}

#[cfg(test)]
mod tests {
    #[test]
    fn ports_are_written_in_three_ways() {
        for (text, expected) in [("80", Ok((80, 80))), ("8080:80", Ok((8080, 80))), (":80", Ok((0, 80)))] {
            assert_eq!(super::ports(text), expected, "{text}");
        }
        for bad in ["", "0", ":", "80:", "x", "1:65536"] {
            assert!(super::ports(bad).is_err(), "{bad}");
        }
    }
}
