//! Servers, not filled yet.
use super::Images;
use berth_api::{cri, pull};
use futures::stream::BoxStream;
use tonic::{Request, Response, Status};

pub(crate) struct Rpc(pub(crate) Images);

#[tonic::async_trait]
impl cri::image_service_server::ImageService for Rpc {
    type StreamImagesStream = BoxStream<'static, Result<cri::StreamImagesResponse, Status>>;
    async fn list_images(
        &self,
        _: Request<cri::ListImagesRequest>,
    ) -> Result<Response<cri::ListImagesResponse>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn stream_images(
        &self,
        _: Request<cri::StreamImagesRequest>,
    ) -> Result<Response<Self::StreamImagesStream>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn image_status(
        &self,
        _: Request<cri::ImageStatusRequest>,
    ) -> Result<Response<cri::ImageStatusResponse>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn pull_image(
        &self,
        _: Request<cri::PullImageRequest>,
    ) -> Result<Response<cri::PullImageResponse>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn remove_image(
        &self,
        _: Request<cri::RemoveImageRequest>,
    ) -> Result<Response<cri::RemoveImageResponse>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn image_fs_info(
        &self,
        _: Request<cri::ImageFsInfoRequest>,
    ) -> Result<Response<cri::ImageFsInfoResponse>, Status> {
        Err(Status::unimplemented(""))
    }
}

#[tonic::async_trait]
impl pull::pulls_server::Pulls for Rpc {
    type PullStream = BoxStream<'static, Result<pull::PullProgress, Status>>;
    async fn pull(
        &self,
        _: Request<pull::PullRequest>,
    ) -> Result<Response<Self::PullStream>, Status> {
        Err(Status::unimplemented(""))
    }
}
