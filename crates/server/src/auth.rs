//! Who asks, and whether it may. The API key comes as `Authorization: Bearer KEY` or `X-API-Key: KEY`. `/health` is open.

use std::net::IpAddr;

use axum::extract::{FromRequestParts, Request, State};
use axum::http::header::AUTHORIZATION;
use axum::http::request::Parts;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use calotype_engine::{Code, Error};

use crate::error::Refused;
use crate::{App, ServerConfig};

/// The name of a key that was given without one.
const UNNAMED: &str = "default";
const LONGEST_NAME: usize = 64;

/// A secret that clients must send, and the name of those who have it. The secret is never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct ApiKey {
    name: String,
    secret: String,
}

/// `NAME=SECRET`, or a secret alone, whose name is `default`. A name has letters, digits, `-`, `_` and `.`. The `=` that
/// base64 ends in begins no secret.
impl From<String> for ApiKey {
    fn from(text: String) -> Self {
        let is_name = |name: &str| {
            !name.is_empty()
                && name.len() <= LONGEST_NAME
                && name
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
        };
        let is_secret = |secret: &str| !secret.trim_matches('=').is_empty();
        match text.split_once('=') {
            Some((name, secret)) if is_name(name) && is_secret(secret) => Self {
                name: name.to_owned(),
                secret: secret.to_owned(),
            },
            _ => Self {
                name: UNNAMED.to_owned(),
                secret: text,
            },
        }
    }
}

impl ApiKey {
    /// Whether it would keep nobody out.
    pub fn is_empty(&self) -> bool {
        self.secret.is_empty()
    }

    /// The name of the clients that have it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What a client sends.
    pub fn secret(&self) -> &str {
        &self.secret
    }
}

impl std::fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ApiKey({}=…)", self.name)
    }
}

/// The address at the other end of the connection. Headers that a proxy may have set are not asked: everybody can send them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Peer(pub(crate) IpAddr);

/// Who asks: the name of its API key, else its address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Client(pub(crate) String);

impl FromRequestParts<App> for Client {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, _: &App) -> Result<Self, Refused> {
        let missing = || {
            Refused(Error::new(
                Code::Internal,
                "a request came past the check of its key",
            ))
        };
        parts.extensions.get::<Self>().cloned().ok_or_else(missing)
    }
}

pub(crate) async fn check(State(app): State<App>, mut request: Request, next: Next) -> Response {
    if request.uri().path() == "/health" {
        return next.run(request).await;
    }
    let headers = request.headers();
    let bearer = headers
        .get(AUTHORIZATION)
        .and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
    let given = bearer.or_else(|| headers.get("x-api-key")?.to_str().ok());
    let peer = request.extensions().get::<Peer>().map(|Peer(address)| *address);
    let Some(client) = client(&app.config, peer, given) else {
        return Refused(
            Error::new(Code::Unauthorized, "the API key is missing or wrong")
                .advice("send it as `Authorization: Bearer KEY`"),
        )
        .into_response();
    };
    request.extensions_mut().insert(client);
    next.run(request).await
}

/// Who asks from `peer` with the key `given`; `None` for somebody who may not.
fn client(config: &ServerConfig, peer: Option<IpAddr>, given: Option<&str>) -> Option<Client> {
    if config.api_keys.is_empty() {
        // An IPv4 address is the same client on a socket of both families.
        let address = || peer.map(|address| address.to_canonical().to_string());
        return config.client_name.clone().or_else(address).map(Client);
    }
    let given = given?.as_bytes();
    // Every key is compared, so that the time does not tell which one was right.
    let found = config.api_keys.iter().fold(None, |found: Option<&ApiKey>, key| {
        let is_it = same(given, key.secret.as_bytes());
        found.or(is_it.then_some(key))
    });
    found.map(|key| Client(key.name.clone()))
}

/// Compares in a time that does not tell how much of the key was right.
fn same(given: &[u8], key: &[u8]) -> bool {
    let different = given
        .iter()
        .zip(key.iter().cycle())
        .fold(0, |different, (a, b)| different | (a ^ b));
    given.len() == key.len() && different == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(config: &ServerConfig, peer: &str, given: Option<&str>) -> Option<String> {
        client(config, Some(peer.parse().unwrap()), given).map(|Client(name)| name)
    }

    #[test]
    fn a_client_is_the_name_of_its_key_and_without_keys_its_address() {
        let open = ServerConfig::default();
        assert_eq!(name(&open, "10.0.0.7", None).as_deref(), Some("10.0.0.7"));
        assert_eq!(name(&open, "::ffff:10.0.0.7", None).as_deref(), Some("10.0.0.7"));
        assert_eq!(name(&open, "fe80::1", Some("any")).as_deref(), Some("fe80::1"));
        let keyed = ServerConfig {
            api_keys: ["studio=one", "web=two", "three"]
                .map(|key| ApiKey::from(key.to_owned()))
                .to_vec(),
            client_name: Some("local".into()),
            ..ServerConfig::default()
        };
        for (given, expected) in [
            (Some("one"), Some("studio")),
            (Some("two"), Some("web")),
            (Some("three"), Some("default")),
            (Some("studio=one"), None),
            (Some("studio"), None),
            (Some(""), None),
            (None, None),
        ] {
            assert_eq!(name(&keyed, "10.0.0.7", given).as_deref(), expected, "{given:?}");
        }
        let local = ServerConfig {
            client_name: Some("local".into()),
            ..ServerConfig::default()
        };
        assert_eq!(name(&local, "127.0.0.1", None).as_deref(), Some("local"));
    }

    #[test]
    fn a_key_is_not_shown() {
        for text in ["secret", "studio=secret"] {
            assert!(!format!("{:?}", ApiKey::from(text.to_owned())).contains("secret"));
        }
    }

    #[test]
    fn only_the_whole_key_opens() {
        assert!(same(b"secret", b"secret"));
        for wrong in ["", "secre", "secrets", "Secret", "secretsecret"] {
            assert!(!same(wrong.as_bytes(), b"secret"), "{wrong}");
        }
    }

    #[test]
    fn a_key_has_a_name_or_is_the_default_one() {
        for (text, name, secret) in [
            ("secret", "default", "secret"),
            ("studio=secret", "studio", "secret"),
            ("web-1.eu=a=b", "web-1.eu", "a=b"),
            // What base64 ends in.
            ("c2VjcmV0", "default", "c2VjcmV0"),
            ("c2VjcmU=", "default", "c2VjcmU="),
            ("c2VjcQ==", "default", "c2VjcQ=="),
            // No names.
            ("=secret", "default", "=secret"),
            ("my key=secret", "default", "my key=secret"),
            ("", "default", ""),
        ] {
            let key = ApiKey::from(text.to_owned());
            assert_eq!((key.name(), key.secret()), (name, secret), "{text}");
        }
    }
}
