//! The image service under test, asked over its gRPC services without a socket.

// Each test binary uses its own part of this.
#![allow(dead_code, unreachable_pub)]

use std::time::Duration;

use berth_api::cri;
use berth_api::cri::image_service_client::ImageServiceClient;
use berth_image_service::{Config, Images};

/// A store in a directory of its own, spoken to as the kubelet would.
pub struct Node {
    pub dir: tempfile::TempDir,
    pub config: Config,
    pub images: Images,
}

impl Node {
    pub async fn start() -> Self {
        Self::with(|_| {}).await
    }

    pub async fn with(change: impl FnOnce(&mut Config)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut config = Config {
            root: dir.path().join("images"),
            rootfs_dir: dir.path().join("rootfs"),
            progress_timeout_seconds: 2,
            ..Config::default()
        };
        change(&mut config);
        let images = Images::open(config.clone()).await.unwrap();
        Self { dir, config, images }
    }

    /// As after the daemon was killed: nothing of the old one is asked.
    pub async fn restart(&mut self) {
        self.images = Images::open(self.config.clone()).await.unwrap();
    }

    pub async fn pull_with(&self, image: &str, auth: Option<cri::AuthConfig>) -> Result<String, tonic::Status> {
        let image = Some(cri::ImageSpec { image: image.to_owned(), ..Default::default() });
        let request = cri::PullImageRequest { image, auth, ..Default::default() };
        let mut client = ImageServiceClient::new(self.images.image_service());
        Ok(client.pull_image(request).await?.into_inner().image_ref)
    }

    pub async fn pull(&self, image: &str) -> Result<String, tonic::Status> {
        self.pull_with(image, None).await
    }

    pub async fn list(&self) -> Vec<cri::Image> {
        let mut client = ImageServiceClient::new(self.images.image_service());
        client.list_images(cri::ListImagesRequest::default()).await.unwrap().into_inner().images
    }

    pub async fn status(&self, image: &str) -> Option<cri::Image> {
        let image = Some(cri::ImageSpec { image: image.to_owned(), ..Default::default() });
        let mut client = ImageServiceClient::new(self.images.image_service());
        client.image_status(cri::ImageStatusRequest { image, verbose: true }).await.unwrap().into_inner().image
    }

    pub async fn remove(&self, image: &str) {
        let image = Some(cri::ImageSpec { image: image.to_owned(), ..Default::default() });
        let mut client = ImageServiceClient::new(self.images.image_service());
        client.remove_image(cri::RemoveImageRequest { image }).await.unwrap();
    }

    /// What is left of images in the store, by file name; waits for what winds up in the background.
    pub async fn left(&self) -> Vec<String> {
        let mut left = Vec::new();
        for _ in 0..100 {
            left.clear();
            for kind in ["blobs", "ingest", "layers", "l", "images"] {
                for entry in std::fs::read_dir(self.config.root.join(kind)).unwrap() {
                    left.push(format!("{kind}/{}", entry.unwrap().file_name().into_string().unwrap()));
                }
            }
            left.retain(|name| name != "l/0");
            if left.is_empty() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        left
    }
}
