//! What the tables say to somebody who asks: which frontend that is, whether it may be asked, and which endpoints answer.
//!
//! The programs decide by `lb-ebpf/src/balance.rs`, `path.rs` and `socket.rs`; this follows their order. It tells what no
//! verdict shows: the Service behind a refusal, and every endpoint that the next flow could get. For socket calls, whose
//! programs the kernel runs for nobody but a socket, it is the answer; for packets the program itself has the last word.

use aya::Pod;
use lb_agent::{
    dataplane::{Affinities, DataplaneMaps as _, FamilyMaps, KernelMaps},
    jiffies::Jiffies,
    loader::Pins,
    model::Family,
};
use lb_common::{
    abi::{
        Affinity, AffinityKey, BackendFlags, Config, ConfigFlags, Frontend, FrontendFlags, FrontendKey,
        LocalAddressFlags, Prefix, Reason, Service, ServiceFlags, SlotRange,
    },
    hash,
};

use super::super::view::View;

/// A family's part of `CONFIG`.
pub(super) trait Networks: Family {
    /// The network that holds all cluster IPs.
    fn cluster_ips(config: &Config) -> Prefix<Self>;
    /// The network of pods, where they are told by their addresses.
    fn pods(config: &Config) -> Prefix<Self>;
}

impl Networks for [u8; 4] {
    fn cluster_ips(config: &Config) -> Prefix<Self> {
        config.cluster_ips4
    }
    fn pods(config: &Config) -> Prefix<Self> {
        config.pods4
    }
}

impl Networks for [u8; 16] {
    fn cluster_ips(config: &Config) -> Prefix<Self> {
        config.cluster_ips6
    }
    fn pods(config: &Config) -> Prefix<Self> {
        config.pods6
    }
}

/// One family's tables at one time.
pub(super) struct Tables<A> {
    pub(super) view: View<A>,
    pub(super) config: Config,
}

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asker<A> {
    /// A socket of a pod.
    PodSocket,
    /// A socket of the node that sends from this address; unspecified where the kernel is to choose one.
    NodeSocket(A),
    /// A packet from this address, by a pod's interface or not.
    Packet { source: A, from_pod: bool },
}

/// Which of a service's two ranges of slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum List {
    Cluster,
    Local,
}

/// A frontend as it is entered.
pub(super) type Entry<A> = (FrontendKey<A>, Frontend);

/// What an asker finds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Finding<A> {
    pub(super) frontend: Option<Entry<A>>,
    pub(super) becomes: Becomes,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Becomes {
    /// No frontend is asked: not ours.
    NotOurs,
    /// The socket has no address to be judged by. Its packets have.
    ForPackets,
    /// Nothing, for this reason.
    Rejected(Reason, Option<List>),
    /// A flow to one of these backends of the list, by index, each with how many slots it has.
    Balanced(List, Vec<(u32, u32)>),
}

impl List {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Cluster => "cluster",
            Self::Local => "local",
        }
    }

    fn other(self) -> Self {
        match self {
            Self::Cluster => Self::Local,
            Self::Local => Self::Cluster,
        }
    }

    fn mark(self) -> u16 {
        match self {
            Self::Cluster => BackendFlags::IN_CLUSTER,
            Self::Local => BackendFlags::IN_LOCAL,
        }
    }

    fn range(self, service: &Service) -> SlotRange {
        match self {
            Self::Cluster => service.cluster,
            Self::Local => service.local,
        }
    }
}

impl<A: Networks> Tables<A>
where
    KernelMaps: FamilyMaps<A>,
{
    pub(super) fn read(pins: &Pins) -> anyhow::Result<Self> {
        let maps = KernelMaps::open(|map| pins.open(map))?;
        Ok(Self { config: maps.config()?, view: View::new(FamilyMaps::<A>::existing(&maps)?) })
    }
}

impl<A: Networks> Tables<A> {
    /// What becomes of the first packet, or the call, of somebody who asks `key`.
    pub(super) fn ask(&self, key: FrontendKey<A>, asker: Asker<A>) -> Finding<A> {
        let frontend = match self.frontend(key, matches!(asker, Asker::NodeSocket(_))) {
            Ok(Some(frontend)) => frontend,
            Ok(None) => return Finding { frontend: None, becomes: Becomes::NotOurs },
            Err(reason) => return Finding { frontend: None, becomes: Becomes::Rejected(reason, None) },
        };
        Finding { frontend: Some(frontend), becomes: self.becomes(frontend.1, key.address, asker) }
    }

    /// The frontend that is asked, as `balance::frontend` finds it.
    fn frontend(&self, key: FrontendKey<A>, own_loopback: bool) -> Result<Option<Entry<A>>, Reason> {
        if key.address == A::UNSPECIFIED {
            return Ok(None);
        }
        if let Some(found) = self.entry(key)? {
            return Ok(Some(found));
        }
        let own = self.local_flags(key.address);
        if own.is_none() && A::cluster_ips(&self.config).contains(key.address) {
            if let Some(found) = self.entry(FrontendKey::new(key.address, 0, 0))? {
                return Ok(Some(found));
            }
            if self.view.existing.service_cidrs.iter().any(|cidr| cidr.contains(key.address)) {
                return Err(Reason::UnallocatedClusterIp);
            }
        }
        let in_range = (self.config.node_port_min..=self.config.node_port_max).contains(&key.port);
        let answers = own.is_some_and(|flags| {
            flags & LocalAddressFlags::NODE_PORTS != 0 && (flags & LocalAddressFlags::LOOPBACK == 0 || own_loopback)
        });
        if !in_range || !answers {
            return Ok(None);
        }
        self.entry(FrontendKey::new(A::UNSPECIFIED, key.port, key.protocol))
    }

    fn entry(&self, key: FrontendKey<A>) -> Result<Option<Entry<A>>, Reason> {
        match self.view.existing.frontends.iter().find(|(found, _)| *found == key) {
            Some((_, frontend)) if frontend.owner != hash::frontend_owner(&key) => Err(Reason::FrontendRaced),
            found => Ok(found.copied()),
        }
    }

    fn becomes(&self, frontend: Frontend, destination: A, asker: Asker<A>) -> Becomes {
        if frontend.flags & FrontendFlags::SOURCE_RANGES != 0 {
            let source = match asker {
                Asker::PodSocket => return Becomes::ForPackets,
                Asker::NodeSocket(source) => self.sender(source, destination),
                Asker::Packet { source, .. } => Some(source),
            };
            match source {
                None => return Becomes::Rejected(Reason::NoNodeAddress, None),
                Some(source) if !self.view.clients(frontend).any(|clients| clients.contains(source)) => {
                    return Becomes::Rejected(Reason::SourceNotAllowed, None);
                }
                Some(_) => {}
            }
        }
        let list = self.list(frontend, asker);
        if frontend.flags & FrontendFlags::CLUSTER_IP != 0 {
            return Becomes::Rejected(Reason::UndefinedPort, None);
        }
        let Some((_, service)) = self.view.services.get(&frontend.service) else {
            return Becomes::Rejected(Reason::TablesInconsistent, Some(list));
        };
        let shares: Vec<_> = self.view.shares_in(list.range(service)).into_iter().collect();
        if shares.is_empty() {
            let has_endpoints = service.flags & ServiceFlags::HAS_ENDPOINTS != 0;
            let reason = if has_endpoints { Reason::NoLocalEndpoints } else { Reason::NoEndpoints };
            return Becomes::Rejected(reason, Some(list));
        }
        Becomes::Balanced(list, shares)
    }

    /// The list of a frontend for an asker, as `balance::List::of`.
    fn list(&self, frontend: Frontend, asker: Asker<A>) -> List {
        let by_interface = self.config.flags & ConfigFlags::PODS_BY_INTERFACE != 0;
        let by_address = self.config.flags & ConfigFlags::PODS_BY_ADDRESS != 0;
        let is_inside = match asker {
            Asker::NodeSocket(_) => true,
            // A pod's address is of the pods' network, if its family has one.
            Asker::PodSocket => by_interface || by_address && !A::pods(&self.config).is_nothing(),
            Asker::Packet { source, from_pod } => {
                from_pod && by_interface || by_address && A::pods(&self.config).contains(source)
            }
        };
        let has = |flag| frontend.flags & flag != 0;
        if !has(FrontendFlags::LOCAL) || has(FrontendFlags::EXTERNAL) && is_inside {
            List::Cluster
        } else {
            List::Local
        }
    }

    /// The address that a socket of the node sends from.
    fn sender(&self, source: A, destination: A) -> Option<A> {
        if source != A::UNSPECIFIED {
            return Some(source);
        }
        self.local_flags(destination).map(|_| destination).or_else(|| self.node_address())
    }

    /// What an address of the node is for; `None` for another's.
    pub(super) fn local_flags(&self, address: A) -> Option<u32> {
        let mut own = self.view.existing.local_addresses.iter();
        own.find(|(own, _)| *own == address).map(|(_, flags)| *flags)
    }

    /// The node's address towards the other nodes.
    pub(super) fn node_address(&self) -> Option<A> {
        let mut addresses = self.view.existing.node_addresses.iter();
        addresses.find(|(interface, _)| *interface == 0).map(|(_, address)| *address)
    }

    /// The backend that affinity gives a client, by index. Where it has none in this list, that of the other counts.
    pub(super) fn kept(
        &self,
        affinities: &Affinities<A>,
        client: AffinityKey<A>,
        list: List,
    ) -> anyhow::Result<Option<u32>>
    where
        AffinityKey<A>: Pod,
    {
        let seconds = self.view.services.get(&client.service).map_or(0, |(_, service)| service.affinity_seconds);
        if seconds == 0 {
            return Ok(None);
        }
        let clock = Jiffies::now()?;
        let holds = |affinity: &Affinity| {
            clock.seconds_since(affinity.last_used) <= u64::from(seconds)
                && self.view.backends.get(&affinity.backend).is_some_and(|backend| {
                    backend.generation == affinity.generation
                        && backend.service == client.service
                        && backend.flags & list.mark() != 0
                })
        };
        for entered in [list, list.other()] {
            let key = AffinityKey { list: entered.mark().into(), ..client };
            if let Some(affinity) = affinities.get(&key)?.filter(holds) {
                return Ok(Some(affinity.backend));
            }
        }
        Ok(None)
    }
}

/// The keys by which a client may be known, one for each list.
pub(super) fn keys_of<A: Copy>(client: AffinityKey<A>) -> [AffinityKey<A>; 2] {
    [List::Cluster, List::Local].map(|list| AffinityKey { list: list.mark().into(), ..client })
}
