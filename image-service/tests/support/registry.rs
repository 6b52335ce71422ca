//! A registry in the test's own process: serves what it was given, misbehaves as it was told, and remembers what it was
//! asked.

use std::collections::{HashMap, VecDeque};
use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine;
use bytes::Bytes;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;

use super::image::digest;

/// What a path does instead of its duty, once.
#[derive(Clone, Debug)]
pub enum Fault {
    /// Answers with this status and headers.
    Status(u16, Vec<(&'static str, String)>),
    /// Sends so many bytes of the body it announced, then hangs up.
    Cut(usize),
    /// Sends so many bytes and no more, but keeps the connection.
    Hang(usize),
    /// Serves these bytes instead.
    Bytes(Vec<u8>),
    /// Sends so many bytes every 10 ms.
    Slow(usize),
    /// Ignores the `Range` header.
    NoRange,
}

/// Who is let in.
#[derive(Clone)]
pub enum Auth {
    Open,
    Basic(String, String),
    /// A token server at `/token` gives a token for name and password, or for a refresh token.
    Bearer {
        username: String,
        password: String,
        refresh: String,
    },
}

/// A request as it came.
#[derive(Clone, Debug)]
pub struct Asked {
    pub path: String,
    pub query: String,
    pub authorization: Option<String>,
    pub range: Option<String>,
    pub body: String,
}

struct State {
    blobs: Mutex<HashMap<String, Bytes>>,
    manifests: Mutex<HashMap<String, (String, Bytes)>>,
    faults: Mutex<HashMap<String, VecDeque<Fault>>>,
    asked: Mutex<Vec<Asked>>,
    auth: Mutex<Auth>,
    host: String,
    tls: bool,
}

/// The registry. It ends with the runtime of its test.
pub struct Registry {
    state: Arc<State>,
}

const TOKEN: &str = "let-me-in";

type Body = http_body_util::combinators::BoxBody<Bytes, std::io::Error>;

impl Registry {
    pub async fn start() -> Self {
        Self::serve(None).await
    }

    /// Over TLS, and the PEM of the authority that signed for it.
    pub async fn start_tls() -> (Self, String) {
        let mut authority = rcgen::CertificateParams::new(Vec::new()).unwrap();
        authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = authority.self_signed(&key).unwrap();
        let issuer = rcgen::Issuer::new(authority, key);
        let own = rcgen::KeyPair::generate().unwrap();
        let leaf = rcgen::CertificateParams::new(vec!["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
        let leaf = leaf.signed_by(&own, &issuer).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![leaf.der().clone()],
                rustls::pki_types::PrivateKeyDer::try_from(own.serialize_der()).unwrap(),
            )
            .unwrap();
        (Self::serve(Some(TlsAcceptor::from(Arc::new(config)))).await, certificate.pem())
    }

    async fn serve(tls: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let state = Arc::new(State {
            blobs: Mutex::default(),
            manifests: Mutex::default(),
            faults: Mutex::default(),
            asked: Mutex::default(),
            auth: Mutex::new(Auth::Open),
            host,
            tls: tls.is_some(),
        });
        let shared = Arc::clone(&state);
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (state, tls) = (Arc::clone(&shared), tls.clone());
                tokio::spawn(async move {
                    let service = hyper::service::service_fn(move |request| {
                        let state = Arc::clone(&state);
                        async move { Ok::<_, Infallible>(state.answer(request).await) }
                    });
                    let http = hyper::server::conn::http1::Builder::new();
                    let _ = match tls {
                        None => http.serve_connection(TokioIo::new(stream), service).await,
                        Some(tls) => match tls.accept(stream).await {
                            Ok(stream) => http.serve_connection(TokioIo::new(stream), service).await,
                            Err(_) => return,
                        },
                    };
                });
            }
        });
        Self { state }
    }

    /// Host and port.
    pub fn host(&self) -> &str {
        &self.state.host
    }

    pub fn url(&self) -> String {
        format!("http{}://{}", if self.state.tls { "s" } else { "" }, self.state.host)
    }

    /// `HOST/name`.
    pub fn image(&self, name: &str) -> String {
        format!("{}/{name}", self.state.host)
    }

    pub fn put_blob(&self, bytes: &[u8]) -> String {
        let name = digest(bytes);
        self.state.blobs.lock().unwrap().insert(name.clone(), Bytes::copy_from_slice(bytes));
        name
    }

    /// Puts a manifest under `repository:tag` and under its digest.
    pub fn put_manifest(&self, name: &str, media_type: &str, bytes: &[u8]) -> String {
        let (repository, tag) = name.rsplit_once(':').unwrap_or((name, "latest"));
        let own = digest(bytes);
        let mut manifests = self.state.manifests.lock().unwrap();
        for reference in [tag, &own] {
            let value = (media_type.to_owned(), Bytes::copy_from_slice(bytes));
            manifests.insert(format!("{repository}/manifests/{reference}"), value);
        }
        own
    }

    pub fn require(&self, auth: Auth) {
        *self.state.auth.lock().unwrap() = auth;
    }

    /// The next answers for paths that end in `path` are these.
    pub fn fail(&self, path: &str, faults: impl IntoIterator<Item = Fault>) {
        self.state.faults.lock().unwrap().entry(path.to_owned()).or_default().extend(faults);
    }

    pub fn asked(&self) -> Vec<Asked> {
        self.state.asked.lock().unwrap().clone()
    }

    /// How often a path that ends in `path` was asked for.
    pub fn count(&self, path: &str) -> usize {
        self.asked().iter().filter(|asked| asked.path.ends_with(path)).count()
    }
}

impl State {
    async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        let header = |name: &str| request.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let path = request.uri().path().to_owned();
        let query = request.uri().query().unwrap_or_default().to_owned();
        let (authorization, range) = (header("authorization"), header("range"));
        let body = request.into_body().collect().await.unwrap().to_bytes();
        let body = String::from_utf8_lossy(&body).into_owned();
        let asked = Asked { path: path.clone(), query, authorization, range, body };
        self.asked.lock().unwrap().push(asked.clone());
        let fault = {
            let mut faults = self.faults.lock().unwrap();
            faults
                .iter_mut()
                .find(|(suffix, _)| path.ends_with(suffix.as_str()))
                .and_then(|(_, faults)| faults.pop_front())
        };
        if path == "/token" {
            return self.token(&asked);
        }
        if let Some(Fault::Status(code, headers)) = &fault {
            let mut response = plain(*code, Bytes::from_static(b"{}"));
            for (name, value) in headers {
                response.headers_mut().append(*name, value.parse().unwrap());
            }
            return response;
        }
        if let Some(refusal) = self.refusal(&asked) {
            return refusal;
        }
        let path = path.trim_start_matches("/v2/");
        let manifest = self.manifests.lock().unwrap().get(path).cloned();
        if let Some((media_type, bytes)) = manifest {
            let bytes = if let Some(Fault::Bytes(bytes)) = fault { Bytes::from(bytes) } else { bytes };
            let mut response = plain(200, bytes);
            response.headers_mut().insert("content-type", media_type.parse().unwrap());
            return response;
        }
        let blob = path.rsplit_once("/blobs/").and_then(|(_, name)| self.blobs.lock().unwrap().get(name).cloned());
        let Some(blob) = blob else {
            return plain(404, Bytes::from_static(br#"{"errors":[{"code":"NOT_FOUND","message":"no such thing"}]}"#));
        };
        serve(blob, asked.range.as_deref(), fault)
    }

    fn refusal(&self, asked: &Asked) -> Option<Response<Body>> {
        let (wanted, challenge) = match &*self.auth.lock().unwrap() {
            Auth::Open => return None,
            Auth::Basic(username, password) => (basic(username, password), "Basic realm=\"test\"".to_owned()),
            Auth::Bearer { .. } => {
                let scheme = if self.tls { "https" } else { "http" };
                let realm = format!("{scheme}://{}/token", self.host);
                let challenge = format!("Bearer realm=\"{realm}\",service=\"test\",scope=\"repository:app:pull\"");
                (format!("Bearer {TOKEN}"), challenge)
            }
        };
        if asked.authorization.as_ref() == Some(&wanted) {
            return None;
        }
        let mut response = plain(401, Bytes::new());
        response.headers_mut().insert("www-authenticate", challenge.parse().unwrap());
        Some(response)
    }

    fn token(&self, asked: &Asked) -> Response<Body> {
        let Auth::Bearer { username, password, refresh } = &*self.auth.lock().unwrap() else {
            return plain(404, Bytes::new());
        };
        let by_password = asked.authorization.as_ref() == Some(&basic(username, password));
        let by_refresh = asked.body.contains(&format!("refresh_token={refresh}"));
        if by_password || by_refresh {
            plain(200, Bytes::from(format!("{{\"token\":\"{TOKEN}\",\"expires_in\":300}}")))
        } else {
            plain(401, Bytes::new())
        }
    }
}

fn basic(username: &str, password: &str) -> String {
    format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(format!("{username}:{password}")))
}

fn plain(code: u16, bytes: Bytes) -> Response<Body> {
    let body = http_body_util::Full::new(bytes).map_err(|never| match never {}).boxed();
    Response::builder().status(code).body(body).unwrap()
}

/// A blob or a range of it, with the fault in it.
fn serve(blob: Bytes, range: Option<&str>, fault: Option<Fault>) -> Response<Body> {
    let blob = if let Some(Fault::Bytes(bytes)) = &fault { Bytes::copy_from_slice(bytes) } else { blob };
    let start = range.and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse::<usize>().ok());
    let start = if matches!(fault, Some(Fault::NoRange)) { None } else { start };
    let total = blob.len();
    let body = blob.slice(start.unwrap_or(0)..);
    let mut response = Response::builder().header("content-length", body.len());
    if let Some(start) = start {
        response = response.status(206).header("content-range", format!("bytes {start}-{}/{total}", total - 1));
    }
    let (sender, receiver) = mpsc::channel::<Result<Frame<Bytes>, std::io::Error>>(1);
    tokio::spawn(async move {
        let step = if let Some(Fault::Slow(step)) = fault { step } else { 64 << 10 };
        let end = match fault {
            Some(Fault::Cut(end) | Fault::Hang(end)) => end.min(body.len()),
            _ => body.len(),
        };
        for at in (0..end).step_by(step) {
            if sender.send(Ok(Frame::data(body.slice(at..end.min(at + step))))).await.is_err() {
                return;
            }
            if matches!(fault, Some(Fault::Slow(_))) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
        match fault {
            Some(Fault::Cut(_)) => drop(sender.send(Err(std::io::Error::other("cut"))).await),
            Some(Fault::Hang(_)) => tokio::time::sleep(Duration::from_secs(3600)).await,
            _ => {}
        }
    });
    let stream =
        futures::stream::unfold(receiver, |mut receiver| async move { Some((receiver.recv().await?, receiver)) });
    response.body(BodyExt::boxed(StreamBody::new(Box::pin(SyncStream(Mutex::new(Box::pin(stream))))))).unwrap()
}

/// hyper's boxed body wants `Sync`.
struct SyncStream<S>(Mutex<std::pin::Pin<Box<S>>>);

impl<S: futures::Stream> futures::Stream for SyncStream<S> {
    type Item = S::Item;

    fn poll_next(
        self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Self::Item>> {
        self.0.lock().unwrap().as_mut().poll_next(cx)
    }
}
