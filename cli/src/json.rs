//! CRI messages as protobuf JSON and back: camelCase names, 64-bit numbers as texts, enums by name, defaults written.
//! It goes by the compiled descriptor, so a field that the contract gains is printed without a change here.

use std::sync::LazyLock;

use berth_api::cri::FILE_DESCRIPTOR_SET;
use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor, SerializeOptions};
use serde::{Serialize, Serializer};
use serde_json::Value;

static POOL: LazyLock<DescriptorPool> =
    LazyLock::new(|| DescriptorPool::decode(FILE_DESCRIPTOR_SET).expect("the build compiled it from our own .proto"));

/// CRI messages that are printed or read, with their name in the contract.
pub(crate) trait Named: Message + Default {
    const NAME: &'static str;
}

macro_rules! named {
    ($($message:ident),* $(,)?) => { $(
        impl Named for berth_api::cri::$message {
            const NAME: &'static str = concat!("runtime.v1.", stringify!($message));
        }
    )* };
}

named!(
    ContainerConfig,
    ContainerEventResponse,
    ContainerStatus,
    Image,
    ListContainerStatsResponse,
    ListContainersResponse,
    ListImagesResponse,
    ListMetricDescriptorsResponse,
    ListPodSandboxMetricsResponse,
    ListPodSandboxResponse,
    ListPodSandboxStatsResponse,
    PodSandboxConfig,
    PodSandboxStatus,
    RuntimeFeatures,
    RuntimeHandler,
    RuntimeStatus,
    VersionResponse,
);

pub(crate) fn descriptor<M: Named>() -> MessageDescriptor {
    POOL.get_message_by_name(M::NAME).expect("named in the contract; a test asks for each")
}

/// A message in the form that protobuf's JSON mapping gives it. Unset messages are left out, all else is written.
pub(crate) fn value<M: Named>(message: &M) -> Value {
    serialize(message, &SerializeOptions::new().skip_default_fields(false))
}

/// As `value`, to be written with its fields in the order of the contract.
pub(crate) fn document<M: Named>(message: &M) -> Document {
    Document(dynamic(message))
}

pub(crate) struct Document(DynamicMessage);

impl Serialize for Document {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize_with_options(serializer, &SerializeOptions::new().skip_default_fields(false))
    }
}

/// A message in the form Go's plain JSON encoder gives it: the contract's own names, only what is set.
pub(crate) fn plain_value<M: Named>(message: &M) -> Value {
    serialize(message, &SerializeOptions::new().use_proto_field_name(true))
}

/// The JSON names of a message's fields.
pub(crate) fn field_names<M: Named>() -> Vec<String> {
    descriptor::<M>().fields().map(|field| field.json_name().to_owned()).collect()
}

/// Reads a message from its JSON form.
///
/// # Errors
/// What does not fit, in prost-reflect's words. `config` checks names and types before and words them better.
pub(crate) fn parse<M: Named>(value: Value) -> Result<M, String> {
    let dynamic = DynamicMessage::deserialize(descriptor::<M>(), value).map_err(|error| error.to_string())?;
    dynamic.transcode_to().map_err(|error| error.to_string())
}

fn dynamic<M: Named>(message: &M) -> DynamicMessage {
    DynamicMessage::decode(descriptor::<M>(), message.encode_to_vec().as_slice()).expect("the same contract encoded it")
}

fn serialize<M: Named>(message: &M, options: &SerializeOptions) -> Value {
    dynamic(message)
        .serialize_with_options(serde_json::value::Serializer, options)
        .expect("CRI has no value that JSON cannot say")
}

#[cfg(test)]
mod tests {
    use berth_api::cri::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn every_named_message_is_in_the_contract() {
        fn check<M: Named>() {
            assert_eq!(descriptor::<M>().full_name(), M::NAME);
        }
        check::<ContainerConfig>();
        check::<ContainerEventResponse>();
        check::<ListContainerStatsResponse>();
        check::<ListMetricDescriptorsResponse>();
        check::<ListPodSandboxMetricsResponse>();
        check::<ListPodSandboxStatsResponse>();
        check::<ContainerStatus>();
        check::<Image>();
        check::<ListContainersResponse>();
        check::<ListImagesResponse>();
        check::<ListPodSandboxResponse>();
        check::<PodSandboxConfig>();
        check::<PodSandboxStatus>();
        check::<RuntimeFeatures>();
        check::<RuntimeHandler>();
        check::<RuntimeStatus>();
        check::<VersionResponse>();
    }

    #[test]
    fn defaults_are_written_and_unset_messages_are_not() {
        let pod = PodSandbox { id: "p".into(), created_at: 7, state: 1, ..Default::default() };
        assert_eq!(
            value(&ListPodSandboxResponse { items: vec![pod] }),
            json!({"items": [{"id": "p", "state": "SANDBOX_NOTREADY", "createdAt": "7", "labels": {}, "annotations": {},
                "runtimeHandler": ""}]})
        );
        assert_eq!(value(&ListPodSandboxResponse::default()), json!({"items": []}));
    }

    #[test]
    fn plain_form_has_the_contracts_names_and_only_what_is_set() {
        let handler = RuntimeHandler {
            name: "runc".into(),
            features: Some(RuntimeHandlerFeatures { recursive_read_only_mounts: true, user_namespaces: false }),
        };
        assert_eq!(plain_value(&handler), json!({"name": "runc", "features": {"recursive_read_only_mounts": true}}));
    }

    #[test]
    fn environment_values_are_bytes() {
        let config =
            ContainerConfig { envs: vec![KeyValue { key: "A".into(), value: vec![0xff, 0xfe] }], ..Default::default() };
        let read: ContainerConfig = parse(value(&config)).unwrap();
        assert_eq!(read, config);
    }
}
