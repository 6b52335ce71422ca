//! Tokens: what an RPC allowed, kept until the one connection that brings its token, for a minute at most.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

/// How long a token is good. Source: the kubelet's streaming server, whose clients connect at once.
const LIFE: Duration = Duration::from_secs(60);
/// Tokens that may wait for their connection.
const OUTSTANDING: usize = 1000;

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("{OUTSTANDING} streaming requests wait for their connection already")]
    Full,
    #[error("make a token")]
    Random(#[source] std::io::Error),
}

/// What is allowed, by the hash of its token: the token itself is nowhere but with the client, and how long a look-up takes
/// tells nothing about it.
#[derive(Debug)]
pub(super) struct Tokens<T> {
    waiting: Mutex<HashMap<[u8; 32], (Instant, T)>>,
}

impl<T> Tokens<T> {
    pub(super) fn new() -> Self {
        Self { waiting: Mutex::new(HashMap::new()) }
    }

    /// 256 random bits, in hex.
    pub(super) fn issue(&self, allowed: T) -> Result<String, Error> {
        let mut bytes = [0; 32];
        rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
            .map_err(|e| Error::Random(e.into()))?;
        let token = hex::encode(bytes);
        self.keep(&token, allowed, Instant::now())?;
        Ok(token)
    }

    fn keep(&self, token: &str, allowed: T, now: Instant) -> Result<(), Error> {
        let mut waiting = self.waiting();
        waiting.retain(|_, (since, _)| now.duration_since(*since) < LIFE);
        if waiting.len() >= OUTSTANDING {
            return Err(Error::Full);
        }
        waiting.insert(hash(token), (now, allowed));
        Ok(())
    }

    /// What the token allows, if `fits`; it is used up then.
    pub(super) fn take(&self, token: &str, fits: impl Fn(&T) -> bool) -> Option<T> {
        self.take_at(token, fits, Instant::now())
    }

    fn take_at(&self, token: &str, fits: impl Fn(&T) -> bool, now: Instant) -> Option<T> {
        let (mut waiting, key) = (self.waiting(), hash(token));
        let (since, allowed) = waiting.get(&key)?;
        if now.duration_since(*since) >= LIFE || !fits(allowed) {
            return None;
        }
        waiting.remove(&key).map(|(_, allowed)| allowed)
    }

    /// Whether the token would be taken.
    pub(super) fn knows(&self, token: &str, fits: impl Fn(&T) -> bool) -> bool {
        self.waiting().get(&hash(token)).is_some_and(|(since, allowed)| since.elapsed() < LIFE && fits(allowed))
    }

    fn waiting(&self) -> MutexGuard<'_, HashMap<[u8; 32], (Instant, T)>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn hash(token: &str) -> [u8; 32] {
    Sha256::digest(token).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_good_once_and_for_its_own_request() {
        let tokens = Tokens::new();
        let token = tokens.issue("exec").expect("room");
        assert_eq!(token.len(), 64);
        assert_eq!(tokens.take(&token, |what| *what == "attach"), None);
        assert!(tokens.knows(&token, |_| true));
        assert_eq!(tokens.take(&token, |what| *what == "exec"), Some("exec"));
        assert_eq!(tokens.take(&token, |_| true), None);
        assert_eq!(tokens.take("guessed", |_| true), None);
    }

    #[test]
    fn a_token_lives_a_minute() {
        let (tokens, now) = (Tokens::new(), Instant::now());
        tokens.keep("t", (), now).expect("room");
        assert_eq!(tokens.take_at("t", |()| true, now + LIFE), None);
        assert_eq!(tokens.take_at("t", |()| true, now + LIFE / 2), Some(()));
    }

    #[test]
    fn tokens_that_nobody_brings_are_bounded_and_make_room_when_they_are_old() {
        let (tokens, now) = (Tokens::new(), Instant::now());
        for n in 0..OUTSTANDING {
            tokens.keep(&n.to_string(), (), now).expect("room");
        }
        assert!(matches!(tokens.keep("one more", (), now), Err(Error::Full)));
        tokens.keep("later", (), now + LIFE).expect("the old ones are gone");
        assert_eq!(tokens.waiting().len(), 1);
    }
}
