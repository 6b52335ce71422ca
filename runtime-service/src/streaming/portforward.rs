//! Port-forward: each pair of streams that the client opens is a TCP connection inside the pod's network.

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use tokio::io::AsyncWriteExt;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;

use super::session::{Input, Output, hang_up};
use super::spdy::{Connection, Stream};
use crate::ids::PodId;
use crate::netns;

/// Streams of one client at a time: two for each connection.
pub(super) const STREAMS: usize = 1024;
/// Bytes read from a pod at once.
const PIECE: usize = 32 << 10;
/// How long the pod may take to accept a connection.
const DIAL: Duration = Duration::from_secs(30);
/// The same for a client whose pod has said its last: most have nothing to add.
const LAST_WORDS: Duration = Duration::from_secs(10);

/// What a PortForward allowed.
pub(crate) struct PortForward {
    pub(crate) pod: PodId,
    /// Where the pod's network namespace is pinned; none for a pod on the host's network.
    pub(crate) network: Option<PathBuf>,
    /// The ports that were named; none means all.
    pub(crate) ports: Vec<u16>,
    /// Resolves when the pod is not ready any more.
    pub(crate) pod_stops: BoxFuture<'static, ()>,
}

/// One stream of two.
enum Half {
    Error(Stream),
    Data(Stream),
}

/// Serves the client until it goes, the pod is stopped, or the daemon ends.
pub(super) async fn serve(
    mut forward: PortForward,
    mut connection: Connection,
    pair_within: Duration,
    daemon_ends: impl Future<Output = ()>,
) {
    tokio::pin!(daemon_ends);
    tracing::info!(pod = %forward.pod, "port-forward");
    let mut relays = JoinSet::new();
    let mut halves: HashMap<String, (Half, Instant)> = HashMap::new();
    let mut tick = tokio::time::interval(pair_within.max(Duration::from_secs(1)));
    loop {
        tokio::select! {
            stream = connection.streams.recv() => match stream {
                Some(stream) => {
                    if let Some((error, data)) = pair(&mut halves, stream).await {
                        relays.spawn(relay(error, data, forward.network.clone(), forward.ports.clone()));
                    }
                }
                None => break,
            },
            _ = relays.join_next(), if !relays.is_empty() => {}
            // One of two that stays alone holds a place for nothing.
            _ = tick.tick() => halves.retain(|_, (_, since)| since.elapsed() < pair_within),
            () = connection.wire.gone() => break,
            () = &mut forward.pod_stops => break,
            () = &mut daemon_ends => break,
        }
    }
    relays.shutdown().await;
    hang_up(&connection.wire, connection.reader).await;
}

/// The error stream and the data stream of one request, once both are there.
async fn pair(halves: &mut HashMap<String, (Half, Instant)>, stream: Stream) -> Option<(Stream, Stream)> {
    let kind = stream.headers.get("streamtype").map(String::as_str);
    let half = match kind {
        Some("error") => Half::Error,
        Some("data") => Half::Data,
        _ => {
            tracing::debug!(stream = stream.id, "a stream of a port-forward is neither error nor data");
            stream.output.end().await;
            return None;
        }
    };
    let key = match stream.headers.get("requestid") {
        Some(id) => id.clone(),
        // Clients from before there were ids open the error stream, then the data stream.
        None if kind == Some("data") => format!("stream {}", stream.id.saturating_sub(2)),
        None => format!("stream {}", stream.id),
    };
    match (half(stream), halves.remove(&key)) {
        (Half::Error(error), Some((Half::Data(data), _))) | (Half::Data(data), Some((Half::Error(error), _))) => {
            Some((error, data))
        }
        // The second of a kind takes the first one's place.
        (half, _) => {
            halves.insert(key, (half, Instant::now()));
            None
        }
    }
}

/// One connection, from dial to end.
async fn relay(error: Stream, data: Stream, network: Option<PathBuf>, ports: Vec<u16>) {
    let Stream { input, output, place: _data_place, headers, .. } = data;
    let Stream { output: told, place: _error_place, input: _error_input, .. } = error;
    let asked = headers.get("port").cloned().unwrap_or_default();
    let outcome = match port(&asked, &ports) {
        Ok(port) => match dial(network.as_deref(), port).await {
            // Not told to the client: it would take the end of one connection for the end of all.
            Ok(connection) => {
                if let Err(error) = copy_both(connection, input, output).await {
                    tracing::debug!(port, %error, "a forwarded connection broke");
                }
                Ok(())
            }
            Err(error) => {
                output.end().await;
                Err(format!("connect to port {port} in the pod: {error}"))
            }
        },
        Err(why) => {
            output.end().await;
            Err(why)
        }
    };
    if let Err(why) = outcome {
        let _ = told.write(why.as_bytes()).await;
    }
    told.end().await;
}

pub(super) fn port(asked: &str, allowed: &[u16]) -> Result<u16, String> {
    let port = asked.parse::<u16>().ok().filter(|port| *port != 0);
    let port = port.ok_or_else(|| format!("port {asked:?} is no number from 1 to 65535"))?;
    match allowed.is_empty() || allowed.contains(&port) {
        true => Ok(port),
        false => Err(format!("port {port} is not among those of the request")),
    }
}

/// Connects to the pod's loopback address, of either family.
async fn dial(network: Option<&Path>, port: u16) -> io::Result<TcpStream> {
    let mut first = None;
    for address in [SocketAddr::from((Ipv4Addr::LOCALHOST, port)), SocketAddr::from((Ipv6Addr::LOCALHOST, port))] {
        let connect = async {
            let socket = netns::tcp_socket(network, address.is_ipv6()).await?;
            TcpSocket::from_std_stream(socket.into()).connect(address).await
        };
        match tokio::time::timeout(DIAL, connect).await.unwrap_or_else(|late| Err(late.into())) {
            Ok(connection) => return Ok(connection),
            Err(error) => {
                first.get_or_insert(error);
            }
        }
    }
    Err(first.unwrap_or_else(|| io::ErrorKind::NotConnected.into()))
}

/// Copies both ways; each may end before the other. The client's reset ends both.
async fn copy_both(connection: TcpStream, input: Input, output: Output) -> io::Result<()> {
    let _ = connection.set_nodelay(true);
    let (from_pod, to_pod) = connection.into_split();
    let reset = output.reset.clone();
    let both = async {
        let (up, down) = (upload(input, to_pod), download(from_pod, output));
        tokio::pin!(up, down);
        tokio::select! {
            // It may take no more, and have an answer all the same.
            _open = &mut up => down.await,
            downloaded = &mut down => {
                downloaded?;
                // What it still says is for a pod that may not listen any more.
                let _ = tokio::time::timeout(LAST_WORDS, up).await;
                Ok(())
            }
        }
    };
    tokio::select! {
        biased;
        () = reset.happened() => Ok(()),
        copied = both => copied,
    }
}

/// Returns the half, so that the connection is only closed with the other one.
async fn upload(mut input: Input, mut to_pod: OwnedWriteHalf) -> io::Result<OwnedWriteHalf> {
    while let Some(piece) = input.next().await {
        to_pod.write_all(&piece).await?;
    }
    to_pod.shutdown().await?;
    Ok(to_pod)
}

async fn download(from_pod: OwnedReadHalf, output: Output) -> io::Result<()> {
    loop {
        from_pod.readable().await?;
        let mut piece = vec![0; PIECE];
        match from_pod.try_read(&mut piece) {
            Ok(0) => break,
            // The client wants no more.
            Ok(length) if output.write(&piece[..length]).await.is_err() => return Ok(()),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => {
                output.end().await;
                return Err(error);
            }
        }
    }
    output.end().await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_numbers_and_those_of_the_request() {
        assert_eq!(port("80", &[]), Ok(80));
        assert_eq!(port("65535", &[80, 65535]), Ok(65535));
        for bad in ["", "0", "65536", "-1", "http", "80 "] {
            assert!(port(bad, &[]).expect_err("bad").contains("1 to 65535"), "{bad}");
        }
        assert!(port("81", &[80]).is_err());
    }
}
