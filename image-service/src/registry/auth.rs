//! Who we are to a registry: credentials, challenges, tokens. Pure but for nothing: the asking is `http.rs`'s.

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use serde::Deserialize;
use std::fmt;

/// Longest token answer read, bytes.
pub(super) const TOKEN_MAX: usize = 1 << 20;

/// What a pull may show of itself. Never printed.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub(crate) enum Credentials {
    #[default]
    Anonymous,
    Basic {
        username: String,
        password: String,
    },
    /// An OAuth2 refresh token, exchanged for an access token.
    Identity(String),
    /// An access token as it is.
    Registry(String),
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Anonymous => "Anonymous",
            Self::Basic { .. } => "Basic(…)",
            Self::Identity(_) => "Identity(…)",
            Self::Registry(_) => "Registry(…)",
        })
    }
}

impl Credentials {
    /// Name and password, anonymous if both are empty.
    pub(crate) fn basic(username: &str, password: &str) -> Self {
        if username.is_empty() && password.is_empty() {
            return Self::Anonymous;
        }
        Self::Basic { username: username.to_owned(), password: password.to_owned() }
    }

    /// Reads `auth` of a Docker configuration: base64 of `NAME:PASSWORD`.
    pub(crate) fn from_auth(auth: &str) -> Result<Self, &'static str> {
        let bytes = STANDARD.decode(auth).or_else(|_| STANDARD_NO_PAD.decode(auth)).map_err(|_| "is not base64")?;
        let text = String::from_utf8(bytes).map_err(|_| "is not text in base64")?;
        let (username, password) = text.split_once(':').ok_or("is not NAME:PASSWORD in base64")?;
        Ok(Self::basic(username, password.trim_end_matches('\0')))
    }

    /// The header that shows them without any exchange.
    pub(super) fn header(&self) -> Option<String> {
        match self {
            Self::Basic { username, password } => {
                Some(format!("Basic {}", STANDARD.encode(format!("{username}:{password}"))))
            }
            Self::Registry(token) => Some(format!("Bearer {token}")),
            Self::Anonymous | Self::Identity(_) => None,
        }
    }
}

/// What a registry asks for in `WWW-Authenticate`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Challenge {
    Basic,
    Bearer { realm: String, service: String, scope: String },
}

impl Challenge {
    /// The challenge to answer: bearer before basic. `None` if there is none that we speak.
    pub(super) fn parse<'a>(headers: impl Iterator<Item = &'a str>) -> Option<Self> {
        let mut basic = None;
        for header in headers {
            for (scheme, parameters) in schemes(header) {
                let parameter = |name: &str| {
                    let found = parameters.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
                    found.map(|(_, value)| value.clone()).unwrap_or_default()
                };
                if scheme.eq_ignore_ascii_case("bearer") && !parameter("realm").is_empty() {
                    let (realm, service, scope) = (parameter("realm"), parameter("service"), parameter("scope"));
                    return Some(Self::Bearer { realm, service, scope });
                }
                if scheme.eq_ignore_ascii_case("basic") {
                    basic = Some(Self::Basic);
                }
            }
        }
        basic
    }
}

type Scheme = (String, Vec<(String, String)>);

/// Splits `Scheme key="value", key=value, Scheme …` (RFC 9110, 11.6.1).
fn schemes(header: &str) -> Vec<Scheme> {
    let mut found: Vec<Scheme> = Vec::new();
    let mut rest = header.trim_start_matches([' ', ',', '\t']);
    while !rest.is_empty() {
        let end = rest.find(['=', ' ', ',', '\t']).unwrap_or(rest.len());
        let (word, tail) = rest.split_at(end);
        let tail = tail.trim_start_matches([' ', '\t']);
        match tail.strip_prefix('=') {
            Some(value) if !word.is_empty() => {
                let (value, tail) = quoted(value.trim_start_matches([' ', '\t']));
                if let Some((_, parameters)) = found.last_mut() {
                    parameters.push((word.to_owned(), value));
                }
                rest = tail;
            }
            Some(tail) => rest = tail,
            None => {
                found.push((word.to_owned(), Vec::new()));
                rest = tail;
            }
        }
        rest = rest.trim_start_matches([' ', ',', '\t']);
    }
    found
}

/// A token or a quoted string, and what follows.
fn quoted(text: &str) -> (String, &str) {
    let Some(inner) = text.strip_prefix('"') else {
        let end = text.find([',', ' ', '\t']).unwrap_or(text.len());
        return (text[..end].to_owned(), &text[end..]);
    };
    let mut value = String::new();
    let mut characters = inner.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return (value, &inner[at + 1..]),
            '\\' => value.extend(characters.next().map(|(_, escaped)| escaped)),
            other => value.push(other),
        }
    }
    (value, "")
}

/// The answer of a token server.
#[derive(Deserialize)]
pub(super) struct TokenAnswer {
    #[serde(default)]
    token: String,
    #[serde(default)]
    access_token: String,
}

impl TokenAnswer {
    /// The header made of it, if it holds a token that can stand in one.
    pub(super) fn header(self) -> Option<String> {
        let token = if self.token.is_empty() { self.access_token } else { self.token };
        let printable = !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic());
        printable.then(|| format!("Bearer {token}"))
    }
}

/// Percent-encodes a query value.
pub(super) fn encode(text: &str) -> String {
    let mut encoded = String::new();
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => encoded.push(char::from(byte)),
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_are_read_as_registries_write_them() {
        let bearer = |realm: &str, service: &str, scope: &str| {
            Some(Challenge::Bearer { realm: realm.into(), service: service.into(), scope: scope.into() })
        };
        let cases = [
            (
                vec![
                    r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/busybox:pull""#,
                ],
                bearer("https://auth.docker.io/token", "registry.docker.io", "repository:library/busybox:pull"),
            ),
            (vec![r#"Basic realm="Registry Realm""#], Some(Challenge::Basic)),
            (
                vec![r#"Basic realm=x, Bearer realm="https://a/t", scope="a,b \"c\"""#],
                bearer("https://a/t", "", r#"a,b "c""#),
            ),
            (vec!["Basic", "bearer REALM=https://b/t,service=s"], bearer("https://b/t", "s", "")),
            (vec!["Negotiate", "Digest realm=\"x\", nonce=\"y\""], None),
            (vec!["Bearer service=\"no realm\""], None),
            (vec!["= , =\"\" ,,, \"", "Bearer realm=\"unclosed"], bearer("unclosed", "", "")),
            (vec![""], None),
        ];
        for (headers, expected) in cases {
            assert_eq!(Challenge::parse(headers.iter().copied()), expected, "{headers:?}");
        }
    }

    #[test]
    fn credentials_are_read_and_never_shown() {
        let credentials = Credentials::from_auth("dXNlcjpwYXNzOndvcmQ=").unwrap();
        assert!(credentials == Credentials::basic("user", "pass:word"));
        assert_eq!(credentials.header().unwrap(), "Basic dXNlcjpwYXNzOndvcmQ=");
        assert!(!format!("{credentials:?}").contains("word"));
        assert!(Credentials::from_auth("!").is_err());
        assert!(Credentials::from_auth("bm9jb2xvbg==").is_err());
        assert!(Credentials::basic("", "") == Credentials::Anonymous);
    }
}
