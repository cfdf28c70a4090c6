//! `/healthz` and `/livez`, on the port where kube-proxy has them: the one says whether the node serves its Services, the
//! other whether the agent lives. An API server that is away is no reason to restart it.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum::{Router, http::StatusCode, routing::get};
use tokio::{net::TcpListener, sync::oneshot};

/// Pause before an address that is in use is tried again.
const RETRY: Duration = Duration::from_secs(5);

/// Whether the maps have been brought up to date once.
pub(crate) type Synchronized = Arc<AtomicBool>;

/// Serves until the process ends. What is returned hears of it if the address cannot be had at once, and of nothing else.
pub(crate) fn start(address: SocketAddr, synchronized: Synchronized) -> oneshot::Receiver<io::Error> {
    let (sender, failure) = oneshot::channel();
    tokio::spawn(serve(address, synchronized, sender));
    failure
}

/// An address that cannot be had is logged, and tried again: the data plane is worth more than its probe.
async fn serve(address: SocketAddr, synchronized: Synchronized, first_failure: oneshot::Sender<io::Error>) {
    let mut first_failure = Some(first_failure);
    let listener = loop {
        match TcpListener::bind(address).await {
            Ok(listener) => break listener,
            Err(error) => {
                tracing::error!("--healthz-bind-address {address}: {error}; trying again");
                if let Some(sender) = first_failure.take() {
                    // Nobody listens where the failure is not fatal.
                    let _ = sender.send(error);
                }
            }
        }
        tokio::time::sleep(RETRY).await;
    };
    // Only accepting can fail, and axum goes on after that.
    if let Err(error) = axum::serve(listener, router(synchronized)).await {
        tracing::error!("--healthz-bind-address {address}: {error}");
    }
}

fn router(synchronized: Synchronized) -> Router {
    let answer = move || {
        let ready = synchronized.load(Ordering::Relaxed);
        async move {
            if ready {
                (StatusCode::OK, "ok\n")
            } else {
                (StatusCode::SERVICE_UNAVAILABLE, "the maps have not been synchronized yet\n")
            }
        }
    };
    Router::new().route("/healthz", get(answer)).route("/livez", get(|| async { "ok\n" }))
}
