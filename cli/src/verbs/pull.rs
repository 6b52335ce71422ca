//! `pull`, and pulls on behalf of other verbs: with progress where the endpoint is berth's, plainly elsewhere.

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use berth_api::cri::{AuthConfig, ImageSpec, PodSandboxConfig, PullImageRequest};
use berth_api::pull::PullRequest;
use berth_api::pull::pull_progress::Event;

use super::choose::label;
use crate::config;
use crate::error::Error;
use crate::human::parse_duration;
use crate::node::Node;
use crate::output::line;
use crate::progress::Progress;

#[derive(clap::Args)]
pub(crate) struct Pull {
    /// Image by name and tag or digest
    #[arg(value_name = "NAME[:TAG|@DIGEST]")]
    image: String,
    /// User for the registry; the password is asked for
    #[arg(short, long, value_name = "USER", conflicts_with_all = ["creds", "auth"])]
    username: Option<String>,
    #[command(flatten)]
    credentials: Credentials,
    /// Pod the image is for, as in PodSandboxConfig
    #[arg(long, value_name = "FILE")]
    pod_config: Option<PathBuf>,
    /// Note kept with the image
    #[arg(short, long, value_name = "KEY=VALUE", value_parser = label)]
    annotation: Vec<(String, String)>,
}

/// Who pulls, and for how long.
#[derive(clap::Args, Clone, Default)]
pub(crate) struct Credentials {
    /// User and password for the registry
    #[arg(long, env = "CRICTL_CREDS", value_name = "USER[:PASSWORD]", conflicts_with = "auth", hide_env_values = true)]
    creds: Option<String>,
    /// The same as base64
    #[arg(long, env = "CRICTL_AUTH", value_name = "BASE64", hide_env_values = true)]
    auth: Option<String>,
    /// From the verb's own flag, which has a short form in some: the password is asked for.
    #[arg(skip)]
    pub(super) username: Option<String>,
    /// Give up after this time [default: never]
    #[arg(long, alias = "pt", env = "CRICTL_PULL_TIMEOUT", value_parser = parse_duration, value_name = "DURATION")]
    pull_timeout: Option<Duration>,
}

/// A pull as it is asked for.
pub(super) struct Wanted {
    pub(super) image: String,
    pub(super) annotations: HashMap<String, String>,
    pub(super) pod: Option<PodSandboxConfig>,
}

impl Pull {
    pub(crate) async fn run(self, node: &Node) -> Result<(), Error> {
        let pod = self.pod_config.as_deref().map(config::pod).transpose()?;
        let annotations = self.annotation.into_iter().collect();
        let wanted = Wanted { image: self.image, annotations, pod };
        let credentials = Credentials { username: self.username, ..self.credentials };
        let id = pull(node, wanted, &credentials).await?;
        line(format!("Image is up to date for {id}"))
    }
}

/// Pulls and answers with the image's id.
///
/// # Errors
/// The registry's or the runtime's, in the runtime's words.
pub(super) async fn pull(node: &Node, wanted: Wanted, credentials: &Credentials) -> Result<String, Error> {
    let auth = credentials.auth()?;
    let deed = format!("pull {}", wanted.image);
    let within = credentials.pull_timeout.filter(|time| !time.is_zero());
    let pulling = async {
        // Progress has no words for annotations and pods, and is not needed for them.
        if wanted.annotations.is_empty() && wanted.pod.is_none() {
            match with_progress(node, &deed, &wanted.image, &auth).await {
                Err(error) if error.is_unimplemented() => {
                    node.debug(|| "the endpoint has no berth.v1.Pulls: pulling without progress".into());
                }
                other => return other,
            }
        }
        plainly(node, &deed, wanted, auth).await
    };
    match within {
        Some(within) => {
            tokio::time::timeout(within, pulling).await.map_err(|_| Error::Late { deed: deed.clone(), within })?
        }
        None => pulling.await,
    }
}

async fn with_progress(node: &Node, deed: &str, image: &str, auth: &Option<AuthConfig>) -> Result<String, Error> {
    let auth = auth.clone().unwrap_or_default();
    let request = PullRequest { image: image.into(), username: auth.username, password: auth.password };
    let mut pulls = node.pulls().await?;
    let mut events = node.answer(deed, None, pulls.pull(request)).await?;
    let mut progress = Progress::on_stderr();
    let end = loop {
        match events.message().await.map(|message| message.map(|message| message.event)) {
            Ok(Some(Some(Event::Resolved(resolved)))) => progress.resolved(&resolved),
            Ok(Some(Some(Event::Layer(layer)))) => progress.layer(layer),
            Ok(Some(Some(Event::Done(done)))) => break Ok(done.image_id),
            // A kind of event that this client does not know yet.
            Ok(Some(None)) => {}
            Ok(None) => {
                break Err(Error::Refused(format!("{deed}: the daemon hung up before the pull was done")));
            }
            Err(status) => break Err(Error::call(deed, status)),
        }
    };
    progress.finish();
    end
}

async fn plainly(node: &Node, deed: &str, wanted: Wanted, auth: Option<AuthConfig>) -> Result<String, Error> {
    let image = ImageSpec { image: wanted.image, annotations: wanted.annotations, ..Default::default() };
    let request = PullImageRequest { image: Some(image), auth, sandbox_config: wanted.pod };
    let mut images = node.images().await?;
    Ok(node.answer(deed, None, images.pull_image(request)).await?.image_ref)
}

impl Credentials {
    /// User and password, or nothing for an anonymous pull.
    fn auth(&self) -> Result<Option<AuthConfig>, Error> {
        let pair = match (&self.creds, &self.auth, &self.username) {
            (Some(creds), ..) => split(creds),
            (_, Some(auth), _) => decoded(auth)?,
            (.., Some(user)) => (user.clone(), ask_password(user)?),
            _ => return Ok(None),
        };
        if pair.0.is_empty() {
            return Err(Error::usage("the user name for the registry is empty"));
        }
        Ok(Some(AuthConfig { username: pair.0, password: pair.1, ..Default::default() }))
    }
}

fn split(pair: &str) -> (String, String) {
    let (user, password) = pair.split_once(':').unwrap_or((pair, ""));
    (user.into(), password.into())
}

fn decoded(auth: &str) -> Result<(String, String), Error> {
    let bytes = BASE64.decode(auth.trim()).ok();
    let text = bytes.and_then(|bytes| String::from_utf8(bytes).ok());
    // Some tools pad with NUL.
    let text = text.as_deref().map(|text| text.trim_end_matches('\0'));
    text.map(split).ok_or_else(|| Error::usage("--auth is not base64 of USER:PASSWORD"))
}

fn ask_password(user: &str) -> Result<String, Error> {
    rpassword::prompt_password(format!("Password for {user}: ")).map_err(Error::Start)
}

#[cfg(test)]
mod tests {
    use berth_api::pull::PullProgress;
    use berth_api::pull::pull_progress::{Done, Resolved};
    use berth_api::pull::pulls_server::{Pulls, PullsServer};
    use tokio_stream::wrappers::UnixListenerStream;
    use tonic::transport::Server;
    use tonic::{Request, Response, Status};

    use super::*;
    use crate::settings::Settings;

    fn auth(creds: Option<&str>, auth: Option<&str>) -> Result<Option<(String, String)>, Error> {
        let own = |text: Option<&str>| text.map(String::from);
        let credentials = Credentials { creds: own(creds), auth: own(auth), ..Default::default() };
        Ok(credentials.auth()?.map(|auth| (auth.username, auth.password)))
    }

    #[test]
    fn credentials_come_in_two_forms() {
        let pair = |user: &str, password: &str| Some((user.to_owned(), password.to_owned()));
        assert_eq!(auth(None, None).unwrap(), None);
        assert_eq!(auth(Some("u:p:q"), None).unwrap(), pair("u", "p:q"));
        assert_eq!(auth(Some("u"), None).unwrap(), pair("u", ""));
        assert_eq!(auth(None, Some("dTpw")).unwrap(), pair("u", "p"));
        assert!(auth(None, Some("!")).is_err() && auth(Some(":p"), None).is_err());
    }

    type Events = Vec<Result<PullProgress, Status>>;

    /// A registry's worth of scripted answers.
    struct Script(Events);

    #[tonic::async_trait]
    impl Pulls for Script {
        type PullStream = tokio_stream::Iter<std::vec::IntoIter<Result<PullProgress, Status>>>;

        async fn pull(&self, request: Request<PullRequest>) -> Result<Response<Self::PullStream>, Status> {
            let request = request.into_inner();
            assert_eq!((request.image.as_str(), request.username.as_str()), ("r/x:1", "u"));
            Ok(Response::new(tokio_stream::iter(self.0.clone())))
        }
    }

    fn event(event: Event) -> Result<PullProgress, Status> {
        Ok(PullProgress { event: Some(event) })
    }

    async fn pulled(events: Events) -> Result<String, Error> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("node.sock");
        let socket = tokio::net::UnixListener::bind(&path).unwrap();
        let server = Server::builder().add_service(PullsServer::new(Script(events)));
        let serving = tokio::spawn(server.serve_with_incoming(UnixListenerStream::new(socket)));
        let endpoint = format!("unix://{}", path.display());
        let node = Node::new(Settings {
            image_endpoint: endpoint.clone(),
            runtime_endpoint: endpoint,
            timeout: Duration::from_secs(10),
            debug: false,
            pull_on_create: false,
        });
        let credentials = Credentials { creds: Some("u:p".into()), ..Default::default() };
        let wanted = Wanted { image: "r/x:1".into(), annotations: HashMap::new(), pod: None };
        let end = pull(&node, wanted, &credentials).await;
        serving.abort();
        end
    }

    #[tokio::test]
    async fn a_pull_ends_with_the_image_or_with_the_reason() {
        let resolved = || event(Event::Resolved(Resolved { reference: "r/x:1".into(), ..Default::default() }));
        let done = event(Event::Done(Done { image_id: "sha256:i".into(), ..Default::default() }));
        // An event of a kind that is yet to be invented does no harm.
        let unknown = Ok(PullProgress { event: None });
        assert_eq!(pulled(vec![resolved(), unknown, done]).await.unwrap(), "sha256:i");
        let error = pulled(vec![resolved(), Err(Status::unauthenticated("registry r wants a password"))]).await;
        assert_eq!(error.unwrap_err().to_string(), "pull r/x:1: registry r wants a password (Unauthenticated)");
        let error = pulled(vec![resolved()]).await.unwrap_err().to_string();
        assert!(error.contains("hung up before the pull was done"), "{error}");
    }
}
