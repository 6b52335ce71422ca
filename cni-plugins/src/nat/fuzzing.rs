//! nftables' answers, for `test/fuzz`.

use super::expression::Family;
use super::forward::Chain;
use super::message::{attribute, attributes, comment};
use super::publish::decode;

/// Attributes, chains and elements, as the kernel lays them out: nothing is read beyond the bytes that are there.
pub fn netlink_answers(data: &[u8]) {
    for kind in 0..8 {
        let first = attribute(data, kind);
        assert_eq!(first, attributes(data, kind).first().copied());
        assert!(first.is_none_or(|value| value.len() + 4 <= data.len()));
    }
    let _ = comment(data);
    if let Some(chain) = Chain::parse(data) {
        let _ = chain.family_name();
    }
    for family in [Family::V4, Family::V6] {
        if let Some(element) = decode(family, data) {
            let again = element.published;
            assert_eq!(again.host.is_ipv4(), again.pod.is_ipv4());
            assert!(!element.comment.contains('\0'));
        }
    }
}
