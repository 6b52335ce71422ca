//! What registries and token servers answer, for `test/fuzz`.

use hyper::Uri;
use hyper::header::{HeaderMap, HeaderValue, RETRY_AFTER};

use super::auth::{Challenge, Credentials, TokenAnswer, encode};
use super::http::{reason, resolve, retry_after, token_request};

/// Challenges, one a line; the same bytes as a body, a redirect, a `Retry-After` and the `auth` of a configuration.
/// Whatever they say, the request to the token server has one query, and no redirect takes credentials along.
pub fn registry_answers(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    if let Some(Challenge::Bearer { realm, service, scope }) = Challenge::parse(text.lines()) {
        assert!(!realm.is_empty());
        for value in [&service, &scope] {
            assert!(encode(value).bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._~%".contains(&byte)));
        }
        if let Ok(uri) = realm.parse::<Uri>() {
            for credentials in [Credentials::Anonymous, Credentials::Identity("t".into())] {
                let _ = token_request(&uri, &service, &scope, &credentials);
            }
        }
    }
    if let Ok(answer) = serde_json::from_slice::<TokenAnswer>(data)
        && let Some(header) = answer.header()
    {
        assert!(HeaderValue::from_str(&header).is_ok());
    }
    let told = reason(data);
    assert!(told.chars().count() <= 203 && !told.contains(char::is_control));
    let base = Uri::from_static("https://registry.example:5000/v2/a/blobs/b?c=d");
    if let Some(next) = resolve(&base, &text) {
        assert!(next.scheme().is_some() && next.authority().is_some_and(|a| !a.as_str().contains('@')));
    }
    if let Ok(value) = HeaderValue::from_bytes(data) {
        retry_after(&HeaderMap::from_iter([(RETRY_AFTER, value)]));
    }
    if let Ok(credentials) = Credentials::from_auth(text.trim()) {
        assert!(format!("{credentials:?}").len() < 16);
    }
}
