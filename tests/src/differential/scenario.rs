//! Scenarios: Kubernetes YAML, with a header.
//!
//! ```yaml
//! kind: Scenario
//! about: What must hold, as a sentence.
//! ---
//! apiVersion: v1
//! kind: Service        # and more objects, which are applied in this order; then everything is probed
//! ---
//! kind: Step           # a change, after which everything is probed again
//! about: What happens.
//! delete: [Service/web]
//! wait: 5              # seconds, before it is probed
//! affinity: lasts      # clients that Services keep at an endpoint are where they were; or: expires
//! ---
//! apiVersion: v1       # what is applied in this step
//! ```
//!
//! Objects are written as the API server takes them; a Service's `status` goes to its subresource. They are in the
//! namespace `default` where they name none. The objects of a step are applied over those that are there.

use std::{collections::BTreeMap, fmt, fs, net::IpAddr, path::Path, time::Duration};

use serde::Deserialize;
use serde_json::Value;

use super::{http::Request, lapse::Lapse, probe::ClientKind, target::FrontendKind};
use crate::lab::client::Transport;

/// A scenario.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// How it is told from others: the file's name without its ending.
    pub name: String,
    /// What is before the first step.
    pub header: Header,
    /// The first one is the beginning.
    pub steps: Vec<Step>,
}

/// The document of kind `Scenario`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Header {
    #[serde(rename = "kind")]
    _kind: String,
    /// What must hold, as a sentence.
    pub about: String,
    /// Why `lb-agent` cannot do this yet: the scenario is run and reported, but does not fail.
    pub pending: Option<String>,
    /// Fields of a `KubeProxyConfiguration` (v1alpha1) that both proxies are started with, over the lab's own.
    #[serde(default)]
    pub proxy: serde_json::Map<String, Value>,
    /// Whether `lb-agent` is started with the file that kubeadm writes, with the lab's own networks of pods. Nothing of
    /// `proxy` is then in force there.
    #[serde(default)]
    pub kubeadm: bool,
    /// A file beside this one whose objects and steps are used, before those of this one.
    pub like: Option<String>,
    /// More addresses of the node, with their prefix lengths.
    #[serde(default, rename = "nodeAddresses")]
    pub node_addresses: Vec<String>,
    /// Who asks; everyone where none is named.
    #[serde(default)]
    pub clients: Vec<ClientKind>,
    /// What is asked beside the frontends of the Services.
    #[serde(default)]
    pub also: Vec<Also>,
    /// Whether the frontends are asked by new connections, as they are unless a scenario is about something else.
    #[serde(default = "yes")]
    pub probe: bool,
    /// Whether each client also [keeps](super::kept) an exchange with each frontend of the first step, through all steps.
    #[serde(default)]
    pub keep: bool,
    /// What the proxies' own servers are asked after each step.
    #[serde(default)]
    pub requests: Vec<Request>,
}

fn yes() -> bool {
    true
}

/// An address and port that belong to no Service.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Also {
    /// What it is.
    pub what: FrontendKind,
    /// The address.
    pub address: IpAddr,
    /// The port.
    pub port: u16,
    /// `TCP` or `UDP`.
    pub protocol: Protocol,
}

/// The protocol of an [`Also`].
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Protocol {
    pub(super) fn transport(self) -> Transport {
        match self {
            Self::Tcp => Transport::Tcp,
            Self::Udp => Transport::Udp,
        }
    }
}

/// A change.
#[derive(Clone, Debug, Default)]
pub struct Step {
    /// What happens.
    pub about: String,
    /// What is deleted first.
    pub delete: Vec<Named>,
    /// What is then applied.
    pub apply: Vec<Value>,
    /// How long nobody asks then.
    pub wait: Duration,
    /// Whether clients that were kept at an endpoint are there then, if it is about that.
    pub affinity: Option<Lapse>,
}

/// The document of kind `Step`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct StepHeader {
    #[serde(rename = "kind")]
    _kind: String,
    about: String,
    #[serde(default)]
    delete: Vec<String>,
    /// Seconds.
    #[serde(default)]
    wait: u64,
    affinity: Option<Lapse>,
}

/// An object of the API.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Named {
    /// `Service`, …
    pub kind: String,
    /// Its namespace; `default` for those that have none.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl Named {
    /// Of an object.
    pub fn of(object: &Value) -> Result<Self, String> {
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let metadata = &object["metadata"];
        Ok(Self {
            kind: text(&object["kind"]).ok_or("a document without kind")?,
            namespace: text(&metadata["namespace"]).unwrap_or_else(|| "default".to_owned()),
            name: text(&metadata["name"]).ok_or("an object without metadata.name")?,
        })
    }

    /// Of `Kind/name` or `Kind/namespace/name`.
    fn parse(text: &str) -> Result<Self, String> {
        let parts: Vec<&str> = text.split('/').collect();
        let (kind, namespace, name) = match parts[..] {
            [kind, name] => (kind, "default", name),
            [kind, namespace, name] => (kind, namespace, name),
            _ => return Err(format!("{text:?} is neither Kind/name nor Kind/namespace/name")),
        };
        Ok(Self { kind: kind.to_owned(), namespace: namespace.to_owned(), name: name.to_owned() })
    }
}

impl fmt::Display for Named {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, namespace, name } = self;
        write!(f, "{kind}/{namespace}/{name}")
    }
}

impl Scenario {
    /// The text of a file, with that of the file that it is [like](Header::like).
    pub fn read(path: &Path) -> Result<String, String> {
        let read = |path: &Path| fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()));
        let text = read(path)?;
        let Some(other) = Self::parse(&path.to_string_lossy(), &text)?.header.like else { return Ok(text) };
        let other = read(&path.with_file_name(other).with_extension("yaml"))?;
        let (header, steps) = text.split_once("\n---\n").unwrap_or((&text, ""));
        let (_, other_steps) = other.split_once("\n---\n").unwrap_or((&other, ""));
        Ok([header, other_steps, steps].join("\n---\n"))
    }

    /// Reads the text of a file of this name.
    pub fn parse(name: &str, text: &str) -> Result<Self, String> {
        let documents: Vec<Value> =
            serde_saphyr::from_multiple(text).map_err(|error| format!("{name}: {}", error.without_snippet()))?;
        Self::collect(name, documents).map_err(|error| format!("{name}: {error}"))
    }

    fn collect(name: &str, documents: Vec<Value>) -> Result<Self, String> {
        let mut documents = documents.into_iter();
        let header = documents.next().filter(|document| document["kind"] == "Scenario");
        let header: Header = read(header.ok_or("the first document is not of kind Scenario")?)?;
        let mut steps = vec![Step { about: "at the beginning".to_owned(), ..Step::default() }];
        // An empty document is what is left between two separators.
        for document in documents.filter(|document| !document.is_null()) {
            if document["kind"] == "Step" {
                let StepHeader { about, delete, wait, affinity, .. } = read(document)?;
                let delete = delete.iter().map(|text| Named::parse(text)).collect::<Result<_, _>>()?;
                let wait = Duration::from_secs(wait);
                steps.push(Step { about, delete, apply: Vec::new(), wait, affinity });
            } else {
                Named::of(&document)?;
                steps.last_mut().expect("it begins with one").apply.push(document);
            }
        }
        Ok(Self { name: name.to_owned(), header, steps })
    }

    /// The Services of all steps, as they are written.
    pub fn services(&self) -> impl Iterator<Item = &Value> {
        self.steps.iter().flat_map(|step| &step.apply).filter(|object| object["kind"] == "Service")
    }

    /// The objects that there are after this step, each as it was written last.
    pub fn objects_after(&self, step: usize) -> impl Iterator<Item = &Value> {
        let mut objects = BTreeMap::new();
        for Step { delete, apply, .. } in &self.steps[..=step] {
            for named in delete {
                objects.remove(named);
            }
            objects.extend(apply.iter().filter_map(|object| Some((Named::of(object).ok()?, object))));
        }
        objects.into_values()
    }

    /// Who asks.
    pub fn clients(&self) -> Vec<ClientKind> {
        if self.header.clients.is_empty() { ClientKind::ALL.to_vec() } else { self.header.clients.clone() }
    }
}

fn read<T: serde::de::DeserializeOwned>(document: Value) -> Result<T, String> {
    serde_json::from_value(document).map_err(|error| error.to_string())
}
