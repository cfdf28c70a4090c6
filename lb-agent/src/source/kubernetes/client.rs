//! The connection to the API server.

use std::{
    error::Error,
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use http::Uri;
use kube::{
    Client, Config,
    client::ClientBuilder,
    config::{InClusterError, KubeConfigOptions, Kubeconfig, KubeconfigError},
};

use tower::layer::layer_fn;

use super::requests::{Observed, Observer};
use crate::source::reduce::cut;

/// How long a connection may take to come about.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a connection that waits for an answer may be silent before it is given up for dead. An API server sends a
/// bookmark a minute on every watch (`bookmarkFrequency` in its cacher); a server that sends none only makes us
/// resume quiet watches this often.
const READ_TIMEOUT: Duration = Duration::from_secs(90);

/// Why there is no client. Nothing has been sent yet: a server that does not answer is not such an error.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The kubeconfig cannot be read.
    #[error("kubeconfig {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The kubeconfig, or a file that it names, is not usable.
    #[error("kubeconfig {}: {problem}", path.display())]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// This is not a pod, and no kubeconfig was given.
    #[error("no kubeconfig was given, and this is not a pod of a cluster: {0}")]
    InCluster(#[from] InClusterError),
    /// The pod's credentials are not usable.
    #[error("credentials of the pod: {0}")]
    Client(#[source] Box<kube::Error>),
}

/// A client for the cluster of a kubeconfig, or for the cluster whose pod this is. `observer` is told of its requests.
pub async fn connect(kubeconfig: Option<&Path>, observer: Observer) -> Result<Client, ConnectError> {
    let Some(path) = kubeconfig else {
        let config = Config::incluster()?;
        tracing::warn!(
            address = %config.cluster_url,
            "the API server is reached by KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT. Where that is the Service \
             `kubernetes`, which this agent balances itself, an agent that starts on a node without maps never reaches \
             it: set them to the API server's own address, or name that in a kubeconfig"
        );
        let client = client(config, observer);
        return client.map_err(|error| ConnectError::Client(Box::new(error)));
    };
    let unusable = |problem: String| ConnectError::Kubeconfig { path: path.to_owned(), problem: cut(&problem) };
    let parsed = Kubeconfig::read_from(path).map_err(|error| match error {
        KubeconfigError::ReadConfig(source, path) => ConnectError::Read { path, source },
        // The text that surrounds the error may hold credentials.
        KubeconfigError::Parse(error) => unusable(error.without_snippet().to_string()),
        error => unusable(with_causes(&error)),
    })?;
    for cluster in &parsed.clusters {
        let server = cluster.cluster.as_ref().and_then(|cluster| cluster.server.as_deref());
        if let Some(problem) = server.and_then(problem_of_server) {
            return Err(unusable(format!("clusters[{}].cluster.server: {problem}", cluster.name)));
        }
    }
    let config = Config::from_custom_kubeconfig(parsed, &KubeConfigOptions::default()).await;
    let config = config.map_err(|error| unusable(with_causes(&error)))?;
    client(config, observer).map_err(|error| unusable(with_causes(&error)))
}

/// What is wrong with the address of an API server. Some of it would be found out late, by a panic or by another port.
fn problem_of_server(server: &str) -> Option<String> {
    let Ok(uri) = server.parse::<Uri>() else { return Some(format!("{server:?} is not a URL")) };
    let has_port = uri.authority().is_some_and(|authority| {
        let rest = authority.as_str().rsplit('@').next().unwrap_or_default();
        rest.rsplit(']').next().unwrap_or_default().contains(':')
    });
    match uri.scheme_str() {
        Some("https" | "http") if has_port && uri.port_u16().is_none() => {
            Some(format!("{server:?} has no port 1 to 65535"))
        }
        Some("https" | "http") => None,
        Some(scheme) => Some(format!("{server:?} begins with {scheme}, expected https")),
        None => Some(format!("{server:?} does not begin with https://")),
    }
}

fn client(config: Config, observer: Observer) -> Result<Client, kube::Error> {
    let config = tuned(config);
    let server = config.cluster_url.authority().cloned();
    let layer = layer_fn(move |inner| Observed::new(inner, server.as_ref(), observer.clone()));
    Ok(ClientBuilder::try_from(config)?.with_layer(&layer).build())
}

fn tuned(config: Config) -> Config {
    let mut config = config;
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    config.read_timeout = Some(READ_TIMEOUT);
    // So that the time a connection was idle before a request is not counted as waiting for its answer.
    config.reset_reader_on_write = true;
    // The watches back off by themselves, and say so.
    config.default_retry = false;
    config
}

/// An error with its causes, those that its own text does not repeat already. Of each its first line: in those that follow, parsers
/// quote what they were given, which may be a credential (what an exec plugin printed).
pub(super) fn with_causes(error: &dyn Error) -> String {
    let first_line = |error: &dyn Error| error.to_string().lines().next().unwrap_or_default().to_owned();
    let mut text = first_line(error);
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = first_line(error);
        if !text.contains(&next) {
            text = format!("{text}: {next}");
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn message(text: &str) -> String {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("kubeconfig");
        std::fs::write(&path, text).expect("written");
        let message = connect(Some(&path), Observer::new(drop)).await.err().expect("an error").to_string();
        let expected = format!("kubeconfig {}: ", path.display());
        message.strip_prefix(&expected).unwrap_or_else(|| panic!("names no file: {message}")).to_owned()
    }

    #[tokio::test]
    async fn a_kubeconfig_that_does_not_exist_is_named() {
        let message = connect(Some(Path::new("/nowhere/kubeconfig")), Observer::new(drop))
            .await
            .err()
            .expect("an error")
            .to_string();
        assert_eq!(message, "kubeconfig /nowhere/kubeconfig: No such file or directory (os error 2)");
    }

    #[tokio::test]
    async fn a_broken_kubeconfig_is_named_with_what_is_wrong() {
        let with_user = |user: &str| {
            format!(
                "current-context: c\ncontexts: [{{name: c, context: {{cluster: k, user: u}}}}]\n\
                 clusters: [{{name: k, cluster: {{server: 'https://192.0.2.1:6443'}}}}]\n\
                 users: [{{name: u, user: {user}}}]\n"
            )
        };
        for (text, expected) in [
            ("clusters: [".to_owned(), "line 1"),
            ("{}".to_owned(), "current context"),
            ("current-context: here\n".to_owned(), "here"),
            (with_user("{client-certificate: /nowhere/cert, client-key: /nowhere/key}"), "/nowhere/cert"),
            (with_user("{client-certificate-data: '!', client-key-data: '!'}"), "base64"),
        ] {
            let message = message(&text).await;
            assert!(message.contains(expected), "{message:?} for {text}");
        }
    }

    #[tokio::test]
    async fn the_address_of_a_server_is_a_url_with_a_port_that_there_is() {
        for (server, expected) in [
            ("192.0.2.1:6443", "does not begin with https://"),
            ("ftp://192.0.2.1", "begins with ftp, expected https"),
            ("https://192.0.2.1:70000", "has no port 1 to 65535"),
            ("https://[2001:db8::1]:70000", "has no port 1 to 65535"),
        ] {
            let message = message(&format!(
                "current-context: c\ncontexts: [{{name: c, context: {{cluster: k}}}}]\n\
                 clusters: [{{name: k, cluster: {{server: '{server}'}}}}]\n"
            ))
            .await;
            assert_eq!(message, format!("clusters[k].cluster.server: {server:?} {expected}"));
        }
        for server in
            ["https://192.0.2.1", "https://[2001:db8::1]", "https://api.example:6443/prefix", "http://127.0.0.1:8080"]
        {
            assert_eq!(problem_of_server(server), None, "{server}");
        }
    }

    #[tokio::test]
    async fn what_an_exec_plugin_printed_is_not_printed_again() {
        let message = message(
            "current-context: c\ncontexts: [{name: c, context: {cluster: k, user: u}}]\n\
             clusters: [{name: k, cluster: {server: 'https://192.0.2.1:6443'}}]\n\
             users: [{name: u, user: {exec: {apiVersion: client.authentication.k8s.io/v1, command: echo, args: [s3cret], \
             interactiveMode: Never}}}]\n",
        )
        .await;
        assert!(message.contains("auth exec output") && !message.contains("s3cret"), "{message}");
    }

    #[tokio::test]
    async fn a_broken_kubeconfig_does_not_print_its_secrets() {
        let message = message("users:\n- name: u\n  user: {token: s3cret\n  oops: [").await;
        assert!(!message.contains("s3cret"), "{message}");
    }
}
