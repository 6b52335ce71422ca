//! The daemon at the other end of the socket: connects when first needed, names each call and gives it a deadline.

use std::fmt::Display;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::Duration;

use berth_api::cri::image_service_client::ImageServiceClient;
use berth_api::cri::runtime_service_client::RuntimeServiceClient;
use berth_api::debug::debug_client::DebugClient;
use berth_api::pull::pulls_client::PullsClient;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio::sync::OnceCell;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Response, Status};

use crate::error::Error;
use crate::settings::Settings;

/// Largest answer taken, in bytes: an ExecSync may carry 16 MiB on each of two streams, and lists grow with the node.
const ANSWER_MAX: usize = 64 << 20;

/// The endpoints and the connections to them.
pub(crate) struct Node {
    pub(crate) settings: Settings,
    runtime: OnceCell<Channel>,
    image: OnceCell<Channel>,
}

impl Node {
    pub(crate) fn new(settings: Settings) -> Self {
        Self { settings, runtime: OnceCell::new(), image: OnceCell::new() }
    }

    /// # Errors
    /// `NoDaemon`, `Forbidden` or `Connect`, by what the socket says.
    pub(crate) async fn runtime(&self) -> Result<RuntimeServiceClient<Channel>, Error> {
        Ok(RuntimeServiceClient::new(self.runtime_channel().await?).max_decoding_message_size(ANSWER_MAX))
    }

    /// # Errors
    /// As `runtime`.
    pub(crate) async fn images(&self) -> Result<ImageServiceClient<Channel>, Error> {
        Ok(ImageServiceClient::new(self.image_channel().await?).max_decoding_message_size(ANSWER_MAX))
    }

    /// berth's own service. Connecting says nothing about whether the endpoint has it.
    ///
    /// # Errors
    /// As `runtime`.
    pub(crate) async fn pulls(&self) -> Result<PullsClient<Channel>, Error> {
        Ok(PullsClient::new(self.image_channel().await?))
    }

    /// What looks inside the daemon, as `pulls`.
    ///
    /// # Errors
    /// As `runtime`.
    pub(crate) async fn debug_service(&self) -> Result<DebugClient<Channel>, Error> {
        Ok(DebugClient::new(self.runtime_channel().await?))
    }

    /// Waits for an answer that takes the runtime no work.
    pub(crate) async fn quick<T>(
        &self,
        deed: impl Display,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, Error> {
        self.answer(deed, Some(self.settings.timeout), call).await
    }

    /// Waits for as long as it takes, or for `within`.
    pub(crate) async fn answer<T>(
        &self,
        deed: impl Display,
        within: Option<Duration>,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, Error> {
        self.debug(|| deed.to_string());
        let answer = match within.filter(|time| !time.is_zero()) {
            Some(within) => {
                tokio::time::timeout(within, call).await.map_err(|_| Error::Late { deed: deed.to_string(), within })?
            }
            None => call.await,
        };
        answer.map(Response::into_inner).map_err(|status| Error::call(deed, status))
    }

    /// Says something on stderr when asked to be talkative.
    pub(crate) fn debug(&self, say: impl FnOnce() -> String) {
        if self.settings.debug {
            eprintln!("berth: debug: {}", say());
        }
    }

    async fn runtime_channel(&self) -> Result<Channel, Error> {
        self.runtime.get_or_try_init(|| self.connect(&self.settings.runtime_endpoint)).await.cloned()
    }

    async fn image_channel(&self) -> Result<Channel, Error> {
        if self.settings.image_endpoint == self.settings.runtime_endpoint {
            return self.runtime_channel().await;
        }
        self.image.get_or_try_init(|| self.connect(&self.settings.image_endpoint)).await.cloned()
    }

    async fn connect(&self, endpoint: &str) -> Result<Channel, Error> {
        self.debug(|| format!("connect to {endpoint}"));
        let path = socket_path(endpoint)?;
        let within = self.settings.timeout;
        let late = |_| Error::Late { deed: format!("connect to {endpoint}"), within };
        let socket = tokio::time::timeout(within, UnixStream::connect(&path)).await.map_err(late)?.map_err(
            |error| match error.kind() {
                ErrorKind::NotFound | ErrorKind::ConnectionRefused => Error::NoDaemon { endpoint: endpoint.into() },
                ErrorKind::PermissionDenied => Error::Forbidden { endpoint: endpoint.into() },
                _ => Error::Connect { endpoint: endpoint.into(), reason: error.to_string() },
            },
        )?;
        // The address is only a header here; the connection is the one just made, and there is no second one.
        let once = Mutex::new(Some(socket));
        let connector = tower::service_fn(move |_: Uri| {
            let socket = once.lock().ok().and_then(|mut socket| socket.take());
            async move { socket.map(TokioIo::new).ok_or_else(|| std::io::Error::from(ErrorKind::ConnectionReset)) }
        });
        let address = Endpoint::from_static("http://localhost");
        tokio::time::timeout(within, address.connect_with_connector(connector))
            .await
            .map_err(late)?
            .map_err(|error| Error::Connect { endpoint: endpoint.into(), reason: error.to_string() })
    }
}

/// `unix:///PATH`, `unix:/PATH` or `/PATH`.
fn socket_path(endpoint: &str) -> Result<PathBuf, Error> {
    let path = endpoint.strip_prefix("unix://").or_else(|| endpoint.strip_prefix("unix:")).unwrap_or(endpoint);
    match path.starts_with('/') {
        true => Ok(path.into()),
        false => Err(Error::Endpoint { endpoint: endpoint.into() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(endpoint: &str) -> Node {
        Node::new(Settings {
            runtime_endpoint: endpoint.into(),
            image_endpoint: endpoint.into(),
            timeout: Duration::from_secs(5),
            debug: false,
            pull_on_create: false,
        })
    }

    #[test]
    fn endpoints_are_unix_sockets() {
        for endpoint in ["unix:///run/a.sock", "unix:/run/a.sock", "/run/a.sock"] {
            assert_eq!(socket_path(endpoint).unwrap(), PathBuf::from("/run/a.sock"));
        }
        assert!(matches!(socket_path("tcp://127.0.0.1:1"), Err(Error::Endpoint { .. })));
    }

    #[tokio::test]
    async fn a_missing_socket_says_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let endpoint = format!("unix://{}/none.sock", dir.path().display());
        let error = node(&endpoint).runtime().await.unwrap_err().to_string();
        assert!(error.starts_with(&format!("no daemon listens at {endpoint}: is berthd running?")), "{error}");
        // A socket file that nobody serves is the same to the user.
        let path = dir.path().join("dead.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let error = node(&path.display().to_string()).runtime().await.unwrap_err();
        assert!(matches!(error, Error::NoDaemon { .. }), "{error}");
    }
}
