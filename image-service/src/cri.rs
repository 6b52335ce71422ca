//! CRI's ImageService: decodes, asks the store, encodes. The only place where this crate's errors become gRPC.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use berth_api::cri;
use berth_api::cri::image_service_server::ImageService;
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use prost::Message;
use tonic::{Code, Request, Response, Status};

use crate::Image;
use crate::error::{Error, LayerFailure, RegistryFailure};
use crate::pull;
use crate::reference::Reference;
use crate::registry::Credentials;
use crate::store::Store;

/// A message of a streamed list ends before it would be larger, in bytes. Source: gRPC's clients take 16 MiB.
const BATCH_MAX: usize = 1 << 20;

/// The service.
pub(crate) struct Service(pub(crate) Arc<Store>);

#[tonic::async_trait]
impl ImageService for Service {
    type StreamImagesStream = BoxStream<'static, Result<cri::StreamImagesResponse, Status>>;

    async fn list_images(
        &self,
        request: Request<cri::ListImagesRequest>,
    ) -> Result<Response<cri::ListImagesResponse>, Status> {
        let images = self.list(request.into_inner().filter)?;
        Ok(Response::new(cri::ListImagesResponse { images }))
    }

    async fn stream_images(
        &self,
        request: Request<cri::StreamImagesRequest>,
    ) -> Result<Response<Self::StreamImagesStream>, Status> {
        let images = self.list(request.into_inner().filter)?;
        let answers = batches(images).into_iter().map(|images| Ok(cri::StreamImagesResponse { images }));
        Ok(Response::new(stream::iter(answers).boxed()))
    }

    async fn image_status(
        &self,
        request: Request<cri::ImageStatusRequest>,
    ) -> Result<Response<cri::ImageStatusResponse>, Status> {
        let request = request.into_inner();
        let Some(image) = self.find(&name_of(request.image)?)? else {
            return Ok(Response::new(cri::ImageStatusResponse::default()));
        };
        let mut answer = cri::ImageStatusResponse { image: Some(encode(&image)), ..Default::default() };
        if request.verbose {
            let info = verbose(&self.0, &image).await.map_err(|error| status(&error))?;
            answer.info.insert("info".to_owned(), info);
        }
        Ok(Response::new(answer))
    }

    async fn pull_image(
        &self,
        request: Request<cri::PullImageRequest>,
    ) -> Result<Response<cri::PullImageResponse>, Status> {
        let request = request.into_inner();
        let reference = Reference::parse(&name_of(request.image)?).map_err(|error| status(&error))?;
        let credentials = credentials(request.auth, &reference).map_err(|error| status(&error))?;
        let pulled = pull(&self.0, &reference, &credentials).await.map_err(|error| status(&error))?;
        Ok(Response::new(cri::PullImageResponse { image_ref: pulled.id.to_string() }))
    }

    async fn remove_image(
        &self,
        request: Request<cri::RemoveImageRequest>,
    ) -> Result<Response<cri::RemoveImageResponse>, Status> {
        let Some(image) = self.find(&name_of(request.into_inner().image)?)? else {
            return Ok(Response::new(cri::RemoveImageResponse {}));
        };
        // On a task of its own: a removal goes on when its client goes.
        let store = Arc::clone(&self.0);
        let removal = tokio::spawn(async move { store.remove_image(image.id.0).await });
        match removal.await {
            Ok(removed) => removed.map_err(|error| status(&error))?,
            Err(error) => {
                return Err(status(&Error::Task { task: "removal", why: error.to_string() }));
            }
        }
        Ok(Response::new(cri::RemoveImageResponse {}))
    }

    async fn image_fs_info(
        &self,
        _: Request<cri::ImageFsInfoRequest>,
    ) -> Result<Response<cri::ImageFsInfoResponse>, Status> {
        let records = &self.0.records;
        let containers = self.0.containers.space(records.rootfs.clone()).await;
        let timestamp = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as i64);
        let usage = |space: crate::catalog::Space, path: &std::path::Path| cri::FilesystemUsage {
            timestamp,
            fs_id: Some(cri::FilesystemIdentifier { mountpoint: path.display().to_string() }),
            used_bytes: Some(cri::UInt64Value { value: space.bytes }),
            inodes_used: Some(cri::UInt64Value { value: space.inodes }),
        };
        Ok(Response::new(cri::ImageFsInfoResponse {
            image_filesystems: vec![usage(self.0.catalog.space(), &records.root)],
            container_filesystems: vec![usage(containers, &records.rootfs)],
        }))
    }
}

impl Service {
    fn find(&self, name: &str) -> Result<Option<Image>, Status> {
        self.0.catalog.find(name).map_err(|error| status(&error))
    }

    fn list(&self, filter: Option<cri::ImageFilter>) -> Result<Vec<cri::Image>, Status> {
        let wanted = filter.and_then(|filter| filter.image).map(|image| image.image).unwrap_or_default();
        let images = match wanted.as_str() {
            "" => self.0.catalog.images(),
            name => self.find(name)?.into_iter().collect(),
        };
        Ok(images.iter().map(encode).collect())
    }
}

/// Each with at least one image, in order.
fn batches(images: Vec<cri::Image>) -> Vec<Vec<cri::Image>> {
    let (mut batches, mut bytes) = (Vec::<Vec<_>>::new(), 0);
    for image in images {
        let size = image.encoded_len();
        match batches.last_mut() {
            Some(batch) if bytes + size <= BATCH_MAX => {
                batch.push(image);
                bytes += size;
            }
            _ => {
                batches.push(vec![image]);
                bytes = size;
            }
        }
    }
    batches
}

/// Waits for the pull of a reference, whoever began it. One that was just given up is begun anew.
pub(crate) async fn pull(
    store: &Arc<Store>,
    reference: &Reference,
    credentials: &Credentials,
) -> Result<pull::Pulled, Error> {
    loop {
        match pull::join(store, reference, credentials).wait().await {
            Err(Error::Pull { source, .. }) if matches!(*source, Error::Abandoned { .. }) => {}
            outcome => return outcome,
        }
    }
}

fn name_of(image: Option<cri::ImageSpec>) -> Result<String, Status> {
    match image.map(|image| image.image) {
        Some(name) if !name.is_empty() => Ok(name),
        _ => Err(status(&Error::Request { field: "image.image", why: "is empty".to_owned() })),
    }
}

/// What the request shows of itself to the registry of `reference`, and to that one only.
fn credentials(auth: Option<cri::AuthConfig>, reference: &Reference) -> Result<Credentials, Error> {
    let Some(auth) = auth else {
        return Ok(Credentials::Anonymous);
    };
    if !auth.server_address.is_empty() && !is_same_registry(&auth.server_address, &reference.host) {
        tracing::debug!(for_host = auth.server_address, host = reference.host, "credentials are another registry's");
        return Ok(Credentials::Anonymous);
    }
    if !auth.registry_token.is_empty() {
        return Ok(Credentials::Registry(auth.registry_token));
    }
    if !auth.identity_token.is_empty() {
        return Ok(Credentials::Identity(auth.identity_token));
    }
    if !auth.username.is_empty() || !auth.password.is_empty() {
        return Ok(Credentials::basic(&auth.username, &auth.password));
    }
    if auth.auth.is_empty() {
        return Ok(Credentials::Anonymous);
    }
    Credentials::from_auth(&auth.auth).map_err(|why| Error::Request { field: "auth.auth", why: why.to_owned() })
}

/// Whether a `server_address`, perhaps with a scheme and a path, is the registry of a reference.
fn is_same_registry(address: &str, host: &str) -> bool {
    let address = address.split_once("://").map_or(address, |(_, rest)| rest);
    let address = address.split('/').next().unwrap_or_default();
    let docker = ["index.docker.io", "registry-1.docker.io"];
    let address = if docker.contains(&address) { "docker.io" } else { address };
    address.eq_ignore_ascii_case(host)
}

fn encode(image: &Image) -> cri::Image {
    let (uid, username) = user(&image.config.user);
    cri::Image {
        id: image.id.to_string(),
        repo_tags: image.repo_tags.clone(),
        repo_digests: image.repo_digests.clone(),
        size: image.size,
        uid: uid.map(|value| cri::Int64Value { value }),
        username,
        ..Default::default()
    }
}

/// The image's user for the kubelet's `runAsNonRoot`: a number or a name, without the group; neither if it says nothing.
fn user(user: &str) -> (Option<i64>, String) {
    let name = user.split(':').next().unwrap_or_default();
    match name.parse::<u32>() {
        Ok(uid) if name.bytes().all(|byte| byte.is_ascii_digit()) => (Some(i64::from(uid)), String::new()),
        _ => (None, name.to_owned()),
    }
}

/// `info` of a verbose status: the configuration as the image carries it, and the chain id of its top layer.
async fn verbose(store: &Arc<Store>, image: &Image) -> Result<String, Error> {
    let (records, id) = (store.records.clone(), image.id.0);
    let config = crate::unpack::blocking("reading", move || records.read_blob(id)).await??;
    let config: serde_json::Value =
        serde_json::from_slice(&config).map_err(|error| Error::document(format!("configuration {id}"), error))?;
    let chain = store.catalog.image(id).and_then(|(record, _)| record.layers.last().map(ToString::to_string));
    Ok(serde_json::json!({ "chainID": chain.unwrap_or_default(), "imageSpec": config }).to_string())
}

/// The gRPC status of an error, with all its causes.
pub(crate) fn status(error: &Error) -> Status {
    let code = code(error);
    let text: String = error.chain().chars().filter(|character| !character.is_control()).take(4096).collect();
    // The kubelet looks for this word at the beginning (cri-api, `pkg/errors`).
    let text = if code == Code::Unavailable { format!("RegistryUnavailable: {text}") } else { text };
    Status::new(code, text)
}

fn code(error: &Error) -> Code {
    if error.is_disk_full() {
        return Code::ResourceExhausted;
    }
    match error {
        Error::Reference { .. } | Error::Ambiguous { .. } | Error::Request { .. } => Code::InvalidArgument,
        Error::NotFound { .. } => Code::NotFound,
        Error::Pull { source, .. } => code(source),
        Error::Registry { source, .. } => match source {
            RegistryFailure::Unreachable(_) | RegistryFailure::Stalled(_) => Code::Unavailable,
            RegistryFailure::TooManyRequests(_) | RegistryFailure::Status(500.., _) => Code::Unavailable,
            RegistryFailure::Unauthorized(_) => Code::Unauthenticated,
            RegistryFailure::Forbidden(_) => Code::PermissionDenied,
            RegistryFailure::NotFound(_) => Code::NotFound,
            RegistryFailure::Size { .. } => Code::DataLoss,
            RegistryFailure::Status(..) | RegistryFailure::Protocol(_) => Code::Internal,
        },
        Error::WrongDigest { .. } => Code::DataLoss,
        Error::Layer { source: LayerFailure::Bomb(_), .. } => Code::ResourceExhausted,
        Error::Document { .. } | Error::Layer { .. } | Error::File { .. } => Code::InvalidArgument,
        Error::Abandoned { .. } => Code::Cancelled,
        Error::Io { .. } | Error::Task { .. } => Code::Internal,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_of_a_streamed_list_ends_before_it_would_be_too_large() {
        let image = |bytes: usize| cri::Image { id: "x".repeat(bytes), ..Default::default() };
        let sizes = |asked: &[usize]| -> Vec<Vec<usize>> {
            let batches = batches(asked.iter().map(|bytes| image(*bytes)).collect());
            batches.iter().map(|batch| batch.iter().map(|image| image.id.len()).collect()).collect()
        };
        assert!(sizes(&[]).is_empty());
        assert_eq!(sizes(&[1, 2]), [vec![1, 2]]);
        let (half, large) = (BATCH_MAX / 2 - 100, BATCH_MAX * 3);
        assert_eq!(sizes(&[half, half, 500, large, 1]), [vec![half, half], vec![500], vec![large], vec![1]]);
    }

    #[test]
    fn the_user_is_a_number_or_a_name() {
        let cases = [
            ("", None, ""),
            ("1002", Some(1002), ""),
            ("www-data", None, "www-data"),
            ("1003:1004", Some(1003), ""),
            ("www-data:1004", None, "www-data"),
            ("0", Some(0), ""),
            ("+5", None, "+5"),
            ("4294967296", None, "4294967296"),
        ];
        for (text, uid, name) in cases {
            assert_eq!(user(text), (uid, name.to_owned()), "{text}");
        }
    }

    #[test]
    fn credentials_for_another_registry_are_not_used() {
        let auth = |server: &str| cri::AuthConfig {
            username: "u".to_owned(),
            password: "p".to_owned(),
            server_address: server.to_owned(),
            ..Default::default()
        };
        let cases = [
            ("busybox", "", true),
            ("busybox", "https://index.docker.io/v1/", true),
            ("busybox", "evil.example", false),
            ("127.0.0.1:5000/a", "127.0.0.1:5000", true),
            ("127.0.0.1:5000/a", "http://127.0.0.1:5001", false),
        ];
        for (image, server, used) in cases {
            let reference = Reference::parse(image).unwrap();
            let credentials = credentials(Some(auth(server)), &reference).unwrap();
            assert_eq!(credentials != Credentials::Anonymous, used, "{image} {server}");
        }
    }

    #[test]
    fn each_failure_has_its_code_and_says_all() {
        let registry = |source| Error::Pull {
            image: "a.example/b:c".to_owned(),
            source: Box::new(Error::Registry { host: "a.example".to_owned(), step: "manifest c".to_owned(), source }),
        };
        let full = Error::Io {
            step: "write",
            path: "/x".into(),
            source: Arc::new(std::io::Error::from(std::io::ErrorKind::StorageFull)),
        };
        let cases = [
            (registry(RegistryFailure::Unreachable("refused".into())), Code::Unavailable),
            (registry(RegistryFailure::Unauthorized("bad".into())), Code::Unauthenticated),
            (registry(RegistryFailure::Forbidden(String::new())), Code::PermissionDenied),
            (registry(RegistryFailure::NotFound(String::new())), Code::NotFound),
            (registry(RegistryFailure::Status(500, String::new())), Code::Unavailable),
            (registry(RegistryFailure::Size { expected: 2, actual: 1 }), Code::DataLoss),
            (Reference::parse("A:B:C").unwrap_err(), Code::InvalidArgument),
            (Error::Pull { image: "x".into(), source: Box::new(full) }, Code::ResourceExhausted),
        ];
        for (error, code) in cases {
            assert_eq!(status(&error).code(), code, "{error:?}");
        }
        let told = status(&registry(RegistryFailure::Unreachable("connection refused".into())));
        let expected =
            "RegistryUnavailable: pull a.example/b:c: registry a.example: manifest c: unreachable: connection refused";
        assert_eq!(told.message(), expected);
    }
}
