//! Connections: accepted, given a time for their headers, and ended when the server stops.

use std::io::ErrorKind;
use std::time::Duration;

use axum::Router;
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::Service;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::auth::Peer;

/// The longest that the headers of a request may take to arrive, and that a kept connection may be idle: one that says
/// nothing must not hold its place for ever. axum's own `serve` has no such bound.
const HEADERS_WITHIN: Duration = Duration::from_secs(30);
/// Before the next try when the system gives out no more connections.
const WHEN_EXHAUSTED: Duration = Duration::from_millis(500);

/// Serves until `stopped` changes or loses its sender, and then until the last connection has ended by itself.
pub(crate) async fn serve(listener: TcpListener, router: Router, mut stopped: watch::Receiver<()>) {
    let connections = GracefulShutdown::new();
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEADERS_WITHIN);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stopped.changed() => break,
        };
        let (stream, address) = match accepted {
            Ok(accepted) => accepted,
            Err(error) if is_of_one_client(error.kind()) => continue,
            Err(error) => {
                tracing::error!("Failed to accept a connection: {error}");
                tokio::time::sleep(WHEN_EXHAUSTED).await;
                continue;
            }
        };
        // An event is one small write, and must not wait for the next one.
        let _ = stream.set_nodelay(true);
        let service = OfPeer {
            router: TowerToHyperService::new(router.clone()),
            peer: Peer(address.ip()),
        };
        let connection = connections.watch(http.serve_connection(TokioIo::new(stream), service));
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!("A connection ended badly: {error}");
            }
        });
    }
    drop(listener);
    connections.shutdown().await;
}

/// The routes for one connection: each request knows the address that it came from.
struct OfPeer {
    router: TowerToHyperService<Router>,
    peer: Peer,
}

impl Service<Request<Incoming>> for OfPeer {
    type Response = <TowerToHyperService<Router> as Service<Request<Incoming>>>::Response;
    type Error = <TowerToHyperService<Router> as Service<Request<Incoming>>>::Error;
    type Future = <TowerToHyperService<Router> as Service<Request<Incoming>>>::Future;

    fn call(&self, mut request: Request<Incoming>) -> Self::Future {
        request.extensions_mut().insert(self.peer);
        self.router.call(request)
    }
}

/// Whether the client has left before it was accepted, which says nothing of the listener.
fn is_of_one_client(kind: ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::ConnectionRefused | ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset
    )
}
