//! The HTTP side: connections, TLS, tokens, the upgrade, after which a connection is one stream.

use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use super::negotiate::{self, Agreed, Kind, Refusal, Transport};
use super::token::Tokens;
use super::wire::{Carrier, Duplex};
use super::{Allowed, Config, Error, TokenError, attach, exec, portforward, spdy, tls, websocket, wire};

/// Connections at a time; more wait to be accepted.
const CONNECTIONS: usize = 4096;
/// How long a client may take for its handshake and its request.
const REQUEST: Duration = Duration::from_secs(10);
/// Bytes of a request's head.
const HEAD_MAX: usize = 16 << 10;
/// How long a daemon before this one may take to let go of its port.
const PREDECESSOR: Duration = Duration::from_secs(3);
/// Pause after the kernel refused a connection: it is out of descriptors or memory, and will be for a while.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How long streams may take to end by themselves once the daemon ends.
const FINISH: Duration = Duration::from_secs(2);
/// How long their clients may take to hear that they did not.
const LAST_WORDS: Duration = Duration::from_secs(6);
/// The same once somebody is in a hurry.
const LAST_WORD: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Serving,
    /// The daemon ends: nothing begins, and what has begun may finish.
    Ending,
    /// Streams are cut off.
    Over,
    /// And hardly waited for.
    Hurried,
}

/// Gives out URLs; clones share.
#[derive(Clone)]
pub(crate) struct Server {
    shared: Arc<Shared>,
}

struct Shared {
    config: Config,
    tokens: Tokens<Allowed>,
    /// `http://127.0.0.1:40123`
    base: String,
    stage: watch::Sender<Stage>,
}

impl Server {
    /// Listens as configured. The second value serves, until it is dropped.
    ///
    /// # Errors
    /// The address, the certificates.
    pub(crate) async fn bind(config: &Config) -> Result<(Self, impl Future<Output = ()> + Send + use<>), Error> {
        let address = config.address()?;
        let acceptor = tls::acceptor(config)?;
        let fail = |source| Error::Listen { address, source };
        let listener = listen(address).await.map_err(fail)?;
        let bound = listener.local_addr().map_err(fail)?;
        let scheme = if acceptor.is_some() { "https" } else { "http" };
        if acceptor.is_none() && !bound.ip().is_loopback() {
            tracing::warn!(%bound, "streams are served without TLS on an address that others can reach");
        }
        let base = format!("{scheme}://{}", named(bound));
        let stage = watch::Sender::new(Stage::Serving);
        let shared = Shared { config: config.clone(), tokens: Tokens::new(), base, stage };
        let server = Self { shared: Arc::new(shared) };
        let serving = server.clone().serve(listener, acceptor);
        Ok((server, serving))
    }

    /// The URL at which one connection gets what is allowed.
    ///
    /// # Errors
    /// Too many wait already.
    pub(crate) fn url(&self, allowed: Allowed) -> Result<String, TokenError> {
        let path = path(&allowed);
        let token = self.shared.tokens.issue(allowed)?;
        Ok(format!("{}/{path}/{token}", self.shared.base))
    }

    /// The daemon ends: serving ends soon, with every stream told.
    pub(crate) fn end(&self) {
        self.enter(Stage::Ending);
    }

    /// It ends now: streams that have not ended by themselves are told at once.
    pub(crate) fn hurry(&self) {
        self.enter(Stage::Hurried);
    }

    fn enter(&self, stage: Stage) {
        self.shared.stage.send_if_modified(|now| {
            let later = *now < stage;
            *now = stage.max(*now);
            later
        });
    }

    /// Waits until the daemon is that far.
    async fn reached(&self, stage: Stage) {
        // Its sender is here.
        let _ = self.shared.stage.subscribe().wait_for(|now| *now >= stage).await;
    }

    async fn serve(self, listener: TcpListener, acceptor: Option<TlsAcceptor>) {
        let mut connections = JoinSet::new();
        tokio::select! {
            () = self.accept(&listener, acceptor, &mut connections) => {}
            () = self.reached(Stage::Ending) => {}
        }
        drop(listener);
        tokio::select! {
            () = all(&mut connections) => return,
            () = tokio::time::sleep(FINISH) => {}
            () = self.reached(Stage::Over) => {}
        }
        self.enter(Stage::Over);
        let hurried = async {
            self.reached(Stage::Hurried).await;
            tokio::time::sleep(LAST_WORD).await;
        };
        tokio::select! {
            () = all(&mut connections) => {}
            () = tokio::time::sleep(LAST_WORDS) => {}
            () = hurried => {}
        }
    }

    async fn accept(&self, listener: &TcpListener, acceptor: Option<TlsAcceptor>, connections: &mut JoinSet<()>) {
        let places = Arc::new(Semaphore::new(CONNECTIONS));
        loop {
            let place = places.clone().acquire_owned().await;
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                Some(_) = connections.join_next(), if !connections.is_empty() => continue,
            };
            match accepted {
                Ok((stream, client)) => {
                    let (server, acceptor) = (self.clone(), acceptor.clone());
                    connections.spawn(async move {
                        let _place = place;
                        if let Err(error) = server.connection(stream, acceptor).await {
                            tracing::debug!(%client, error, "a streaming connection failed");
                        }
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "accept a streaming connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    async fn connection(self, stream: TcpStream, acceptor: Option<TlsAcceptor>) -> Result<(), String> {
        let text = |error: &dyn std::fmt::Display| error.to_string();
        let _ = stream.set_nodelay(true);
        keep_alive(&stream);
        let stream = stream.into_std().map_err(|e| text(&e))?;
        let twin = stream.try_clone().map_err(|e| text(&e))?;
        let stream = TcpStream::from_std(stream).map_err(|e| text(&e))?;
        let io: Box<dyn Duplex> = match acceptor {
            None => Box::new(stream),
            Some(acceptor) => {
                let handshake = tokio::select! {
                    handshake = tokio::time::timeout(REQUEST, acceptor.accept(stream)) => handshake,
                    () = self.reached(Stage::Ending) => return Ok(()),
                };
                Box::new(handshake.map_err(|e| text(&e))?.map_err(|e| text(&e))?)
            }
        };
        let taken = Mutex::new(None);
        let answer = service_fn(async |request| Ok::<_, Infallible>(self.answer(request, &taken)));
        let serving = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(REQUEST)
            .max_buf_size(HEAD_MAX)
            .serve_connection(TokioIo::new(io), answer)
            .with_upgrades();
        // One that has asked for nothing yet, and may not do so for a long time, is not waited for.
        let nothing_asked = async {
            self.reached(Stage::Ending).await;
            if taken.lock().unwrap_or_else(PoisonError::into_inner).is_some() {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            biased;
            served = serving => served.map_err(|e| text(&e))?,
            () = nothing_asked => return Ok(()),
        }
        let taken = taken.into_inner().unwrap_or_else(PoisonError::into_inner);
        let Some((upgrade, agreed, allowed)) = taken else { return Ok(()) };
        let upgraded = tokio::time::timeout(REQUEST, upgrade).await.map_err(|e| text(&e))?.map_err(|e| text(&e))?;
        self.stream(Box::new(TokioIo::new(upgraded)), twin, agreed, allowed).await;
        Ok(())
    }

    /// The answer to a request; what an upgrade leads to is put into `taken`.
    fn answer(
        &self,
        mut request: Request<Incoming>,
        taken: &Mutex<Option<(OnUpgrade, Agreed, Allowed)>>,
    ) -> Response<Full<Bytes>> {
        match self.lead(&request) {
            Ok((agreed, allowed)) => {
                let mut response = Response::new(Full::default());
                *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
                *response.headers_mut() = agreed.headers.clone();
                let upgrade = hyper::upgrade::on(&mut request);
                *taken.lock().unwrap_or_else(PoisonError::into_inner) = Some((upgrade, agreed, allowed));
                response
            }
            Err(refusal) => {
                tracing::debug!(status = refusal.status.as_u16(), why = refusal.text, "a streaming request is refused");
                let mut response = Response::new(Full::from(refusal.text + "\n"));
                *response.status_mut() = refusal.status;
                response.headers_mut().extend(refusal.headers);
                response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
                response
            }
        }
    }

    /// A token is used up by the request that everything is right with, and by no other.
    fn lead(&self, request: &Request<Incoming>) -> Result<(Agreed, Allowed), Refusal> {
        let (what, token) = request.uri().path().trim_start_matches('/').split_once('/').unwrap_or_default();
        let kind = match what {
            "exec" | "attach" => Kind::Session,
            "portforward" => Kind::PortForward,
            _ => return Err(negotiate::refuse(StatusCode::NOT_FOUND, "there is nothing at this path".into())),
        };
        let fits = |allowed: &Allowed| path(allowed) == what;
        let unknown = || {
            let text = "this token is unknown: it is good once, for a minute, and for what it was given for";
            negotiate::refuse(StatusCode::NOT_FOUND, text.into())
        };
        if !self.shared.tokens.knows(token, fits) {
            return Err(unknown());
        }
        let agreed = negotiate::negotiate(kind, request.method(), request.headers())?;
        let allowed = self.shared.tokens.take(token, fits).ok_or_else(unknown)?;
        Ok((agreed, allowed))
    }

    async fn stream(&self, io: Box<dyn Duplex>, twin: std::net::TcpStream, agreed: Agreed, allowed: Allowed) {
        let config = &self.shared.config;
        let carrier = match agreed.transport {
            Transport::Spdy => Carrier::Plain,
            Transport::Tunnel => Carrier::Tunnel,
            Transport::Channels { .. } => Carrier::WebSocket,
        };
        let ends = wire::open(io, Some(twin), carrier, config.idle());
        let (streams, session) = match allowed {
            Allowed::Exec(exec) => (exec.streams, Session::Exec(exec)),
            Allowed::Attach(attach) => (attach.streams, Session::Attach(attach)),
            Allowed::PortForward(forward) => {
                let connection = spdy::accept(ends.0, ends.1, portforward::STREAMS, false);
                return portforward::serve(forward, connection, config.creation(), self.reached(Stage::Over)).await;
            }
        };
        let client = async {
            match agreed.transport {
                Transport::Channels { base64 } => websocket::session(ends, streams, agreed.version, base64)
                    .await
                    .map_err(|_| "the client went away".into()),
                Transport::Spdy | Transport::Tunnel => {
                    spdy::session(ends, streams, agreed.version, config.creation()).await.map_err(|e| e.to_string())
                }
            }
        };
        let client = tokio::select! {
            client = client => client,
            () = self.reached(Stage::Over) => Err("berthd is ending".into()),
        };
        match (client, session) {
            (Ok(client), Session::Exec(exec)) => exec::serve(exec, client, self.reached(Stage::Over)).await,
            (Ok(client), Session::Attach(attach)) => attach::serve(attach, client, self.reached(Stage::Over)).await,
            (Err(why), _) => tracing::warn!(why, "a stream did not come about"),
        }
    }
}

async fn all(connections: &mut JoinSet<()>) {
    while connections.join_next().await.is_some() {}
}

/// A daemon that was killed may not have let go of its port yet: the kernel does that after it has ceased to be seen.
async fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let begun = Instant::now();
    loop {
        match TcpListener::bind(address).await {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && begun.elapsed() < PREDECESSOR => {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            other => return other,
        }
    }
}

/// What a client's streams are for.
enum Session {
    Exec(super::Exec),
    Attach(super::Attach),
}

fn path(allowed: &Allowed) -> &'static str {
    match allowed {
        Allowed::Attach(_) => "attach",
        Allowed::Exec(_) => "exec",
        Allowed::PortForward(_) => "portforward",
    }
}

/// What a client on this host can connect to.
fn named(bound: SocketAddr) -> SocketAddr {
    let ip = match bound.ip() {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, bound.port())
}

/// A client whose host vanished must be noticed.
fn keep_alive(stream: &TcpStream) {
    let set = rustix::net::sockopt::set_socket_keepalive(stream, true)
        .and_then(|()| rustix::net::sockopt::set_tcp_keepidle(stream, Duration::from_secs(30)))
        .and_then(|()| rustix::net::sockopt::set_tcp_keepintvl(stream, Duration::from_secs(10)))
        .and_then(|()| rustix::net::sockopt::set_tcp_keepcnt(stream, 6));
    if let Err(error) = set {
        tracing::debug!(%error, "keep a streaming connection alive");
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[test]
    fn a_url_names_an_address_that_can_be_connected_to() {
        for (bound, expected) in
            [("0.0.0.0:80", "127.0.0.1:80"), ("[::]:80", "[::1]:80"), ("10.0.0.1:80", "10.0.0.1:80")]
        {
            assert_eq!(named(bound.parse().expect("an address")).to_string(), expected);
        }
    }

    async fn server() -> (Server, tokio::task::JoinHandle<()>) {
        let (server, serving) = Server::bind(&Config::default()).await.expect("a free port");
        (server, tokio::spawn(serving))
    }

    /// A connection on which so much was said, and what was answered.
    async fn connection(server: &Server, said: &str, answer: &str) -> TcpStream {
        let address = server.shared.base.strip_prefix("http://").expect("no TLS");
        let mut stream = TcpStream::connect(address).await.expect("it listens");
        stream.write_all(said.as_bytes()).await.expect("it is there");
        let mut head = vec![0; answer.len()];
        stream.read_exact(&mut head).await.expect("an answer");
        assert_eq!(String::from_utf8_lossy(&head), answer);
        stream
    }

    #[tokio::test]
    async fn who_has_asked_for_nothing_does_not_hold_the_daemons_end() {
        let (server, serving) = server().await;
        let _silent = connection(&server, "", "").await;
        let _half = connection(&server, "GET /exec/", "").await;
        // Those before it are accepted.
        let _idle = connection(&server, "GET / HTTP/1.1\r\nhost: x\r\n\r\n", "HTTP/1.1 404").await;
        server.end();
        // Not even as long as streams have for their end.
        tokio::time::timeout(FINISH, serving).await.expect("it ends at once").expect("no panic");
    }

    #[tokio::test]
    async fn a_stream_has_its_time_at_the_daemons_end_unless_somebody_is_in_a_hurry() {
        let (server, mut serving) = server().await;
        let pod = crate::ids::PodId::parse(&"0".repeat(64)).expect("an id");
        let pod_stops = Box::pin(std::future::pending());
        let forward = crate::streaming::PortForward { pod, network: None, ports: Vec::new(), pod_stops };
        let url = server.url(Allowed::PortForward(forward)).expect("a token");
        let path = url.strip_prefix(&server.shared.base).expect("a path");
        let asked = format!(
            "POST {path} HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: SPDY/3.1\r\n\
             x-stream-protocol-version: portforward.k8s.io\r\n\r\n"
        );
        let mut client = connection(&server, &asked, "HTTP/1.1 101").await;
        server.end();
        tokio::time::timeout(FINISH / 4, &mut serving).await.expect_err("it has its time");
        server.hurry();
        let mut rest = Vec::new();
        client.read_to_end(&mut rest).await.expect("it is hung up on");
        drop(client);
        tokio::time::timeout(LAST_WORD * 2, serving).await.expect("nobody is waited for").expect("no panic");
    }
}
