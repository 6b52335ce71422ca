//! SPDY/3.1 as the client of an exec speaks it, by hand and on one descriptor: hundreds of them fit into one process.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;

use crate::Node;

/// The streams of [`Spdy`] in the order in which it opens them; a client's numbers are odd.
pub const ERROR: u32 = 1;
/// See [`ERROR`].
pub const STDIN: u32 = 3;
/// See [`ERROR`].
pub const STDOUT: u32 = 5;
/// See [`ERROR`].
pub const STDERR: u32 = 7;

/// The head of SPDY's compressed headers: zlib with the dictionary that the draft gives.
const ZLIB: [u8; 6] = [0x78, 0x20, 0xe3, 0xc6, 0xa7, 0xc2];
const FIN: u8 = 1;

/// A frame that opens a stream with these headers, whose block is stored and not compressed. `first` on its connection.
pub fn syn_stream(stream: u32, headers: &[(&str, &str)], first: bool) -> Vec<u8> {
    let mut plain = (headers.len() as u32).to_be_bytes().to_vec();
    for text in headers.iter().flat_map(|(name, value)| [name, value]) {
        plain.extend((text.len() as u32).to_be_bytes());
        plain.extend(text.as_bytes());
    }
    let length = u16::try_from(plain.len()).expect("a short block");
    let mut block = if first { ZLIB.to_vec() } else { Vec::new() };
    block.push(0);
    block.extend(length.to_le_bytes());
    block.extend((!length).to_le_bytes());
    block.extend(plain);
    // An empty block behind it: nothing is held back.
    block.extend([0, 0, 0, 0xff, 0xff]);
    let mut frame = vec![0x80, 3, 0, 1, 0];
    frame.extend(&(10 + block.len() as u32).to_be_bytes()[1..]);
    frame.extend(stream.to_be_bytes());
    frame.extend([0; 6]);
    frame.extend(block);
    frame
}

/// An exec with input and both outputs.
pub struct Spdy {
    stream: TcpStream,
}

impl Node {
    /// An exec at a streaming URL, which must come about; its streams are open.
    pub fn spdy_exec(&self, url: &str) -> Spdy {
        self.spdy_streams(url, "v4.channel.k8s.io", &["error", "stdin", "stdout", "stderr"])
    }

    /// The same by this protocol and with these streams, the first of which is [`ERROR`].
    pub fn spdy_streams(&self, url: &str, protocol: &str, names: &[&str]) -> Spdy {
        let (answer, mut stream) = self.spdy(url, protocol);
        assert_eq!(answer.status, 101, "{}", answer.head);
        let chosen = format!("x-stream-protocol-version: {protocol}\r\n");
        assert!(answer.head.to_lowercase().contains(&chosen), "{}", answer.head);
        for (id, name) in (ERROR..).step_by(2).zip(names) {
            let frame = syn_stream(id, &[("streamtype", name)], id == ERROR);
            stream.write_all(&frame).expect("open a stream");
        }
        Spdy { stream }
    }
}

impl Spdy {
    /// What it goes by.
    pub fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// Sends to the command's input.
    pub fn send(&mut self, bytes: &[u8]) {
        self.data(STDIN, 0, bytes);
    }

    /// Sends on any stream.
    pub fn send_on(&mut self, stream: u32, bytes: &[u8]) {
        self.data(stream, 0, bytes);
    }

    /// Ends the command's input.
    pub fn end(&mut self) {
        self.data(STDIN, FIN, &[]);
    }

    fn data(&mut self, stream: u32, flags: u8, bytes: &[u8]) {
        let mut frame = stream.to_be_bytes().to_vec();
        frame.push(flags);
        frame.extend(&(bytes.len() as u32).to_be_bytes()[1..]);
        frame.extend(bytes);
        self.stream.write_all(&frame).expect("send a frame");
    }

    /// The next data: its stream and content. `None` when the other side has closed.
    pub fn receive(&mut self) -> Option<(u32, Vec<u8>)> {
        loop {
            let mut head = [0; 8];
            self.stream.read_exact(&mut head).ok()?;
            let length = u32::from_be_bytes([0, head[5], head[6], head[7]]);
            let mut payload = vec![0; length as usize];
            self.stream.read_exact(&mut payload).ok()?;
            // What is no data accepts a stream or opens a window.
            if head[0] & 0x80 == 0 {
                return Some((u32::from_be_bytes([head[0], head[1], head[2], head[3]]), payload));
            }
        }
    }

    /// Everything that still comes on one stream.
    pub fn rest(&mut self, stream: u32) -> Vec<u8> {
        self.receive_all().remove(&stream).unwrap_or_default()
    }

    /// Everything until the end, by stream.
    pub fn receive_all(&mut self) -> BTreeMap<u32, Vec<u8>> {
        let mut all: BTreeMap<u32, Vec<u8>> = BTreeMap::new();
        while let Some((from, bytes)) = self.receive() {
            all.entry(from).or_default().extend(bytes);
        }
        all
    }

    /// Receives from the command's output until it has said this.
    pub fn until(&mut self, text: &str) -> String {
        let mut said = String::new();
        while !said.contains(text) {
            let (from, bytes) = self.receive().unwrap_or_else(|| panic!("the end before {text:?}: {said:?}"));
            if from == STDOUT {
                said += &String::from_utf8_lossy(&bytes);
            }
        }
        said
    }
}
