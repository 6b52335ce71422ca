//! Pull and unpack of the large image, and its removal.

use std::time::{Duration, Instant};

use berth_api::cri::{ImageSpec, PullImageRequest, RemoveImageRequest};
use tonic::Status;

use super::{LARGE_IMAGE, Target};

impl Target {
    /// Pulls the large image, which is not there, and removes it again; gives the time of each.
    ///
    /// # Errors
    /// The runtime's.
    pub async fn pull_and_remove(&self) -> Result<(Duration, Duration), Status> {
        let image = ImageSpec { image: LARGE_IMAGE.into(), ..Default::default() };
        // What others still have to write is not this pull's.
        rustix::fs::sync();
        let begun = Instant::now();
        let request = PullImageRequest { image: Some(image.clone()), ..Default::default() };
        self.images().pull_image(request).await?;
        let pull = begun.elapsed();
        // An image that is removed has long been on the disk; one that is not yet there is gone at once.
        rustix::fs::sync();
        let begun = Instant::now();
        self.images().remove_image(RemoveImageRequest { image: Some(image) }).await?;
        Ok((pull, begun.elapsed()))
    }
}
