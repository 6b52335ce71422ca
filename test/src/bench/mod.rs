//! The benchmark: the same calls of one client against several CRI endpoints in one run, interleaved, and what their
//! processes cost. It compares; it does not judge, so that a noisy machine fails nothing.

pub mod calls;
pub mod lists;
pub mod memory;
pub mod pulls;
pub mod report;
pub mod samples;

use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use berth_api::cri::image_service_client::ImageServiceClient;
use berth_api::cri::runtime_service_client::RuntimeServiceClient;
use berth_api::cri::{ImageSpec, PullImageRequest, VersionRequest};
use hyper_util::rt::TokioIo;
use tonic::Status;
use tonic::transport::{Channel, Endpoint, Uri};

/// What pods of the benchmark run: busybox, and a process 1 that waits, reaps and ends at TERM.
pub const POD_IMAGE: &str = "registry.k8s.io/bench/pod:1";

/// What is pulled and unpacked; made by hack/bench.
pub const LARGE_IMAGE: &str = "registry.k8s.io/bench/large:1";

/// Among a process's arguments: it is a workload, and not what the runtime keeps beside one.
pub const WORKLOAD: &str = "bench-workload";

/// A runtime that is measured.
pub struct Target {
    /// What its column is called.
    pub name: String,
    /// Name and version that it gives itself.
    pub version: String,
    runtime: RuntimeServiceClient<Channel>,
    images: ImageServiceClient<Channel>,
    socket: PathBuf,
    logs: PathBuf,
    next: AtomicU32,
}

impl Target {
    /// Connects to the socket at `socket`; logs of containers go below `logs`.
    ///
    /// # Errors
    /// Nothing answers there, or not with what the benchmark needs.
    pub async fn connect(name: &str, socket: PathBuf, logs: PathBuf) -> Result<Self, Status> {
        let path = socket.clone();
        let connect = tower::service_fn(move |_: Uri| {
            let path = path.clone();
            async move { tokio::net::UnixStream::connect(path).await.map(TokioIo::new) }
        });
        let channel =
            Endpoint::from_static("http://node").timeout(Duration::from_secs(300)).connect_with_connector_lazy(connect);
        let mut runtime = RuntimeServiceClient::new(channel.clone()).max_decoding_message_size(64 << 20);
        let said = runtime.version(VersionRequest::default()).await?.into_inner();
        let version = format!("{} {}", said.runtime_name, said.runtime_version);
        let images = ImageServiceClient::new(channel);
        let target = Self { name: name.into(), version, runtime, images, socket, logs, next: AtomicU32::new(0) };
        let image = ImageSpec { image: POD_IMAGE.into(), ..Default::default() };
        target.images().pull_image(PullImageRequest { image: Some(image), ..Default::default() }).await?;
        Ok(target)
    }

    /// A client of RuntimeService; cheap.
    pub fn runtime(&self) -> RuntimeServiceClient<Channel> {
        self.runtime.clone()
    }

    /// A client of ImageService; cheap.
    pub fn images(&self) -> ImageServiceClient<Channel> {
        self.images.clone()
    }

    fn next(&self) -> u32 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }
}
