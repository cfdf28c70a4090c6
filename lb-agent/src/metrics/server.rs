//! `/metrics`, `/healthz`, `/proxyMode` and `/configz`, on the port where kube-proxy has them.

use std::{fmt, net::IpAddr, sync::Arc};

use hyper::{StatusCode, header::ACCEPT, http::request::Parts};
use prometheus_client::{encoding::text::encode, registry::Registry};
use tokio::{sync::Mutex, task::spawn_blocking};

use super::{
    Collected, Metrics,
    text::{CLASSIC, OPEN_METRICS, classic},
};
use crate::serve::{Answer, Handler, answer, json, not_found, text};

/// What `/proxyMode` answers. Those who ask want to know whether there are rules of iptables or nftables to look at, or
/// virtual servers of IPVS: of kube-proxy's own answers each would promise some.
const MODE: &str = "lb";

/// Answers those who watch the agent.
pub(crate) struct MetricsServer {
    registry: Arc<Registry>,
    /// What `/configz` answers, whole.
    configuration: Option<String>,
    /// One scrape at a time.
    scraping: Mutex<()>,
}

impl fmt::Debug for MetricsServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MetricsServer").finish_non_exhaustive()
    }
}

impl MetricsServer {
    pub(crate) fn new(metrics: &Metrics, collected: Option<Collected>, configuration: Option<String>) -> Self {
        let mut registry = Registry::default();
        metrics.register(&mut registry);
        if let Some(collected) = collected {
            registry.register_collector(Box::new(collected));
        }
        Self { registry: Arc::new(registry), configuration, scraping: Mutex::new(()) }
    }

    async fn metrics(&self, open_metrics: bool) -> Answer {
        let _turn = self.scraping.lock().await;
        let registry = Arc::clone(&self.registry);
        let work = move || {
            let mut text = String::new();
            encode(&mut text, &registry).map(|()| if open_metrics { text } else { classic(&text) })
        };
        match spawn_blocking(work).await {
            Ok(Ok(text)) => answer(StatusCode::OK, if open_metrics { OPEN_METRICS } else { CLASSIC }, [], text),
            _ => text(StatusCode::INTERNAL_SERVER_ERROR, "the metrics could not be written\n"),
        }
    }
}

impl Handler for MetricsServer {
    async fn answer(&self, request: Parts, _: IpAddr) -> Answer {
        match request.uri.path() {
            "/metrics" => {
                let accepted = request.headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
                let open_metrics = accepted.into_iter().any(|value| value.contains("application/openmetrics-text"));
                self.metrics(open_metrics).await
            }
            // That this process answers, as kube-proxy's does here.
            "/healthz" => text(StatusCode::OK, "ok"),
            "/proxyMode" => text(StatusCode::OK, MODE),
            "/configz" => match &self.configuration {
                Some(configuration) => json(StatusCode::OK, [], configuration.clone()),
                None => not_found(),
            },
            _ => not_found(),
        }
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::jiff::Timestamp;
    use lb_agent::configuration::{Effective, Given};

    use super::*;
    use crate::serve::testing::{get, get_whole, start};

    #[tokio::test]
    async fn each_path_answers_as_that_of_kube_proxy() {
        let metrics = Metrics::new(Timestamp::now());
        let configuration = Effective::new(&Given::default()).expect("defaults").configz();
        let address = start(Arc::new(MetricsServer::new(&metrics, None, Some(configuration.clone()))));
        let head = |kind: &str, length: usize| {
            format!(
                "HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nX-Content-Type-Options: nosniff\r\n\
                 Content-Length: {length}\r\nConnection: close\r\n\r\n"
            )
        };
        let plain = "text/plain; charset=utf-8";
        assert_eq!(get(address, "/healthz").await, head(plain, 2) + "ok");
        assert_eq!(get(address, "/proxyMode").await, head(plain, 2) + "lb");
        let begins = r#"{"kubeproxy.config.k8s.io":{"kind":"KubeProxyConfiguration","apiVersion":"kubeproxy."#;
        assert!(configuration.starts_with(begins), "{configuration}");
        assert_eq!(get(address, "/configz").await, head("application/json", configuration.len()) + &configuration);
        assert_eq!(get(address, "/healthz?verbose").await, head(plain, 2) + "ok");
        for path in ["/flagz", "/statusz", "/metrics/slis", "/healthz/ping", "//healthz"] {
            assert!(get(address, path).await.starts_with("HTTP/1.1 404 Not Found\r\n"), "{path}");
        }
    }

    #[tokio::test]
    async fn metrics_come_in_the_text_that_is_asked_for() {
        let metrics = Metrics::new(Timestamp::now());
        let address = start(Arc::new(MetricsServer::new(&metrics, None, None)));
        let older = get(address, "/metrics").await;
        assert!(older.contains("Content-Type: text/plain; version=0.0.4; charset=utf-8\r\n"), "{older}");
        assert!(older.contains("\n# TYPE lb_map_writes_total counter\nlb_map_writes_total 0\n"), "{older}");
        let accept = "Accept: application/openmetrics-text;version=1.0.0;q=0.75,text/plain;version=0.0.4;q=0.5\r\n";
        let open = get_whole(address, "/metrics", accept).await;
        assert!(
            open.contains("Content-Type: application/openmetrics-text; version=1.0.0; charset=utf-8\r\n"),
            "{open}"
        );
        assert!(open.contains("\n# TYPE lb_map_writes counter\nlb_map_writes_total 0\n"), "{open}");
        assert!(open.ends_with("# EOF\n"), "{open}");
    }
}
