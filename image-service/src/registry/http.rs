//! HTTP to one registry: connections, redirects, the answer to a challenge. Never sends an `Authorization` to another
//! origin than the one it is for, and never leaves HTTPS for HTTP.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, Request, Response, StatusCode, Uri};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use super::auth::{Challenge, Credentials, TOKEN_MAX, TokenAnswer, encode};
use super::retry::Failed;
use crate::error::{Error, RegistryFailure};

type Https = Client<HttpsConnector<HttpConnector>, Full<Bytes>>;
type Plain = Client<HttpConnector, Full<Bytes>>;

/// Redirects followed for one request.
const REDIRECTS_MAX: usize = 5;
/// Time to get a connection.
const CONNECT: Duration = Duration::from_secs(10);
/// Time an unused connection is kept.
const IDLE: Duration = Duration::from_secs(30);
/// Bytes read from a socket at once.
const READ_BUFFER: usize = 64 << 10;
/// Bytes of a refusal's text that are repeated to the user.
const REASON_MAX: usize = 4 << 10;

/// Connections, by what they trust. The system's authorities are read when the first HTTPS connection needs them.
pub(super) struct Connections {
    plain: Plain,
    https: Mutex<HashMap<Option<PathBuf>, Https>>,
    /// Time without a byte after which a request is given up.
    pub(super) patience: Duration,
}

impl Connections {
    pub(super) fn new(patience: Duration) -> Self {
        let plain = Client::builder(TokioExecutor::new())
            .pool_idle_timeout(IDLE)
            .pool_timer(TokioTimer::new())
            .http1_max_buf_size(READ_BUFFER)
            .build(connector());
        Self { plain, https: Mutex::default(), patience }
    }

    fn https(&self, ca_file: Option<&Path>) -> Result<Https, RegistryFailure> {
        let key = ca_file.map(Path::to_owned);
        let mut clients = self.https.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = clients.get(&key) {
            return Ok(client.clone());
        }
        let tls = tls(ca_file).map_err(RegistryFailure::Protocol)?;
        let connector = HttpsConnectorBuilder::new().with_tls_config(tls).https_only().enable_http1();
        let client = Client::builder(TokioExecutor::new())
            .pool_idle_timeout(IDLE)
            .pool_timer(TokioTimer::new())
            .http1_max_buf_size(READ_BUFFER)
            .build(connector.wrap_connector(connector_for_tls()));
        clients.insert(key, client.clone());
        Ok(client)
    }

    /// One exchange, no redirect followed.
    async fn exchange(
        &self,
        request: Request<Full<Bytes>>,
        ca_file: Option<&Path>,
    ) -> Result<Response<Incoming>, RegistryFailure> {
        let sent = match request.uri().scheme_str() {
            Some("https") => self.https(ca_file)?.request(request),
            _ => self.plain.request(request),
        };
        match tokio::time::timeout(self.patience, sent).await {
            Ok(answer) => answer.map_err(|error| RegistryFailure::Unreachable(causes(&error))),
            Err(_) => Err(RegistryFailure::Stalled(self.patience.as_secs())),
        }
    }
}

fn connector() -> HttpConnector {
    let mut connector = HttpConnector::new();
    connector.set_connect_timeout(Some(CONNECT));
    connector.set_nodelay(true);
    connector
}

fn connector_for_tls() -> HttpConnector {
    let mut connector = connector();
    connector.enforce_http(false);
    connector
}

fn tls(ca_file: Option<&Path>) -> Result<rustls::ClientConfig, String> {
    let mut roots = rustls::RootCertStore::empty();
    let native = rustls_native_certs::load_native_certs();
    for error in &native.errors {
        tracing::debug!(%error, "one of the system's certificates cannot be read");
    }
    roots.add_parsable_certificates(native.certs);
    if let Some(path) = ca_file {
        let unreadable = |error: &dyn std::fmt::Display| format!("read authorities {}: {error}", path.display());
        let certificates = CertificateDer::pem_file_iter(path).map_err(|error| unreadable(&error))?;
        for certificate in certificates {
            let certificate = certificate.map_err(|error| unreadable(&error))?;
            roots.add(certificate).map_err(|error| unreadable(&error))?;
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    Ok(config.map_err(|error| error.to_string())?.with_root_certificates(roots).with_no_client_auth())
}

/// An error and its causes in one line. hyper's own text says only the stage.
pub(super) fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// One place that may have an image: the registry itself or a mirror of it.
pub(super) struct Endpoint {
    /// As the operator or the reference wrote it; for messages.
    pub(super) name: String,
    /// `http` or `https`, host and port, and a path before `/v2`, without a slash at its end.
    pub(super) base: String,
    /// Query added to every request; tells a mirror whom it stands for.
    pub(super) query: String,
    pub(super) ca_file: Option<PathBuf>,
    pub(super) credentials: Credentials,
    /// The `Authorization` that worked last.
    pub(super) authorization: Mutex<Option<String>>,
}

impl Endpoint {
    fn authorization(&self) -> Option<String> {
        self.authorization.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn authorize(&self, header: Option<String>) {
        *self.authorization.lock().unwrap_or_else(PoisonError::into_inner) = header;
    }

    /// GETs `path` below `/v2/`; answers a challenge once, follows redirects. Any 2xx is success.
    pub(super) async fn get(
        &self,
        connections: &Connections,
        path: &str,
        headers: &[(HeaderName, String)],
        scope: &str,
    ) -> Result<Response<Incoming>, Failed> {
        let first = format!("{}/v2/{path}{}", self.base, self.query);
        let first: Uri = first.parse().map_err(|_| protocol(format!("no address: {first}")))?;
        let mut challenged = false;
        loop {
            let (answer, at_home) = self.follow(connections, &first, headers).await?;
            if answer.status() != StatusCode::UNAUTHORIZED || !at_home || challenged {
                return check(answer).await;
            }
            challenged = true;
            let asked = answer.headers().get_all(header::WWW_AUTHENTICATE);
            let challenge = Challenge::parse(asked.iter().filter_map(|value| value.to_str().ok()));
            match self.answer(connections, challenge, scope).await? {
                Some(header) => self.authorize(Some(header)),
                None => return check(answer).await,
            }
        }
    }

    /// Follows redirects. Also says whether the answer is of the registry's own origin.
    async fn follow(
        &self,
        connections: &Connections,
        first: &Uri,
        headers: &[(HeaderName, String)],
    ) -> Result<(Response<Incoming>, bool), Failed> {
        let mut uri = first.clone();
        for _ in 0..=REDIRECTS_MAX {
            let at_home = same_origin(first, &uri);
            let mut request = Request::new(Full::default());
            *request.uri_mut() = uri.clone();
            for (name, value) in headers {
                request.headers_mut().insert(name, header_value(value)?);
            }
            request.headers_mut().insert(header::USER_AGENT, HeaderValue::from_static(AGENT));
            if let Some(authorization) = self.authorization().filter(|_| at_home) {
                let mut value = header_value(&authorization)?;
                value.set_sensitive(true);
                request.headers_mut().insert(header::AUTHORIZATION, value);
            }
            let answer = connections.exchange(request, self.ca_file.as_deref()).await?;
            let status = answer.status().as_u16();
            if !matches!(status, 301 | 302 | 303 | 307 | 308) {
                return Ok((answer, at_home));
            }
            let location = answer.headers().get(header::LOCATION).and_then(|value| value.to_str().ok());
            let next = location.and_then(|text| resolve(&uri, text)).ok_or_else(|| protocol("redirects nowhere"))?;
            if uri.scheme_str() == Some("https") && next.scheme_str() != Some("https") {
                return Err(protocol("redirects from https to http, not followed").into());
            }
            uri = next;
        }
        Err(protocol(format!("redirects more than {REDIRECTS_MAX} times")).into())
    }

    /// The header that answers a challenge, or that we have none.
    async fn answer(
        &self,
        connections: &Connections,
        challenge: Option<Challenge>,
        scope: &str,
    ) -> Result<Option<String>, Failed> {
        let (realm, service, asked) = match challenge {
            None => return Ok(None),
            Some(Challenge::Basic) => return Ok(self.credentials.header()),
            Some(Challenge::Bearer { .. }) if matches!(self.credentials, Credentials::Registry(_)) => {
                return Ok(self.credentials.header());
            }
            Some(Challenge::Bearer { realm, service, scope }) => (realm, service, scope),
        };
        let uri: Uri = realm.parse().map_err(|_| protocol(format!("token server {realm:?} is no address")))?;
        match uri.scheme_str() {
            Some("https") => {}
            Some("http") if self.base.starts_with("http:") => {}
            _ => {
                return Err(protocol(format!("token server {realm} is not https, not asked")).into());
            }
        }
        let scope = if asked.is_empty() { scope } else { &asked };
        let request = token_request(&uri, &service, scope, &self.credentials)?;
        let answer = connections.exchange(request, self.ca_file.as_deref()).await?;
        let host = uri.authority().map(ToString::to_string).unwrap_or_default();
        if matches!(answer.status(), StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::BAD_REQUEST) {
            return Err(
                RegistryFailure::Unauthorized(format!("token server {host} answered {}", answer.status())).into()
            );
        }
        let answer = check(answer).await?;
        let body = read(answer, TOKEN_MAX, connections.patience).await?;
        let token: TokenAnswer =
            serde_json::from_slice(&body).map_err(|_| protocol(format!("token server {host} gave no JSON")))?;
        let header = token.header().ok_or_else(|| protocol(format!("token server {host} gave no token")))?;
        Ok(Some(header))
    }
}

const AGENT: &str = concat!("berth/", env!("CARGO_PKG_VERSION"));

pub(super) fn token_request(
    realm: &Uri,
    service: &str,
    scope: &str,
    credentials: &Credentials,
) -> Result<Request<Full<Bytes>>, RegistryFailure> {
    let fields = format!("service={}&scope={}", encode(service), encode(scope));
    let mut request = Request::new(Full::default());
    request.headers_mut().insert(header::USER_AGENT, HeaderValue::from_static(AGENT));
    if let Credentials::Identity(token) = credentials {
        let form = format!("grant_type=refresh_token&client_id=berth&{fields}&refresh_token={}", encode(token));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = realm.clone();
        let kind = HeaderValue::from_static("application/x-www-form-urlencoded");
        request.headers_mut().insert(header::CONTENT_TYPE, kind);
        *request.body_mut() = Full::from(form);
        return Ok(request);
    }
    let separator = if realm.query().is_some() { '&' } else { '?' };
    let uri = format!("{realm}{separator}{fields}");
    *request.uri_mut() = uri.parse().map_err(|_| protocol("token server has no address"))?;
    if let Some(value) = credentials.header() {
        let mut value = header_value(&value)?;
        value.set_sensitive(true);
        request.headers_mut().insert(header::AUTHORIZATION, value);
    }
    Ok(request)
}

fn header_value(text: &str) -> Result<HeaderValue, RegistryFailure> {
    HeaderValue::from_str(text).map_err(|_| protocol("a request header would hold control characters"))
}

fn protocol(why: impl Into<String>) -> RegistryFailure {
    RegistryFailure::Protocol(why.into())
}

/// Turns anything but a 2xx into a failure, with the registry's own words.
async fn check(answer: Response<Incoming>) -> Result<Response<Incoming>, Failed> {
    let status = answer.status();
    if status.is_success() {
        return Ok(answer);
    }
    let retry_after = retry_after(answer.headers());
    let reason = match read(answer, REASON_MAX, Duration::from_secs(5)).await {
        Ok(body) => reason(&body),
        Err(_) => String::new(),
    };
    let why = match status.as_u16() {
        401 => RegistryFailure::Unauthorized(format!("credentials are missing or refused{reason}")),
        403 => RegistryFailure::Forbidden(reason),
        404 => RegistryFailure::NotFound(reason),
        429 => RegistryFailure::TooManyRequests(reason),
        code => RegistryFailure::Status(code, reason),
    };
    Err(Failed { why, retry_after })
}

/// Seconds, or a date, which registries hardly use: that is then the usual backoff.
pub(super) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim().parse().ok().map(Duration::from_secs)
}

/// The first error of a registry's answer (distribution-spec, "Error Codes"), short and printable.
pub(super) fn reason(body: &[u8]) -> String {
    #[derive(serde::Deserialize)]
    struct Answer {
        errors: Vec<Item>,
    }
    #[derive(serde::Deserialize)]
    struct Item {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    let Ok(answer) = serde_json::from_slice::<Answer>(body) else {
        return String::new();
    };
    let Some(item) = answer.errors.first() else {
        return String::new();
    };
    let text: String =
        format!("{} {}", item.code, item.message).chars().filter(|c| !c.is_control()).take(200).collect();
    format!(" ({})", text.trim())
}

/// Reads a whole body of at most `most` bytes.
pub(super) async fn read(
    answer: Response<Incoming>,
    most: usize,
    patience: Duration,
) -> Result<Bytes, RegistryFailure> {
    let body = Limited::new(answer.into_body(), most).collect();
    match tokio::time::timeout(patience, body).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => {
            Err(protocol(format!("answer larger than {most} bytes")))
        }
        Ok(Err(error)) => Err(RegistryFailure::Unreachable(causes(error.as_ref()))),
        Err(_) => Err(RegistryFailure::Stalled(patience.as_secs())),
    }
}

fn same_origin(one: &Uri, other: &Uri) -> bool {
    let port = |uri: &Uri| {
        uri.port_u16().or(match uri.scheme_str() {
            Some("https") => Some(443),
            _ => Some(80),
        })
    };
    let host = |uri: &Uri| uri.host().map(str::to_ascii_lowercase);
    one.scheme() == other.scheme() && host(one) == host(other) && port(one) == port(other)
}

/// Where a `Location` leads from `base` (RFC 3986, 5.2, without dot segments, which servers do not send).
pub(super) fn resolve(base: &Uri, location: &str) -> Option<Uri> {
    let (scheme, authority) = (base.scheme_str()?, base.authority()?);
    let text = if location.starts_with("http://") || location.starts_with("https://") {
        location.to_owned()
    } else if location.starts_with("//") {
        format!("{scheme}:{location}")
    } else if location.starts_with('/') {
        format!("{scheme}://{authority}{location}")
    } else if location.starts_with('?') {
        format!("{scheme}://{authority}{}{location}", base.path())
    } else {
        let (directory, _) = base.path().rsplit_once('/')?;
        format!("{scheme}://{authority}{directory}/{location}")
    };
    let uri: Uri = text.parse().ok()?;
    let plain = uri.authority().is_some_and(|authority| !authority.as_str().contains('@'));
    plain.then_some(uri)
}

/// An error with the place and the deed around it.
pub(super) fn located(endpoint: &Endpoint, step: String) -> impl FnOnce(RegistryFailure) -> Error {
    let host = endpoint.name.clone();
    move |source| Error::Registry { host, step, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_location_leads_where_browsers_would_go() {
        let base: Uri = "https://a.example:5000/v2/x/blobs/1?q=1".parse().unwrap();
        let cases = [
            ("http://b/c", Some("http://b/c")),
            ("//b/c", Some("https://b/c")),
            ("/c?d", Some("https://a.example:5000/c?d")),
            ("2?e", Some("https://a.example:5000/v2/x/blobs/2?e")),
            ("?e", Some("https://a.example:5000/v2/x/blobs/1?e")),
            ("https://user:secret@b/", None),
            ("", Some("https://a.example:5000/v2/x/blobs/")),
            ("ftp://b/", Some("https://a.example:5000/v2/x/blobs/ftp://b/")),
        ];
        for (location, expected) in cases {
            assert_eq!(resolve(&base, location).map(|uri| uri.to_string()).as_deref(), expected, "{location}");
        }
    }

    #[test]
    fn another_port_or_scheme_is_another_origin() {
        let same = |one: &str, other: &str| same_origin(&one.parse().unwrap(), &other.parse().unwrap());
        assert!(same("https://A.example/x", "https://a.example:443/y"));
        assert!(!same("https://a.example/", "https://a.example:444/"));
        assert!(!same("https://a.example:80/", "http://a.example/"));
        assert!(!same("http://a.example/", "http://b.example/"));
    }

    #[test]
    fn a_refusal_is_repeated_in_short() {
        let body = br#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest\nunknown"}]}"#;
        assert_eq!(reason(body), " (MANIFEST_UNKNOWN manifestunknown)");
        assert_eq!(reason(b"<html>"), "");
    }
}
