//! Services and their endpoints as manifests, the agents' input: Kubernetes YAML in a directory.

use std::{
    fmt::{self, Write},
    fs, io,
    net::SocketAddr,
    os::unix::fs::{MetadataExt, chown},
    path::{Path, PathBuf},
};

use super::{
    Addresses, Family, Host,
    client::Transport,
    cluster_ips,
    server::{ECHO_PORT, HTTP_PORT},
};

/// Ports of every Service of the lab; the servers listen on others.
pub const SERVICE_ECHO_PORT: u16 = 7;
/// As [`SERVICE_ECHO_PORT`], for HTTP.
pub const SERVICE_HTTP_PORT: u16 = 80;

/// A dual-stack Service that maps [`SERVICE_ECHO_PORT`] (TCP and UDP) and [`SERVICE_HTTP_PORT`] to the servers of
/// pods, and its `EndpointSlice`s.
#[derive(Clone, Debug)]
pub struct Service {
    name: String,
    number: u8,
    internal_policy_local: bool,
    external_policy_local: bool,
    balance: Option<&'static str>,
    endpoints: Vec<Endpoint>,
}

#[derive(Clone, Debug)]
struct Endpoint {
    addresses: Addresses,
    node: String,
}

impl Service {
    /// The `number`th Service of the lab (1 to 99), without endpoints: the number gives it its cluster IPs and node
    /// ports.
    pub fn new(name: &str, number: u8) -> Self {
        assert!((1..100).contains(&number), "Services are numbered 1 to 99");
        let (internal_policy_local, external_policy_local) = (false, false);
        Self {
            name: name.to_owned(),
            number,
            internal_policy_local,
            external_policy_local,
            balance: None,
            endpoints: Vec::new(),
        }
    }

    /// With `internalTrafficPolicy: Local`.
    #[must_use]
    pub fn internal_policy_local(self) -> Self {
        Self { internal_policy_local: true, ..self }
    }

    /// With `externalTrafficPolicy: Local`.
    #[must_use]
    pub fn external_policy_local(self) -> Self {
        Self { external_policy_local: true, ..self }
    }

    /// With backends selected in this way.
    #[must_use]
    pub fn balance(self, way: &'static str) -> Self {
        Self { balance: Some(way), ..self }
    }

    /// With these pods as its endpoints.
    #[must_use]
    pub fn with_endpoints<'a>(self, pods: impl IntoIterator<Item = &'a Host>) -> Self {
        let endpoints = pods.into_iter().map(|pod| {
            let (node, _) = pod.name().split_once('-').expect("pods are named after their nodes");
            Endpoint { addresses: pod.addresses(), node: node.to_owned() }
        });
        Self { endpoints: endpoints.collect(), ..self }
    }

    /// `metadata.name`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where clients inside the cluster find it.
    pub fn cluster_address(&self, family: Family, transport: Transport) -> SocketAddr {
        let port = if transport == Transport::Http { SERVICE_HTTP_PORT } else { SERVICE_ECHO_PORT };
        SocketAddr::new(cluster_ips(self.number).of(family), port)
    }

    /// Where any client finds it, on a node.
    pub fn node_port_address(&self, node: &Host, family: Family, transport: Transport) -> SocketAddr {
        let [echo, http] = self.node_ports();
        SocketAddr::new(node.address(family), if transport == Transport::Http { http } else { echo })
    }

    /// For the echo ports and for HTTP: 30000 or 30100, plus the Service's number.
    fn node_ports(&self) -> [u16; 2] {
        [30000, 30100].map(|base| base + u16::from(self.number))
    }
}

impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, number, internal_policy_local, external_policy_local, balance, endpoints } = self;
        let Addresses { v4, v6 } = cluster_ips(*number);
        let policy = |is_local| if is_local { "Local" } else { "Cluster" };
        let (internal, external) = (policy(*internal_policy_local), policy(*external_policy_local));
        let annotations = balance.map(|way| format!(", annotations: {{lb-agent/balance: {way}}}")).unwrap_or_default();
        let [echo_node_port, http_node_port] = self.node_ports();
        write!(
            f,
            "\
apiVersion: v1
kind: Service
metadata: {{namespace: lab, name: {name}{annotations}}}
spec:
  type: NodePort
  clusterIP: {v4}
  clusterIPs: [\"{v4}\", \"{v6}\"]
  ipFamilies: [IPv4, IPv6]
  ipFamilyPolicy: RequireDualStack
  internalTrafficPolicy: {internal}
  externalTrafficPolicy: {external}
  ports:
  - {{name: echo-tcp, protocol: TCP, port: {SERVICE_ECHO_PORT}, targetPort: {ECHO_PORT}, nodePort: {echo_node_port}}}
  - {{name: echo-udp, protocol: UDP, port: {SERVICE_ECHO_PORT}, targetPort: {ECHO_PORT}, nodePort: {echo_node_port}}}
  - {{name: http, protocol: TCP, port: {SERVICE_HTTP_PORT}, targetPort: {HTTP_PORT}, nodePort: {http_node_port}}}
"
        )?;
        for family in Family::BOTH {
            write!(
                f,
                "\
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{namespace: lab, name: {name}-{slice}, labels: {{kubernetes.io/service-name: {name}}}}}
addressType: {family}
ports:
- {{name: echo-tcp, protocol: TCP, port: {ECHO_PORT}}}
- {{name: echo-udp, protocol: UDP, port: {ECHO_PORT}}}
- {{name: http, protocol: TCP, port: {HTTP_PORT}}}
endpoints:",
                slice = family.to_string().to_lowercase()
            )?;
            f.write_str(if endpoints.is_empty() { " []\n" } else { "\n" })?;
            for Endpoint { addresses, node } in endpoints {
                writeln!(
                    f,
                    "- {{addresses: [\"{}\"], nodeName: {node}, conditions: {{ready: true}}}}",
                    addresses.of(family)
                )?;
            }
        }
        Ok(())
    }
}

/// A directory of manifests that agents follow.
#[derive(Clone, Debug)]
pub struct Manifests {
    directory: PathBuf,
}

impl Manifests {
    /// Makes the directory if there is none, with the Node objects of the lab in it.
    pub fn create<'a>(directory: impl Into<PathBuf>, nodes: impl IntoIterator<Item = &'a Host>) -> Self {
        let manifests = Self { directory: directory.into() };
        fs::create_dir_all(&manifests.directory)
            .unwrap_or_else(|error| panic!("mkdir {}: {error}", manifests.directory.display()));
        let mut objects = String::new();
        for node in nodes {
            let (name, Addresses { v4, v6 }) = (node.name(), node.addresses());
            write!(
                objects,
                "\
---
apiVersion: v1
kind: Node
metadata: {{name: {name}, labels: {{kubernetes.io/hostname: {name}}}}}
status:
  addresses:
  - {{type: InternalIP, address: \"{v4}\"}}
  - {{type: InternalIP, address: \"{v6}\"}}
"
            )
            .expect("write to a string");
        }
        manifests.write("nodes.yaml", &objects);
        manifests
    }

    /// Writes or replaces a Service and its slices.
    pub fn apply(&self, service: &Service) {
        self.write(&file_name(service), &service.to_string());
    }

    /// Removes a Service and its slices.
    pub fn delete(&self, service: &Service) {
        let path = self.path(service);
        fs::remove_file(&path).unwrap_or_else(|error| panic!("remove {}: {error}", path.display()));
    }

    /// Where they are.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The file of a Service and its slices.
    pub fn path(&self, service: &Service) -> PathBuf {
        self.directory.join(file_name(service))
    }

    /// Writes or replaces a file.
    pub fn write(&self, name: &str, text: &str) {
        self.try_write(name, text)
            .unwrap_or_else(|error| panic!("write {}: {error}", self.directory.join(name).display()));
    }

    /// As [`write`](Self::write), where somebody else may have taken the directory away: under another name first, so
    /// that nobody reads half of it, and as a file of the directory's owner, who may want to edit it.
    pub fn try_write(&self, name: &str, text: &str) -> io::Result<()> {
        let (new, path) = (self.directory.join(format!(".{name}.new")), self.directory.join(name));
        let owner = fs::metadata(&self.directory)?;
        fs::write(&new, text)?;
        chown(&new, Some(owner.uid()), Some(owner.gid()))?;
        fs::rename(&new, &path)
    }
}

fn file_name(service: &Service) -> String {
    format!("{}.yaml", service.name())
}
