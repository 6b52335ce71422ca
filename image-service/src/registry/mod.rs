//! Registries: manifests and blobs over the OCI distribution protocol, from a host or its mirrors. Streams; never
//! touches a disk, and never judges what it fetched but by length.

mod auth;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod http;
mod retry;

use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::StatusCode;
use hyper::body::Incoming;
use hyper::header::{self, HeaderName};
use tokio::sync::mpsc;

pub(crate) use auth::Credentials;
use http::{Connections, Endpoint, located};
use retry::{ATTEMPTS, ATTEMPTS_OF_MIRROR, Failed, luck};

use crate::config::{Config, Registry};
use crate::digest::Digest;
use crate::error::{Error, RegistryFailure};
use crate::manifest::{ACCEPT, DOCUMENT_MAX, Descriptor};
use crate::reference::Reference;

/// Bytes that count as progress between two broken connections.
const PROGRESS: u64 = 64 << 10;
/// Connections one blob may take in all.
const CONNECTIONS_MAX: u32 = 100;

/// The registries as the operator configured them.
pub(crate) struct Registries {
    config: Config,
    connections: Arc<Connections>,
}

impl Registries {
    pub(crate) fn new(config: &Config) -> Self {
        let connections = Arc::new(Connections::new(config.progress_timeout()));
        Self { config: config.clone(), connections }
    }

    /// The places that may have the repository of `reference`, in the order to ask them.
    pub(crate) fn session(&self, reference: &Reference, credentials: Credentials) -> Session {
        let rule = self.config.registry(&reference.host);
        let mirrors = rule.mirrors.iter().map(|mirror| {
            let credentials = if rule.credentials_to_mirrors { credentials.clone() } else { Credentials::Anonymous };
            endpoint(mirror, mirror, format!("?ns={}", reference.host), &rule, credentials)
        });
        let own = format!("{}://{}", scheme(&reference.host, &rule), wire_host(&reference.host));
        let mut endpoints: Vec<Endpoint> = mirrors.collect();
        endpoints.push(endpoint(&reference.host, &own, String::new(), &rule, credentials.clone()));
        Session {
            path: reference.path.clone(),
            endpoints,
            preferred: AtomicUsize::new(0),
            connections: Arc::clone(&self.connections),
        }
    }
}

fn endpoint(name: &str, base: &str, query: String, rule: &Registry, credentials: Credentials) -> Endpoint {
    let base = base.trim_end_matches('/').to_owned();
    let ca_file = rule.ca_file.clone();
    Endpoint { name: name.to_owned(), base, query, ca_file, credentials, authorization: Mutex::default() }
}

/// Docker's registry answers to another name than its images carry.
fn wire_host(host: &str) -> &str {
    if host == "docker.io" { "registry-1.docker.io" } else { host }
}

fn scheme(host: &str, rule: &Registry) -> &'static str {
    let plain = rule.plain_http || (is_loopback(host) && rule.ca_file.is_none());
    if plain { "http" } else { "https" }
}

fn is_loopback(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    name == "localhost" || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// A manifest or index as it came.
pub(crate) struct Fetched {
    pub(crate) bytes: Bytes,
    pub(crate) content_type: Option<String>,
}

/// Where a blob's bytes go.
pub(crate) struct Sink {
    pub(crate) bytes: mpsc::Sender<Bytes>,
    /// Bytes of the blob had so far, those of an earlier attempt included.
    pub(crate) received: Arc<AtomicU64>,
}

/// How the sending of a blob ended without a registry's failure.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Sent {
    All,
    /// Nobody reads any more.
    Unwanted,
}

/// One pull's dealings with the places that may have its repository. Tokens live no longer than this.
pub(crate) struct Session {
    path: String,
    endpoints: Vec<Endpoint>,
    /// The one that answered last.
    preferred: AtomicUsize,
    connections: Arc<Connections>,
}

impl Session {
    /// Fetches a manifest by tag or digest from the first place that has it.
    pub(crate) async fn manifest(&self, name: &str) -> Result<Fetched, Error> {
        let path = format!("{}/manifests/{name}", self.path);
        let headers = [(header::ACCEPT, ACCEPT.to_owned())];
        self.anywhere(&format!("manifest {name}"), |endpoint| {
            let (path, headers) = (&path, &headers);
            async move { self.whole(endpoint, path, headers).await }
        })
        .await
    }

    /// Fetches a small blob whole.
    pub(crate) async fn document(&self, descriptor: &Descriptor) -> Result<Bytes, Error> {
        let path = format!("{}/blobs/{}", self.path, descriptor.digest);
        let step = format!("blob {}", descriptor.digest);
        let fetched = self.anywhere(&step, |endpoint| {
            let path = &path;
            async move { self.whole(endpoint, path, &[]).await }
        });
        Ok(fetched.await?.bytes)
    }

    async fn whole(
        &self,
        endpoint: &Endpoint,
        path: &str,
        headers: &[(HeaderName, String)],
    ) -> Result<Fetched, Failed> {
        let answer = endpoint.get(&self.connections, path, headers, &self.scope()).await?;
        let content_type = answer.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let content_type = content_type.map(str::to_owned);
        let bytes = http::read(answer, DOCUMENT_MAX, self.connections.patience).await?;
        Ok(Fetched { bytes, content_type })
    }

    fn scope(&self) -> String {
        format!("repository:{}:pull", self.path)
    }

    /// Asks one place after the other, each as often as makes sense. The registry itself, asked last, has the last word.
    async fn anywhere<'a, T, F>(&'a self, step: &str, ask: impl Fn(&'a Endpoint) -> F) -> Result<T, Error>
    where
        F: Future<Output = Result<T, Failed>>,
    {
        let mut tried = String::new();
        for (at, endpoint) in self.endpoints.iter().enumerate() {
            match self.patiently(at, || ask(endpoint)).await {
                Ok(answer) => {
                    self.preferred.store(at, Ordering::Relaxed);
                    return Ok(answer);
                }
                Err(why) if self.is_last(at) => {
                    return Err(located(endpoint, format!("{step}{}", among(&tried)))(why));
                }
                Err(why) => {
                    tracing::debug!(mirror = endpoint.name, %why, step, "mirror does not serve it");
                    tried = format!("{tried}{}{}: {why}", if tried.is_empty() { "" } else { "; " }, endpoint.name);
                }
            }
        }
        Err(Error::Task { task: "registry session", why: "has no place to ask".to_owned() })
    }

    fn is_last(&self, at: usize) -> bool {
        at + 1 == self.endpoints.len()
    }

    async fn patiently<T, F>(&self, at: usize, ask: impl Fn() -> F) -> Result<T, RegistryFailure>
    where
        F: Future<Output = Result<T, Failed>>,
    {
        let most = if self.is_last(at) { ATTEMPTS } else { ATTEMPTS_OF_MIRROR };
        let mut attempt = 1;
        loop {
            let failed = match ask().await {
                Ok(answer) => return Ok(answer),
                Err(failed) => failed,
            };
            attempt += 1;
            match failed.wait(attempt, luck()) {
                Some(wait) if attempt <= most => tokio::time::sleep(wait).await,
                _ => return Err(failed.why),
            }
        }
    }

    /// Streams a blob into `sink`, from byte `from` on. A broken connection is taken up where it broke, here or at
    /// another place that has the blob. The last byte is never sent twice and none beyond the stated size.
    pub(crate) async fn blob(&self, descriptor: &Descriptor, from: u64, sink: &Sink) -> Result<Sent, Error> {
        let mut stream = Stream { session: self, descriptor, at: from, sink };
        stream.sink.received.store(from, Ordering::Relaxed);
        let mut endpoint = self.preferred.load(Ordering::Relaxed);
        let mut failures = 0;
        let mut tried = String::new();
        for connection in 0.. {
            if stream.at == descriptor.size {
                return Ok(Sent::All);
            }
            let before = stream.at;
            let failed = match stream.go_on(&self.endpoints[endpoint]).await {
                Ok(sent) => return Ok(sent),
                Err(failed) => failed,
            };
            failures = if stream.at - before >= PROGRESS { 1 } else { failures + 1 };
            let most = if self.is_last(endpoint) { ATTEMPTS } else { ATTEMPTS_OF_MIRROR };
            match failed.wait(failures + 1, luck()) {
                Some(wait) if failures < most && connection < CONNECTIONS_MAX => {
                    tracing::debug!(blob = %descriptor.digest, at = stream.at, why = %failed.why, "blob broke off, going on");
                    tokio::time::sleep(wait).await;
                }
                _ if self.is_last(endpoint) => {
                    let step = format!("blob {}{}", descriptor.digest, among(&tried));
                    return Err(located(&self.endpoints[endpoint], step)(failed.why));
                }
                _ => {
                    tried = format!("{}: {}", self.endpoints[endpoint].name, failed.why);
                    endpoint += 1;
                    failures = 0;
                }
            }
        }
        Ok(Sent::All)
    }
}

/// What other places said, in brackets.
fn among(tried: &str) -> String {
    if tried.is_empty() { String::new() } else { format!(" (mirror {tried})") }
}

/// A blob on its way.
struct Stream<'a> {
    session: &'a Session,
    descriptor: &'a Descriptor,
    /// Bytes sent on so far.
    at: u64,
    sink: &'a Sink,
}

impl Stream<'_> {
    /// One connection's worth.
    async fn go_on(&mut self, endpoint: &Endpoint) -> Result<Sent, Failed> {
        let Descriptor { digest, size, .. } = *self.descriptor;
        let path = format!("{}/blobs/{digest}", self.session.path);
        let range: &[_] = &[(header::RANGE, format!("bytes={}-", self.at))];
        let headers = if self.at > 0 { range } else { &[] };
        let answer = endpoint.get(&self.session.connections, &path, headers, &self.session.scope()).await?;
        let skip = self.check_start(&answer)?;
        let mut body = answer.into_body();
        let mut skip = skip;
        loop {
            let Some(mut chunk) = self.chunk(&mut body).await? else {
                if self.at == size {
                    return Ok(Sent::All);
                }
                let why = format!("connection ended after {} of {size} bytes", self.at);
                return Err(RegistryFailure::Unreachable(why).into());
            };
            let drop = skip.min(chunk.len() as u64);
            skip -= drop;
            let chunk = chunk.split_off(drop as usize);
            let end = self.at + chunk.len() as u64;
            if end > size {
                return Err(RegistryFailure::Size { expected: size, actual: end }.into());
            }
            if !chunk.is_empty() && self.sink.bytes.send(chunk).await.is_err() {
                return Ok(Sent::Unwanted);
            }
            self.at = end;
            self.sink.received.store(end, Ordering::Relaxed);
        }
    }

    /// The bytes to skip because the server sent the blob from its start; or that it sent something else.
    fn check_start(&self, answer: &hyper::Response<Incoming>) -> Result<u64, RegistryFailure> {
        let number = |name: HeaderName| answer.headers().get(name)?.to_str().ok()?.trim().parse::<u64>().ok();
        let size = self.descriptor.size;
        if answer.status() == StatusCode::PARTIAL_CONTENT {
            let range = answer.headers().get(header::CONTENT_RANGE).and_then(|value| value.to_str().ok());
            let starts =
                range.and_then(|text| text.strip_prefix("bytes ")?.split('-').next()?.trim().parse::<u64>().ok());
            return match starts {
                Some(start) if start == self.at => Ok(0),
                _ => Err(RegistryFailure::Protocol("answered with another range than asked".to_owned())),
            };
        }
        match number(header::CONTENT_LENGTH) {
            Some(length) if length != size => Err(RegistryFailure::Size { expected: size, actual: length }),
            _ => Ok(self.at),
        }
    }

    async fn chunk(&self, body: &mut Incoming) -> Result<Option<Bytes>, RegistryFailure> {
        let patience = self.session.connections.patience;
        loop {
            match tokio::time::timeout(patience, body.frame()).await {
                Err(_) => return Err(RegistryFailure::Stalled(patience.as_secs())),
                Ok(None) => return Ok(None),
                Ok(Some(Err(error))) => {
                    return Err(RegistryFailure::Unreachable(http::causes(&error)));
                }
                Ok(Some(Ok(frame))) => {
                    if let Ok(data) = frame.into_data() {
                        return Ok(Some(data));
                    }
                }
            }
        }
    }
}

/// Whether bytes are what their digest says; the text names the registry's word for them.
pub(crate) fn verify(bytes: &[u8], expected: Digest, what: &str) -> Result<(), Error> {
    let actual = Digest::of(bytes);
    if actual == expected { Ok(()) } else { Err(Error::wrong_digest(what, expected, actual)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_plain_and_the_rest_is_not() {
        let rule = Registry::default();
        let secured = Registry { ca_file: Some("/ca.pem".into()), ..Registry::default() };
        let plain = Registry { plain_http: true, ..Registry::default() };
        for host in ["localhost", "localhost:5000", "127.0.0.1:5000", "127.9.9.9", "[::1]:5000"] {
            assert_eq!(scheme(host, &rule), "http", "{host}");
            assert_eq!(scheme(host, &secured), "https", "{host}");
        }
        for host in ["localhost.example", "10.0.0.1:5000", "registry.k8s.io", "[::2]"] {
            assert_eq!(scheme(host, &rule), "https", "{host}");
            assert_eq!(scheme(host, &plain), "http", "{host}");
        }
    }

    #[test]
    fn mirrors_come_first_and_see_no_credentials_unless_told() {
        let rule = |credentials_to_mirrors| Registry {
            host: "*".into(),
            mirrors: vec!["http://127.0.0.1:5000/".into()],
            credentials_to_mirrors,
            ..Registry::default()
        };
        let reference = Reference::parse("busybox").unwrap();
        for told in [false, true] {
            let config = Config { registries: vec![rule(told)], ..Config::default() };
            let session = Registries::new(&config).session(&reference, Credentials::basic("u", "p"));
            let bases: Vec<_> = session.endpoints.iter().map(|endpoint| endpoint.base.as_str()).collect();
            assert_eq!(bases, ["http://127.0.0.1:5000", "https://registry-1.docker.io"]);
            assert_eq!(session.endpoints[0].query, "?ns=docker.io");
            assert_eq!(session.endpoints[0].credentials != Credentials::Anonymous, told);
            assert!(session.endpoints[1].credentials != Credentials::Anonymous);
        }
    }
}
