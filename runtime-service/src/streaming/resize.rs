//! The size of a client's window: JSON objects one after another, `{"Width":80,"Height":24}`. Pure.

use serde::Deserialize;

/// Bytes of one object that has not ended; what is longer is thrown away.
const OBJECT_MAX: usize = 1024;

/// In characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Size {
    pub(super) width: u16,
    pub(super) height: u16,
}

/// What has come of an object that goes on.
#[derive(Debug, Default)]
pub(super) struct Sizes {
    begun: Vec<u8>,
}

impl Sizes {
    /// The sizes that end in this piece. What is no size is passed over.
    pub(super) fn feed(&mut self, piece: &[u8]) -> Vec<Size> {
        let mut sizes = Vec::new();
        for byte in piece {
            match byte {
                b'{' => self.begun.clear(),
                _ if self.begun.len() >= OBJECT_MAX => continue,
                _ => {}
            }
            self.begun.push(*byte);
            if *byte == b'}' {
                sizes.extend(serde_json::from_slice::<Size>(&self.begun));
                self.begun.clear();
            }
        }
        sizes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_come_in_any_pieces_among_anything() {
        let mut sizes = Sizes::default();
        assert_eq!(sizes.feed(b"{\"Width\":80,\"Hei"), []);
        let size = |width, height| Size { width, height };
        assert_eq!(sizes.feed(b"ght\":24}\n{\"Width\":1,\"Height\":2}"), [size(80, 24), size(1, 2)]);
        assert_eq!(sizes.feed(b"{\"Width\":-1,\"Height\":2} garbage } {{"), []);
        assert_eq!(sizes.feed(&vec![b'x'; 10 << 20]), []);
        assert!(sizes.begun.len() <= OBJECT_MAX);
        assert_eq!(sizes.feed(b"{\"Width\":3,\"Height\":4}"), [size(3, 4)]);
    }
}
