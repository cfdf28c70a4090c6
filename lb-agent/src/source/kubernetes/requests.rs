//! Counting of what is asked of the API server: the outermost layer of the client tells of every request that was
//! answered, or failed.

use std::{
    fmt,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use futures::future::BoxFuture;
use hyper::{Method, Request, Response, http::uri::Authority};
use kube::client::Body;
use tower::Service;

/// A request to the API server, once the headers of its answer are there or it has failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requested {
    /// How it was asked.
    pub method: Method,
    /// Name, or address, and port of the API server.
    pub host: Arc<str>,
    /// The status of the answer; `None` where there is none.
    pub code: Option<u16>,
    /// How long the headers took. `None` for a watch: its answer begins when there is something to tell.
    pub duration: Option<Duration>,
}

/// Who is told of every request.
#[derive(Clone)]
pub struct Observer(Arc<dyn Fn(Requested) + Send + Sync>);

impl Observer {
    /// Calls this, which must not wait for anything.
    pub fn new(observe: impl Fn(Requested) + Send + Sync + 'static) -> Self {
        Self(Arc::new(observe))
    }
}

impl fmt::Debug for Observer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Observer")
    }
}

/// A client's service whose requests are told.
#[derive(Clone, Debug)]
pub(super) struct Observed<S> {
    inner: S,
    host: Arc<str>,
    observer: Observer,
}

impl<S> Observed<S> {
    /// `server` is the API server, which requests do not name before they are through `inner`.
    pub(super) fn new(inner: S, server: Option<&Authority>, observer: Observer) -> Self {
        // Without user and password.
        let host = server.map_or("", |server| server.as_str().rsplit('@').next().unwrap_or_default());
        Self { inner, host: host.into(), observer }
    }
}

impl<S, B> Service<Request<Body>> for Observed<S>
where
    S: Service<Request<Body>, Response = Response<B>>,
    S::Error: 'static,
    S::Future: Send + 'static,
    B: 'static,
{
    type Response = Response<B>;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<Response<B>, S::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let method = request.method().clone();
        let is_watch = request.uri().query().is_some_and(|query| query.split('&').any(|part| part == "watch=true"));
        let (host, observer) = (Arc::clone(&self.host), self.observer.clone());
        let start = Instant::now();
        let answer = self.inner.call(request);
        Box::pin(async move {
            let answer = answer.await;
            let duration = (!is_watch).then(|| start.elapsed());
            let code = answer.as_ref().ok().map(|answer| answer.status().as_u16());
            (observer.0)(Requested { method, host, code, duration });
            answer
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use axum::{Router, http::StatusCode};
    use k8s_openapi::api::core::v1::Service as KubeService;
    use kube::{
        Api, Client,
        api::{ListParams, WatchParams},
    };

    use super::*;

    /// The requests that were told, in order.
    fn told() -> (Observer, Arc<Mutex<Vec<Requested>>>) {
        let all: Arc<Mutex<Vec<Requested>>> = Arc::default();
        let writer = Arc::clone(&all);
        (Observer::new(move |request| writer.lock().expect("held").push(request)), all)
    }

    #[tokio::test]
    async fn every_request_is_told_with_its_answer_and_watches_without_a_duration() {
        let (observer, told) = told();
        let server = Authority::from_static("user:pass@192.0.2.1:6443");
        let router = Router::new().fallback(|| async { (StatusCode::IM_A_TEAPOT, "no") });
        let services = Api::<KubeService>::all(Client::new(Observed::new(router, Some(&server), observer), "default"));
        services.list(&ListParams::default()).await.expect_err("refused");
        drop(services.watch(&WatchParams::default(), "0").await.map(|_| ()).expect_err("refused"));
        services.delete("x", &kube::api::DeleteParams::default()).await.map(|_| ()).expect_err("cluster-wide");
        let told = told.lock().expect("held").clone();
        let seen: Vec<_> = told.iter().map(|r| (r.method.as_str(), &*r.host, r.code, r.duration.is_some())).collect();
        let host = "192.0.2.1:6443";
        let expected =
            [("GET", host, Some(418), true), ("GET", host, Some(418), false), ("DELETE", host, Some(418), true)];
        assert_eq!(seen, expected);
    }

    #[tokio::test]
    async fn a_request_without_an_answer_is_told() {
        struct Refusing;
        impl Service<Request<Body>> for Refusing {
            type Response = Response<Body>;
            type Error = std::io::Error;
            type Future = std::future::Ready<Result<Response<Body>, std::io::Error>>;
            fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), std::io::Error>> {
                Poll::Ready(Ok(()))
            }
            fn call(&mut self, _: Request<Body>) -> Self::Future {
                std::future::ready(Err(std::io::ErrorKind::ConnectionRefused.into()))
            }
        }
        let (observer, told) = told();
        let mut service = Observed::new(Refusing, None, observer);
        let request = Request::get("/api/v1/services").body(Body::empty()).expect("a request");
        service.call(request).await.expect_err("refused");
        let told = told.lock().expect("held").clone();
        assert_eq!((told.len(), told[0].code, told[0].duration.is_some()), (1, None, true));
    }
}
