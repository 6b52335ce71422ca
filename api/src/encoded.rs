//! A message as its bytes, for answers that would otherwise be put together from copies of everything they name.

use std::collections::HashMap;
use std::marker::PhantomData;

use prost::bytes::{Buf, BufMut};
use prost::encoding::{DecodeContext, WireType, encode_key, encode_varint, encoded_len_varint, skip_field};
use prost::{DecodeError, Message};

/// A message of type `M`, encoded. Whoever decodes it decodes an `M`.
///
/// The fields are written by number, as the .proto has them; like prost, a field that has its default value is left out.
pub struct Encoded<M> {
    bytes: Vec<u8>,
    of: PhantomData<fn() -> M>,
}

impl<M> Encoded<M> {
    /// A message without fields, with room for `bytes`.
    pub fn with_capacity(bytes: usize) -> Self {
        Self { bytes: Vec::with_capacity(bytes), of: PhantomData }
    }

    /// A field of type `string`.
    pub fn text(&mut self, number: u32, text: &str) {
        if !text.is_empty() {
            self.delimited(number, text.len());
            self.bytes.extend_from_slice(text.as_bytes());
        }
    }

    /// A field of type `int32`, `int64` or an enum's.
    pub fn number(&mut self, number: u32, value: i64) {
        if value != 0 {
            encode_key(number, WireType::Varint, &mut self.bytes);
            encode_varint(value.cast_unsigned(), &mut self.bytes);
        }
    }

    /// A field that is a message; unlike others it tells absent from empty. Repeated: once for each.
    pub fn message(&mut self, number: u32, message: Option<&impl Message>) {
        if let Some(message) = message {
            self.delimited(number, message.encoded_len());
            message.encode_raw(&mut self.bytes);
        }
    }

    /// A field of type `map<string, string>`.
    pub fn map(&mut self, number: u32, map: &HashMap<String, String>) {
        for (key, value) in map {
            let length = |text: &String| match text.len() {
                0 => 0,
                // One byte for the field's number.
                bytes => 1 + encoded_len_varint(bytes as u64) + bytes,
            };
            self.delimited(number, length(key) + length(value));
            self.text(1, key);
            self.text(2, value);
        }
    }

    fn delimited(&mut self, number: u32, length: usize) {
        encode_key(number, WireType::LengthDelimited, &mut self.bytes);
        encode_varint(length as u64, &mut self.bytes);
    }
}

impl<M> Message for Encoded<M> {
    fn encode_raw(&self, buffer: &mut impl BufMut) {
        buffer.put_slice(&self.bytes);
    }

    fn encoded_len(&self) -> usize {
        self.bytes.len()
    }

    /// Nothing is decoded into what is encoded: every field is passed over.
    fn merge_field(
        &mut self,
        tag: u32,
        wire_type: WireType,
        buffer: &mut impl Buf,
        context: DecodeContext,
    ) -> Result<(), DecodeError> {
        skip_field(wire_type, tag, buffer, context)
    }

    fn clear(&mut self) {
        self.bytes.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cri::{Container, ContainerMetadata, ContainerState, ListContainersResponse};

    /// The same message by prost's own code and by the numbers of its fields.
    fn both(container: &Container) -> Encoded<Container> {
        let mut encoded = Encoded::with_capacity(16);
        encoded.text(1, &container.id);
        encoded.message(3, container.metadata.as_ref());
        encoded.number(6, container.state.into());
        encoded.number(7, container.created_at);
        encoded.map(8, &container.labels);
        assert_eq!(&Container::decode(encoded.bytes.as_slice()).expect("a container"), container);
        assert_eq!((encoded.encoded_len(), encoded.encode_to_vec()), (container.encoded_len(), encoded.bytes.clone()));
        encoded
    }

    #[test]
    fn what_is_encoded_by_hand_is_what_prost_decodes_and_no_longer() {
        let long = "x".repeat(70_000);
        let labels = [("", ""), ("a", ""), ("", "b"), ("key", "value"), (long.as_str(), long.as_str())];
        let full = Container {
            id: "c1".into(),
            metadata: Some(ContainerMetadata { name: "name".into(), attempt: 300 }),
            state: ContainerState::ContainerUnknown.into(),
            created_at: -1,
            labels: labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into(),
            ..Container::default()
        };
        let empty = Container { metadata: Some(ContainerMetadata::default()), ..Container::default() };
        let mut list = Encoded::<ListContainersResponse>::with_capacity(0);
        for container in [&full, &Container::default(), &empty] {
            list.message(1, Some(&both(container)));
        }
        let decoded = ListContainersResponse::decode(list.encode_to_vec().as_slice()).expect("a list");
        assert_eq!(decoded.containers, [full, Container::default(), empty]);
    }
}
