//! A client of streaming URLs that knows no manners: HTTP and WebSocket by hand, for what well-behaved clients never do.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use berth_api::cri::{AttachRequest, ExecRequest};
use rustix::thread::LinkNameSpaceType;

use crate::wait::patience;
use crate::{Container, Node};

/// Nothing in a test takes longer to come, in seconds.
const PATIENCE: u64 = 20;

/// The first lines of an HTTP answer, and what came behind them.
#[derive(Debug)]
pub struct Answer {
    /// Such as 101.
    pub status: u16,
    /// Everything before the empty line.
    pub head: String,
}

/// `http://ADDRESS/PATH` in its two parts.
pub fn parts(url: &str) -> (SocketAddr, String) {
    let rest = url.strip_prefix("http://").unwrap_or_else(|| panic!("{url} is no http URL"));
    let (address, path) = rest.split_once('/').expect("a URL has a path");
    (address.parse().expect("an address"), format!("/{path}"))
}

impl Node {
    /// Connects to an address inside the enclosure.
    pub fn connect(&self, address: SocketAddr) -> TcpStream {
        let namespace = format!("/proc/{}/ns/net", self.enclosure().init());
        let connecting = std::thread::spawn(move || {
            let namespace = std::fs::File::open(namespace).expect("the enclosure runs");
            let kind = Some(LinkNameSpaceType::Network);
            rustix::thread::move_into_link_name_space(std::os::fd::AsFd::as_fd(&namespace), kind).expect("enter it");
            TcpStream::connect(address).unwrap_or_else(|e| panic!("connect to {address}: {e}"))
        });
        let stream = connecting.join().expect("connected");
        stream.set_read_timeout(Some(patience(PATIENCE))).expect("a timeout");
        stream.set_write_timeout(Some(patience(PATIENCE))).expect("a timeout");
        stream
    }

    /// Sends a request with these headers to a streaming URL; the connection goes on behind the answer's head.
    pub fn request(&self, method: &str, url: &str, headers: &[(&str, &str)]) -> (Answer, TcpStream) {
        let (address, path) = parts(url);
        let mut stream = self.connect(address);
        let mut request = format!("{method} {path} HTTP/1.1\r\nhost: {address}\r\n");
        for (name, value) in headers {
            request += &format!("{name}: {value}\r\n");
        }
        stream.write_all((request + "\r\n").as_bytes()).expect("send a request");
        let answer = answer(&mut stream);
        (answer, stream)
    }

    /// A request for SPDY.
    pub fn spdy(&self, url: &str, protocol: &str) -> (Answer, TcpStream) {
        let upgrade = [("connection", "Upgrade"), ("upgrade", "SPDY/3.1"), ("x-stream-protocol-version", protocol)];
        self.request("POST", url, &upgrade)
    }

    /// A WebSocket with a subprotocol, which must come about.
    pub fn websocket(&self, url: &str, protocol: &str) -> WebSocket {
        let (answer, stream) = self.request("GET", url, &websocket_headers(protocol));
        assert_eq!(answer.status, 101, "{}", answer.head);
        WebSocket { stream }
    }
}

impl Container<'_> {
    /// Where a client finds an exec with input and both outputs.
    pub async fn exec_url(&self, command: &[&str]) -> String {
        self.exec_url_on(command, false).await
    }

    /// The same, on a terminal or not; one has one output.
    pub async fn exec_url_on(&self, command: &[&str], tty: bool) -> String {
        let request = ExecRequest {
            container_id: self.id.clone(),
            cmd: command.iter().map(|word| (*word).to_owned()).collect(),
            stdin: true,
            stdout: true,
            stderr: !tty,
            tty,
        };
        self.node().runtime().exec(request).await.expect("Exec").into_inner().url
    }

    /// Where a client finds the input and the outputs of the container's own process; a terminal has one output.
    pub async fn attach_url(&self, tty: bool) -> String {
        let request = AttachRequest { container_id: self.id.clone(), stdin: true, tty, stdout: true, stderr: !tty };
        self.node().runtime().attach(request).await.expect("Attach").into_inner().url
    }
}

/// What asks for a WebSocket.
pub fn websocket_headers(protocol: &str) -> [(&str, &str); 5] {
    [
        ("connection", "Upgrade"),
        ("upgrade", "websocket"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ("sec-websocket-protocol", protocol),
    ]
}

fn answer(stream: &mut TcpStream) -> Answer {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        let length = stream.read(&mut byte).expect("an answer");
        assert!(length == 1, "the answer ends after {:?}", String::from_utf8_lossy(&head));
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).expect("an answer in ASCII");
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
    Answer { status, head }
}

/// An exec or attach on channels.
pub struct WebSocket {
    stream: TcpStream,
}

/// Channels. Source: k8s.io/apimachinery/pkg/util/remotecommand.
pub const STDIN: u8 = 0;
/// See [`STDIN`].
pub const STDOUT: u8 = 1;
/// See [`STDIN`].
pub const STDERR: u8 = 2;
/// See [`STDIN`].
pub const ERROR: u8 = 3;
/// See [`STDIN`].
pub const RESIZE: u8 = 4;

impl WebSocket {
    /// What it goes by.
    pub fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// Sends a message to a channel.
    pub fn send(&mut self, channel: u8, bytes: &[u8]) {
        let payload = [&[channel], bytes].concat();
        self.send_frame(0x82, &payload);
    }

    /// Sends a masked frame with this first byte.
    pub fn send_frame(&mut self, first: u8, payload: &[u8]) {
        let mask = [7, 1, 9, 4];
        let mut frame = vec![first];
        match payload.len() {
            length @ 0..126 => frame.push(0x80 | length as u8),
            length => {
                frame.push(0x80 | 126);
                frame.extend(u16::try_from(length).expect("a short message").to_be_bytes());
            }
        }
        frame.extend(mask);
        frame.extend(payload.iter().enumerate().map(|(index, byte)| byte ^ mask[index % 4]));
        self.stream.write_all(&frame).expect("send a frame");
    }

    /// The next message: its channel and content. `None` when the other side has closed.
    pub fn receive(&mut self) -> Option<(u8, Vec<u8>)> {
        let (_, mut message) = self.receive_message()?;
        Some((message.remove(0), message))
    }

    /// The next message that is not empty, and whether it is text.
    pub fn receive_message(&mut self) -> Option<(bool, Vec<u8>)> {
        loop {
            let mut head = [0; 2];
            self.stream.read_exact(&mut head).ok()?;
            let length = match head[1] {
                126 => {
                    let mut length = [0; 2];
                    self.stream.read_exact(&mut length).ok()?;
                    u16::from_be_bytes(length).into()
                }
                127 => {
                    let mut length = [0; 8];
                    self.stream.read_exact(&mut length).ok()?;
                    u64::from_be_bytes(length) as usize
                }
                short => usize::from(short),
            };
            let mut payload = vec![0; length];
            self.stream.read_exact(&mut payload).ok()?;
            match head[0] & 0x0f {
                kind @ (1 | 2) if !payload.is_empty() => return Some((kind == 1, payload)),
                8 => return None,
                _ => {}
            }
        }
    }

    /// Everything until the end, by channel.
    pub fn receive_all(&mut self) -> [Vec<u8>; 5] {
        let mut all: [Vec<u8>; 5] = Default::default();
        while let Some((channel, bytes)) = self.receive() {
            all[usize::from(channel)].extend(bytes);
        }
        all
    }

    /// Receives from a channel until it has said this.
    pub fn until(&mut self, channel: u8, text: &str) -> String {
        let mut said = String::new();
        while !said.contains(text) {
            let (from, bytes) = self.receive().unwrap_or_else(|| panic!("the end before {text:?}: {said:?}"));
            if from == channel {
                said += &String::from_utf8_lossy(&bytes);
            }
        }
        said
    }
}
