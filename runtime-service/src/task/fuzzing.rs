//! What shims and runtimes answer, for `test/fuzz`.

use berth_api::shim::Features;
use containerd_shim_protos::api::{CreateTaskResponse, StateResponse, WaitResponse};
use containerd_shim_protos::protobuf::Message;

use super::client::nanos;
use super::handler::HandlerFeatures;
use super::spawn::parse;

/// The answer of a shim's `start`, of `features`, and of a few calls of Task.
pub fn shim_answers(data: &[u8]) {
    if let Ok((path, _)) = parse(&String::from_utf8_lossy(data)) {
        assert!(path.is_absolute());
    }
    if let Ok(features) = serde_json::from_slice::<Features>(data) {
        serde_json::to_vec(&features).expect("what was read can be written");
    }
    HandlerFeatures::said(data);
    let _ = CreateTaskResponse::parse_from_bytes(data);
    let _ = StateResponse::parse_from_bytes(data).map(|state| state.status.enum_value());
    if let Ok(answer) = WaitResponse::parse_from_bytes(data) {
        nanos(answer.exited_at.as_ref());
    }
}
