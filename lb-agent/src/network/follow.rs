//! Reads and follows the kernel's tables.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    future::Future,
    io,
    net::IpAddr,
    time::Duration,
};

use futures::{StreamExt as _, TryStreamExt as _, channel::mpsc::UnboundedReceiver};
use lb_common::ports::Reserved;
use rtnetlink::{
    Handle, MulticastGroup, RouteMessageBuilder, new_multicast_connection,
    packet_core::{NetlinkMessage, NetlinkPayload},
    packet_route::{AddressFamily, RouteNetlinkMessage},
    sys::SocketAddr,
};
use tokio::{sync::watch, time::Instant};

use super::{
    Network,
    messages::{address, link, ways_out},
    tables::{Route, Tables},
};
use crate::loader::Role;

const PORT_RANGE: &str = "/proc/sys/net/ipv4/ip_local_port_range";

/// How long after a change of a route the routes are read: daemons change many at once.
const ROUTES_SETTLE: Duration = Duration::from_millis(50);
/// How often everything is read anew, whatever the events said. Also when a changed port range is noticed, which has
/// no event.
const READ_ANEW: Duration = Duration::from_secs(60);
/// Pause before a lost connection is made again.
const RECONNECT: Duration = Duration::from_secs(1);

/// How the node's network is read.
#[derive(Clone, Debug)]
pub struct Options {
    /// Names of the uplinks; `None` = found. One that is not there is served when it comes.
    pub devices: Option<Vec<String>>,
    /// The API server's `--service-node-port-range`.
    pub node_ports: Reserved,
}

/// Why the node's network could not be read.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// The kernel's tables could not be read.
    #[error("rtnetlink: {0}")]
    Netlink(#[from] rtnetlink::Error),
    /// No connection to the kernel.
    #[error("rtnetlink: {0}")]
    Connect(io::Error),
    /// The connection broke, or events were lost.
    #[error("rtnetlink: connection lost")]
    Lost,
    /// The range of local ports could not be read.
    #[error("{PORT_RANGE}: {0}")]
    PortRange(io::Error),
}

type Events = UnboundedReceiver<(NetlinkMessage<RouteNetlinkMessage>, SocketAddr)>;

/// Follows the node's network.
#[derive(Debug)]
pub struct Watcher {
    options: Options,
    tables: Tables,
    local_ports: Reserved,
    handle: Handle,
    events: Events,
}

impl Watcher {
    /// Reads the network of this thread's namespace, and follows it from then on.
    pub async fn start(options: Options) -> Result<Self, NetworkError> {
        let (handle, events) = connect()?;
        let tables = read(&handle).await?;
        Ok(Self { options, tables, local_ports: local_ports()?, handle, events })
    }

    /// Takes over what devices were to a former agent: its uplinks stay uplinks until the node's addresses are known.
    pub fn inherit(&mut self, devices: &BTreeMap<u32, Option<Role>>) {
        self.tables.inherit(devices);
    }

    /// The network as it is known now. `internal` are the addresses of type `InternalIP` of this node, if they are known.
    pub fn network(&mut self, internal: Option<&[IpAddr]>) -> Network {
        self.tables.network(self.options.devices.as_deref(), internal, [self.local_ports, self.options.node_ports])
    }

    /// Keeps `changes` up to date until nobody listens. A problem is logged and mended; the last good state stays.
    pub async fn run(mut self, mut internal: watch::Receiver<Option<Vec<IpAddr>>>, changes: watch::Sender<Network>) {
        let mut routes_due: Option<Instant> = None;
        let mut anew_due = Instant::now() + READ_ANEW;
        loop {
            let network = self.network(internal.borrow_and_update().as_deref());
            changes.send_if_modified(|current| {
                let differs = *current != network;
                *current = network;
                differs
            });
            let due = routes_due.map_or(anew_due, |due| due.min(anew_due));
            let result = tokio::select! {
                event = self.events.next() => self.take_in(event, &mut routes_due),
                () = tokio::time::sleep_until(due) => {
                    let anew = anew_due <= Instant::now();
                    routes_due = None;
                    if anew {
                        anew_due = Instant::now() + READ_ANEW;
                        self.read_anew().await
                    } else {
                        routes(&self.handle).await.map(|routes| self.tables.routes = routes)
                    }
                }
                Ok(()) = internal.changed() => Ok(()),
                () = changes.closed() => return,
            };
            if let Err(error) = result {
                tracing::warn!(%error, "reading the node's network anew");
                self.reconnect().await;
            }
        }
    }

    /// Takes in an event and all that wait behind it.
    fn take_in(
        &mut self,
        mut event: Option<(NetlinkMessage<RouteNetlinkMessage>, SocketAddr)>,
        routes_due: &mut Option<Instant>,
    ) -> Result<(), NetworkError> {
        loop {
            // The connection ends when the kernel had to drop events.
            let Some((message, _)) = event else { return Err(NetworkError::Lost) };
            match message.payload {
                NetlinkPayload::InnerMessage(message) => {
                    if self.apply(message) {
                        routes_due.get_or_insert_with(|| Instant::now() + ROUTES_SETTLE);
                    }
                }
                NetlinkPayload::Overrun(_) => return Err(NetworkError::Lost),
                _ => {}
            }
            match self.events.try_recv() {
                Ok(next) => event = Some(next),
                Err(error) if error.is_closed() => return Err(NetworkError::Lost),
                Err(_) => return Ok(()),
            }
        }
    }

    /// Returns whether the routes must be read again.
    fn apply(&mut self, message: RouteNetlinkMessage) -> bool {
        match message {
            RouteNetlinkMessage::NewLink(message) => {
                // The events of bridges about their ports come as links too, with a family.
                if message.header.interface_family == AddressFamily::Unspec {
                    self.tables.links.insert(message.header.index, link(&message));
                }
                // A device that goes down takes its IPv4 routes along, which have no events of their own.
                true
            }
            RouteNetlinkMessage::DelLink(message) => {
                if message.header.interface_family == AddressFamily::Unspec {
                    self.tables.remove_link(message.header.index);
                }
                true
            }
            RouteNetlinkMessage::NewAddress(message) => {
                if let Some(address) = address(&message) {
                    self.tables.insert_address(address);
                }
                false
            }
            RouteNetlinkMessage::DelAddress(message) => {
                if let Some(address) = address(&message) {
                    self.tables.remove_address(address.device, address.ip);
                }
                true
            }
            RouteNetlinkMessage::NewRoute(message) | RouteNetlinkMessage::DelRoute(message) => {
                !ways_out(&message).is_empty()
            }
            _ => false,
        }
    }

    async fn read_anew(&mut self) -> Result<(), NetworkError> {
        let read = read(&self.handle).await?;
        let former = std::mem::replace(&mut self.tables, read);
        self.tables.once_uplinks = former.once_uplinks;
        self.tables.inherited = former.inherited;
        self.local_ports = local_ports()?;
        Ok(())
    }

    async fn reconnect(&mut self) {
        loop {
            let connected = async {
                (self.handle, self.events) = connect()?;
                self.read_anew().await
            };
            match connected.await {
                Ok(()) => return,
                Err(error) => tracing::warn!(%error, "the node's network cannot be read; trying again"),
            }
            tokio::time::sleep(RECONNECT).await;
        }
    }
}

fn connect() -> Result<(Handle, Events), NetworkError> {
    let groups = [
        MulticastGroup::Link,
        MulticastGroup::Ipv4Ifaddr,
        MulticastGroup::Ipv6Ifaddr,
        MulticastGroup::Ipv4Route,
        MulticastGroup::Ipv6Route,
    ];
    let (connection, handle, events) = new_multicast_connection(&groups).map_err(NetworkError::Connect)?;
    // Ends when both the handle and the events are dropped, or the connection breaks.
    tokio::spawn(connection);
    Ok((handle, events))
}

async fn read(handle: &Handle) -> Result<Tables, NetworkError> {
    let mut tables = Tables::default();
    let mut links = std::pin::pin!(handle.link().get().execute());
    while let Some(message) = links.try_next().await? {
        tables.links.insert(message.header.index, link(&message));
    }
    let mut addresses = std::pin::pin!(handle.address().get().execute());
    while let Some(message) = addresses.try_next().await? {
        tables.addresses.extend(address(&message));
    }
    tables.routes = routes(handle).await?;
    Ok(tables)
}

fn routes(handle: &Handle) -> impl Future<Output = Result<BTreeSet<Route>, NetworkError>> + use<> {
    let route = handle.route();
    async move {
        let mut routes = BTreeSet::new();
        for request in [
            RouteMessageBuilder::<std::net::Ipv4Addr>::new().build(),
            RouteMessageBuilder::<std::net::Ipv6Addr>::new().build(),
        ] {
            let mut messages = std::pin::pin!(route.get(request).execute());
            while let Some(message) = messages.try_next().await? {
                routes.extend(ways_out(&message));
            }
        }
        Ok(routes)
    }
}

/// `net.ipv4.ip_local_port_range`.
pub(crate) fn local_ports() -> Result<Reserved, NetworkError> {
    let text = fs::read_to_string(PORT_RANGE).map_err(NetworkError::PortRange)?;
    let mut ports = text.split_whitespace().filter_map(|port| port.parse().ok());
    match (ports.next(), ports.next()) {
        (Some(first), Some(last)) => Ok(Reserved { first, last }),
        _ => Err(NetworkError::PortRange(io::Error::other(format!("unexpected content {text:?}")))),
    }
}
