//! Image references: what a user types, and its one full form. Pure.
//!
//! Grammar: distribution/reference (`[HOST[:PORT]/]PATH[:TAG][@DIGEST]`), with Docker's defaults: `docker.io`, `library/`
//! and `latest`. Only sha256 digests name anything here.

use std::fmt;

use crate::digest::Digest;
use crate::error::Error;

/// Longest `HOST/PATH`, bytes; distribution/reference.
const NAME_MAX: usize = 255;
/// Longest tag, bytes; distribution/reference.
const TAG_MAX: usize = 128;

/// A reference in full form.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Reference {
    /// Host and port as in a reference: `docker.io`, `127.0.0.1:5000`, `[::1]:5000`.
    pub(crate) host: String,
    /// Repository path below the host: `library/busybox`.
    pub(crate) path: String,
    /// What of the repository is meant.
    pub(crate) target: Target,
}

/// What of a repository is meant.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Target {
    /// Whatever the tag points to now.
    Tag(String),
    /// Exactly this manifest; the tag beside it, if any, is only a remark.
    Digest(Digest, Option<String>),
}

impl Reference {
    /// Parses what a user typed.
    ///
    /// # Errors
    /// `Error::Reference`, whose text never repeats credentials.
    pub(crate) fn parse(text: &str) -> Result<Self, Error> {
        Self::read(text).map_err(|why| Error::Reference { reference: shown(text), why })
    }

    fn read(text: &str) -> Result<Self, &'static str> {
        if text.is_empty() {
            return Err("it is empty");
        }
        if text.len() > NAME_MAX + 1 + TAG_MAX + 1 + 71 {
            return Err("it is too long");
        }
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => {
                (rest, Some(Digest::parse(digest).ok_or("its digest is not sha256 and 64 lower-case hex digits")?))
            }
            None => (text, None),
        };
        let (name, tag) = match rest.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
            _ => (rest, None),
        };
        if let Some(tag) = tag {
            check_tag(tag)?;
        }
        let (host, path) = split_host(name)?;
        if host.len() + 1 + path.len() > NAME_MAX {
            return Err("its name is longer than 255 bytes");
        }
        let target = match (digest, tag) {
            (Some(digest), tag) => Target::Digest(digest, tag.map(str::to_owned)),
            (None, tag) => Target::Tag(tag.unwrap_or("latest").to_owned()),
        };
        Ok(Self { host, path, target })
    }

    /// `HOST/PATH:TAG` if a tag is what is meant.
    pub(crate) fn tagged(&self) -> Option<String> {
        match &self.target {
            Target::Tag(tag) => Some(format!("{}/{}:{tag}", self.host, self.path)),
            Target::Digest(..) => None,
        }
    }

    /// `HOST/PATH@DIGEST`.
    pub(crate) fn with_digest(&self, digest: Digest) -> String {
        format!("{}/{}@{digest}", self.host, self.path)
    }

    /// The tag or digest as it stands in a manifest's address.
    pub(crate) fn manifest_name(&self) -> String {
        match &self.target {
            Target::Tag(tag) => tag.clone(),
            Target::Digest(digest, _) => digest.to_string(),
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.host, self.path)?;
        match &self.target {
            Target::Tag(tag) => write!(f, ":{tag}"),
            Target::Digest(digest, None) => write!(f, "@{digest}"),
            Target::Digest(digest, Some(tag)) => write!(f, ":{tag}@{digest}"),
        }
    }
}

/// What of a refused reference may be shown: its beginning, and nothing before an `@` that may be a password.
fn shown(text: &str) -> String {
    let tail = match text.split_once('@') {
        Some((head, tail)) if !tail.starts_with("sha256:") && head.contains(':') => {
            format!("…@{tail}")
        }
        _ => text.to_owned(),
    };
    tail.chars().take(128).collect()
}

fn check_tag(tag: &str) -> Result<(), &'static str> {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let mut bytes = tag.bytes();
    let good = bytes.next().is_some_and(word)
        && bytes.all(|byte| word(byte) || matches!(byte, b'.' | b'-'))
        && tag.len() <= TAG_MAX;
    good.then_some(()).ok_or("its tag is not 1 to 128 letters, digits, '_', '.' or '-'")
}

/// Splits off the host, or supplies Docker's.
fn split_host(name: &str) -> Result<(String, String), &'static str> {
    let (host, path) = match name.split_once('/') {
        Some((first, rest)) if is_host(first) => (first, rest.to_owned()),
        _ => ("docker.io", name.to_owned()),
    };
    let host = if host == "index.docker.io" { "docker.io" } else { host };
    check_host(host)?;
    let path = match host {
        "docker.io" if !path.contains('/') => format!("library/{path}"),
        _ => path,
    };
    if !path.split('/').all(is_component) {
        return Err("its repository is not lower-case letters and digits, separated by '.', '_', '__', '-' or '/'");
    }
    if Digest::from_hex(name).is_some() {
        return Err("64 hex digits are an image id, not a name");
    }
    Ok((host.to_owned(), path))
}

/// The first component is a host, not a directory, if nothing else can look like it.
fn is_host(first: &str) -> bool {
    first.contains(['.', ':', '[']) || first == "localhost" || first.bytes().any(|byte| byte.is_ascii_uppercase())
}

fn check_host(host: &str) -> Result<(), &'static str> {
    const BAD: &str = "its host is not a domain name or an address with an optional port";
    let (name, port) = match host.strip_prefix('[') {
        Some(rest) => {
            let (address, port) = rest.split_once(']').ok_or(BAD)?;
            address.parse::<std::net::Ipv6Addr>().map_err(|_| BAD)?;
            (None, (!port.is_empty()).then_some(port.strip_prefix(':').ok_or(BAD)?))
        }
        None => match host.split_once(':') {
            Some((name, port)) => (Some(name), Some(port)),
            None => (Some(host), None),
        },
    };
    if let Some(name) = name {
        let label = |label: &str| {
            !label.is_empty()
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        };
        name.split('.').all(label).then_some(()).ok_or(BAD)?;
    }
    if let Some(port) = port {
        let digits = port.bytes().all(|byte| byte.is_ascii_digit());
        (digits && port.parse::<u16>().is_ok_and(|port| port != 0))
            .then_some(())
            .ok_or("its port is not 1 to 65535")?;
    }
    Ok(())
}

/// Letters and digits, with single `.`, `_`, `__` or any run of `-` between them.
fn is_component(component: &str) -> bool {
    let alnum = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = component.as_bytes();
    let (Some(&first), Some(&last)) = (bytes.first(), bytes.last()) else {
        return false;
    };
    alnum(first)
        && alnum(last)
        && component
            .split(|c: char| c.is_ascii() && alnum(c as u8))
            .all(|gap| matches!(gap, "" | "." | "_" | "__") || gap.bytes().all(|byte| byte == b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_forms_are_filled_in() {
        let hex = "0a".repeat(32);
        let cases = [
            ("busybox", "docker.io/library/busybox:latest".to_owned()),
            ("busybox:1.36", "docker.io/library/busybox:1.36".to_owned()),
            ("user/app", "docker.io/user/app:latest".to_owned()),
            ("index.docker.io/busybox", "docker.io/library/busybox:latest".to_owned()),
            ("localhost/app", "localhost/app:latest".to_owned()),
            ("127.0.0.1:5000/a/b:t", "127.0.0.1:5000/a/b:t".to_owned()),
            ("[::1]:5000/a", "[::1]:5000/a:latest".to_owned()),
            (
                "registry.k8s.io/e2e-test-images/busybox:1.29-2",
                "registry.k8s.io/e2e-test-images/busybox:1.29-2".to_owned(),
            ),
            ("Host/app", "Host/app:latest".to_owned()),
            ("a__b/c--d.e_f", "docker.io/a__b/c--d.e_f:latest".to_owned()),
            (&format!("busybox@sha256:{hex}"), format!("docker.io/library/busybox@sha256:{hex}")),
            (&format!("a.io/b:t@sha256:{hex}"), format!("a.io/b:t@sha256:{hex}")),
        ];
        for (input, expected) in cases {
            let parsed = Reference::parse(input).unwrap();
            assert_eq!(parsed.to_string(), expected, "{input}");
            assert_eq!(Reference::parse(&expected).unwrap(), parsed, "{expected} is not a fixed point");
        }
    }

    #[test]
    fn malformed_references_are_refused() {
        let hex = "0a".repeat(32);
        let long = "a".repeat(10 << 10);
        let cases = [
            "",
            " ",
            ":",
            "@",
            "a/../b",
            "/a",
            "a/",
            "a//b",
            "A",
            "a:b:c",
            "a:-t",
            "a: ",
            "a@sha256:abc",
            "a@md5:abc",
            "a.io:99999/b",
            "a.io:0/b",
            "a.io:/b",
            "[::1%25x]/b",
            "[::1/b",
            "u:p@host/b",
            "https://a.io/b",
            "a..b",
            "a___b",
            "a-",
            "-a",
            "busybo\u{445}",
            "a.io/b:ü",
            "a\nb",
            "a.io/b?x",
            hex.as_str(),
            long.as_str(),
            "-a.io/b",
            "a.-.io/b",
        ];
        for input in cases {
            let error = Reference::parse(input).expect_err(input);
            assert!(error.to_string().len() < 400, "{error}");
        }
        let secret = Reference::parse("user:hunter2@host/b").unwrap_err().to_string();
        assert!(!secret.contains("hunter2"), "{secret}");
    }
}
