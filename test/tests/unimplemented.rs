//! Every RPC of CRI is called, by descriptor: those of runtime-service/unimplemented.txt answer UNIMPLEMENTED, all others
//! serve a plausible request.

use std::collections::BTreeSet;

use berth_api::cri::{
    CreateContainerRequest, FILE_DESCRIPTOR_SET, ImageSpec, PullImageRequest, RemoveImageRequest, RunPodSandboxRequest,
};
use berth_test::cri::{IMAGE, script};
use berth_test::{Container, Node, Pod, pod};
use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor, MethodDescriptor, Value};
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::{Code, Request, Status};

/// RPCs that are not built yet; the list only shrinks.
const UNIMPLEMENTED: &str = include_str!("../../runtime-service/unimplemented.txt");

/// How many there are in CRI v1. Source: k8s.io/cri-api.
const RPCS: usize = 43;

/// Messages as they are on the wire.
#[derive(Clone, Copy, Default)]
struct Bytes;

impl Codec for Bytes {
    type Encode = Vec<u8>;
    type Decode = Vec<u8>;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Bytes {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, item: Vec<u8>, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        prost::bytes::BufMut::put_slice(buffer, &item);
        Ok(())
    }
}

impl Decoder for Bytes {
    type Item = Vec<u8>;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Vec<u8>>, Status> {
        use prost::bytes::Buf;
        let mut item = vec![0; buffer.remaining()];
        buffer.copy_to_slice(&mut item);
        Ok(Some(item))
    }
}

/// Every method of CRI: first what starts something, at last what ends it.
fn methods() -> Vec<MethodDescriptor> {
    let pool = DescriptorPool::decode(FILE_DESCRIPTOR_SET).expect("the build wrote it");
    let services = pool.services().filter(|service| service.full_name().starts_with("runtime.v1."));
    let mut methods: Vec<_> = services.flat_map(|service| service.methods().collect::<Vec<_>>()).collect();
    methods.sort_by_key(|method| match method.name() {
        "StartContainer" => 0,
        name if name.starts_with("Stop") => 2,
        name if name.starts_with("Remove") => 3,
        _ => 1,
    });
    methods
}

/// What somebody could ask for, with the fields that name a thing filled in.
fn plausible(method: &MethodDescriptor, pod: &Pod<'_>, container: &Container<'_>) -> Vec<u8> {
    let image = || Some(ImageSpec { image: IMAGE.into(), ..Default::default() });
    match method.name() {
        "RunPodSandbox" => {
            RunPodSandboxRequest { config: Some(pod.config.clone()), runtime_handler: String::new() }.encode_to_vec()
        }
        "CreateContainer" => CreateContainerRequest {
            pod_sandbox_id: pod.id.clone(),
            config: Some(script("another", "true")),
            sandbox_config: Some(pod.config.clone()),
        }
        .encode_to_vec(),
        "PullImage" => PullImageRequest { image: image(), ..Default::default() }.encode_to_vec(),
        // Field 1 is the image in each of them.
        "ImageStatus" | "RemoveImage" => RemoveImageRequest { image: image() }.encode_to_vec(),
        _ => with_ids(method.input(), pod, container).encode_to_vec(),
    }
}

fn with_ids(message: MessageDescriptor, pod: &Pod<'_>, container: &Container<'_>) -> DynamicMessage {
    let mut request = DynamicMessage::new(message.clone());
    let command = Value::List(vec![Value::String("true".into())]);
    for (field, value) in [
        ("pod_sandbox_id", Value::String(pod.id.clone())),
        ("container_id", Value::String(container.id.clone())),
        ("cmd", command),
        // A stream wants one to be asked for.
        ("stdout", Value::Bool(true)),
    ] {
        if message.get_field_by_name(field).is_some() {
            request.set_field_by_name(field, value);
        }
    }
    request
}

async fn call(node: &Node, method: &MethodDescriptor, request: Vec<u8>) -> Code {
    let path = format!("/{}/{}", method.parent_service().full_name(), method.name());
    let mut client = tonic::client::Grpc::new(node.channel());
    client.ready().await.expect("the daemon answers");
    let path = PathAndQuery::try_from(path).expect("a path");
    // Of a stream as of a single answer, the first message says whether the call is served.
    let answer = match client.server_streaming(Request::new(request), path, Bytes).await {
        // Nothing happens while we ask: that it is open is the answer.
        Ok(_) if method.name() == "GetContainerEvents" => Ok(()),
        Ok(answer) => answer.into_inner().message().await.map(drop),
        Err(status) => Err(status),
    };
    let (code, said) =
        answer.map_or_else(|status| (status.code(), status.message().to_owned()), |()| (Code::Ok, String::new()));
    assert!(matches!(code, Code::Ok | Code::Unimplemented), "{}: {code:?}: {said}", method.name());
    code
}

#[tokio::test]
async fn exactly_the_listed_rpcs_are_unimplemented() {
    let node = Node::start().await;
    if !node.is_berth() {
        return;
    }
    let pod = node.run_pod(pod("asked")).await;
    let container = pod.create(script("c", "exec sleep 1000")).await;
    let methods = methods();
    assert_eq!(methods.len(), RPCS);
    let mut unimplemented = BTreeSet::new();
    for method in &methods {
        let request = plausible(method, &pod, &container);
        if call(&node, method, request).await == Code::Unimplemented {
            unimplemented.insert(method.name().to_owned());
        }
    }
    let listed: BTreeSet<String> = UNIMPLEMENTED.lines().map(str::to_owned).collect();
    let built: Vec<_> = listed.difference(&unimplemented).collect();
    let missing: Vec<_> = unimplemented.difference(&listed).collect();
    assert!(built.is_empty(), "take out of runtime-service/unimplemented.txt: {built:?}");
    assert!(missing.is_empty(), "these answered once, and must again: {missing:?}");
    node.assert_nothing_left();
}
