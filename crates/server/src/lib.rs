//! The HTTP door: checks, converts, calls the engine, converts back. It holds no state of a job.

mod accept;
mod auth;
mod body;
mod error;
mod listen;
mod openapi;
mod query;
mod range;
mod request_id;
mod routes;
mod segment;
mod unserved;

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

pub use auth::ApiKey;
use axum::Router;
use axum::middleware::{from_fn, from_fn_with_state};
use calotype_engine::{Code, Engine, Error};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use tokio::net::TcpListener;
use tokio::sync::watch;

/// How often figures are folded together: without it they pile up where nobody scrapes.
const UPKEEP: Duration = Duration::from_secs(5);
/// How long open connections get to end once the server stops. Streams of events end at once, by themselves.
const GRACE: Duration = Duration::from_secs(2);
/// Upper bounds of the histograms' buckets: from a control call to a job of minutes.
const BUCKETS_S: &[f64] = &[
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0,
];

/// Settings of the door.
#[derive(Debug, Clone)]
pub struct ServerConfig {
    /// Where to listen. Anything but loopback needs an API key.
    pub listen: SocketAddr,
    /// One of these is asked of every client; none where there are none.
    pub api_keys: Vec<ApiKey>,
    /// The name of every client, where there are no keys; by default each has its address.
    pub client_name: Option<String>,
    /// Largest body of a request.
    pub max_body_bytes: usize,
    /// How long a client may wait for its picture in one request.
    pub sync_timeout: Duration,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 7801)),
            api_keys: Vec::new(),
            client_name: None,
            max_body_bytes: 64 << 20,
            sync_timeout: Duration::from_secs(600),
        }
    }
}

/// Why nothing is served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// Everybody could use it.
    #[error("{0} can be reached from other machines: give an API key (--api-key), or listen on 127.0.0.1")]
    Open(SocketAddr),
    /// A key keeps nobody out, or cannot be told from another.
    #[error("the API key `{name}` {problem}")]
    Key {
        /// The name of the key.
        name: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The address is taken, or not ours.
    #[error("failed to listen on {address}: {reason}")]
    Listen {
        /// The address that was asked for.
        address: SocketAddr,
        /// What the system said.
        reason: std::io::Error,
    },
}

/// What every handler can reach.
#[derive(Clone)]
pub(crate) struct App {
    pub(crate) engine: Engine,
    pub(crate) config: Arc<ServerConfig>,
    pub(crate) metrics: Option<PrometheusHandle>,
    /// Changes, or loses its sender, when the server stops.
    pub(crate) stopping: watch::Receiver<()>,
}

/// A listener that does not serve yet.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    config: ServerConfig,
}

/// Takes the address. From here on figures are counted: bind before the engine starts, so that the jobs that it takes over
/// are among them.
pub async fn bind(config: ServerConfig) -> Result<Server, ServeError> {
    if !config.listen.ip().is_loopback() && config.api_keys.iter().all(ApiKey::is_empty) {
        return Err(ServeError::Open(config.listen));
    }
    check_keys(&config.api_keys)?;
    recorder();
    let failed = |reason| ServeError::Listen {
        address: config.listen,
        reason,
    };
    let listener = TcpListener::bind(config.listen).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    Ok(Server {
        listener,
        address,
        config,
    })
}

fn check_keys(keys: &[ApiKey]) -> Result<(), ServeError> {
    for (place, key) in keys.iter().enumerate() {
        let wrong = |problem| {
            let name = key.name().to_owned();
            Err(ServeError::Key { name, problem })
        };
        if key.is_empty() {
            return wrong("is empty; give it a secret");
        }
        let before = keys.iter().take(place);
        if before.into_iter().any(|other| other.name() == key.name()) {
            return wrong("is given twice; give each a name of its own: --api-key NAME=SECRET");
        }
    }
    Ok(())
}

impl Server {
    /// Where it listens; the port is a real one also where 0 was asked for.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `shutdown`, then lets open requests end for a moment.
    pub async fn serve(self, engine: Engine, shutdown: impl Future<Output = ()>) {
        let upkeep = recorder().map(|metrics| {
            tokio::spawn(async move {
                let mut due = tokio::time::interval(UPKEEP);
                loop {
                    due.tick().await;
                    metrics.run_upkeep();
                }
            })
        });
        let (stop, stopped) = watch::channel(());
        let router = router(engine, self.config, stopped.clone());
        let mut serving = tokio::spawn(listen::serve(self.listener, router, stopped));
        shutdown.await;
        let _ = stop.send(());
        if let Some(upkeep) = upkeep {
            upkeep.abort();
        }
        if tokio::time::timeout(GRACE, &mut serving).await.is_err() {
            serving.abort();
        }
    }
}

/// Every route, behind the key and with a request id.
fn router(engine: Engine, config: ServerConfig, stopping: watch::Receiver<()>) -> Router {
    let app = App {
        engine,
        config: Arc::new(config),
        metrics: recorder(),
        stopping,
    };
    let mut router: Router<App> = Router::new();
    for route in routes::TABLE {
        router = router.route(route.path, (route.handler)());
    }
    router
        .fallback(async || error::Refused(no_route()))
        .method_not_allowed_fallback(async || error::Refused(no_method()))
        .layer(from_fn(query::check))
        .layer(from_fn_with_state(app.clone(), unserved::check))
        .layer(from_fn_with_state(app.clone(), auth::check))
        .layer(from_fn(request_id::give))
        .with_state(app)
}

fn no_route() -> Error {
    Error::new(Code::NotFound, "there is no such route").advice("GET /openapi.json lists them")
}

fn no_method() -> Error {
    Error::new(Code::MethodNotAllowed, "this route does not take that method")
        .advice("GET /openapi.json lists the routes")
}

/// The process's one recorder; absent where another program part installed its own.
fn recorder() -> Option<PrometheusHandle> {
    static HANDLE: OnceLock<Option<PrometheusHandle>> = OnceLock::new();
    HANDLE
        .get_or_init(|| {
            let builder = PrometheusBuilder::new().set_buckets(BUCKETS_S).ok()?;
            builder.install_recorder().ok()
        })
        .clone()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_address_that_others_can_reach_needs_a_key() {
        let open = ServerConfig {
            listen: SocketAddr::from(([0, 0, 0, 0], 0)),
            ..ServerConfig::default()
        };
        assert!(matches!(bind(open.clone()).await, Err(ServeError::Open(_))));
        let empty = ServerConfig {
            api_keys: vec![ApiKey::from(String::new())],
            ..open.clone()
        };
        assert!(matches!(bind(empty).await, Err(ServeError::Open(_))));
        bind(ServerConfig {
            api_keys: vec![ApiKey::from("key".to_owned())],
            ..open
        })
        .await
        .unwrap();
    }

    #[tokio::test]
    async fn keys_have_secrets_and_names_of_their_own() {
        for (keys, expected) in [
            (vec!["a=1", "b=1"], None),
            (vec!["a=1", "a=2"], Some("is given twice")),
            (vec!["1", "2"], Some("is given twice")),
            (vec![""], Some("is empty")),
        ] {
            let bound = bind(ServerConfig {
                listen: SocketAddr::from(([127, 0, 0, 1], 0)),
                api_keys: keys.iter().map(|key| ApiKey::from((*key).to_owned())).collect(),
                ..ServerConfig::default()
            });
            let problem = bound.await.err().map(|error| error.to_string());
            assert_eq!(problem.is_some(), expected.is_some(), "{keys:?}");
            assert!(problem.is_none_or(|problem| problem.contains(expected.unwrap())));
        }
    }
}
