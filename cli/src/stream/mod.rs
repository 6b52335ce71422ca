//! The client's end of a streaming URL: upgrades a connection to SPDY/3.1, which every runtime speaks, and runs an exec or
//! attach on it.

#[cfg(test)]
mod fuzzing;
pub(crate) mod spdy;
mod terminal;
pub(crate) mod tls;

use std::io::{Read, Write};

use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use self::spdy::{Connection, Duplex, Input, Output};
use self::terminal::Raw;
use self::tls::Tls;
use crate::error::Error;

/// Bytes of the answer to an upgrade.
const HEAD_MAX: usize = 16 << 10;

/// What an exec or attach is to have.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Streams {
    pub(crate) stdin: bool,
    pub(crate) tty: bool,
}

/// Connects to a URL that a runtime gave.
///
/// # Errors
/// The connection, or the answer of the runtime's server.
pub(crate) async fn connect(url: &str, protocol: &str, tls: &Tls) -> Result<Connection, Error> {
    let fail = |why: String| Error::Refused(format!("connect to {url}: {why}"));
    let (scheme, rest) = url.split_once("://").unwrap_or_default();
    let (address, path) = rest.split_once('/').ok_or_else(|| fail("the URL has no path".into()))?;
    let dial = async || {
        let stream = TcpStream::connect(address).await.map_err(|e| fail(e.to_string()))?;
        let _ = stream.set_nodelay(true);
        Ok(stream)
    };
    let mut stream: Box<dyn Duplex> = match scheme {
        "http" => Box::new(dial().await?),
        "https" => Box::new(tls.connect(dial().await?).await.map_err(fail)?),
        _ => return Err(fail("only http and https URLs can be streamed from".into())),
    };
    let request = format!(
        "POST /{path} HTTP/1.1\r\nHost: {address}\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\
         X-Stream-Protocol-Version: {protocol}\r\nContent-Length: 0\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.map_err(|e| fail(e.to_string()))?;
    stream.flush().await.map_err(|e| fail(e.to_string()))?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") && head.len() < HEAD_MAX {
        head.push(stream.read_u8().await.map_err(|e| fail(e.to_string()))?);
    }
    let head = String::from_utf8_lossy(&head);
    let status = head.lines().next().unwrap_or_default();
    match status.split(' ').nth(1) {
        Some("101") => Ok(Connection::new(stream)),
        _ => Err(fail(format!("the runtime answers {status:?}"))),
    }
}

/// Runs an exec or attach at `url` until its end.
///
/// # Errors
/// `Error::Exit` with the program's exit code; whatever the runtime tells.
pub(crate) async fn session(url: &str, asked: Streams, tls: &Tls) -> Result<(), Error> {
    let connection = connect(url, "v4.channel.k8s.io", tls).await?;
    let broken = |error: std::io::Error| Error::Refused(format!("stream: {error}"));
    let open = async |name: &str| connection.open(&[("streamtype", name)]).await.map_err(broken);
    let error = open("error").await?;
    let typed = if asked.stdin { Some(open("stdin").await?.output) } else { None };
    let stdout = open("stdout").await?;
    let stderr = if asked.tty { None } else { Some(open("stderr").await?) };
    let resize = if asked.tty { Some(open("resize").await?.output) } else { None };
    let _raw = if asked.tty { Raw::set().map_err(broken)? } else { None };
    let inputs = async {
        tokio::join!(type_in(typed), terminal::tell_sizes(resize));
        // Its end is no event.
        std::future::pending::<()>().await;
    };
    let outputs = async {
        let (out, err, told) = tokio::join!(
            show(stdout.input, || std::io::stdout().lock()),
            async {
                match stderr {
                    Some(stderr) => show(stderr.input, || std::io::stderr().lock()).await,
                    None => Ok(()),
                }
            },
            all(error.input)
        );
        out.and(err).map_err(Error::Print).map(|()| told)
    };
    let told = tokio::select! {
        told = outputs => told?,
        () = inputs => Vec::new(),
    };
    ended(&told)
}

/// Reads standard input on a thread that is never waited for: it may read for ever.
async fn type_in(to: Option<Output>) {
    let Some(to) = to else { return };
    let (sender, mut pieces) = mpsc::channel::<Vec<u8>>(1);
    std::thread::spawn(move || {
        let mut piece = vec![0; 16 << 10];
        while let Ok(length @ 1..) = std::io::stdin().read(&mut piece) {
            if sender.blocking_send(piece[..length].to_vec()).is_err() {
                return;
            }
        }
    });
    while let Some(piece) = pieces.recv().await {
        if to.write(&piece).await.is_err() {
            return;
        }
    }
    // The other side may be gone; then so is who would care.
    let _ = to.end().await;
}

async fn show<W: Write>(mut from: Input, to: impl Fn() -> W) -> std::io::Result<()> {
    while let Some(piece) = from.next().await {
        let mut to = to();
        to.write_all(&piece)?;
        to.flush()?;
    }
    Ok(())
}

async fn all(mut from: Input) -> Vec<u8> {
    let mut all = Vec::new();
    while let Some(piece) = from.next().await {
        all.extend(piece);
    }
    all
}

/// `metav1.Status`, as far as it tells how a program ended.
#[derive(Deserialize)]
struct Status {
    status: String,
    #[serde(default)]
    message: String,
    #[serde(default)]
    reason: String,
    #[serde(default)]
    details: Option<Details>,
}

#[derive(Default, Deserialize)]
struct Details {
    #[serde(default)]
    causes: Vec<Cause>,
}

#[derive(Deserialize)]
struct Cause {
    #[serde(default)]
    reason: String,
    #[serde(default)]
    message: String,
}

fn ended(told: &[u8]) -> Result<(), Error> {
    let Ok(status) = serde_json::from_slice::<Status>(told) else {
        return Err(Error::Refused(match String::from_utf8_lossy(told).trim() {
            "" => "the runtime hung up without telling how it ended".into(),
            text => text.to_owned(),
        }));
    };
    if status.status == "Success" {
        return Ok(());
    }
    let causes = status.details.unwrap_or_default().causes;
    let code = causes.iter().find(|cause| cause.reason == "ExitCode").and_then(|cause| cause.message.parse().ok());
    match code {
        Some(code) if status.reason == "NonZeroExitCode" => Err(Error::Exit(code)),
        _ => Err(Error::Refused(status.message)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_tells_how_it_ended() {
        assert!(ended(br#"{"metadata":{},"status":"Success"}"#).is_ok());
        let exit = br#"{"status":"Failure","reason":"NonZeroExitCode","message":"m",
            "details":{"causes":[{"reason":"ExitCode","message":"7"}]}}"#;
        assert!(matches!(ended(exit), Err(Error::Exit(7))));
        let failed = br#"{"status":"Failure","reason":"InternalError","message":"no such file"}"#;
        assert!(matches!(ended(failed), Err(Error::Refused(why)) if why == "no such file"));
        assert!(matches!(ended(b""), Err(Error::Refused(_))));
    }
}
