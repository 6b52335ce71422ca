//! WebSocket on a connection: an exec or attach whose streams are channels.

pub(super) mod channel;
pub(super) mod frame;

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha1::{Digest, Sha1};

use self::channel::Sorter;
use self::frame::{Decoder, Event};
use super::session::{Framing, Inlet, Output, Reader, Reset, Session, Streams, input};
use super::status::Form;
use super::wire::{Gone, Source, Wire};

/// The answer to a client's `Sec-WebSocket-Key`. Source: RFC 6455, 1.3.
pub(super) fn accept_key(key: &str) -> String {
    const GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
    STANDARD.encode(Sha1::new().chain_update(key).chain_update(GUID).finalize())
}

/// Why a connection ended otherwise than by its client's leave.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error(transparent)]
    Io(#[from] std::io::Error),
    #[error(transparent)]
    Broken(#[from] frame::Broken),
    #[error(transparent)]
    NotBase64(#[from] channel::NotBase64),
    #[error("the client went away")]
    Gone,
}

impl From<Gone> for Ended {
    fn from(Gone: Gone) -> Self {
        Self::Gone
    }
}

/// A session on channels; with `version` 5 a client can end one of them.
pub(super) async fn session(
    (wire, source): (Wire, Source),
    asked: Streams,
    version: u8,
    base64: bool,
) -> Result<Session, Gone> {
    let wire = Arc::new(wire);
    let inlet = |wanted: bool| wanted.then(input).unzip();
    let ((stdin_inlet, stdin), (resize_inlet, resize)) = (inlet(asked.stdin), inlet(asked.tty));
    let mut taking = Taking {
        decoder: Decoder::default(),
        sorter: Sorter::new(base64),
        wire: wire.clone(),
        stdin: stdin_inlet,
        resize: resize_inlet,
        version,
    };
    let output =
        |channel| Output { wire: wire.clone(), framing: Framing::Channel { channel, base64 }, reset: Reset::default() };
    let session_outputs = (
        asked.stdout.then(|| output(channel::STDOUT)),
        (asked.stderr && !asked.tty).then(|| output(channel::STDERR)),
        output(channel::ERROR),
    );
    // An empty message says that we are there: some clients wait for it.
    session_outputs.0.as_ref().or(session_outputs.1.as_ref()).unwrap_or(&session_outputs.2).write(&[]).await?;
    let task = tokio::spawn(async move {
        let mut source = source;
        match taking.take_all(&mut source).await {
            Ok(()) => {}
            Err(error @ (Ended::Io(_) | Ended::Gone)) => tracing::debug!(%error, "a streaming connection ended"),
            Err(error) => {
                tracing::warn!(%error, "a streaming client broke the protocol");
                source.part(&taking.wire, &frame::close(frame::PROTOCOL_ERROR)).await;
            }
        }
        taking.wire.set_gone();
    });
    let (stdout, stderr, error) = session_outputs;
    Ok(Session {
        stdin,
        stdout,
        stderr,
        error,
        resize,
        form: if version >= 4 { Form::Status } else { Form::Text },
        wire,
        reader: Reader { task },
    })
}

/// The reading side of a connection.
struct Taking {
    decoder: Decoder,
    sorter: Sorter,
    wire: Arc<Wire>,
    stdin: Option<Inlet>,
    resize: Option<Inlet>,
    version: u8,
}

impl Taking {
    async fn take_all(&mut self, source: &mut Source) -> Result<(), Ended> {
        loop {
            while let Some(event) = self.decoder.next(&mut source.bytes)? {
                match event {
                    Event::Data { begins, bytes, ends } => {
                        if let Some((channel, bytes)) = self.sorter.sort(begins, bytes, ends)? {
                            self.data(channel, bytes).await?;
                        }
                    }
                    Event::Ping(ping) => self.wire.answer(&frame::pong(&ping)).await?,
                    Event::Pong => {}
                    Event::Close => return Ok(()),
                }
            }
            if !source.more(&self.wire).await? {
                return Ok(());
            }
        }
    }

    async fn data(&mut self, channel: u8, bytes: bytes::Bytes) -> Result<(), Ended> {
        let inlet = match channel {
            channel::STDIN => &self.stdin,
            channel::RESIZE => &self.resize,
            channel::CLOSE if self.version >= 5 => {
                if bytes.first() == Some(&channel::STDIN) {
                    self.stdin = None;
                }
                return Ok(());
            }
            // What is for us to write to, or nothing at all: dropped, as the kubelet does.
            _ => return Ok(()),
        };
        match inlet {
            Some(inlet) => Ok(inlet.put(bytes, &self.wire).await?),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_key_is_answered_as_in_the_standard() {
        assert_eq!(super::accept_key("dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }
}
