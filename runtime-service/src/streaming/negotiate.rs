//! Which protocol a request leads to, from its method and headers, or the answer that says why none. Pure.

use hyper::header::{
    ALLOW, CONNECTION, HeaderMap, HeaderName, HeaderValue, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL,
    SEC_WEBSOCKET_VERSION, UPGRADE,
};
use hyper::{Method, StatusCode};

use super::websocket::accept_key;

const SPDY_PROTOCOL: HeaderName = HeaderName::from_static("x-stream-protocol-version");
const SPDY_ACCEPTED: HeaderName = HeaderName::from_static("x-accepted-stream-protocol-versions");

/// What the paths of the server are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Exec and attach.
    Session,
    PortForward,
}

/// How the streams of a connection are told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Transport {
    Spdy,
    /// SPDY inside WebSocket messages.
    Tunnel,
    /// A byte of each WebSocket message.
    Channels {
        base64: bool,
    },
}

/// A protocol that both sides speak.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Agreed {
    pub(super) transport: Transport,
    /// Of Kubernetes' protocol for exec and attach.
    pub(super) version: u8,
    /// Headers of the answer 101.
    pub(super) headers: HeaderMap,
}

/// An answer to a request that leads nowhere.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) status: StatusCode,
    pub(super) text: String,
    pub(super) headers: Vec<(HeaderName, HeaderValue)>,
}

type Protocol = (&'static str, Transport, u8);

const WEBSOCKET: &[Protocol] = &[
    ("v5.channel.k8s.io", Transport::Channels { base64: false }, 5),
    ("v4.channel.k8s.io", Transport::Channels { base64: false }, 4),
    ("v4.base64.channel.k8s.io", Transport::Channels { base64: true }, 4),
    ("channel.k8s.io", Transport::Channels { base64: false }, 1),
    ("base64.channel.k8s.io", Transport::Channels { base64: true }, 1),
];
const SPDY: &[Protocol] = &[
    ("v5.channel.k8s.io", Transport::Spdy, 5),
    ("v4.channel.k8s.io", Transport::Spdy, 4),
    ("v3.channel.k8s.io", Transport::Spdy, 3),
    ("v2.channel.k8s.io", Transport::Spdy, 2),
    ("channel.k8s.io", Transport::Spdy, 1),
];
const SPDY_FORWARD: &[Protocol] = &[("portforward.k8s.io", Transport::Spdy, 1)];
const WEBSOCKET_FORWARD: &[Protocol] = &[("SPDY/3.1+portforward.k8s.io", Transport::Tunnel, 1)];

/// # Errors
/// The whole answer.
pub(super) fn negotiate(kind: Kind, method: &Method, headers: &HeaderMap) -> Result<Agreed, Refusal> {
    if !matches!(*method, Method::GET | Method::POST) {
        let mut refusal = refuse(StatusCode::METHOD_NOT_ALLOWED, format!("{method} is neither GET nor POST"));
        refusal.headers.push((ALLOW, HeaderValue::from_static("GET, POST")));
        return Err(refusal);
    }
    let wanted: Vec<&str> = words(headers, &UPGRADE).collect();
    if !words(headers, &CONNECTION).any(|word| word.eq_ignore_ascii_case("upgrade")) || wanted.is_empty() {
        let text = "this is a stream: ask for an upgrade to SPDY/3.1 or websocket".into();
        return Err(upgrade_required(text));
    }
    let wants = |name: &str| wanted.iter().any(|word| word.eq_ignore_ascii_case(name));
    if wants("websocket") {
        return websocket(kind, method, headers);
    }
    if wants("SPDY/3.1") {
        return spdy(kind, headers);
    }
    Err(upgrade_required(format!("{:?} is neither SPDY/3.1 nor websocket", wanted.join(", "))))
}

fn spdy(kind: Kind, headers: &HeaderMap) -> Result<Agreed, Refusal> {
    let known = if kind == Kind::Session { SPDY } else { SPDY_FORWARD };
    let mut answer = HeaderMap::new();
    answer.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    answer.insert(UPGRADE, HeaderValue::from_static("SPDY/3.1"));
    let asked: Vec<&str> = words(headers, &SPDY_PROTOCOL).collect();
    // Clients from before there were names for it.
    if asked.is_empty() {
        return Ok(Agreed { transport: Transport::Spdy, version: 1, headers: answer });
    }
    match choose(&asked, known) {
        Some((name, transport, version)) => {
            answer.insert(SPDY_PROTOCOL, HeaderValue::from_static(name));
            Ok(Agreed { transport, version, headers: answer })
        }
        None => {
            let mut refusal = refuse(StatusCode::FORBIDDEN, none_of(&asked, known));
            for (name, ..) in known {
                refusal.headers.push((SPDY_ACCEPTED, HeaderValue::from_static(name)));
            }
            Err(refusal)
        }
    }
}

fn websocket(kind: Kind, method: &Method, headers: &HeaderMap) -> Result<Agreed, Refusal> {
    if *method != Method::GET {
        return Err(refuse(StatusCode::METHOD_NOT_ALLOWED, format!("{method}: a WebSocket begins with GET")));
    }
    if words(headers, &SEC_WEBSOCKET_VERSION).next() != Some("13") {
        let mut refusal = upgrade_required("Sec-WebSocket-Version is not 13".into());
        refusal.headers.push((SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13")));
        return Err(refusal);
    }
    let key = words(headers, &SEC_WEBSOCKET_KEY).next();
    let accept = key.and_then(|key| HeaderValue::from_str(&accept_key(key)).ok());
    let accept = accept.ok_or_else(|| refuse(StatusCode::BAD_REQUEST, "there is no Sec-WebSocket-Key".into()))?;
    let mut answer = HeaderMap::new();
    answer.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    answer.insert(UPGRADE, HeaderValue::from_static("websocket"));
    answer.insert(hyper::header::SEC_WEBSOCKET_ACCEPT, accept);
    let known = if kind == Kind::Session { WEBSOCKET } else { WEBSOCKET_FORWARD };
    let asked: Vec<&str> = words(headers, &SEC_WEBSOCKET_PROTOCOL).collect();
    if asked.is_empty() && kind == Kind::Session {
        let transport = Transport::Channels { base64: false };
        return Ok(Agreed { transport, version: 1, headers: answer });
    }
    let Some((name, transport, version)) = choose(&asked, known) else {
        return Err(refuse(StatusCode::FORBIDDEN, none_of(&asked, known)));
    };
    answer.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(name));
    Ok(Agreed { transport, version, headers: answer })
}

/// The first of the client's that is known: its order is its preference.
fn choose(asked: &[&str], known: &[Protocol]) -> Option<Protocol> {
    asked.iter().find_map(|asked| known.iter().find(|(name, ..)| name == asked)).copied()
}

fn none_of(asked: &[&str], known: &[Protocol]) -> String {
    let known: Vec<&str> = known.iter().map(|(name, ..)| *name).collect();
    format!("none of the protocols {:?} is spoken here, only {:?}", asked.join(", "), known.join(", "))
}

/// The words of a header that may be there more than once, each a list.
fn words<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim).filter(|word| !word.is_empty())
}

fn upgrade_required(text: String) -> Refusal {
    let mut refusal = refuse(StatusCode::UPGRADE_REQUIRED, text);
    refusal.headers.push((CONNECTION, HeaderValue::from_static("Upgrade")));
    refusal.headers.push((UPGRADE, HeaderValue::from_static("SPDY/3.1, websocket")));
    refusal
}

pub(super) fn refuse(status: StatusCode, text: String) -> Refusal {
    Refusal { status, text, headers: Vec::new() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(kind: Kind, method: Method, headers: &[(&'static str, &str)]) -> Result<Agreed, Refusal> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, HeaderValue::from_str(value).expect("a value"));
        }
        negotiate(kind, &method, &map)
    }

    const SPDY_UPGRADE: [(&str, &str); 2] = [("connection", "Upgrade"), ("upgrade", "SPDY/3.1")];
    const WS_UPGRADE: [(&str, &str); 4] = [
        ("connection", "keep-alive, Upgrade"),
        ("upgrade", "WebSocket"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ];

    #[test]
    fn the_clients_first_known_protocol_is_taken() {
        let protocol = |values: &[&'static str]| {
            let values = values.iter().map(|v| ("x-stream-protocol-version", *v));
            let headers: Vec<_> = SPDY_UPGRADE.into_iter().chain(values).collect();
            ask(Kind::Session, Method::POST, &headers).map(|agreed| agreed.version)
        };
        assert_eq!(protocol(&["v9.channel.k8s.io", "v4.channel.k8s.io", "v3.channel.k8s.io"]), Ok(4));
        assert_eq!(protocol(&["v2.channel.k8s.io, channel.k8s.io"]), Ok(2));
        assert_eq!(protocol(&[]), Ok(1));
        let refusal = protocol(&["v9.channel.k8s.io"]).expect_err("unknown");
        assert_eq!(refusal.status, StatusCode::FORBIDDEN);
        assert_eq!(refusal.headers.iter().filter(|(name, _)| *name == SPDY_ACCEPTED).count(), SPDY.len());
    }

    #[test]
    fn websocket_subprotocols() {
        let protocol = |kind, value: &str| {
            let mut headers = WS_UPGRADE.to_vec();
            headers.push(("sec-websocket-protocol", value));
            ask(kind, Method::GET, &headers).map(|a| (a.transport, a.version))
        };
        let binary = Transport::Channels { base64: false };
        assert_eq!(protocol(Kind::Session, "v5.channel.k8s.io"), Ok((binary, 5)));
        assert_eq!(protocol(Kind::Session, "v4.base64.channel.k8s.io"), Ok((Transport::Channels { base64: true }, 4)));
        assert_eq!(protocol(Kind::Session, ""), Ok((binary, 1)));
        assert_eq!(protocol(Kind::PortForward, "SPDY/3.1+portforward.k8s.io"), Ok((Transport::Tunnel, 1)));
        let refusal = protocol(Kind::PortForward, "v4.channel.k8s.io").expect_err("not for port-forward");
        assert!(refusal.text.contains("SPDY/3.1+portforward.k8s.io"), "{}", refusal.text);
    }

    #[test]
    fn what_leads_nowhere_is_told_why() {
        let status =
            |method, headers: &[(&'static str, &str)]| ask(Kind::Session, method, headers).expect_err("no way").status;
        assert_eq!(status(Method::PUT, &SPDY_UPGRADE), StatusCode::METHOD_NOT_ALLOWED);
        assert_eq!(status(Method::POST, &WS_UPGRADE), StatusCode::METHOD_NOT_ALLOWED);
        assert_eq!(status(Method::GET, &[]), StatusCode::UPGRADE_REQUIRED);
        assert_eq!(status(Method::GET, &SPDY_UPGRADE[1..]), StatusCode::UPGRADE_REQUIRED);
        assert_eq!(status(Method::GET, &[("connection", "upgrade"), ("upgrade", "h2c")]), StatusCode::UPGRADE_REQUIRED);
        assert_eq!(status(Method::GET, &WS_UPGRADE[..3]), StatusCode::BAD_REQUEST);
        assert_eq!(status(Method::GET, &WS_UPGRADE[..2]), StatusCode::UPGRADE_REQUIRED);
    }
}
